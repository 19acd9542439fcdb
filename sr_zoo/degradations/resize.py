"""Downsampling by a whole factor: true bicubic (antialiased) or the bilinear one of the published code."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sr_zoo.degradations.base import Degradation, DegradationError, check_range

_KINDS = ("bicubic", "bilinear")


@dataclass(frozen=True)
class Downsample(Degradation):
    """Shrink height and width by a whole factor.

    ``"bicubic"`` is the antialiased Keys kernel (a = -0.5) of Pillow and MATLAB's ``imresize``, the convention of the
    field. ``"bilinear"`` has no antialiasing: it is what the published FAIG scripts really compute (OpenCV's default
    interpolation), though their names say bicubic; for a factor of 2 it is the mean of 2x2 pixels.

    Args:
        scale: Whole factor, 1 to 8. Height and width must be multiples of it.
        kind: ``"bicubic"`` or ``"bilinear"``.

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
        if self.kind not in _KINDS:
            raise DegradationError(f"Downsample.kind must be one of {', '.join(_KINDS)}; got {self.kind!r}.")

    def apply(self, images: Tensor, generator: torch.Generator | None) -> Tensor:  # noqa: ARG002
        """Interpolate with half-pixel centres."""
        height, width = images.shape[-2:]
        if height % self.scale or width % self.scale:
            raise DegradationError(
                f"height and width must be multiples of {self.scale}; got {height}x{width}. Crop the image to "
                f"{height - height % self.scale}x{width - width % self.scale} first."
            )
        size = (height // self.scale, width // self.scale)
        return functional.interpolate(
            images, size=size, mode=self.kind, align_corners=False, antialias=self.kind == "bicubic"
        )
