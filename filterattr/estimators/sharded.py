"""Attribution of a model that is split over processes: every process works on its part, units are added up over all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from filterattr.estimators.base import AttributionTask
from filterattr.estimators.fixed import FixedEstimator
from filterattr.estimators.signed import SignedEstimator, UnitSums
from filterattr.integral.gradients import Contributions, GradientAccumulator, GradientSums, with_all
from filterattr.integral.node import G, PathNode
from filterattr.integral.path import Path
from filterattr.model.sharded import ShardedSwap, refuse_frozen
from filterattr.model.swap import ParameterSwap
from filterattr.units.sharded import UnitsOfShard
from filterattr.units.unit import Reduction, add_members

AddUp = Callable[[Tensor], Tensor]


class ShardedPath(Path):
    """The path in the part of the weights that this process holds.

    What moves is known, and can be asked for, after `meet`.
    """

    def meet(self, add_up: AddUp) -> None:
        """Learn from the other processes what moves in their parts; all of them call it together.

        Args:
            add_up: Turns a tensor of this process into the sum over all processes.
        """
        self.add_up = add_up
        here = set(self._moved)
        counts = add_up(torch.tensor([name in here for name in self.base], dtype=torch.float64, device="cpu"))
        self._moved = [name for name, count in zip(self.base, counts.tolist(), strict=True) if count]

    def side_by_side(self) -> tuple[Path, dict[str, Tensor], dict[str, Tensor]]:
        """See `Path.side_by_side`: points are written into the model itself, and need no memory."""
        return self, {}, {}

    def products(self) -> tuple[float, float, float]:
        """See `Path.products`; all processes call it together."""
        here = torch.tensor(super().products(), dtype=torch.float64, device="cpu")
        mixed, base_squared, target_squared = self.add_up(here).tolist()
        return mixed, base_squared, target_squared


class ShardedNode(PathNode[G]):
    """The loss at places of the path, whose points are written into the model.

    Args:
        job: What is to be done.
        gradients: Takes the gradients.
    """

    def __init__(self, job: AttributionTask, gradients: G) -> None:
        super().__init__(job.model, job.swap, job.path, job.loss, gradients, job.autocast())
        refuse_frozen(job.swap.parameters, self.moved)

    def leaves_at(self, t: float) -> tuple[dict[str, nn.Parameter], dict[str, Tensor]]:
        """See `PathNode.leaves_at`: the leaves are the model's own, and are written to when they are put in place."""
        shards_of(self.swap).turn_to(partial(self.path.write, t))
        return dict(self.swap.parameters), {name: value.clone() for name, value in self.path.fixed.items()}

    def _keep_written(self, t: float, leaves: Mapping[str, Tensor]) -> None:
        """Nothing stays written from one pass to the next."""


class _TakesShards(GradientAccumulator):
    """Takes the part of every gradient that this process gets, from the model's own parameters.

    Attributes:
        swap: Exchanges the weights of the model.
        add_up: Turns a tensor of this process into the sum over all processes.
    """

    swap: ShardedSwap
    add_up: AddUp

    def take_all(self, value: Tensor, leaves: Mapping[str, nn.Parameter], coefficient: float) -> None:
        """See `GradientAccumulator.take_all`."""

        def take(name: str, gradient: Tensor) -> None:
            self.take(name, gradient, coefficient)
            self.reached.add(name)

        self.swap.take_gradients(value, list(leaves), take)
        self.collect({}, coefficient)

    def find_nonfinite(self) -> dict[str, float]:
        """See `GradientAccumulator.find_nonfinite`; all processes call it together, and find the same."""
        sums: dict[str, Tensor] = self.sums  # type: ignore[attr-defined]
        flat = [
            (torch.view_as_real(part) if part.is_complex() else part).sum().double().cpu() for part in sums.values()
        ]
        values = self.add_up(torch.stack(flat)).tolist()
        return {name: value for name, value in zip(sums, values, strict=True) if not math.isfinite(value)}


class ShardedGradientSums(_TakesShards, GradientSums):
    """See `GradientSums`; of the part that this process holds.

    Args:
        job: What is to be done.
    """

    def __init__(self, job: AttributionTask) -> None:
        super().__init__({name: job.path.base[name] for name in job.path.moved()})
        self.swap, self.add_up = shards_of(job.swap), path_of(job).add_up

    def collect(self, leaves: Mapping[str, nn.Parameter], coefficient: float) -> None:
        """Nothing is left: the hooks take small gradients, too."""


