"""Every sample is integrated by itself and reduced to scores; these are averaged (equation 6 of the paper)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from filterattr.engine.hooks import GradientSums
from filterattr.engine.quadrature import Quadrature
from filterattr.engine.sums import SampleSums
from filterattr.estimates.job import Job, Run
from filterattr.estimates.scores import Attributions
from filterattr.parameters import STATISTICS, units_of
from filterattr.result import FilterAttribution

_TOTALS = ("total", "remainder", "gap", "scale")


class PerSampleRun(Run[GradientSums]):
    """What runs have in common that integrate every sample by itself; memory does not grow with samples nor nodes.

    Args:
        job: What is to be done.
        places: The places on the path that every sample visits, with both ends.
        counts: Name to length of further numbers that are added up over the samples.
    """

    def __init__(self, job: Job, places: tuple[float, ...], counts: Mapping[str, int] | None = None) -> None:
        super().__init__(job, GradientSums({name: job.path.base[name] for name in job.path.moved()}))
        self.places = places
        self.attributions = Attributions(job.path, job.parameters)
        shapes = {"losses": torch.empty(len(places), device="cpu"), "totals": torch.empty(len(_TOTALS), device="cpu")}
        shapes |= {name: torch.empty(length, device="cpu") for name, length in (counts or {}).items()}
        self.units = units_of(job.parameters)
        for name, shape in self.units.items():
            units = torch.empty(shape, device=job.device)
            for statistic, reductions in STATISTICS.items():
                shapes |= {f"{statistic}/{reduction}/{name}": units for reduction in reductions}
        self.sums = SampleSums(shapes)

    @abstractmethod
    def integrate(self) -> tuple[float | None, dict[str, Tensor]]:
        """Visit the places of one sample.

        Returns:
            What the gradient sums are to be multiplied with (``None`` for nothing), and further terms of the sums.
        """

    def add_sample(self, arguments: tuple[Any, ...], seed: int, index: int) -> list[float]:
        """See `Run.add_sample`."""
        self.path_loss.start(arguments, seed, index)
        scale, more = self.integrate()
        losses = self.path_loss.losses_at(self.places)
        if self.sums.count == 0:
            self.path_loss.check_used(self.job.allow_unused)
        self.sums.add(self._terms(losses, scale, more))
        return losses

    def _terms(self, losses: list[float], scale: float | None, more: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Everything that one sample adds, one after the other."""
        yield from more.items()
        for name, scores in self.attributions.per_unit(self.path_loss.gradients.sums, scale):
            for reduction, score in scores.items():
                yield f"means/{reduction}/{name}", score
                if reduction in STATISTICS["mean_squares"]:
                    yield f"mean_squares/{reduction}/{name}", score.square()
        totals = self.attributions.totals()
        if not math.isfinite(totals.absolute):
            self.path_loss.check_gradients()
        yield "losses", torch.tensor(losses, dtype=torch.float64, device="cpu")
        row = [totals.signed, totals.remainder, *totals.gap(losses)]
        yield "totals", torch.tensor(row, dtype=torch.float64, device="cpu")

    def averages(self) -> dict[str, Any]:
        """The fields of the result that are means over the samples."""
        count = self.sums.count
        averages = {name: total.cpu().div_(count) for name, total in self.sums.tensors.items()}
        losses = tuple(averages["losses"].tolist())
        total, remainder, gap, scale = averages["totals"].tolist()
        means, mean_squares = (
            {
                reduction: {name: averages[f"{statistic}/{reduction}/{name}"] for name in self.units}
                for reduction in reductions
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
        }


class FixedRun(PerSampleRun):
    """The same nodes for every sample.

    Args:
        job: What is to be done.
        quadrature: The nodes.
    """

    def __init__(self, job: Job, quadrature: Quadrature) -> None:
        super().__init__(job, tuple(sorted({0.0, 1.0, *quadrature.nodes})))
        self.quadrature = quadrature
        self.passes = len(quadrature.nodes)
        self._coefficients = dict(zip(quadrature.nodes, quadrature.coefficients, strict=True))

    def settings(self) -> dict[str, Any]:
        """See `Run.settings`."""
        return {"method": self.quadrature.method, "n_steps": len(self.quadrature.nodes)}

    def integrate(self) -> tuple[float | None, dict[str, Tensor]]:
        """See `PerSampleRun.integrate`."""
        # the ends first: what is wrong with the loss shows there, before any backward pass
        for t in sorted(self.places, key=lambda place: place not in (0.0, 1.0)):
            self.path_loss.visit(t, self._coefficients.get(t))
            if t in self._coefficients:
                self.advance()
        return None, {}

    def result(self) -> FilterAttribution:
        """See `Run.result`."""
        return FilterAttribution(
            **self.averages(),
            n_passes=self.sums.count * len(self.quadrature.nodes),
            method=self.quadrature.method,
            n_steps=len(self.quadrature.nodes),
        )
