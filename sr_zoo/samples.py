"""Samples for attribution and evaluation: pairs of a degraded crop and its reference, and the loss of the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from sr_zoo.data import PatchSampler, without_border
from sr_zoo.degradations import Degradation

Pair: TypeAlias = tuple[Tensor, Tensor]


def squared_error(model: nn.Module, pair: Pair) -> Tensor:
    r"""The paper's loss :math:`\lVert F(\theta, x) - x_{gt} \rVert^2`, summed over pixels and channels.

    Args:
        model: The network.
        pair: ``degraded`` of shape ``(N, 3, h, w)`` and ``reference`` of shape ``(N, 3, H, W)``.

    Returns:
        A scalar.

    Example:
        >>> squared_error(nn.Identity(), (torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)))
        tensor(12.)

    References:
        Xie et al., NeurIPS 2021, equation 3.
    """
    degraded, reference = pair
    restored: Tensor = model(degraded)
    return (restored - reference).square().sum()


def restored(model: nn.Module, sample: tuple[Tensor, ...]) -> Tensor:
    """What a network makes of a sample.

    Args:
        model: The network.
        sample: The degraded crop, and whatever else belongs to it.

    Returns:
        The image.

    Example:
        >>> restored(nn.Identity(), (torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 2, 2))).sum()
        tensor(12.)
    """
    image: Tensor = model(sample[0])
    return image


def draw_pairs(
    photographs: Sequence[Tensor],
    inputs: Mapping[str, Degradation],
    *,
    count: int,
    size: int,
    scale: int,
    seed: int,
    margin: int = 16,
) -> dict[str, list[Pair]]:
    """Cut random crops and degrade each in every way, so that all inputs show the same crops.

    Args:
        photographs: ``uint8`` tensors of shape ``(3, H, W)``.
        inputs: Name to degradation.
        count: Number of crops.
        size: Width of a reference crop in pixels, a multiple of the scale.
        scale: Upscaling factor of the network.
        seed: Seed of the crops and of the degradations.
        margin: Pixels around a crop that take part in the degradation, a multiple of the scale.

    Returns:
        Name to ``count`` pairs of ``degraded`` ``(1, 3, size / scale, size / scale)`` and ``reference``
        ``(1, 3, size, size)``.

    Example:
        >>> from sr_zoo.degradations import evaluation_inputs
        >>> photographs = [torch.zeros(3, 80, 80, dtype=torch.uint8)]
        >>> pairs = draw_pairs(photographs, evaluation_inputs(2), count=2, size=48, scale=2, seed=0)
        >>> list(pairs), tuple(pairs["blur"][0][0].shape)
        (['clean', 'blur', 'noise', 'both'], (1, 3, 24, 24))
    """
    wide = PatchSampler(photographs, size + 2 * margin).draw(count, torch.Generator().manual_seed(seed))
    references = without_border(wide, margin).contiguous()
    pairs = {}
    for place, (name, degradation) in enumerate(inputs.items()):
        generator = torch.Generator().manual_seed(seed * 1009 + place + 1)
        degraded = without_border(degradation(wide, generator), margin // scale).contiguous()
        pairs[name] = [(degraded[i : i + 1], references[i : i + 1]) for i in range(count)]
    return pairs
