"""Isotropic Gaussian blur: ``y = k * x`` with ``k(u, v) ~ exp(-(u^2 + v^2) / (2 sigma^2))``, normalised to sum 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sr_zoo.degradations.base import Degradation, DegradationError, check_range


@dataclass(frozen=True)
class GaussianBlur(Degradation):
    """Convolve every channel with an isotropic Gaussian kernel; the border is mirrored without its edge pixel.

    The published protocol uses a standard deviation of 2 pixels and a 21x21 kernel.

    Args:
        sigma: Standard deviation in pixels of the image it is applied to, in [0.001, 100].
        kernel_size: Odd width of the kernel in pixels, 1 to 201.

    Raises:
        DegradationError: A parameter is outside its range, or an image is smaller than half the kernel.

    Example:
        >>> blur = GaussianBlur(sigma=2.0)
        >>> blur
        GaussianBlur(sigma=2.0, kernel_size=21)
        >>> float(blur(torch.ones(1, 3, 32, 32)).mean().round(decimals=4))
        1.0
    """

    sigma: float = 2.0
    kernel_size: int = 21

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range(self, "sigma", self.sigma, 1e-3, 100)
        check_range(self, "kernel_size", self.kernel_size, 1, 201, whole=True)
        if self.kernel_size % 2 != 1:
            raise DegradationError(f"GaussianBlur.kernel_size must be odd; got {self.kernel_size}.")

    def kernel(self) -> Tensor:
        """Return the one-dimensional factor of the separable kernel, ``float64``, of sum 1."""
        radius = self.kernel_size // 2
        offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
        weights = torch.exp(-(offsets**2) / (2 * self.sigma**2))
        return weights / weights.sum()

    def apply(self, images: Tensor, generator: torch.Generator | None) -> Tensor:  # noqa: ARG002
        """Blur rows, then columns: the two-dimensional kernel is the product of both."""
        radius, channels = self.kernel_size // 2, images.shape[1]
        if min(images.shape[-2:]) <= radius:
            raise DegradationError(
                f"an image must be larger than half the blur kernel ({radius} pixels) to mirror its border; got "
                f"{images.shape[-2]}x{images.shape[-1]}. Use a smaller kernel_size."
            )
        factor = self.kernel().to(images).expand(channels, 1, 1, -1)
        padded = functional.pad(images, (radius,) * 4, mode="reflect")
        rows = functional.conv2d(padded, factor, groups=channels)
        return functional.conv2d(rows, factor.transpose(2, 3), groups=channels)
