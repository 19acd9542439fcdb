"""Blur: ``y = k * x`` with a kernel of sum 1, isotropic Gaussian, elliptic, or sinc, all kinds of Real-ESRGAN.

With ``q(u, v)`` the squared Mahalanobis distance from the kernel's middle, the kernels are proportional to
``exp(-q / 2)`` (Gaussian), ``exp(-q^beta / 2)`` (generalised Gaussian) and ``1 / (1 + q^beta)`` (plateau). See Wang et
al., "Real-ESRGAN: Training Real-World Blind Super-Resolution with Pure Synthetic Data", 2021, section 3.1.
"""

from __future__ import annotations

import math
from abc import abstractmethod
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
        _check_kernel_size(self, self.kernel_size)

    def kernel(self) -> Tensor:
        """Return the one-dimensional factor of the separable kernel, ``float64``, of sum 1."""
        radius = self.kernel_size // 2
        offsets = torch.arange(-radius, radius + 1, dtype=torch.float64, device="cpu")
        weights = torch.exp(-(offsets**2) / (2 * self.sigma**2))
        return weights / weights.sum()

    def is_optical(self) -> bool:
        """It is."""
        return True

    def strengths(self) -> dict[str, float]:
        """The standard deviation."""
        return {"blur": float(self.sigma)}

    def apply(self, images: Tensor, generator: torch.Generator | None) -> Tensor:  # noqa: ARG002
        """Blur rows, then columns: the two-dimensional kernel is the product of both."""
        radius, channels = self.kernel_size // 2, images.shape[1]
        factor = self.kernel().to(images).expand(channels, 1, 1, -1)
        rows = functional.conv2d(_mirror_border(images, radius), factor, groups=channels)
        return functional.conv2d(rows, factor.transpose(2, 3), groups=channels)


@dataclass(frozen=True)
class EllipticBlur(Degradation, abstract=True):
    """What the blurs with an elliptic kernel share; a kind says how the kernel falls off with the distance.

    The squared distance of an offset ``d = (x, y)``, ``x`` to the right and ``y`` down, is ``q = d^T C^-1 d`` with ``C
    = R diag(sigma_x^2, sigma_y^2) R^T`` and ``R`` the rotation by ``angle``. An angle of 90 swaps the axes; a positive
    one turns the x axis downwards.

    Args:
        sigma_x: Standard deviation along the first axis in pixels, in [0.001, 100].
        sigma_y: Standard deviation along the second axis in pixels, in [0.001, 100].
        angle: Rotation in degrees, in [-180, 180].
        kernel_size: Odd width of the kernel in pixels, 1 to 201.

    Raises:
        DegradationError: A parameter is outside its range, or an image is smaller than half the kernel.
    """

    sigma_x: float = 2.0
    sigma_y: float = 1.0
    angle: float = 0.0
    kernel_size: int = 21

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range(self, "sigma_x", self.sigma_x, 1e-3, 100)
        check_range(self, "sigma_y", self.sigma_y, 1e-3, 100)
        check_range(self, "angle", self.angle, -180, 180)
        _check_kernel_size(self, self.kernel_size)

    @abstractmethod
    def profile(self, squared_distance: Tensor) -> Tensor:
        """Return the kernel's value at squared distances ``q``, up to a factor; 1 at ``q = 0``."""

    def kernel(self) -> Tensor:
        """Return the kernel of shape ``(kernel_size, kernel_size)``, rows first, ``float64``, of sum 1."""
        radius = self.kernel_size // 2
        offsets = torch.arange(-radius, radius + 1, dtype=torch.float64, device="cpu")
        y, x = torch.meshgrid(offsets, offsets, indexing="ij")
        cosine, sine = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        first, second = cosine * x + sine * y, cosine * y - sine * x
        weights = self.profile((first / self.sigma_x) ** 2 + (second / self.sigma_y) ** 2)
        return weights / weights.sum()

    def is_optical(self) -> bool:
        """It is."""
        return True

    def strengths(self) -> dict[str, float]:
        """The standard deviation of the kernel itself, root mean square over the two axes."""
        offsets = torch.arange(self.kernel_size, dtype=torch.float64, device="cpu") - self.kernel_size // 2
        squares = offsets[:, None] ** 2 + offsets**2
        return {"blur": math.sqrt(float((self.kernel() * squares).sum()) / 2)}

    def apply(self, images: Tensor, generator: torch.Generator | None) -> Tensor:  # noqa: ARG002
        """Convolve every channel; the kernel equals its half turn, so correlation is convolution."""
        return _convolve(images, self.kernel())


