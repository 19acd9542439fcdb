"""Every sample is integrated by itself and reduced to scores; these are averaged (equation 6 of the paper)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from filterattr.estimators.base import AttributionTask, Estimator
from filterattr.files.fingerprint import fingerprint
from filterattr.integral.gradients import Contributions, GradientSums, Totals
from filterattr.integral.node import G
from filterattr.integral.path import Path
from filterattr.integral.quadrature import Quadrature
from filterattr.jobs.sample_loop import SampleSums
from filterattr.jobs.samples import Sample
from filterattr.results.attribution import FilterAttribution
from filterattr.units.unit import REDUCTIONS, STATISTICS, Reduction, kept_as, units_of

_UNKNOWN = torch.full((2,), math.nan, device="cpu")
_TOTALS = ("total", "remainder", "gap", "scale")


class PerSampleEstimator(Estimator[G]):
    """What runs have in common that integrate every sample by itself; memory does not grow with samples nor nodes.

    Args:
        job: What is to be done.
        gradients: What takes the gradients.
        places: The places on the path that every sample visits, with both ends.
        counts: Name to length of further numbers that are added up over the samples.
    """

    reductions: Collection[Reduction] = REDUCTIONS  # those that are kept

    def __init__(
        self, job: AttributionTask, gradients: G, places: tuple[float, ...], counts: Mapping[str, int] | None = None
    ) -> None:
        super().__init__(job, gradients)
        self.places = places
        shapes = {"losses": torch.empty(len(places), device="cpu"), "totals": torch.empty(len(_TOTALS), device="cpu")}
        shapes |= {name: torch.empty(length, device="cpu") for name, length in (counts or {}).items()}
        self.units = units_of(job.parameters)
        self._keys = {name: self._keys_of(name) for name in self.units}
        for name, shape in self.units.items():
            shapes |= dict.fromkeys(self._keys[name].values(), torch.empty(shape, device=job.device))
        shapes["unscored"] = torch.empty(1, device="cpu")
        if job.path.end_buffers:
            shapes["true ends"] = torch.empty(2, device="cpu")
        self.sums = SampleSums(shapes, later=("unscored", "true ends"))

    def _keys_of(self, name: str) -> dict[tuple[str, Reduction], str]:
        """Names of the sums of a parameter or group; numbers that are equal are kept once."""
        scored = self.job.parameters.get(name)
        return {
            (
                statistic,
                reduction,
            ): f"{statistic}/{kept_as(statistic, reduction, scored) if scored else reduction}/{name}"
            for statistic, reductions in STATISTICS.items()
            for reduction in reductions
            if reduction in self.reductions
        }

    def statistics(self, name: str, scores: Mapping[Reduction, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield what samples add to the sums of a parameter or group.

        Args:
            name: Its name.
            scores: Its scores.
        """
        done: set[str] = set()
        for (statistic, reduction), key in self._keys[name].items():
            if key not in done:
                yield key, scores[reduction] if statistic == "means" else scores[reduction].square()
            done.add(key)

    def true_ends(self, losses: list[float]) -> dict[str, Tensor]:
        """The losses of the present sample at the ends with their own buffers, if those on the path are others.

        Args:
            losses: Its losses along the path.

        Returns:
            A term of the sums, or none.
        """
        buffers = self.job.path.end_buffers
        if not buffers:
            return {}
        ends = [self.node.loss_of_end(t) if t in buffers else loss for t, loss in ((0.0, losses[0]), (1.0, losses[-1]))]
        return {"true ends": torch.tensor(ends, dtype=torch.float64, device="cpu")}

    def row(self, totals: Totals, losses: list[float]) -> Iterator[tuple[str, Tensor]]:
        """What one sample adds beside its scores.

        Args:
            totals: The sums over all parameters.
            losses: The losses along the path.
        """
        yield "losses", torch.tensor(losses, dtype=torch.float64, device="cpu")
        yield "unscored", torch.tensor([totals.unscored], dtype=torch.float64, device="cpu")
        numbers = [totals.signed, totals.remainder, *totals.gap(losses)]
        yield "totals", torch.tensor(numbers, dtype=torch.float64, device="cpu")

    def averages(self) -> dict[str, Any]:
        """The fields of the result that are means over the samples."""
        count = self.sums.count
        averages = {name: total.cpu().div_(count) for name, total in self.sums.tensors.items()}
        losses = tuple(averages["losses"].tolist())
        total, remainder, gap, scale = averages["totals"].tolist()
        later = [*averages["unscored"].tolist(), *averages.get("true ends", _UNKNOWN).tolist()]
        unscored, true_base, true_target = (None if math.isnan(value) else value for value in later)
        means, mean_squares = (
            {
                reduction: {name: averages[self._keys[name][statistic, reduction]] for name in self.units}
                for reduction in reductions
                if reduction in self.reductions
            }
            for statistic, reductions in STATISTICS.items()
        )
        return {
            "loss_base": losses[0],
            "loss_target": losses[-1],
            "remainder": remainder,
            "total": total,
            "completeness_error": gap / scale if scale else 0.0,
            "path_places": self.places,
            "path_losses": losses,
            "precision": self.job.precision,
            "cosine": self.job.path.cosine(),
            "n_samples": count,
            "parameters": dict(self.job.parameters),
            "means": means,
            "mean_squares": mean_squares,
            "unscored_abs": unscored,
            "true_loss_base": true_base,
            "true_loss_target": true_target,
        }


