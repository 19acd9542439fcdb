"""Resizing: true bicubic (antialiased), the bilinear one of the published code, or the mean over areas."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sr_zoo.degradations.base import Degradation, DegradationError, check_range

KINDS = ("bicubic", "bilinear", "area")


@dataclass(frozen=True)
class Downsample(Degradation):
    """Shrink height and width by a whole factor.

    ``"bicubic"`` is the antialiased Keys kernel (a = -0.5) of Pillow and MATLAB's ``imresize``, the convention of the
    field. ``"bilinear"`` has no antialiasing. The published FAIG scripts compute it although their names say bicubic,
    because the flag is passed as another argument of OpenCV. For a factor of 2 it is the mean of 2x2 pixels. ``"area"``
    is the mean of all pixels that a new one covers.

    Args:
        scale: Whole factor, 1 to 8. Height and width must be multiples of it.
        kind: ``"bicubic"``, ``"bilinear"`` or ``"area"``.

    Raises:
        DegradationError: The factor or kind is unknown, or an image's size is no multiple of the factor.

    Example:
        >>> Downsample(scale=2)(torch.ones(1, 3, 8, 12)).shape
        torch.Size([1, 3, 4, 6])
    """

    scale: int = 2
    kind: str = "bicubic"

    def __post_init__(self) -> None:
        """Check factor and kind."""
        check_range(self, "scale", self.scale, 1, 8, whole=True)
        _check_kind(self, self.kind)

    def apply(self, images: Tensor, generator: torch.Generator | None) -> Tensor:  # noqa: ARG002
        """Interpolate with half-pixel centres."""
        height, width = images.shape[-2:]
        if height % self.scale or width % self.scale:
            raise DegradationError(
                f"height and width must be multiples of {self.scale}; got {height}x{width}. Crop the image to "
                f"{height - height % self.scale}x{width - width % self.scale} first."
            )
        return resized(images, (height // self.scale, width // self.scale), self.kind)


@dataclass(frozen=True)
class Resize(Degradation):
    """Shrink or enlarge height and width by any factor; sizes are rounded, and at least one pixel stays.

    Args:
        factor: New size over old size, in [0.05, 8].
        kind: ``"bicubic"``, ``"bilinear"`` or ``"area"``, as in `Downsample`.

    Raises:
        DegradationError: The factor or kind is unknown.

    Example:
        >>> Resize(0.3)(torch.ones(1, 3, 10, 12)).shape
        torch.Size([1, 3, 3, 4])
    """

    factor: float = 0.5
    kind: str = "bicubic"

    def __post_init__(self) -> None:
        """Check factor and kind."""
        check_range(self, "factor", self.factor, 0.05, 8)
        _check_kind(self, self.kind)

    def apply(self, images: Tensor, generator: torch.Generator | None) -> Tensor:  # noqa: ARG002
        """Interpolate with half-pixel centres, from the sizes alone."""
        height, width = (max(1, round(length * self.factor)) for length in images.shape[-2:])
        return resized(images, (height, width), self.kind)


def resized(images: Tensor, size: tuple[int, int], kind: str) -> Tensor:
    """Interpolate to a size, with half-pixel centres.

    Args:
        images: Shape ``(N, C, H, W)``.
        size: New height and width.
        kind: One of `KINDS`.

    Returns:
        Shape ``(N, C, *size)``.

    Example:
        >>> resized(torch.tensor([[[[0.0, 1.0, 2.0, 6.0]]]]), (1, 2), "area")
        tensor([[[[0.5000, 4.0000]]]])
    """
    if kind == "area":
        return functional.interpolate(images, size=size, mode="area")
    return functional.interpolate(images, size=size, mode=kind, align_corners=False, antialias=kind == "bicubic")


def _check_kind(owner: object, kind: object) -> None:
    """Refuse an interpolation that is unknown."""
    if kind not in KINDS:
        raise DegradationError(f"{type(owner).__name__}.kind must be one of {', '.join(KINDS)}; got {kind!r}.")
