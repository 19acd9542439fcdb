"""Degradations made of degradations: one after the other, and with a probability."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sr_zoo.degradations.base import Degradation, check_range, from_config


@dataclass(frozen=True)
class Quantize(Degradation):
    """Clip to [0, 1] and round to ``levels`` grey levels, as saving to an 8-bit file does.

    Args:
        levels: Number of grey levels, 2 to 65536.

    Raises:
        DegradationError: The number of levels is outside its range.

    Example:
        >>> Quantize()(torch.tensor([[[[-0.2, 0.5001]]]])).mul(255)
        tensor([[[[  0., 128.]]]])
    """

    levels: int = 256

    def __post_init__(self) -> None:
        """Check the range."""
        check_range(self, "levels", self.levels, 2, 65536)

    def apply(self, images: Tensor, generator: torch.Generator | None) -> Tensor:  # noqa: ARG002
        """Round to the nearest level."""
        steps = self.levels - 1
        return (images * steps).round().clamp(0, steps) / steps


@dataclass(frozen=True)
class Sometimes(Degradation):
    """Apply a degradation to each image of the batch with a probability, independently.

    Args:
        degradation: What to apply; it must keep the image size.
        probability: Chance for each image, in [0, 1].

    Raises:
        DegradationError: The probability is outside [0, 1].

    Example:
        >>> from sr_zoo.degradations import GaussianNoise
        >>> sometimes = Sometimes(GaussianNoise(0.1), probability=0.5)
        >>> degraded = sometimes(torch.zeros(64, 1, 4, 4), torch.Generator().manual_seed(0))
        >>> 16 < int((degraded.flatten(1).std(1) > 0).sum()) < 48
        True
    """

    degradation: Degradation
    probability: float = 0.5

    def __post_init__(self) -> None:
        """Check the range."""
        check_range(self, "probability", self.probability, 0, 1)

    def config(self) -> dict[str, Any]:
        """Describe itself and what it holds."""
        return {
            "type": "Sometimes",
            "degradation": self.degradation.config(),
            "probability": self.probability,
        }

    @classmethod
    def rebuild(cls, fields: dict[str, Any]) -> Degradation:
        """Build the held degradation first."""
        return cls(**{**fields, "degradation": from_config(fields["degradation"])})

    def apply(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw who is hit, then degrade only those."""
        device = images.device if generator is None else generator.device
        draws = torch.rand(len(images), generator=generator, device=device)
        hit = (draws < self.probability).to(images.device)
        result = images.clone()
        if hit.any():
            result[hit] = self.degradation(images[hit], generator)
        return result


@dataclass(frozen=True)
class Pipeline(Degradation):
    """Apply degradations one after the other.

    Args:
        steps: The degradations, first to last.

    Example:
        >>> from sr_zoo.degradations import Downsample, GaussianBlur, GaussianNoise
        >>> pipeline = Pipeline((GaussianBlur(2.0), Downsample(2), GaussianNoise(0.1), Quantize()))
        >>> pipeline(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 3, 16, 16])
        >>> from_config(pipeline.config()) == pipeline
        True
    """

    steps: tuple[Degradation, ...]

    def config(self) -> dict[str, Any]:
        """Describe the steps in their order."""
        return {"type": "Pipeline", "steps": [step.config() for step in self.steps]}

    @classmethod
    def rebuild(cls, fields: dict[str, Any]) -> Degradation:
        """Build the steps first."""
        return cls(**{**fields, "steps": tuple(from_config(step) for step in fields["steps"])})

    def apply(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Hand the batch from step to step."""
        for step in self.steps:
            images = step(images, generator)
        return images
