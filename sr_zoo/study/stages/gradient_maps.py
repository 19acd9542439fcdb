"""The published metric beside ours: how far masking moves the gradient map of the output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from filterattr import swapped
from filterattr.analysis import Estimate, Masking, Record, Row, bounded, spread
from sr_zoo.images import to_float, to_uint8
from sr_zoo.metrics import luma
from sr_zoo.study.archive import Results
from sr_zoo.study.samples import Sample
from sr_zoo.study.settings import Settings
from sr_zoo.study.stage import Context, Cost, Stage
from sr_zoo.study.subject import Subject


@dataclass(frozen=True)
class GradientRow:
    """One masked network on one function.

    Attributes:
        masked: What was masked.
        fraction: Share of all kernels.
        function: The input.
        gradient_change: The published metric, with its interval over the samples.
        removed: Ours, between 0 and 1.
        removed_unbounded: Ours, above 1 for a damaged network.
    """

    masked: str
    fraction: float
    function: str
    gradient_change: Estimate
    removed: float
    removed_unbounded: float


@dataclass(frozen=True)
class GradientMaps(Record):
    """The published metric beside ours.

    Attributes:
        entries: One per masked network and function.
    """

    entries: tuple[GradientRow, ...]

    def rows(self) -> list[Row]:
        """One row per entry."""
        return [
            {
                "masked": row.masked,
                "fraction": row.fraction,
                "function": row.function,
                **spread("gradient_change_x1000", row.gradient_change),
                "removed": row.removed,
                "removed_unbounded": row.removed_unbounded,
            }
            for row in self.entries
        ]


def gradient_map(images: Tensor) -> Tensor:
    r"""Size of the gradient of the luma in full range: :math:`\sqrt{v^2 + h^2 + 10^{-6}}`.

    ``v`` and ``h`` are differences of the neighbours on both sides, with zeros outside the image.

    Args:
        images: RGB of shape ``(N, 3, H, W)`` in [0, 1].

    Returns:
        Shape ``(N, 1, H, W)``, ``float64``.

    Example:
        >>> gradient_map(torch.zeros(1, 3, 4, 4)).max().item().__round__(6)
        0.001
    """
    gray = (luma(images.to(torch.float64)) * 255 - 16) / 219
    padded = functional.pad(gray, (1, 1, 1, 1))
    vertical = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    horizontal = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    return (vertical.square() + horizontal.square() + 1e-6).sqrt()


def gradient_change(first: Tensor, second: Tensor) -> Tensor:
    """The published metric: mean squared difference of the gradient maps of two outputs, times 1000.

    Outputs are rounded to 8 bits first, as the published code reads them from files; unlike there, gray is luma and
    not the blue channel.

    Args:
        first: RGB of shape ``(N, 3, H, W)``.
        second: The same of the other network.

    Returns:
        Shape ``(N,)``.

    Example:
        >>> image = torch.rand(2, 3, 8, 8)
        >>> gradient_change(image, image)
        tensor([0., 0.], dtype=torch.float64)

    References:
        Xie et al., NeurIPS 2021, section 4.1, and its code.
    """
    maps = [gradient_map(to_float(to_uint8(images))) for images in (first, second)]
    return (maps[0] - maps[1]).square().mean((1, 2, 3)) * 1000


@torch.no_grad()
def outputs_of(model: nn.Module, state: Mapping[str, Tensor], samples: Sequence[Sample]) -> list[Tensor]:
    """Restore every sample with some weights.

    Args:
        model: The network.
        state: The weights.
        samples: The samples.

    Returns:
        One image a sample, as the network returns it.
    """
    with swapped(model, state) as network:
        return [network(sample[0]) for sample in samples]


def gradient_rows(
    masking: Masking, masks: Mapping[tuple[str, float], Mapping[str, Tensor]], functions: tuple[str, ...]
) -> list[GradientRow]:
    """Measure masked networks by both metrics.

    Args:
        masking: Networks and test samples.
        masks: Name and fraction to the weights of the masked network.
        functions: Inputs to measure on.

    Returns:
        One row per masked network and function.
    """
    bootstrap = masking.bootstrap()
    references = {name: outputs_of(masking.model, masking.target, masking.data[name]) for name in functions}
    rows = []
    for (label, fraction), state in masks.items():
        losses = masking.losses_of(state)
        for name in functions:
            outputs = outputs_of(masking.model, state, masking.data[name])
            changes = torch.cat(
                [gradient_change(one, other) for one, other in zip(outputs, references[name], strict=True)]
            ).numpy()
            removed = masking.share_removed(name, losses[name])
            estimate = bootstrap.estimate(float(changes.mean()), bootstrap.means(name, changes))
            rows.append(GradientRow(label, fraction, name, estimate, bounded(removed), removed))
    return rows


def _gradient_maps(context: Context) -> Results:
    subject, settings = context.subject, context.settings
    masking = context.masking()
    generator = torch.Generator().manual_seed(settings.seed)
    masks: dict[tuple[str, float], Mapping[str, Tensor]] = {("nothing (target)", 0.0): masking.target}
    for fraction in settings.ranking_fractions:
        for name in subject.functions:
            chosen = context.found[f"scores_{name}"].top(fraction)
            masks[f"kernels of {name}", fraction] = masking.masked(chosen)
        masks["random kernels", fraction] = masking.masked(chosen.random(generator))
    masks["everything (base)", 1.0] = masking.base
    return {"gradient_maps": GradientMaps(tuple(gradient_rows(masking, masks, subject.functions)))}


def _cost(subject: Subject, settings: Settings) -> Cost:
    count = len(subject.functions)
    masks = 2 + len(settings.ranking_fractions) * (count + 1)
    return Cost(forwards=settings.test_crops * count * (3 + 2 * masks))


GRADIENT_MAPS = Stage(
    "gradient_maps",
    "What does the published metric say?",
    ("search",),
    ("ranking_fractions", "test_crops", "seed"),
    _cost,
    _gradient_maps,
)