@dataclass(frozen=True)
class AnisotropicGaussianBlur(EllipticBlur):
    """Convolve every channel with a rotated anisotropic Gaussian kernel, ``k ~ exp(-q / 2)``.

    ``q = d^T C^-1 d`` is the squared distance of an offset ``d``, with ``C = R diag(sigma_x^2, sigma_y^2) R^T`` and
    ``R`` the rotation by ``angle`` (90 swaps the axes); the border is mirrored without its edge pixel.

    Args:
        sigma_x: Standard deviation along the first axis in pixels, in [0.001, 100].
        sigma_y: Standard deviation along the second axis in pixels, in [0.001, 100].
        angle: Rotation in degrees, in [-180, 180]; a positive one turns the first axis downwards.
        kernel_size: Odd width of the kernel in pixels, 1 to 201.

    Raises:
        DegradationError: A parameter is outside its range, or an image is smaller than half the kernel.

    Example:
        >>> blur = AnisotropicGaussianBlur(sigma_x=3.0, sigma_y=0.8, angle=30.0)
        >>> blur
        AnisotropicGaussianBlur(sigma_x=3.0, sigma_y=0.8, angle=30.0, kernel_size=21)
        >>> blur(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 3, 32, 32])
    """

    def profile(self, squared_distance: Tensor) -> Tensor:
        """Return ``exp(-q / 2)``."""
        return torch.exp(-squared_distance / 2)


@dataclass(frozen=True)
class GeneralizedGaussianBlur(EllipticBlur):
    """Convolve every channel with a generalised Gaussian kernel, ``k ~ exp(-q^beta / 2)``.

    ``q = d^T C^-1 d`` is the squared distance of an offset ``d``, with ``C = R diag(sigma_x^2, sigma_y^2) R^T`` and
    ``R`` the rotation by ``angle`` (90 swaps the axes). ``beta = 1`` is the Gaussian, less has a sharper peak
    and longer tails, more comes near an ellipse of constant weight. Real-ESRGAN draws ``beta`` from [0.5, 4].

    Args:
        sigma_x: Scale along the first axis in pixels, in [0.001, 100].
        sigma_y: Scale along the second axis in pixels, in [0.001, 100].
        angle: Rotation in degrees, in [-180, 180]; a positive one turns the first axis downwards.
        kernel_size: Odd width of the kernel in pixels, 1 to 201.
        beta: Shape, in [0.1, 10].

    Raises:
        DegradationError: A parameter is outside its range, or an image is smaller than half the kernel.

    Example:
        >>> tailed, flat = GeneralizedGaussianBlur(beta=0.5), GeneralizedGaussianBlur(beta=4.0)
        >>> bool(tailed.kernel()[0, 0] > flat.kernel()[0, 0])
        True
    """

    beta: float = 2.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_range(self, "beta", self.beta, 0.1, 10)

    def profile(self, squared_distance: Tensor) -> Tensor:
        """Return ``exp(-q^beta / 2)``."""
        return torch.exp(-(squared_distance**self.beta) / 2)


