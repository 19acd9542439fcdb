r"""Absolute values after the mean over samples, so that one node per sample is enough.

.. math:: F_u = \sum_{k \in u} \Bigl| \frac{1}{n} \sum_x \Delta_k\, g_k(t_x, x) \Bigr|

The places :math:`t_x` are drawn, one in each of sixteen strata for any sixteen samples that follow each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from filterattr.estimators.base import AddUp, AttributionTask, Estimator, top_set
from filterattr.integral.gradients import GradientAccumulator
from filterattr.integral.path import Path, sum_type
from filterattr.jobs.sample_loop import SampleSums
from filterattr.jobs.samples import Sample
from filterattr.results.attribution import FilterAttribution
from filterattr.units.unit import REDUCTIONS, Reduction, ScoredParameter, units_of

Until: TypeAlias = Literal["settled"] | Callable[[FilterAttribution], bool]

SETTLED = 0.95
_BLOCK = 16
_KINDS = ("signed", "signs")
_QUARTERS = 4


class PooledGradients(GradientAccumulator):
    r"""Add up the signed attributions of all samples, and the half of them with the other sign.

    :math:`S_k = \sum_x v_k(x)` is kept in float64 and :math:`D_k = \sum_x \pm v_k(x)`, whose sign tells the half that
    a sample belongs to, in float32. What one sample adds to the score of a unit is
    :math:`\sum_{k \in u} \operatorname{sign}(S_k)\, v_k(x)`, with the signs that are known before it: its spread over
    the samples is that of the score, with all covariances inside the unit.

    Args:
        path: The path, which knows the change of every weight.
        parameters: Parameter name to how it is scored.
        sums: Holds ``sum/<name>`` and ``difference/<name>`` for all that moves.
    """

    def __init__(self, path: Path, parameters: Mapping[str, ScoredParameter], sums: SampleSums) -> None:
        super().__init__()
        self.half = 1.0
        self.units: dict[str, dict[str, Tensor]] = {}
        self._path = path
        self._parameters = parameters
        self._sums = sums
        self._checks: dict[str, Tensor] = {}

    def take(self, name: str, gradient: Tensor, coefficient: float) -> None:
        """See `GradientAccumulator.take`."""
        values = self._path.times_displacement(name, gradient.to(sum_type(gradient)).mul(coefficient))
        check = values.sum()
        self._checks[name] = self._checks[name] + check if name in self._checks else check
        total, difference = (self._sums.tensors[f"{kind}/{name}"] for kind in ("sum", "difference"))
        scored = self._parameters.get(name)
        if scored is not None:
            signs = (total if self._sums.count else values).sign()
            parts = {
                "signed": scored.unit.reduce(values).double(),
                "signs": scored.unit.reduce(signs.mul_(values)).double(),
            }
            known = self.units.setdefault(scored.key(name), {})
            for kind, part in parts.items():
                known[kind] = known[kind] + part if kind in known else part.clone()
        total.add_(values)
        difference.add_(values, alpha=self.half)

    def find_nonfinite(self) -> dict[str, float]:
        """See `GradientAccumulator.find_nonfinite`; the device is waited for once."""
        if not self._checks:
            return {}
        sums = dict(zip(self._checks, torch.stack(list(self._checks.values())).tolist(), strict=True))
        return {name: value for name, value in sums.items() if not math.isfinite(value)}

    def reset(self) -> None:
        """See `GradientAccumulator.reset`; what was added up over the samples stays."""
        super().reset()
        self._checks, self.units = {}, {}


class PooledEstimator(Estimator[PooledGradients]):
    """One or a few drawn nodes per sample, and the mean over samples before any absolute value.

    Args:
        job: What is to be done.
        n_steps: Nodes per sample, each in a stratum of its own.
        until: When to stop before the data end.
    """

    keeps_every = _BLOCK

    def __init__(self, job: AttributionTask, n_steps: int, until: Until | None = None) -> None:
        self.passes = n_steps
        self.until = until
        self.units = units_of(job.parameters)
        self._moved = job.path.moved()
        shapes = {f"sum/{name}": job.path.base[name] for name in self._moved}
        differences = {f"difference/{name}": job.path.base[name] for name in self._moved}
        per_unit = {"quarters": torch.empty(_QUARTERS, device="cpu")}
        for name, shape in self.units.items():
            units = torch.empty(shape, device=job.device)
            per_unit |= {f"{kind} squared/{name}": units for kind in _KINDS}
            per_unit |= {f"{kind}/{name}": units.expand(_QUARTERS, *shape) for kind in _KINDS}
        self.sums = SampleSums({**shapes, **differences, **per_unit}, single=differences)
        super().__init__(job, PooledGradients(job.path, job.parameters, self.sums))

    def settings(self) -> dict[str, Any]:
        """See `Estimator.settings`."""
        return {"method": "stratified", "n_steps": self.passes, "aggregate": "pooled"}

    def add_samples(self, samples: Sequence[Sample]) -> list[list[float]]:
        """See `Estimator.add_samples`."""
        return [self._add(sample) for sample in samples]

    def _add(self, sample: Sample) -> list[float]:
        """Add one sample; only the first is seen at the ends, to tell what is wrong with the loss."""
        self.node.start(*sample)
        ends = (0.0, 1.0) if self.sums.count == 0 else ()
        for end in ends:
            self.node.evaluate(end)
        count = self.passes or 1
        place, self.node.gradients.half = self.draw(sample.seed - sample.number, sample.number)
        for stratum in range(count):
            self.node.evaluate((stratum + place) / count, 1 / count)
            self.advance()
        losses = self.node.losses_at(ends)
        self.node.check_gradients()
        if self.sums.count == 0:
            self.node.check_used(self.job.allow_unused)
            self.node.check_repeats()
        quarter = int(_QUARTERS * place)
        for name, parts in self.node.gradients.units.items():
            for kind, part in parts.items():
                self.sums.tensors[f"{kind}/{name}"][quarter].add_(part)
                self.sums.tensors[f"{kind} squared/{name}"].addcmul_(part, part)
        self.sums.tensors["quarters"][quarter] += 1
        self.sums.count += 1
        return losses

    @staticmethod
    def draw(seed: int, index: int) -> tuple[float, float]:
        """Draw the place of a sample in its stratum, and the half of the samples that it belongs to.

        Sixteen samples in a row see all sixteen parts of a stratum, in random order, and each half eight of them that
        are spread as evenly.

        Args:
            seed: Seed of the job.
            index: Number of the sample in the data.

        Returns:
            A place in [0, 1), and 1 or -1.

        Example:
            >>> places, halves = zip(*(PooledEstimator.draw(0, index) for index in range(16)))
            >>> sorted(int(16 * place) for place in places) == list(range(16)), sum(halves)
            (True, 0.0)
        """
        block, number = divmod(index, _BLOCK)
        generator = torch.Generator().manual_seed((seed * 1_000_003 + block) % 2**63)
        part = int(torch.randperm(_BLOCK, generator=generator, device="cpu")[number])
        inside = torch.rand(_BLOCK, generator=generator, dtype=torch.float64, device="cpu")[number]
        first_of_pair = torch.randint(2, (_BLOCK // 2,), generator=generator, device="cpu")[part // 2]
        return (part + float(inside)) / _BLOCK, 1.0 if part % 2 == int(first_of_pair) else -1.0

    def is_due(self, before: int, count: int) -> bool:
        """See `Estimator.is_due`: at 16, 24, 32, 48, 64, 96, ... samples."""
        if self.until is None:
            return False
        places = (size for power in range(4, 60) for size in (2**power, 3 * 2 ** (power - 1)))
        return any(before < place <= count for place in places)

    def is_enough(self, add_up: AddUp) -> bool:
        """See `Estimator.is_enough`."""
        so_far = self._result(add_up)
        if callable(self.until):
            return bool(self.until(so_far))
        return so_far.agreement is not None and so_far.agreement >= SETTLED

    def result(self) -> FilterAttribution:
        """See `Estimator.result`."""
        return self._result(lambda tensor: tensor)

    def _result(self, add_up: AddUp) -> FilterAttribution:
        """The result of what all processes have added up so far."""
        count = int(add_up(torch.tensor([self.sums.count], device="cpu")))
        cosine = self.job.path.cosine()
        scores: dict[str, dict[str, Tensor]] = {
            name: {
                kind: torch.zeros(shape, dtype=torch.float64, device="cpu")
                for kind in ("sum", "sum_of_abs", "first", "second")
            }
            for name, shape in self.units.items()
        }
        total = remainder = unscored = 0.0
        for name in self._moved:
            signed, difference = (
                add_up(self.sums.tensors[f"{kind}/{name}"]).double().cpu() for kind in ("sum", "difference")
            )
            mean = float(signed.sum()) / count
            total += mean
            scored = self.job.parameters.get(name)
            if scored is None:
                remainder += mean
                unscored += float(signed.abs().sum()) / count  # the sums go on, so that nothing is done in place
                continue
            parts = scores[scored.key(name)]
            parts["sum"] += scored.unit.reduce(signed) / count
            parts["sum_of_abs"] += scored.unit.reduce(signed.abs()) / count
            parts["first"] += scored.unit.reduce(torch.add(signed, difference).abs_())
            parts["second"] += scored.unit.reduce(torch.sub(signed, difference).abs_())
        variances = {kind: self._variances(kind, add_up) for kind in _KINDS}
        means: dict[Reduction, dict[str, Tensor]] = {
            "sum": {name: parts["sum"] for name, parts in scores.items()},
            "sum_of_abs": {name: parts["sum_of_abs"] for name, parts in scores.items()},
            "abs_of_sum": {name: parts["sum"].abs() for name, parts in scores.items()},
        }
        spread: dict[Reduction, str] = {"sum_of_abs": "signs", "sum": "signed"}
        mean_squares = {
            reduction: {name: means[reduction][name].square() + variances[kind][name] for name in self.units}
            for reduction, kind in spread.items()
        }
        return FilterAttribution(
            loss_base=math.nan,
            loss_target=math.nan,
            remainder=remainder,
            total=total,
            completeness_error=math.nan,
            path_places=(0.0, 1.0),
            path_losses=(math.nan, math.nan),
            cosine=cosine,
            n_samples=count,
            n_passes=count * (self.passes or 1),
            method="stratified",
            n_steps=self.passes or 1,
            parameters=dict(self.job.parameters),
            means={reduction: means[reduction] for reduction in REDUCTIONS},
            mean_squares=mean_squares,
            aggregate="pooled",
            precision=self.job.precision,
            agreement=_agreement(scores),
            unscored_abs=unscored,
        )

    def _variances(self, kind: str, add_up: AddUp) -> dict[str, Tensor]:
        """Variance of what one sample adds to a score, such that the standard error of the score comes out.

        The places of the samples are drawn in strata, which takes out most of what their spread over the path would
        add. So differences are taken to the mean of all samples in the same quarter of a stratum.
        """
        quarters = add_up(self.sums.tensors["quarters"]).cpu()
        count = float(quarters.sum())
        freedom = count - float((quarters > 0).sum())
        variances = {}
        for name, shape in self.units.items():
            sums = add_up(self.sums.tensors[f"{kind}/{name}"]).cpu()
            squares = add_up(self.sums.tensors[f"{kind} squared/{name}"]).cpu()
            share = quarters.clamp_min(1).reshape(-1, *[1] * len(shape))
            inside = (squares - (sums.square() / share).sum(0)).clamp_min(0)
            variances[name] = (
                inside / freedom * (count - 1) / count
                if freedom
                else torch.full(shape, math.nan, device="cpu").double()
            )
        return variances


def _agreement(scores: Mapping[str, Mapping[str, Tensor]]) -> float:
    """Expected overlap of the top 1% with that of infinitely many samples.

    The top sets of both halves differ by the noise of two estimates from half of the samples each, which is twice the
    noise of the whole estimate: so the whole one differs from what it converges to by half as much.
    """
    halves = [torch.cat([parts[half].reshape(-1) for parts in scores.values()]) for half in ("first", "second")]
    first, second = (top_set(half, len(half)) for half in halves)
    return 1 - float((first & ~second).sum() / first.sum()) / 2
