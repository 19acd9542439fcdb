"""Degradations made of degradations: one after the other, and with a probability."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sr_zoo.degradations.base import (
    Composite,
    Degradation,
    DegradationError,
    Strengths,
    add_strengths,
    check_range,
    from_config,
)


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
        check_range(self, "levels", self.levels, 2, 65536, whole=True)

    def apply(self, images: Tensor, generator: torch.Generator | None) -> Tensor:  # noqa: ARG002
        """Round to the nearest level."""
        steps = self.levels - 1
        return (images * steps).round().clamp(0, steps) / steps


@dataclass(frozen=True)
class Sometimes(Composite):
    """Apply a degradation to each image of the batch with a probability, independently.

    Args:
        degradation: What to apply; it must keep the image size.
        probability: Chance for each image, in [0, 1].

    Raises:
        DegradationError: The probability is outside [0, 1], what it holds is no degradation, or changes the size.

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
        """Check the range and what it holds."""
        check_range(self, "probability", self.probability, 0, 1)
        check_degradations(self, "degradation", (self.degradation,))

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

    def apply_traced(self, images: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Strengths]:
        """Draw who is hit, then degrade only those."""
        device = images.device if generator is None else generator.device
        draws = torch.rand(len(images), generator=generator, device=device, dtype=torch.float32)
        hit = (draws < self.probability).to(images.device)
        result, strengths = images.clone(), dict[str, Tensor]()
        if hit.any():
            degraded, drawn = self.degradation.traced(images[hit], generator)
            if degraded.shape[1:] != images.shape[1:]:
                raise DegradationError(
                    f"Sometimes.degradation must keep the image size, so that hit and spared images stay one batch; "
                    f"{type(self.degradation).__name__} made {tuple(degraded.shape[1:])} of {tuple(images.shape[1:])}."
                )
            result[hit] = degraded
            for name, values in drawn.items():
                strengths[name] = torch.zeros(len(images), device="cpu").masked_scatter(hit.cpu(), values)
        return result, strengths


@dataclass(frozen=True)
class Pipeline(Composite):
    """Apply degradations one after the other.

    Args:
        steps: The degradations, first to last; without any the images come back unchanged, as a copy.

    Raises:
        DegradationError: A step is no degradation.

    Example:
        >>> from sr_zoo.degradations import from_config
        >>> from sr_zoo.degradations import Downsample, GaussianBlur, GaussianNoise
        >>> pipeline = Pipeline((GaussianBlur(2.0), Downsample(2), GaussianNoise(0.1), Quantize()))
        >>> pipeline(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 3, 16, 16])
        >>> from_config(pipeline.config()) == pipeline
        True
    """

    steps: tuple[Degradation, ...]

    def __post_init__(self) -> None:
        """Check the steps, and hold them in a tuple, which cannot change and compares with a rebuilt one."""
        steps = tuple(self.steps)
        check_degradations(self, "steps", steps)
        object.__setattr__(self, "steps", steps)

    def config(self) -> dict[str, Any]:
        """Describe the steps in their order."""
        return {"type": "Pipeline", "steps": [step.config() for step in self.steps]}

    @classmethod
    def rebuild(cls, fields: dict[str, Any]) -> Degradation:
        """Build the steps first."""
        return cls(**{**fields, "steps": tuple(from_config(step) for step in fields["steps"])})

    def apply_traced(self, images: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Strengths]:
        """Hand the batch from step to step."""
        if not self.steps:
            return images.clone(), {}
        strengths: Strengths = {}
        for step in self.steps:
            images, drawn = step.traced(images, generator)
            strengths = add_strengths(strengths, drawn)
        return images, strengths


def check_degradations(owner: object, name: str, held: Iterable[object]) -> None:
    """Refuse to hold what is no degradation.

    Args:
        owner: Who wants to hold it; its class is named in the message.
        name: The field.
        held: What it would hold.

    Raises:
        DegradationError: Something held is no degradation.
    """
    foreign = [repr(item) for item in held if not isinstance(item, Degradation)]
    if foreign:
        raise DegradationError(f"{type(owner).__name__}.{name} must hold degradations; got {', '.join(foreign)}.")
