"""Degrading twice, as photographs on the web were: blur, resizing, noise and compression, all drawn, two times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sr_zoo.degradations.base import Composite, Degradation, DegradationError, Strengths, check_range, from_config
from sr_zoo.degradations.blur import AnisotropicGaussianBlur, GaussianBlur, GeneralizedGaussianBlur, PlateauBlur, Sinc
from sr_zoo.degradations.draws import Drawn, OneOf, one_by_one
from sr_zoo.degradations.jpeg import JPEG
from sr_zoo.degradations.noise import GaussianNoise, PoissonNoise
from sr_zoo.degradations.pipeline import Pipeline, Quantize, Sometimes, check_degradations
from sr_zoo.degradations.resize import KINDS, Resize, resized

_WIDTHS = tuple(range(7, 22, 2))


@dataclass(frozen=True)
class SecondOrder(Composite):
    """Send every image alone through rounds that may change its size, then bring it to ``1 / scale`` of what it was.

    The last step of Real-ESRGAN is part of it: resizing back with a filter behind it comes before or after the last
    compression, each in half of the images.

    Args:
        scale: Whole factor between the size of the images and that of the result, 1 to 8.
        rounds: What happens to an image before the end; sizes may change.
        ringing: Filter behind the resizing back.
        compression: The last compression.

    Raises:
        DegradationError: The scale is out of range, a part is no degradation, or sizes are no multiples of the scale.

    Example:
        >>> from sr_zoo.degradations import GaussianNoise, JPEG, Pipeline, Resize, Sinc
        >>> rounds = Pipeline((Resize(0.4), GaussianNoise(0.1), Resize(1.7)))
        >>> degrade = SecondOrder(2, rounds, Sinc(2.0), JPEG(50))
        >>> degrade(torch.rand(2, 3, 64, 48)).shape
        torch.Size([2, 3, 32, 24])

    References:
        Wang et al., "Real-ESRGAN: Training Real-World Blind Super-Resolution with Pure Synthetic Data", 2021,
        section 3.3 and figure 2.
    """

    scale: int
    rounds: Degradation
    ringing: Degradation
    compression: Degradation

    def __post_init__(self) -> None:
        """Check the parts."""
        check_range(self, "scale", self.scale, 1, 8, whole=True)
        for name in ("rounds", "ringing", "compression"):
            check_degradations(self, name, (getattr(self, name),))

    def config(self) -> dict[str, Any]:
        """Describe itself and its parts."""
        parts = {name: getattr(self, name).config() for name in ("rounds", "ringing", "compression")}
        return {"type": "SecondOrder", "scale": self.scale, **parts}

    @classmethod
    def rebuild(cls, fields: dict[str, Any]) -> Degradation:
        """Build the parts first."""
        parts = {name: from_config(fields[name]) for name in ("rounds", "ringing", "compression")}
        return cls(**{**fields, **parts})

    def apply_traced(self, images: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Strengths]:
        """Degrade image by image; its own order and interpolation are drawn first."""
        height, width = images.shape[-2:]
        if height % self.scale or width % self.scale:
            raise DegradationError(f"height and width must be multiples of {self.scale}; got {height}x{width}.")
        size = (height // self.scale, width // self.scale)
        device = images.device if generator is None else generator.device
        draws = torch.rand(len(images), 2, generator=generator, device=device, dtype=torch.float64).tolist()
        steps = []
        for order, kind in draws:
            back = Pipeline((_ResizeTo(*size, KINDS[int(kind * len(KINDS))]), self.ringing))
            end = (back, self.compression) if order < 0.5 else (self.compression, back)
            steps.append(Pipeline((self.rounds, *end, Quantize())))
        if not steps:
            return images.new_zeros(0, images.shape[1], *size), {}
        return one_by_one(self, steps, images, generator)


@dataclass(frozen=True)
class _ResizeTo(Degradation, abstract=True):
    """Interpolate to a given size; only `SecondOrder` knows one."""

    height: int
    width: int
    kind: str

    def apply(self, images: Tensor, generator: torch.Generator | None) -> Tensor:  # noqa: ARG002
        return resized(images, (self.height, self.width), self.kind)


def second_order(scale: int = 2) -> SecondOrder:
    """The pipeline of Real-ESRGAN with its published ranges.

    It applies blur of all kinds or a sinc filter, resizing up, down or not at all, Gaussian or Poisson noise in colour
    or gray, and JPEG. All of this is repeated with milder values. Resizing back with a sinc filter and JPEG in either
    order follows, and rounding to 8 bits.

    Args:
        scale: Downsampling factor.

    Returns:
        The pipeline. Images must be at least 74 pixels wide and high, so that the second blur finds a border to mirror
        in an image shrunk to 0.15.

    Example:
        >>> degraded, strengths = second_order(2).traced(torch.rand(1, 3, 96, 96), torch.Generator().manual_seed(1))
        >>> degraded.shape, sorted(strengths)
        (torch.Size([1, 3, 48, 48]), ['blur', 'jpeg', 'noise'])

    References:
        Wang et al., 2021, section 4.1; the ranges are those of its published options.
    """
    first = (
        _blur(3.0),
        _resize((0.2, 0.7, 0.1), 0.15, 1.5),
        _noise(30 / 255, 3.0),
        Drawn(JPEG(), {"quality": (30, 95)}),
    )
    second = (Sometimes(_blur(1.5), 0.8), _resize((0.3, 0.4, 0.3), 0.3, 1.2), _noise(25 / 255, 2.5))
    return SecondOrder(
        scale, Pipeline((*first, *second)), Sometimes(_sinc(), 0.8), Drawn(JPEG(), {"quality": (30, 95)})
    )


def _sinc() -> Degradation:
    """Ringing of a strength that is drawn."""
    return Drawn(Sinc(), {"cutoff": (1.05, 3.14)}, {"kernel_size": _WIDTHS})


def _blur(widest: float) -> Degradation:
    """One of all blur kernels, or a sinc filter in one case of ten."""
    same, free = {"sigma_x sigma_y": (0.2, widest)}, {"sigma_x": (0.2, widest), "sigma_y": (0.2, widest)}
    free["angle"] = (-180.0, 180.0)
    width = {"kernel_size": _WIDTHS}
    general, plateau = {"beta": (0.5, 4.0)}, {"beta": (1.0, 2.0)}
    kinds = (
        Drawn(GaussianBlur(), {"sigma": (0.2, widest)}, width),
        Drawn(AnisotropicGaussianBlur(), free, width),
        Drawn(GeneralizedGaussianBlur(), same | general, width),
        Drawn(GeneralizedGaussianBlur(), free | general, width),
        Drawn(PlateauBlur(), same | plateau, width),
        Drawn(PlateauBlur(), free | plateau, width),
    )
    return OneOf((OneOf(kinds, (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)), _sinc()), (0.9, 0.1))


def _resize(chances: tuple[float, float, float], smallest: float, largest: float) -> Degradation:
    """Enlarge, shrink, or keep the size."""
    kinds = {"kind": KINDS}
    up, down = (Drawn(Resize(), {"factor": ends}, kinds) for ends in ((1.0, largest), (smallest, 1.0)))
    return OneOf((up, down, Pipeline(())), chances)


def _noise(strongest: float, scale: float) -> Degradation:
    """Gaussian or Poisson noise, gray in two cases of five."""
    return OneOf(
        tuple(
            Drawn(kind, {field: ends}, {"gray": (True, True, False, False, False)})
            for kind, field, ends in (
                (GaussianNoise(), "sigma", (1 / 255, strongest)),
                (PoissonNoise(), "scale", (0.05, scale)),
            )
        )
    )