class WeightEstimator(PerSampleEstimator[GradientSums]):
    """What runs have in common that know the attribution of every weight, and so its absolute value.

    Args:
        job: What is to be done.
        places: The places on the path that every sample visits, with both ends.
        counts: Name to length of further numbers that are added up over the samples.
    """

    def __init__(
        self, job: AttributionTask, places: tuple[float, ...], counts: Mapping[str, int] | None = None
    ) -> None:
        super().__init__(job, self.gradients_for(job), places, counts)
        self.attributions = self.contributions_for(job)

    def gradients_for(self, job: AttributionTask) -> GradientSums:
        """Make what adds up gradients."""
        return GradientSums({name: job.path.base[name] for name in job.path.moved()})

    def contributions_for(self, job: AttributionTask) -> Contributions:
        """Make what reduces weights to units."""
        return Contributions(job.parameters)

    @abstractmethod
    def integrate(self) -> dict[str, Tensor]:
        """Visit the places of one sample.

        Returns:
            Further terms of the sums.
        """

    @abstractmethod
    def contributions(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the attributions of the present sample, one parameter after the other; they may be used up."""

    def add_samples(self, samples: Sequence[Sample]) -> list[list[float]]:
        """See `Estimator.add_samples`."""
        losses: list[list[float]] = []
        for sample in samples:
            self.node.start(*sample)
            more = self.integrate()
            losses.append(self.node.losses_at(self.places))
            if self.sums.count == 0:
                self.node.check_used(self.job.allow_unused)
                self.node.check_repeats()
            self.sums.add(self._terms(losses[-1], {**more, **self.true_ends(losses[-1])}))
        return losses

    def _terms(self, losses: list[float], more: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Everything that one sample adds, one after the other."""
        yield from more.items()
        for name, scores in self.attributions.per_unit(self.contributions()):
            yield from self.statistics(name, scores)
        totals = self.attributions.totals()
        if not math.isfinite(totals.absolute):
            self.node.check_gradients()
        yield from self.row(totals, losses)


class FixedNodes:
    """The same nodes in every straight segment of a path, and what follows from them for any scores.

    Args:
        path: The path.
        quadrature: The nodes of a segment.

    Attributes:
        segments: The straight parts of the path.
        places: Every place that a sample visits, with the ends of all segments.
        passes: Forward-backward passes of one sample.
    """

    def __init__(self, path: Path, quadrature: Quadrature) -> None:
        self._path, self._quadrature = path, quadrature
        self.segments = path.segments
        count = len(self.segments)
        inside = sorted({0.0, 1.0, *quadrature.nodes})
        self.places = tuple(sorted({(number + s) / count for number in range(count) for s in inside}))
        self.passes = count * len(quadrature.nodes)

    def settings(self) -> dict[str, Any]:
        """What was chosen about them, for `Estimator.settings`."""
        settings = {"method": self._quadrature.method, "n_steps": len(self._quadrature.nodes)}
        waypoints = self._path.waypoints
        return {**settings, "list of waypoints": fingerprint(waypoints)} if waypoints else settings

    def result(self, averages: Mapping[str, Any]) -> FilterAttribution:
        """Turn means over the samples into what the user gets.

        Args:
            averages: From `PerSampleEstimator.averages`.
        """
        return FilterAttribution(
            **averages,
            n_passes=averages["n_samples"] * self.passes,
            method=self._quadrature.method,
            n_steps=len(self._quadrature.nodes),
            n_segments=len(self.segments),
        )


class FixedEstimator(WeightEstimator):
    r"""The same nodes in every straight segment of the path, for every sample.

    .. math:: A_i = \sum_{k=0}^{K-1} (\theta^{k+1}_i - \theta^k_i) \int_0^1
       \frac{\partial L}{\partial \theta_i}\bigl(\theta^k + s\,(\theta^{k+1} - \theta^k)\bigr)\, ds

    The signed contributions of the segments add up, for every weight, before any absolute value is taken; that costs
    one more copy of what moves. With every step of a training among the waypoints this is loss change
    allocation (Lan et al., "LCA: Loss Change Allocation for Neural Network Training", NeurIPS 2019, equation 3).

    Args:
        job: What is to be done.
        quadrature: The nodes of a segment.
    """

    def __init__(self, job: AttributionTask, quadrature: Quadrature) -> None:
        self.quadrature = quadrature
        self.coefficients = dict(zip(quadrature.nodes, quadrature.coefficients, strict=True))
        self.nodes = FixedNodes(job.path, quadrature)
        self.segments = self.nodes.segments
        super().__init__(job, self.nodes.places)
        self.passes = self.nodes.passes
        sums = self.node.gradients.sums if len(self.segments) > 1 else {}
        self._signed = {name: torch.zeros_like(total.real) for name, total in sums.items()}

    def settings(self) -> dict[str, Any]:
        """See `Estimator.settings`."""
        return self.nodes.settings()

    def integrate(self) -> dict[str, Tensor]:
        """See `WeightEstimator.integrate`."""
        # the ends first: what is wrong with the loss shows there, before most backward passes
        if len(self.segments) == 1:
            for t in sorted(self.places, key=lambda place: place not in (0.0, 1.0)):
                self.node.evaluate(t, self.coefficients.get(t))
                if t in self.coefficients:
                    self.advance()
        else:
            self._integrate_segments()
        return {}

    def _integrate_segments(self) -> None:
        """Integrate one straight part after the other; the sums are then the attributions themselves."""
        for end in (0.0, 1.0):
            self.node.evaluate(end)
        for signed in self._signed.values():
            signed.zero_()
        for number, segment in enumerate(self.segments):
            for s in sorted({0.0, 1.0, *self.coefficients}):
                t, coefficient = (number + s) / len(self.segments), self.coefficients.get(s)
                if coefficient is not None or t not in self.node.visit.losses:
                    self.node.evaluate(t, coefficient)
                if coefficient is not None:
                    self.advance()
            self._finish(segment)
        for name, signed in self._signed.items():
            self.node.gradients.sums[name].copy_(signed)  # is looked at for what is not finite

    def contributions(self) -> Iterator[tuple[str, Tensor]]:
        """See `WeightEstimator.contributions`."""
        if self._signed:
            yield from self._signed.items()
            return
        for name, total in self.node.gradients.sums.items():
            yield name, self.job.path.times_displacement(name, total)

    def result(self) -> FilterAttribution:
        """See `Estimator.result`."""
        return self.nodes.result(self.averages())

    def _finish(self, segment: Path) -> None:
        """Add the contributions of a segment, and start the next integral from zero."""
        sums = self.node.gradients.sums
        for name in segment.moved():
            self._signed[name].add_(segment.times_displacement(name, sums[name]))
        self.node.gradients.zero()
