"""Several samples in one pass, each with a gradient of its own: for samples too small to fill a pass by themselves."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from filterattr.errors import FilterAttrWarning, LossError, ModelChangedError
from filterattr.estimators.base import AttributionTask
from filterattr.estimators.batched.batch import batchable_runs
from filterattr.estimators.batched.node import BatchedPathNode, refusal
from filterattr.estimators.fixed import FixedEstimator
from filterattr.integral.gradients import BatchedContributions
from filterattr.integral.quadrature import Quadrature
from filterattr.jobs.samples import Sample
from filterattr.loss.out_of_memory import may_be_out_of_memory


class BatchedEstimator(FixedEstimator):
    """The same nodes for every sample, and at every node one pass for all samples that are alike.

    The first sample of a call is also evaluated by itself, at base and at one node, with all checks; both ways must
    come to the same loss and gradient. Samples with numbers that are not finite are integrated again one by one, which
    finds the place.

    Args:
        job: What is to be done.
        quadrature: The nodes.
        samples_per_pass: How many samples are evaluated at once, at most.
    """

    def __init__(self, job: AttributionTask, quadrature: Quadrature, samples_per_pass: int) -> None:
        super().__init__(job, quadrature)
        self.samples_per_pass = samples_per_pass
        self._limit = samples_per_pass
        self._is_compared = False
        self._batched_node = BatchedPathNode(self.node)
        self._scores = BatchedContributions(job.parameters)
        # base and one node first: what is wrong with the loss shows there
        self._first = tuple(dict.fromkeys((0.0, quadrature.nodes[0])))
        self._order = (*self._first, *(t for t in self.places if t not in self._first))

    def add_samples(self, samples: Sequence[Sample]) -> list[list[float]]:
        """See `Estimator.add_samples`."""
        losses: list[list[float]] = []
        for alike in batchable_runs(samples):
            done = 0
            while done < len(alike):
                part = alike[done : done + self._limit]
                if len(part) == 1:
                    losses += super().add_samples(part)
                elif not self._integrate(part):
                    continue
                else:
                    losses += self._add(part)
                done += len(part)
        return losses

    def _integrate(self, samples: list[Sample]) -> bool:
        """Visit all places with several samples; otherwise fewer are taken from now on."""
        reason = ""
        if not self._is_compared:
            self._visit_alone(samples[0])
        try:
            self._visit_all(samples)
        except (RuntimeError, MemoryError, TypeError, ValueError) as error:
            if isinstance(error, ModelChangedError):
                raise
            if may_be_out_of_memory(error):
                self._limit = len(samples) // 2
                reason = f"{len(samples)} samples need more memory in one pass than there is"
            else:
                refused = error if isinstance(error, LossError) else refusal(error)
                if not self.sums.count:
                    raise refused from error
                self._limit = 1
                reason = str(refused).removesuffix(".")
        if not reason:
            return True
        self._batched_node.release()  # after the block: until then the error holds what the pass did
        warnings.warn(f"{reason}; going on with internal_batch_size={self._limit}.", FilterAttrWarning, stacklevel=9)
        return False

    def _visit_all(self, samples: list[Sample]) -> None:
        self._batched_node.start(samples)
        for number, t in enumerate(self._order, 1):
            self._batched_node.evaluate(t, self.coefficients.get(t))
            if not self._is_compared and number == len(self._first):
                self._compare()

    def _visit_alone(self, sample: Sample) -> None:
        """Evaluate one sample by itself, with everything that is checked about a loss."""
        self.node.start(*sample)
        for t in self._first:
            self.node.evaluate(t, self.coefficients.get(t))
        self.node.losses_at(self._first)
        self.node.check_gradients()
        if self.sums.count == 0:
            self.node.check_used(self.job.allow_unused)

    def _compare(self) -> None:
        """Refuse a loss that is another one for several samples; what is mapped silently wrong shows here."""
        alone = self.node.losses_at(self._first)
        together = self._batched_node.losses_at(self._first)[0]
        rounding = self._rounding()
        wrong = [
            f"{among_others:.6g} instead of {by_itself:.6g} at t = {t:.4g}"
            for t, by_itself, among_others in zip(self._first, alone, together, strict=True)
            if not abs(by_itself - among_others) <= rounding * max(map(abs, alone))
        ]
        sums = self.node.gradients.sums
        first = {name: total[0] for name, total in self._batched_node.integrals().items()}
        size = sum(float(total.abs().sum()) for total in sums.values())
        gap = sum(float((first[name] - total).abs().sum()) for name, total in sums.items())
        if not wrong and not gap <= 10 * rounding * size:
            wrong = [f"a gradient that is off by {gap / size:.2g}"]
        if wrong:
            raise LossError(
                "with internal_batch_size the loss must be the same for a sample by itself and among others, but the "
                f"first sample gets {', '.join(wrong)}. The loss, or something in the model, depends on more than the "
                "model and the sample; leave internal_batch_size out."
            )
        self._is_compared = True

    def _rounding(self) -> float:
        """What two ways to compute the same may differ by."""
        kinds = {value.dtype for value in self.job.path.base.values()}
        if self.job.precision is not None or self.job.device.type != "cpu":
            kinds.add(torch.bfloat16)  # TF32 has hardly more digits
        return math.sqrt(max(torch.finfo(kind).eps for kind in kinds))

    def _add(self, samples: list[Sample]) -> list[list[float]]:
        """Add all samples to the sums; what is not finite shows again, with its place, when they are alone."""
        losses = self._batched_node.losses_at(self.places)
        if not self._batched_node.is_finite():
            return super().add_samples(samples)
        ends = [self._true_ends_of(sample, seen) for sample, seen in zip(samples, losses, strict=True)]
        self.sums.add(self._terms_together(losses, ends), len(samples))
        for _ in range(len(samples) * len(self.quadrature.nodes)):
            self.advance()
        return losses

    def _true_ends_of(self, sample: Sample, losses: list[float]) -> dict[str, Tensor]:
        if self.job.path.end_buffers:
            self.node.start(*sample)
        return self.true_ends(losses)

    def _terms_together(self, losses: list[list[float]], ends: list[dict[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Everything that the samples add together, one after the other."""
        for terms in ends:
            yield from terms.items()
        integrals = self._batched_node.integrals().items()
        attributions = ((name, self.job.path.times_displacement(name, integral)) for name, integral in integrals)
        for name, scores in self._scores.per_unit(attributions):
            for key, values in self.statistics(name, scores):
                yield key, values.sum(0)
        each = self._scores.totals_of_each(len(losses))
        rows = [[totals.signed, totals.remainder, *totals.gap(seen)] for totals, seen in zip(each, losses, strict=True)]
        for name, numbers in (
            ("losses", losses),
            ("totals", rows),
            ("unscored", [[totals.unscored] for totals in each]),
        ):
            yield name, torch.tensor(numbers, dtype=torch.float64, device="cpu").sum(0)
