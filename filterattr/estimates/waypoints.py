r"""The integral along a chain of straight segments.

.. math:: A_i = \sum_{k=0}^{K-1} (\theta^{k+1}_i - \theta^k_i) \int_0^1
   \frac{\partial L}{\partial \theta_i}\bigl(\theta^k + s\,(\theta^{k+1} - \theta^k)\bigr)\, ds

The signed contributions of the segments add up, for every weight, before any absolute value is taken. With every step
of a training among the waypoints this is loss change allocation.

References:
    Lan et al., "LCA: Loss Change Allocation for Neural Network Training", NeurIPS 2019, equation 3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from filterattr.engine.identity import digest_of
from filterattr.engine.quadrature import Quadrature
from filterattr.estimates.job import Job
from filterattr.estimates.per_sample import PerSampleRun
from filterattr.estimates.scores import Attributions
from filterattr.result import FilterAttribution


class WaypointRun(PerSampleRun):
    """The same nodes in every segment, for every sample; costs one more float64 copy of what moves.

    Args:
        job: What is to be done; its path has waypoints.
        quadrature: The nodes of a segment.
    """

    def __init__(self, job: Job, quadrature: Quadrature) -> None:
        self._count = len(job.path.segments)
        coefficients = dict(zip(quadrature.nodes, quadrature.coefficients, strict=True))
        self._nodes = {place: coefficients.get(place) for place in sorted({0.0, 1.0, *quadrature.nodes})}
        super().__init__(job, tuple(sorted({self._place(k, s) for k in range(self._count) for s in self._nodes})))
        self.attributions = _Finished(job.path, job.parameters)
        self.quadrature = quadrature
        self.passes = self._count * len(quadrature.nodes)
        self._moved = [segment.moved() for segment in job.path.segments]
        self._signed = {
            name: torch.zeros_like(total, dtype=torch.float64) for name, total in self.path_loss.gradients.sums.items()
        }

    def settings(self) -> dict[str, Any]:
        """See `Run.settings`."""
        return {
            "method": self.quadrature.method,
            "n_steps": len(self.quadrature.nodes),
            "list of waypoints": digest_of(self.job.path.waypoints),
        }

    def integrate(self) -> tuple[float | None, dict[str, Tensor]]:
        """See `PerSampleRun.integrate`; the sums are then the attributions themselves."""
        sums = self.path_loss.gradients.sums
        for total in self._signed.values():
            total.zero_()
        for end in (0.0, 1.0):  # what is wrong with the loss shows there, before any backward pass
            self.path_loss.visit(end)
        for index, segment in enumerate(self.job.path.segments):
            for s, coefficient in self._nodes.items():
                t = self._place(index, s)
                if coefficient is not None or t not in self.path_loss.losses:
                    self.path_loss.visit(t, coefficient)
                if coefficient is not None:
                    self.advance()
            for name in self._moved[index]:
                change = segment.change(name)
                self._signed[name].add_(
                    (sums[name].conj() * change).real if change.is_complex() else change.mul_(sums[name])
                )
            for total in sums.values():
                total.zero_()
        for name, signed in self._signed.items():
            sums[name].copy_(signed)
        return None, {}

    def result(self) -> FilterAttribution:
        """See `Run.result`."""
        return FilterAttribution(
            **self.averages(),
            n_passes=self.sums.count * self._count * len(self.quadrature.nodes),
            method=self.quadrature.method,
            n_steps=len(self.quadrature.nodes),
            n_segments=self._count,
        )

    def _place(self, index: int, s: float) -> float:
        return (index + s) / self._count


class _Finished(Attributions):
    """Attributions that need no multiplication with the change any more."""

    def _values(self, _name: str, integral: Tensor, _scale: float | None) -> Tensor:
        return integral.real.contiguous() if integral.is_complex() else integral