@dataclass(frozen=True)
class PlateauBlur(EllipticBlur):
    """Convolve every channel with a plateau-shaped kernel, ``k ~ 1 / (1 + q^beta)``.

    ``q = d^T C^-1 d`` is the squared distance of an offset ``d``, with ``C = R diag(sigma_x^2, sigma_y^2) R^T`` and
    ``R`` the rotation by ``angle`` (90 swaps the axes). Real-ESRGAN draws ``beta`` from [1, 2].

    Args:
        sigma_x: Half width at half maximum along the first axis in pixels, in [0.001, 100].
        sigma_y: Half width at half maximum along the second axis in pixels, in [0.001, 100].
        angle: Rotation in degrees, in [-180, 180]; a positive one turns the first axis downwards.
        kernel_size: Odd width of the kernel in pixels, 1 to 201.
        beta: Shape, in [0.1, 10]; more has a flatter top and steeper sides.

    Raises:
        DegradationError: A parameter is outside its range, or an image is smaller than half the kernel.

    Example:
        >>> kernel = PlateauBlur(sigma_x=3.0, sigma_y=3.0, beta=2.0).kernel()
        >>> round(float(kernel[10, 13] / kernel[10, 10]), 6)
        0.5
    """

    beta: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check_range(self, "beta", self.beta, 0.1, 10)

    def profile(self, squared_distance: Tensor) -> Tensor:
        """Return ``1 / (1 + q^beta)``."""
        return 1 / (1 + squared_distance**self.beta)


@dataclass(frozen=True)
class Sinc(Degradation):
    """Cut off high frequencies in all directions alike, which leaves ringing: ``k = w J1(w r) / (2 pi r)``, sum 1.

    Args:
        cutoff: First frequency that is cut off, in radians per pixel, in [0.1, pi].
        kernel_size: Odd width of the kernel in pixels, 1 to 201.

    Raises:
        DegradationError: A parameter is outside its range, or an image is smaller than half the kernel.

    Example:
        >>> edge = torch.zeros(1, 1, 32, 32)
        >>> edge[..., 16:] = 1
        >>> bool(Sinc(1.5)(edge).max() > 1.02)
        True

    References:
        Wang et al., "Real-ESRGAN", 2021, equation 6.
    """

    cutoff: float = 2.0
    kernel_size: int = 21

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range(self, "cutoff", self.cutoff, 0.1, math.pi)
        _check_kernel_size(self, self.kernel_size)

    def kernel(self) -> Tensor:
        """Return the kernel of shape ``(kernel_size, kernel_size)``, ``float64``, of sum 1."""
        radius = self.kernel_size // 2
        offsets = torch.arange(-radius, radius + 1, dtype=torch.float64, device="cpu")
        distance = torch.hypot(offsets[:, None], offsets)
        distance[radius, radius] = 1  # any number: the limit follows
        bessel: Tensor = torch.special.bessel_j1(self.cutoff * distance)
        weights = self.cutoff * bessel / (2 * math.pi * distance)
        weights[radius, radius] = self.cutoff**2 / (4 * math.pi)
        return weights / weights.sum()

    def apply(self, images: Tensor, generator: torch.Generator | None) -> Tensor:  # noqa: ARG002
        """Convolve every channel; the kernel equals its half turn, so correlation is convolution."""
        return _convolve(images, self.kernel())


def _convolve(images: Tensor, kernel: Tensor) -> Tensor:
    """Convolve every channel with a point-symmetric kernel; the border is mirrored."""
    channels = images.shape[1]
    weights = kernel.to(images).expand(channels, 1, -1, -1)
    return functional.conv2d(_mirror_border(images, len(kernel) // 2), weights, groups=channels)


def _check_kernel_size(owner: object, kernel_size: int) -> None:
    """Refuse the width of a kernel without a middle pixel, or out of range."""
    check_range(owner, "kernel_size", kernel_size, 1, 201, whole=True)
    if kernel_size % 2 != 1:
        raise DegradationError(f"{type(owner).__name__}.kernel_size must be odd; got {kernel_size}.")


def _mirror_border(images: Tensor, radius: int) -> Tensor:
    """Widen images by ``radius`` mirrored pixels on every side, the edge pixel not repeated."""
    if min(images.shape[-2:]) <= radius:
        raise DegradationError(
            f"an image must be larger than half the blur kernel ({radius} pixels) to mirror its border; got "
            f"{images.shape[-2]}x{images.shape[-1]}. Use a smaller kernel_size."
        )
    return functional.pad(images, (radius,) * 4, mode="reflect")