class ShardedUnitSums(_TakesShards, UnitSums):
    """See `UnitSums`; what the part of this process adds, until `share` adds up all parts.

    Args:
        job: What is to be done.
    """

    def __init__(self, job: AttributionTask) -> None:
        super().__init__(job.path, job.parameters)
        self.swap, self.add_up = shards_of(job.swap), path_of(job).add_up
        for name in job.path.moved():
            if name in job.parameters:
                self._reduce[name] = UnitsOfShard(job.parameters[name], self.swap.shards[name]).reduce

    def take(self, name: str, gradient: Tensor, coefficient: float) -> None:
        """See `GradientAccumulator.take`; a module that computes twice gives one gradient after the other."""
        before = self._parts.get(name)
        super().take(name, gradient, coefficient)
        if before is not None:
            self._parts[name] = before + self._parts[name]

    def share(self) -> None:
        """Add up the sums of the present sample over all processes."""
        for total in self.flat:
            total.copy_(self.add_up(total))


class ShardedContributions(Contributions):
    """See `Contributions`; of the part that this process holds, added up over all.

    Args:
        job: What is to be done.
    """

    def __init__(self, job: AttributionTask) -> None:
        super().__init__(job.parameters)
        self._add_up = path_of(job).add_up
        shards = shards_of(job.swap).shards
        self._units = {name: UnitsOfShard(scored, shards[name]) for name, scored in job.parameters.items()}

    def per_unit(self, attributions: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, dict[Reduction, Tensor]]]:
        """See `Contributions.per_unit`; all processes call it together."""
        signed: dict[str, Tensor] = {}
        absolute: dict[str, Tensor] = {}
        signed_units: dict[str, Tensor] = {}
        absolute_units: dict[str, Tensor] = {}
        for name, values in attributions:
            signed[name] = self._sum(values)
            if name in self._units:
                signed_units[name] = self._units[name].reduce(values).double()
            absolute[name] = self._sum(values.abs_())
            if name in self._units:
                absolute_units[name] = self._units[name].reduce(values).double()
        for sums in (signed, absolute, signed_units, absolute_units):
            self._share(sums)
        self._signed, self._absolute = signed, absolute
        sums_of_abs = add_members(absolute_units, self._parameters)
        for name, score in add_members(signed_units, self._parameters).items():
            yield name, with_all({"sum": score, "sum_of_abs": sums_of_abs[name]})

    def _share(self, sums: dict[str, Tensor]) -> None:
        """Add up over all processes, in one message."""
        if not sums:
            return
        flat = self._add_up(torch.cat([value.reshape(-1).cpu() for value in sums.values()]))
        parts = torch.split(flat, [value.numel() for value in sums.values()])
        for (name, value), part in zip(list(sums.items()), parts, strict=True):
            sums[name] = part.view(value.shape).to(value.device)


class ShardedFixed(FixedEstimator):
    """See `FixedEstimator`; all processes add the same samples together."""

    def settings(self) -> dict[str, Any]:
        """See `Estimator.settings`."""
        return _without_weights(super().settings())

    def node_for(self, job: AttributionTask, gradients: GradientSums) -> PathNode[GradientSums]:
        """See `Estimator.node_for`."""
        return ShardedNode(job, gradients)

    def gradients_for(self, job: AttributionTask) -> GradientSums:
        """See `WeightEstimator.gradients_for`."""
        return ShardedGradientSums(job)

    def contributions_for(self, job: AttributionTask) -> Contributions:
        """See `WeightEstimator.contributions_for`."""
        return ShardedContributions(job)


class ShardedSigned(SignedEstimator):
    """See `SignedEstimator`; all processes add the same samples together."""

    def settings(self) -> dict[str, Any]:
        """See `Estimator.settings`."""
        return _without_weights(super().settings())

    def node_for(self, job: AttributionTask, gradients: UnitSums) -> PathNode[UnitSums]:
        """See `Estimator.node_for`."""
        return ShardedNode(job, gradients)

    def gradients_for(self, job: AttributionTask) -> UnitSums:
        """See `SignedEstimator.gradients_for`."""
        return ShardedUnitSums(job)

    def _terms(self, losses: list[float]) -> Iterator[tuple[str, Tensor]]:
        sums = self.node.gradients
        if isinstance(sums, ShardedUnitSums):
            sums.share()
        yield from super()._terms(losses)


def _without_weights(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that are the same for all processes: the parts of waypoints that they hold are not."""
    return {name: value for name, value in settings.items() if name != "list of waypoints"}


def shards_of(swap: ParameterSwap) -> ShardedSwap:
    """The swap of a sharded model, as such."""
    if not isinstance(swap, ShardedSwap):
        raise TypeError(type(swap).__name__)
    return swap


def path_of(job: AttributionTask) -> ShardedPath:
    """The path of a sharded model, as such."""
    if not isinstance(job.path, ShardedPath):
        raise TypeError(type(job.path).__name__)
    return job.path
