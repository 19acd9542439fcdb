"""Additive white Gaussian noise: ``y = x + sigma e``, ``e ~ N(0, 1)`` for every pixel and channel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sr_zoo.degradations.base import Degradation, check_range


@dataclass(frozen=True)
class GaussianNoise(Degradation):
    """Add independent Gaussian noise to every pixel and channel; the result is not clipped.

    Args:
        sigma: Standard deviation on the [0, 1] scale, in [0, 1]; the published protocol uses 0.1.

    Raises:
        DegradationError: The standard deviation is outside [0, 1].

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> noisy = GaussianNoise(sigma=0.1)(torch.zeros(1, 3, 64, 64), generator)
        >>> round(float(noisy.std()), 2)
        0.1
    """

    sigma: float = 0.1

    def __post_init__(self) -> None:
        """Check the range."""
        check_range(self, "sigma", self.sigma, 0, 1)

    def apply(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw on the generator's device, so that a seed gives the same noise wherever the images are."""
        device = images.device if generator is None else generator.device
        noise = torch.randn(images.shape, generator=generator, device=device, dtype=torch.float32)
        return images + self.sigma * noise.to(images)
