"""The settings of a call, checked against each other before any work, and the run that they ask for."""

from __future__ import annotations

from typing import Any

from filterattr.errors import SettingError
from filterattr.estimators.adaptive import DEFAULT_LIMIT, DEFAULT_TOLERANCE, AdaptiveEstimator
from filterattr.estimators.base import AttributionTask, Estimator
from filterattr.estimators.batched.estimator import BatchedEstimator
from filterattr.estimators.fixed import FixedEstimator
from filterattr.estimators.pooled import PooledEstimator, Until
from filterattr.estimators.sharded import ShardedFixed, ShardedPath, ShardedSigned
from filterattr.estimators.signed import SignedEstimator
from filterattr.integral.quadrature import RULES, NestedQuadrature, Quadrature

DEFAULT_METHOD = "gausslegendre"
DEFAULT_STEPS = 16


class EstimatorSettings:
    """How the integral is to be estimated.

    Args:
        method: Name of the rule, or ``None`` for the default.
        n_steps: Number of nodes, or their limit; ``None`` for the default of the method.
        tolerance: Of the adaptive rule.
        aggregate: ``"per_sample"`` or ``"pooled"``.
        until: When a pooled run stops.
        samples_per_pass: How many samples may be evaluated at once.
        keep: ``"all"`` scores, or the ``"signed"`` ones.

    Raises:
        SettingError: A setting is unknown, or does not go together with the others.
    """

    def __init__(
        self,
        method: str | None = None,
        n_steps: int | None = None,
        tolerance: float | None = None,
        aggregate: str = "per_sample",
        until: Until | None = None,
        samples_per_pass: int = 1,
        keep: str = "all",
    ) -> None:
        self._tolerance, self._until = tolerance, until
        self._is_pooled, self._is_adaptive = aggregate == "pooled", method == "adaptive"
        if method not in (None, "adaptive", *RULES):
            raise SettingError(f"method must be one of {', '.join((*RULES, 'adaptive'))}; got {method!r}.")
        if aggregate not in ("per_sample", "pooled"):
            raise SettingError(f'aggregate must be "per_sample" or "pooled"; got {aggregate!r}.')
        self._is_signed = keep == "signed"
        self._check_keep(keep, samples_per_pass)
        if self._is_pooled and method is not None:
            raise SettingError(
                f'aggregate="pooled" draws its nodes by itself: leave out method={method!r}. n_steps is the number of '
                "nodes per sample."
            )
        if tolerance is not None and not self._is_adaptive:
            raise SettingError(f'tolerance={tolerance!r} needs method="adaptive"; other rules cannot be refined.')
        if until is not None and not self._is_pooled:
            raise SettingError('until needs aggregate="pooled": scores of single samples are averaged over all data.')
        if until is not None and until != "settled" and not callable(until):
            raise SettingError(f'until must be "settled" or a function of the result so far; got {until!r}.')
        self.samples_per_pass = _whole("internal_batch_size", samples_per_pass)
        if self.samples_per_pass > 1 and (self._is_pooled or self._is_adaptive):
            raise SettingError(
                f"internal_batch_size={samples_per_pass} needs the same nodes for all samples; leave it out, or "
                'aggregate="pooled" and method="adaptive".'
            )
        if self._is_pooled:
            self.n_steps = _whole("n_steps", 1 if n_steps is None else n_steps)
        elif self._is_adaptive:
            self.n_steps = DEFAULT_LIMIT if n_steps is None else n_steps
            NestedQuadrature.up_to(self.n_steps)
        else:
            self.n_steps = DEFAULT_STEPS if n_steps is None else n_steps
            self._quadrature = Quadrature.rule(method or DEFAULT_METHOD, self.n_steps)

    def _check_keep(self, keep: str, samples_per_pass: int) -> None:
        if keep not in ("all", "signed"):
            raise SettingError(f'keep must be "all" or "signed"; got {keep!r}.')
        if self._is_signed and (self._is_pooled or self._is_adaptive or samples_per_pass != 1):
            raise SettingError(
                'keep="signed" needs a rule with fixed nodes and passes of one sample; leave out aggregate="pooled", '
                'method="adaptive" and internal_batch_size. A sample may be a batch whose loss sums over its rows.'
            )

    def run(self, job: AttributionTask) -> Estimator[Any]:
        """Prepare the run.

        Args:
            job: What is to be done.

        Returns:
            The run.

        Raises:
            SettingError: Waypoints and sharded models need a fixed rule and single samples; the tolerance is out of
                range.
        """
        if isinstance(job.path, ShardedPath):
            return self._run_sharded(job)
        if job.path.waypoints and (self._is_pooled or self._is_adaptive):
            raise SettingError(
                'waypoints need a rule with fixed nodes; leave out aggregate="pooled" and method="adaptive".'
            )
        if self._is_pooled:
            return PooledEstimator(job, self.n_steps, self._until)
        if self._is_adaptive:
            return AdaptiveEstimator(
                job, DEFAULT_TOLERANCE if self._tolerance is None else self._tolerance, self.n_steps
            )
        if self._is_signed:
            return SignedEstimator(job, self._quadrature)
        if job.path.waypoints and self.samples_per_pass > 1:
            raise SettingError(
                f"internal_batch_size={self.samples_per_pass} needs a straight path; leave it out, or the waypoints."
            )
        if self.samples_per_pass > 1:
            return BatchedEstimator(job, self._quadrature, self.samples_per_pass)
        return FixedEstimator(job, self._quadrature)

    def _run_sharded(self, job: AttributionTask) -> Estimator[Any]:
        if self._is_pooled or self._is_adaptive or self.samples_per_pass > 1:
            raise SettingError(
                "a model that fully_shard has split needs a rule with fixed nodes and passes of one sample; leave out "
                'aggregate="pooled", method="adaptive" and internal_batch_size.'
            )
        return (ShardedSigned if self._is_signed else ShardedFixed)(job, self._quadrature)


def _whole(name: str, number: object) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise SettingError(f"{name} must be a whole number of at least 1; got {number!r}.")
    return number
