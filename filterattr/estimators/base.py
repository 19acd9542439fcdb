"""What every kind of run works with, and what all of them have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from filterattr.errors import SettingError, name_some
from filterattr.files.fingerprint import fingerprint
from filterattr.integral.node import G, PathNode
from filterattr.integral.path import Path
from filterattr.jobs.sample_loop import SampleSums
from filterattr.jobs.samples import Sample
from filterattr.loss.checks import Loss
from filterattr.model.context import Autocast
from filterattr.model.sharded import ShardedSwap
from filterattr.model.swap import ParameterSwap
from filterattr.results.attribution import FilterAttribution
from filterattr.results.scores import mark_top
from filterattr.units.unit import ScoredParameter

AddUp: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
Precision: TypeAlias = Literal["bf16"]
PRECISIONS: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16}


@dataclass(frozen=True)
class AttributionTask:
    """What one call was asked to do.

    Attributes:
        model: The model that the loss is given.
        swap: Exchanges its weights.
        path: The path.
        loss: The user's loss.
        parameters: Parameter name to how it is scored.
        allow_unused: First names of parameters that may differ although the loss does not use them.
        precision: What the loss is evaluated in; ``None`` leaves that to the user.
    """

    model: nn.Module
    swap: ParameterSwap
    path: Path
    loss: Loss
    parameters: Mapping[str, ScoredParameter]
    allow_unused: frozenset[str]
    precision: Precision | None = None

    def autocast(self) -> Autocast:
        """What the loss is evaluated in."""
        if self.precision is None:
            return Autocast()
        return Autocast(sorted({value.device.type for value in self.path.base.values()}), PRECISIONS[self.precision])

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(iter(self.path.base.values())).device

    def identity(self, *, with_data: bool) -> dict[str, Any]:
        """What makes this job the same as another: all that its numbers depend on, except for samples and loss."""
        modules = [
            (path, type(module).__module__, type(module).__qualname__, module.training)
            for path, module in self.model.named_modules(remove_duplicate=False)
        ]
        units = {
            name: (scored.shape, scored.unit.pattern, dict(scored.unit.sizes), scored.group)
            for name, scored in self.parameters.items()
        }
        return {
            **self._ends(),
            "set of buffers": fingerprint(self.path.fixed),
            "model (modules or their train flags)": fingerprint(modules),
            "unit or selection of parameters": fingerprint(units),
            "precision": self.precision,
            "autocast": {device: _autocast_type(device) for device in ("cpu", "cuda")},
            "kind of data": "samples" if with_data else "none",
        }

    def _ends(self) -> dict[str, str]:
        """Digests of base and target; the parts that processes hold of a sharded model are never the same."""
        if isinstance(self.swap, ShardedSwap):
            return {}
        return {"base": fingerprint(self.path.base), "target": fingerprint(self.path.target)}


class Estimator(ABC, Generic[G]):
    """One call on its way: samples come in one after the other, the result comes out at the end.

    Attributes:
        job: What is to be done.
        sums: What was added up so far; everything else can be made again.
        passes: Forward-backward passes of one sample; ``None`` where they depend on the sample.
        advance: Called after every pass.
        samples_per_pass: Number of samples that are best handed over at once.

    Args:
        job: What is to be done.
        gradients: What takes the gradients.
    """

    passes: int | None
    sums: SampleSums
    samples_per_pass = 1
    keeps_every = 1  # number of samples after which it is worth while to put the sums on the disk

    def __init__(self, job: AttributionTask, gradients: G) -> None:
        self.job = job
        self.node = self.node_for(job, gradients)
        self.advance: Callable[[], None] = lambda: None

    def node_for(self, job: AttributionTask, gradients: G) -> PathNode[G]:
        """Make what evaluates the loss.

        Args:
            job: What is to be done.
            gradients: What takes the gradients.
        """
        return PathNode(job.model, job.swap, job.path, job.loss, gradients, job.autocast())

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What was chosen about the integral, for `identity`."""

    @abstractmethod
    def add_samples(self, samples: Sequence[Sample]) -> list[list[float]]:
        """Integrate samples and add what comes out to the sums.

        Args:
            samples: In the order of the data.

        Returns:
            Losses of each, that at base first and that at target last.
        """

    @abstractmethod
    def result(self) -> FilterAttribution:
        """Turn the sums into what the user gets."""

    def skip_sample(self) -> None:
        """Count the passes of a sample that is in the sums already."""
        for _ in range(self.passes or 0):
            self.advance()

    def is_due(self, before: int, count: int) -> bool:  # noqa: ARG002 - for those that can stop
        """Whether `is_enough` is to be asked.

        Args:
            before: Number of samples of all processes when it was asked the last time, or could have been.
            count: Their number now.
        """
        return False

    def is_enough(self, add_up: AddUp) -> bool:  # noqa: ARG002 - for those that can stop
        """Whether further samples are not needed.

        Args:
            add_up: Turns a tensor of this process into the sum over all processes.
        """
        return False

    def losses_at_ends(self, arguments: tuple[Any, ...], seed: int, index: int) -> tuple[float, float]:
        """Evaluate the loss of a sample at base and at target, as `add_samples` does."""
        self.node.start(arguments, seed, index)
        return float(self.node.evaluate(0.0)), float(self.node.evaluate(1.0))

    def identity(self, *, with_data: bool) -> dict[str, Any]:
        """Everything that the numbers of this run depend on, except for samples and loss."""
        return {**self.job.identity(with_data=with_data), **self.settings()}


def _autocast_type(device: str) -> str | None:
    return str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None


def check_precision(precision: object, parameters: Mapping[str, torch.Tensor]) -> None:
    """Refuse a precision that cannot be had.

    Args:
        precision: What the user asked for.
        parameters: Name to parameter that moves along the path.

    Raises:
        SettingError: It is unknown, or autocast does not know the type or device of some parameters; they are named.
    """
    if precision is None:
        return
    if precision not in get_args(Precision):
        raise SettingError(
            f'precision must be None or "bf16"; got {precision!r}. float16 would need scaled losses; whatever '
            "else you need can be done inside the loss."
        )
    exact = [name for name, value in parameters.items() if value.is_complex() or value.dtype == torch.float64]
    if exact:
        kinds = ", ".join(sorted({str(parameters[name].dtype) for name in exact}))
        raise SettingError(
            f"precision={precision!r} needs float32 parameters, as autocast leaves {kinds} alone; found "
            f"{name_some(exact)}. Convert the network to float32, or leave precision out."
        )
    devices = {value.device.type for value in parameters.values()}
    unknown = sorted(device for device in devices if not torch.amp.is_autocast_available(device))
    if unknown:
        raise SettingError(f"precision={precision!r} needs autocast, which {', '.join(unknown)} does not have.")


TOP = 0.01


def top_set(scores: Tensor, n_units: int) -> Tensor:
    """Mark the 1% of the units with the highest scores, at least one; the earlier one wins among equals.

    Args:
        scores: One number per unit that can have a score.
        n_units: Number of all units.

    Returns:
        Booleans of the same shape.

    Example:
        >>> top_set(torch.tensor([0.1, 0.4, 0.3]), 3)
        tensor([False,  True, False])
    """
    return mark_top(scores, min(len(scores), max(1, round(TOP * n_units))))
