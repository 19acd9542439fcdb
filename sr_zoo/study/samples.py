"""Samples of a study: one crop of each photograph, degraded in every way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from sr_zoo.degradations import Degradation
from sr_zoo.samples import draw_pairs, squared_error

Sample: TypeAlias = tuple[Tensor, Tensor, Tensor]


def restoration_error(model: nn.Module, sample: Sample) -> Tensor:
    """The paper's loss of a sample; see `sr_zoo.samples.squared_error`.

    Args:
        model: The network.
        sample: Degraded crop, reference, and the same crop without degradation.

    Returns:
        A scalar.

    Example:
        >>> ones = torch.ones(1, 3, 2, 2)
        >>> restoration_error(nn.Identity(), (ones, 0 * ones, ones))
        tensor(12.)
    """
    return squared_error(model, sample[:2])


def row_errors(model: nn.Module, sample: Sample) -> Tensor:
    """The same loss for every crop of a batch.

    Args:
        model: The network.
        sample: A batch; see `batches_of`.

    Returns:
        Shape ``(N,)``.
    """
    restored: Tensor = model(sample[0])
    return (restored - sample[1]).square().sum((1, 2, 3))


def batches_of(samples: Sequence[Sample], size: int = 5) -> list[Sample]:
    """Join samples, for evaluations that give one number per row.

    Args:
        samples: Samples of one crop each.
        size: Crops in a batch.

    Returns:
        Fewer samples with the same crops in the same order.

    Example:
        >>> one = torch.zeros(1, 3, 4, 4)
        >>> [len(batch[0]) for batch in batches_of([(one, one, one)] * 7)]
        [5, 2]
    """
    groups = [samples[place : place + size] for place in range(0, len(samples), size)]
    return [
        (torch.cat(first), torch.cat(second), torch.cat(third))
        for group in groups
        for first, second, third in [zip(*group, strict=True)]
    ]


def draw_samples(
    photographs: Sequence[Tensor],
    inputs: Mapping[str, Degradation],
    *,
    count: int,
    size: int,
    scale: int,
    seed: int,
) -> dict[str, list[Sample]]:
    """Cut one random crop of each photograph, in random order, and begin again when there are no more.

    Crops of different photographs are independent, which intervals over samples assume.

    Args:
        photographs: ``uint8`` tensors of shape ``(3, H, W)``.
        inputs: Name to degradation; ``"clean"`` must be among them.
        count: Number of crops.
        size: Width of a reference crop in pixels, a multiple of the scale.
        scale: Upscaling factor.
        seed: Seed of the crops and of the degradations.

    Returns:
        Name to ``count`` samples; sample i of every name shows the same crop.

    Example:
        >>> from sr_zoo.degradations import evaluation_inputs
        >>> photographs = [torch.zeros(3, 80, 80, dtype=torch.uint8)]
        >>> samples = draw_samples(photographs, evaluation_inputs(2), count=2, size=48, scale=2, seed=0)
        >>> [tuple(part.shape) for part in samples["blur"][1]]
        [(1, 3, 24, 24), (1, 3, 48, 48), (1, 3, 24, 24)]
    """
    order = torch.randperm(len(photographs), generator=torch.Generator().manual_seed(seed), device="cpu").tolist()
    samples: dict[str, list[Sample]] = {name: [] for name in inputs}
    for index in range(count):
        photograph = photographs[order[index % len(order)]]
        pairs = draw_pairs(
            [photograph],
            inputs,
            count=1,
            size=size,
            scale=scale,
            seed=seed * 100_003 + index,
            margin=margin_of(scale),
        )
        for name, ((degraded, reference),) in pairs.items():
            samples[name].append((degraded, reference, pairs["clean"][0][0]))
    return samples


def margin_of(scale: int) -> int:
    """Pixels around a crop that take part in its degradation: a multiple of the scale.

    Args:
        scale: Upscaling factor.

    Returns:
        About 16.

    Example:
        >>> margin_of(2), margin_of(3)
        (16, 18)
    """
    return -(-16 // scale) * scale


def towards_degraded(sample: Sample, t: float) -> Sample:
    """Path of the input from the clean crop (t = 0) to the degraded one (t = 1), for rankings that move the input.

    Args:
        sample: The sample.
        t: Place on the path.

    Returns:
        The sample at that place.

    Example:
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> towards_degraded((one, one, zero), 0.25)[0]
        tensor([0.2500])
    """
    degraded, reference, clean = sample
    return clean + t * (degraded - clean), reference, clean
