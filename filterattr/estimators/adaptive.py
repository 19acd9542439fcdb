"""As many nodes as a sample needs: the nodes are refined until completeness and the top set are good enough."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from filterattr.errors import SettingError
from filterattr.estimators.base import AttributionTask, top_set
from filterattr.estimators.fixed import WeightEstimator
from filterattr.integral.quadrature import NestedQuadrature
from filterattr.results.attribution import FilterAttribution

DEFAULT_TOLERANCE = 0.01
DEFAULT_LIMIT = 127


class AdaptiveEstimator(WeightEstimator):
    """Refine the nodes of every sample by itself; every gradient that was computed counts in the end.

    A sample is done when its completeness error is at most the tolerance, and at most that share of its top 1% would
    change with more nodes. The latter is taken as half of what the last refinement has changed: with twice the nodes
    the error falls at least by half, also where the loss has kinks.

    Args:
        job: What is to be done.
        tolerance: In (0, 1).
        n_steps: The largest number of nodes.

    Raises:
        SettingError: The tolerance or the number of nodes is out of range.
    """

    def __init__(self, job: AttributionTask, tolerance: float, n_steps: int) -> None:
        if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 < tolerance < 1:
            raise SettingError(f"the tolerance must lie between 0 and 1; got {tolerance!r}.")
        self.tolerance = float(tolerance)
        self.rule = NestedQuadrature.up_to(n_steps)
        self.limit = n_steps
        self.passes = None
        self._scale = 1.0
        common = {t for nodes in self.rule.nodes[:2] for t in nodes}
        super().__init__(job, tuple(sorted({0.0, 1.0} | common)), {"refinements": len(self.rule.nodes), "unsettled": 1})

    def settings(self) -> dict[str, Any]:
        """See `Estimator.settings`."""
        return {"method": "adaptive", "tolerance": self.tolerance, "n_steps": self.limit}

    def integrate(self) -> dict[str, Tensor]:
        """See `WeightEstimator.integrate`."""
        for end in (0.0, 1.0):
            self.node.evaluate(end)
        losses = self.node.losses_at((0.0, 1.0))
        level, known, settled = 0, None, False
        for level, nodes in enumerate(self.rule.nodes):
            for t, density in zip(nodes, self.rule.densities[level], strict=True):
                self.node.evaluate(t, density)
                self.advance()
            self._scale = self.rule.scales[level]
            top, gap = self._look(losses)
            if known is not None:
                changed = float((known & ~top).sum() / known.sum())
                settled = gap <= self.tolerance and changed / 2 <= self.tolerance
            if settled or not math.isfinite(gap):
                break
            known = top
        counts = {
            "refinements": torch.zeros(len(self.rule.nodes), device="cpu"),
            "unsettled": torch.ones(1, device="cpu") - float(settled),
        }
        counts["refinements"][level] = 1
        return counts

    def contributions(self) -> Iterator[tuple[str, Tensor]]:
        """See `WeightEstimator.contributions`; the sums stay, as they may go on."""
        for name, total in self.node.gradients.sums.items():
            yield name, self.job.path.times_displacement(name, total.clone()).mul_(self._scale)

    def _look(self, losses: list[float]) -> tuple[Tensor, float]:
        """The top set and the completeness error of the sums so far."""
        scores = {
            name: scores["sum_of_abs"].reshape(-1) for name, scores in self.attributions.per_unit(self.contributions())
        }
        flat = torch.cat([score.to(self.job.device) for score in scores.values()] or [torch.zeros(1, device="cpu")])
        gap, size = self.attributions.totals().gap(losses)
        return top_set(flat, sum(map(math.prod, self.units.values()))), gap / size if size else 0.0

    def result(self) -> FilterAttribution:
        """See `Estimator.result`."""
        refinements, (unsettled,) = (self.sums.tensors[name].tolist() for name in ("refinements", "unsettled"))
        sizes = [sum(map(len, self.rule.nodes[: level + 1])) for level in range(len(refinements))]
        return FilterAttribution(
            **self.averages(),
            n_passes=round(sum(count * size for count, size in zip(refinements, sizes, strict=True))),
            method="adaptive",
            n_steps=max(size for count, size in zip(refinements, sizes, strict=True) if count),
            tolerance=self.tolerance,
            n_unsettled=round(unsettled),
        )
