"""Signed scores alone: reduced to units while backward runs, so that nothing is kept for every weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from filterattr.estimators.base import AttributionTask
from filterattr.estimators.fixed import FixedNodes, PerSampleEstimator
from filterattr.integral.gradients import GradientAccumulator, Totals
from filterattr.integral.node import Visit
from filterattr.integral.path import Path, sum_type
from filterattr.integral.quadrature import Quadrature
from filterattr.jobs.samples import Sample
from filterattr.results.attribution import FilterAttribution
from filterattr.units.unit import SIGNED, Reduction, ScoredParameter, add_members

SAMPLES_AT_A_NODE = 8  # so many visit a node before the next one is written


class UnitSums(GradientAccumulator):
    r"""Add up what every unit has of the integral, :math:`\sum_j c_j \sum_{k \in u} \Delta_k\, g_{jk}`, and no more.

    Gradients are multiplied with the change of the weights and summed over the weights of every unit while backward
    runs, in the `sum_type` of the weights; nodes are added up in float64. No memory is needed for every weight.

    Args:
        path: The path; parameters that move along it are expected.
        parameters: Name to how a parameter is scored; the others are summed as a whole.

    Attributes:
        segment: The straight part of the path that the present node lies in.
        flat: The sums of the present sample: one flat tensor for every device.
        sums: Parameter name to one float64 number per unit, of the present sample.
    """

    def __init__(self, path: Path, parameters: Mapping[str, ScoredParameter]) -> None:
        super().__init__()
        self.segment = path
        self._shapes: dict[torch.device, dict[str, torch.Size]] = {}
        self._reduce: dict[str, Callable[[Tensor], Tensor]] = {}
        for name in path.moved():
            scored = parameters.get(name)
            shape = torch.Size() if scored is None else scored.units_shape
            self._shapes.setdefault(path.base[name].device, {})[name] = shape
            self._reduce[name] = torch.sum if scored is None else scored.unit.reduce
        self._parts: dict[str, Tensor] = {}
        self._scratch: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self._sizes = _largest(path)
        self.turn_to(self.zeros())

    def zeros(self) -> list[Tensor]:
        """Make sums for another sample: one flat tensor for every device."""
        return [
            torch.zeros(sum(map(math.prod, shapes.values())), dtype=torch.float64, device=device)
            for device, shapes in self._shapes.items()
        ]

    def turn_to(self, flat: list[Tensor]) -> None:
        """Go on with the sums of another sample.

        Args:
            flat: From `zeros`.
        """
        self.flat = flat
        self.sums: dict[str, Tensor] = {}
        for total, shapes in zip(flat, self._shapes.values(), strict=True):
            parts = torch.split(total, list(map(math.prod, shapes.values())))
            self.sums |= {name: part.view(shape) for part, (name, shape) in zip(parts, shapes.items(), strict=True)}

    def take(self, name: str, gradient: Tensor, coefficient: float) -> None:  # noqa: ARG002 - `collect` multiplies
        """See `GradientAccumulator.take`."""
        values = self.segment.times_displacement(name, gradient, self._memory_like(gradient))
        part = self._reduce[name](values)
        # where every weight is a unit, the sums are the weights', in memory that the next parameter takes
        self._parts[name] = part.clone() if part.data_ptr() == values.data_ptr() else part

    def _memory_like(self, tensor: Tensor) -> Tensor:
        """Memory for a change: one tensor of the largest size for all, as fresh memory costs more than to fill it."""
        key = tensor.device, sum_type(tensor)
        if key not in self._scratch:
            self._scratch[key] = torch.empty(self._sizes[key], dtype=key[1], device=key[0])
        return self._scratch[key][: tensor.numel()].view(tensor.shape)

    def collect(self, leaves: Mapping[str, nn.Parameter], coefficient: float) -> None:  # noqa: ARG002
        """See `GradientAccumulator.collect`: one operation adds what all units have of a node."""
        for total, shapes in zip(self.flat, self._shapes.values(), strict=True):
            if len(self._parts) == len(self._reduce):
                total.add_(torch.cat([self._parts[name].reshape(-1) for name in shapes]), alpha=coefficient)
                continue
            for name in shapes:
                if name in self._parts:
                    self.sums[name].add_(self._parts[name], alpha=coefficient)
        self._parts = {}

    def find_nonfinite(self) -> dict[str, float]:
        """See `GradientAccumulator.find_nonfinite`."""
        totals = {name: float(part.sum()) for name, part in self.sums.items()}
        return {name: value for name, value in totals.items() if not math.isfinite(value)}

    def reset(self) -> None:
        """Start the next sample from zero; the sums of the one before are kept by those who hold them."""
        super().reset()
        self._parts = {}
        self.turn_to(self.zeros())


class SignedEstimator(PerSampleEstimator[UnitSums]):
    r"""The signed attributions of units, :math:`\sum_{k \in u} A_k`, with nodes outside and samples inside.

    The weights of a node are written once for a block of samples. The scores of every sample are added up by
    themselves, so that the numbers do not depend on the size of the block.

    Args:
        job: What is to be done.
        quadrature: The nodes of every straight segment.
    """

    samples_per_pass = SAMPLES_AT_A_NODE
    reductions: Sequence[Reduction] = SIGNED

    def __init__(self, job: AttributionTask, quadrature: Quadrature) -> None:
        self.quadrature = quadrature
        self.nodes = FixedNodes(job.path, quadrature)
        self.segments = self.nodes.segments
        super().__init__(job, self.gradients_for(job), self.nodes.places)
        self.passes = self.nodes.passes
        self.node.keeps_points = True
        self._order = list(self._nodes())

    def gradients_for(self, job: AttributionTask) -> UnitSums:
        """Make what reduces gradients to units."""
        return UnitSums(job.path, job.parameters)

    def settings(self) -> dict[str, Any]:
        """See `Estimator.settings`."""
        return {**self.nodes.settings(), "keep": "signed"}

    def _nodes(self) -> Iterator[tuple[float, float | None, Path]]:
        """Yield place, coefficient and segment: the ends first, as what is wrong with the loss shows there."""
        weighed: list[tuple[float, float | None, Path]] = [
            ((number + s) / len(self.segments), coefficient, segment)
            for number, segment in enumerate(self.segments)
            for s, coefficient in zip(self.quadrature.nodes, self.quadrature.coefficients, strict=True)
        ]
        for t in (0.0, 1.0, *(place for place in self.places if 0 < place < 1)):
            at = [node for node in weighed if node[0] == t]
            yield from at or [(t, None, self.segments[0])]

    def add_samples(self, samples: Sequence[Sample]) -> list[list[float]]:
        """See `Estimator.add_samples`."""
        visits = []
        for sample in samples:
            self.node.start(*sample)
            visits.append((self.node.visit, self.node.gradients.flat))
        for t, coefficient, segment in self._order:
            self.node.gradients.segment = segment
            for visit, sums in visits:
                self._turn_to(visit, sums)
                self.node.evaluate(t, coefficient)
                if self.sums.count == 0 and visit is visits[0][0] and t == self._order[0][0]:
                    self.node.check_repeats()  # at once: a loss that writes to its weights shows in the second pass
                if coefficient is not None:
                    self.advance()
        return [self._add(visit, sums) for visit, sums in visits]

    def _turn_to(self, visit: Visit, sums: list[Tensor]) -> None:
        self.node.visit = visit
        self.node.gradients.turn_to(sums)

    def _add(self, visit: Visit, sums: list[Tensor]) -> list[float]:
        """Add one sample to the sums."""
        self._turn_to(visit, sums)
        losses = self.node.losses_at(self.places)
        if self.sums.count == 0:
            self.node.check_used(self.job.allow_unused)
            self.node.check_repeats()
        self.sums.add(self._terms(losses))
        return losses

    def _terms(self, losses: list[float]) -> Iterator[tuple[str, Tensor]]:
        scores = self.node.gradients.sums
        signed = {name: float(score.sum()) for name, score in scores.items()}
        if not math.isfinite(math.fsum(signed.values())):
            self.node.check_gradients()
        remainder = [value for name, value in signed.items() if name not in self.job.parameters]
        absolute = math.fsum(float(score.abs().sum()) for score in scores.values())
        totals = Totals(math.fsum(signed.values()), math.fsum(remainder), absolute, math.nan)
        for name, score in add_members(scores, self.job.parameters).items():
            yield from self.statistics(name, {"sum": score, "abs_of_sum": score.abs()})
        yield from self.true_ends(losses).items()
        yield from self.row(totals, losses)

    def result(self) -> FilterAttribution:
        """See `Estimator.result`."""
        return self.nodes.result(self.averages())


def _largest(path: Path) -> dict[tuple[torch.device, torch.dtype], int]:
    """Number of entries of the largest parameter that moves, for every device and type of sums."""
    sizes: dict[tuple[torch.device, torch.dtype], int] = {}
    for name in path.moved():
        key = path.base[name].device, sum_type(path.base[name])
        sizes[key] = max(sizes.get(key, 0), path.base[name].numel())
    return sizes
