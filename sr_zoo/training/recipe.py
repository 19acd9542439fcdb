"""What decides a training: the recipe, its learning rates, and the random batch of every iteration."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from filterattr import FilterAttrError
from sr_zoo.data import PatchSampler, without_border
from sr_zoo.degradations import Strengths, from_config
from sr_zoo.training.precision import fast_precision

PRECISIONS = ("fp32", "bf16")


class TrainingError(FilterAttrError, ValueError):
    """A recipe makes no sense, a checkpoint belongs to another run, or a training diverged."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome of a training, apart from the network, its first weights and the photographs.

    Args:
        degradation: What the network learns to undo; `Degradation.config` of it.
        iterations: Number of optimizer steps.
        learning_rate: First learning rate of every period, after the warm-up.
        final_rate: Last learning rate of every period.
        period: Iterations of one cosine period; 0 means one period over all iterations.
        warmup: Iterations of linear warm-up.
        batch_size: Patches in one step.
        patch_size: Width of a reference patch in pixels.
        margin: Pixels around a patch that take part in the degradation, so that no border is seen.
        ema_decay: Decay of the moving average of the weights; what ships is the average.
        precision: ``"fp32"`` or ``"bf16"`` (autocast; weights and optimizer stay in fp32); what this machine computes
            fast if not given, see `fast_precision`.
        seed: Seed of everything random.
        prediction_weight: Weight of the prediction loss of a network that estimates degradations.

    Raises:
        TrainingError: A value makes no sense; all of them are named.
        DegradationError: The degradation is none.

    Example:
        >>> from sr_zoo.degradations import clean_inputs
        >>> recipe = Recipe(clean_inputs().config(), iterations=100)
        >>> recipe.rate(0) > recipe.rate(99)
        True
    """

    degradation: dict[str, Any]
    iterations: int = 20_000
    learning_rate: float = 2e-4
    final_rate: float = 1e-7
    period: int = 0
    warmup: int = 0
    batch_size: int = 16
    patch_size: int = 64
    margin: int = 16
    ema_decay: float = 0.999
    precision: str = field(default_factory=fast_precision)
    seed: int = 0
    prediction_weight: float = 0.1

    def __post_init__(self) -> None:
        """Gather every value that makes no sense."""
        limits = {
            "iterations": (1, math.inf),
            "learning_rate": (0, 1),
            "final_rate": (0, 1),
            "period": (0, math.inf),
            "warmup": (0, math.inf),
            "batch_size": (1, math.inf),
            "patch_size": (16, math.inf),
            "margin": (0, math.inf),
            "ema_decay": (0, 1),
            "seed": (0, 2**31 - 1),
            "prediction_weight": (0, math.inf),
        }
        wrong = [
            f"{name} must lie in [{low:g}, {high:g}]; got {getattr(self, name)}"
            for name, (low, high) in limits.items()
            if not low <= getattr(self, name) <= high
        ]
        if self.precision not in PRECISIONS:
            wrong.append(f"precision must be one of {', '.join(PRECISIONS)}; got {self.precision!r}")
        if wrong:
            raise TrainingError("; ".join(wrong) + ".")
        from_config(self.degradation)

    def rate(self, iteration: int) -> float:
        """Learning rate of an iteration: linear warm-up, then cosine periods from `learning_rate` to `final_rate`.

        Args:
            iteration: Number of the iteration, from 0.

        Returns:
            ``final + (first - final) (1 + cos(pi p)) / 2`` at the place ``p`` in the period, from 0 to nearly 1.
        """
        if iteration < self.warmup:
            return self.learning_rate * (iteration + 1) / self.warmup
        period = self.period or max(self.iterations - self.warmup, 1)
        place = ((iteration - self.warmup) % period) / period
        swing = (self.learning_rate - self.final_rate) / 2
        return self.final_rate + swing * (1 + math.cos(math.pi * place))


class Batch(NamedTuple):
    """What one iteration trains on.

    Attributes:
        degraded: Shape ``(N, 3, patch / scale, patch / scale)``.
        reference: Shape ``(N, 3, patch, patch)``.
        strengths: How strongly each patch was degraded, ``(N,)`` by name; see `Degradation.traced`.
    """

    degraded: Tensor
    reference: Tensor
    strengths: Strengths


def random_patches(sampler: PatchSampler, recipe: Recipe, scale: int, iteration: int, device: torch.device) -> Batch:
    """Draw the batch of one iteration.

    Args:
        sampler: Draws patches of ``patch_size + 2 * margin`` pixels.
        recipe: The recipe.
        scale: Upscaling factor of the network.
        iteration: Number of the iteration; together with the seed it decides every random number.
        device: Where the batch goes.

    Returns:
        The batch.

    Example:
        >>> from sr_zoo.data import PatchSampler, without_border
        >>> from sr_zoo.degradations import clean_inputs
        >>> sampler = PatchSampler([torch.zeros(3, 96, 96, dtype=torch.uint8)], size=96)
        >>> recipe = Recipe(clean_inputs().config(), batch_size=2)
        >>> degraded, reference, _ = random_patches(sampler, recipe, 2, 0, torch.device("cpu"))
        >>> degraded.shape, reference.shape
        (torch.Size([2, 3, 32, 32]), torch.Size([2, 3, 64, 64]))
    """
    generator = torch.Generator().manual_seed(_iteration_seed(recipe.seed, iteration))
    wide = sampler.draw(recipe.batch_size, generator).to(device)
    degraded, strengths = from_config(recipe.degradation).traced(wide, generator)
    inner, outer = recipe.margin // scale, recipe.margin
    return Batch(without_border(degraded, inner), without_border(wide, outer), strengths)


def _iteration_seed(seed: int, iteration: int) -> int:
    """Mix seed and iteration into 32 bits, which is all that PyTorch's generator for the CPU reads of a seed.

    Every seed owns the stretch of numbers that begins at its multiple of the golden section: the stretches of a
    thousand seeds are more than a million iterations apart. Seed 0 begins at 0.
    """
    return (seed * 0x9E3779B1 + iteration) % 2**32
