"""Noise that is added to an image: white Gaussian, or the photon noise of Poisson statistics; in colour or gray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sr_zoo.degradations.base import Degradation, DegradationError, check_range

_PEAK = 255.0
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class GaussianNoise(Degradation):
    """Add white Gaussian noise, ``y = x + sigma e`` with ``e ~ N(0, 1)``; the result is not clipped.

    Args:
        sigma: Standard deviation on the [0, 1] scale, in [0, 1]; the published protocol uses 0.1.
        gray: Whether the channels of a pixel share one number; otherwise every channel has its own.

    Raises:
        DegradationError: The standard deviation is outside [0, 1], or ``gray`` is neither true nor false.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> noisy = GaussianNoise(sigma=0.1)(torch.zeros(1, 3, 64, 64), generator)
        >>> round(float(noisy.std()), 2)
        0.1
    """

    sigma: float = 0.1
    gray: bool = False

    def __post_init__(self) -> None:
        """Check the range."""
        check_range(self, "sigma", self.sigma, 0, 1)
        _check_gray(self, self.gray)

    def config(self) -> dict[str, Any]:
        """Describe itself; colour noise as before there was gray noise, since runs compare their recipes to go on."""
        fields = super().config()
        if not self.gray:
            del fields["gray"]
        return fields

    def strengths(self) -> dict[str, float]:
        """The standard deviation."""
        return {"noise": float(self.sigma)}

    def apply(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw on the generator's device, so that a seed gives the same noise wherever the images are."""
        device = images.device if generator is None else generator.device
        shape = images[:, :1].shape if self.gray else images.shape
        noise = torch.randn(shape, generator=generator, device=device, dtype=torch.float32)
        return images + self.sigma * noise.to(images)


@dataclass(frozen=True)
class PoissonNoise(Degradation):
    """Add photon noise, ``y = x + scale (P(255 x) / 255 - x)`` with ``P`` Poisson; the result is not clipped.

    At ``scale = 1`` a pixel of 8-bit value ``v`` becomes a Poisson number of mean ``v``; the noise has mean 0 and
    standard deviation ``scale * sqrt(x / 255)``. Real-ESRGAN (section 3.2) draws ``scale`` from [0.05, 3]. Its code
    uses the number of grey levels in the image, rounded up to a power of two, instead of 255. The noise of a pixel then
    depends on all the others; here it does not.

    Args:
        scale: Factor of the noise, in [0, 10].
        gray: Whether the noise is drawn for the luma (BT.601) and added to all channels alike.

    Raises:
        DegradationError: The factor is outside [0, 10], ``gray`` is neither true nor false, or gray noise is asked
            for images that have neither one channel nor three.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> noisy = PoissonNoise()(torch.full((1, 3, 64, 64), 0.5), generator)
        >>> round(float(noisy.std() * (255 / 0.5) ** 0.5), 1)
        1.0
    """

    scale: float = 1.0
    gray: bool = False

    def __post_init__(self) -> None:
        """Check the range."""
        check_range(self, "scale", self.scale, 0, 10)
        _check_gray(self, self.gray)

    def strengths(self) -> dict[str, float]:
        """The standard deviation at middle gray, ``scale * sqrt(0.5 / 255)``."""
        return {"noise": self.scale * (0.5 / _PEAK) ** 0.5}

    def apply(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw on the generator's device; values outside [0, 1] get the noise of the nearest end."""
        device = images.device if generator is None else generator.device
        bright = images.detach().to(device, torch.float32).clamp(0, 1)
        if self.gray:
            bright = _luma(bright)
        noise = torch.poisson(bright * _PEAK, generator=generator) / _PEAK - bright
        return images + self.scale * noise.to(images)


def _check_gray(owner: object, gray: object) -> None:
    """Refuse what is neither true nor false; a number would be taken for a parameter of the noise."""
    if not isinstance(gray, bool):
        raise DegradationError(f"{type(owner).__name__}.gray must be True or False; got {gray!r}.")


def _luma(images: Tensor) -> Tensor:
    """Weigh the channels to one, ``(N, 1, H, W)``."""
    if images.shape[1] == 1:
        return images
    if images.shape[1] != 3:
        raise DegradationError(
            f"PoissonNoise(gray=True) needs images of one channel or of three (RGB); got {images.shape[1]} channels. "
            "Use gray=False."
        )
    return (images * images.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)
