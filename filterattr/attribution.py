r"""The integral of the loss gradient along the path, times the weight change, per unit and sample.

.. math:: A_i = (\theta_i - \bar\theta_i) \int_0^1 \frac{\partial L(\gamma(t))}{\partial \gamma_i}\, dt,
   \qquad \gamma(t) = \bar\theta + t\,(\theta - \bar\theta)
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from functools import partial
from itertools import pairwise
from os import PathLike
from pathlib import Path as FilePath
from time import perf_counter
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from filterattr.errors import (
    FilterAttrWarning,
    SettingError,
)
from filterattr.estimators.base import AttributionTask, Estimator, Precision, check_precision
from filterattr.estimators.pooled import Until
from filterattr.estimators.settings import DEFAULT_STEPS, EstimatorSettings
from filterattr.estimators.sharded import ShardedPath
from filterattr.estimators.signed import SAMPLES_AT_A_NODE
from filterattr.files.lazy import mapped_state
from filterattr.integral.path import Path, sum_type
from filterattr.jobs.checkpoint import JobFile
from filterattr.jobs.distributed import LockstepGroup, Message, ProcessGroup
from filterattr.jobs.progress import Progress as Progress
from filterattr.jobs.progress import counted
from filterattr.jobs.sample_loop import SampleLoop, job_environment
from filterattr.jobs.samples import pair_note, series
from filterattr.loss.checks import Loss as Loss
from filterattr.loss.checks import check_call
from filterattr.model.context import GradientMode, ModelLock, training_warning
from filterattr.model.fitting import Side, fit_states, is_number, rounding_warning
from filterattr.model.random_state import CallersRandomness
from filterattr.model.sharded import ShardedSwap
from filterattr.model.state_dict import StateLike, plain_state, unwrap_model
from filterattr.model.swap import ParameterSwap, is_sharded, restoring
from filterattr.renamed import renamed
from filterattr.results.attribution import FilterAttribution, warning_text
from filterattr.results.cost import CostEstimate
from filterattr.units.groups import UnitLike
from filterattr.units.layouts import REGISTERED
from filterattr.units.select import Select, doubts_of_units, first_names, scored_parameters, single_weights
from filterattr.units.unit import STATISTICS, ScoredParameter, units_of

Aggregate: TypeAlias = Literal["per_sample", "pooled"]
Keep: TypeAlias = Literal["all", "signed"]
Weights: TypeAlias = StateLike | str | PathLike[str]


class FilterAttributor:
    """Attribute the change of a loss between two sets of weights to the filters of a network.

    The model is never written to: it computes with copies while the loss runs, and gets its own objects back even if
    the call raises. The exception is a model that `torch.distributed.fsdp.fully_shard` has split over processes: other
    values are written into its parameters for every pass, and its own are written back, bit for bit.

    Args:
        model: Any module that the loss uses. Data-parallel wrappers and `torch.compile` are unwrapped.
        unit: What gets one score. ``"kernel"`` is one 2-D slice, an input-output pair, and the default. ``"filter"`` is
            an output channel, and the default for linear layers with more than ten million weights in total.
            ``"input"`` is an input channel; ``"layer"`` and ``"weight"`` are what they say. Or an einops pattern such
            as ``"(heads d) i -> heads"``, a `Unit` with sizes, or a mapping from name globs to these. A `Group` in the
            mapping makes units that span several parameters; its key is a glob of module names.
        select: Which parameters are scored: a glob, several, or a predicate on name, module and parameter. The default
            is every parameter of two or more dimensions and every member of a group; the latter alone if ``unit`` maps
            to groups only. All floating parameters move along the path, whatever is selected.

    Raises:
        UnsupportedModelError: The weights of the model cannot be exchanged.
        UnitError: A unit does not fit, or no parameter is selected.

    Example:
        >>> import torch
        >>> from torch import Tensor, nn
        >>> from filterattr import FilterAttributor
        >>> _ = torch.manual_seed(0)
        >>> base, target = (nn.Sequential(nn.Conv2d(1, 4, 3), nn.SiLU(), nn.Conv2d(4, 1, 3)) for _ in range(2))
        >>> image = torch.rand(1, 1, 12, 12)
        >>> attribution = FilterAttributor(base).attribute(base, target, lambda model: model(image).square().sum())
        >>> attribution.scores().top(0.5)
        FilterSelection(4 of 8 units in 2 parameters)
        >>> attribution.completeness_error < 1e-4
        True

    References:
        Xie et al., "Finding Discriminative Filters for Specific Degradations in Blind Super-Resolution", NeurIPS 2021,
        equations 5 and 6; Sundararajan et al., "Axiomatic Attribution for Deep Networks", ICML 2017.
    """

    def __init__(self, model: nn.Module, *, unit: UnitLike | None = None, select: Select | None = None) -> None:
        self.model = unwrap_model(model)
        self.unit: UnitLike = "kernel" if unit is None else unit
        self.select = select
        self._scored: tuple[tuple[object, ...], dict[str, ScoredParameter]] = (), {}
        swap = _swap_of(self.model)
        guesses: list[str] = []
        scored = self._scored_parameters(swap, guesses)
        single = single_weights(scored) if unit is None else []
        if single:
            self.unit = {**dict.fromkeys(single, "filter"), "*": "kernel"}
            scored = self._scored_parameters(swap)
        for doubt in doubts_of_units(scored, single, guesses):
            warnings.warn(doubt, FilterAttrWarning, stacklevel=2)

    def attribute(
        self,
        base: Weights,
        target: Weights,
        loss: Loss,
        data: Iterable[Any] | None = None,
        *,
        method: str | None = None,
        n_steps: int | None = None,
        tolerance: float | None = None,
        aggregate: Aggregate = "per_sample",
        until: Until | None = None,
        waypoints: Iterable[StateLike] = (),
        buffers: Side | None = None,
        allow_unused: str | Sequence[str] = (),
        precision: Precision | None = None,
        internal_batch_size: int | None = None,
        keep: Keep = "all",
        checkpoint: str | PathLike[str] | None = None,
        distributed: bool = False,
        progress: Progress = None,
        samples_per_pass: int | None = None,
    ) -> FilterAttribution:
        """Integrate from base to target.

        The model computes with the weights of every node on the line from base to target, and each sample is integrated
        by itself. Look at the ``concerns`` of the result, which ``print`` shows, before you look at its scores. A
        `FilterAttrWarning` names a completeness error, a barrier on the path, changes that round away in the model's
        type, and modules in train mode.

        Args:
            base: Weights that lack the function: a module or a state dict (wrappers, ``"params_ema"`` and ``module.``
                are unwrapped). Or a path: a file of `torch.save` or safetensors, or a folder as Hugging Face libraries
                write it. Safetensors are mapped into memory, so that no copy of them is held. Weights in the type,
                device and layout of the model are used where they lie, and must stay as they are meanwhile.
            target: Weights that have it.
            loss: ``loss(model)``, or ``loss(model, sample)`` if ``data`` is given; returns one real scalar. Sum
                or average as you like: scores are linear in the loss. The paper's is the squared error summed over
                pixels and channels.
            data: Samples, in any iterable or map-style data set; each is integrated by itself and the scores are
                averaged. It is passed through once.
            method: Rule of the integral: ``"gausslegendre"`` (the default), ``"riemann_right"`` (the published code's),
                ``"riemann_left"``, ``"riemann_middle"``, ``"riemann_trapezoid"``, or ``"adaptive"``, which takes 7, 15,
                31, ... nodes for each sample until ``tolerance`` is reached and keeps every gradient.
            n_steps: Number of nodes on the path, 16 by default; each costs one forward-backward pass per sample. With
                waypoints, the number in every segment. For ``"adaptive"`` the largest number that a sample may take,
                127 by default. For ``aggregate="pooled"`` the number of drawn nodes per sample, 1 by default.
            tolerance: For ``"adaptive"``, 0.01 by default. A sample is done when its completeness error is at most
                this, and at most this share of its top 1% of units (by ``"sum_of_abs"``) would still change with more
                nodes. Half of what changed with the last refinement is the estimate of that share.
            aggregate: ``"per_sample"`` takes absolute values for every sample before the mean over samples (the
                paper's). ``"pooled"`` takes them after it: then one drawn node per sample is enough, at a sixteenth of
                the time, but weights whose attributions have different signs in different samples get lower scores.
                Losses and completeness error are NaN then, as no sample but the first is seen at the ends.
            until: For ``"pooled"``, when to stop before the data end; asked after 16, 24, 32, 48, 64, 96, ... samples.
                ``"settled"`` stops when 95% of the top 1% of units are expected to be those of infinitely many samples
                (`FilterAttribution.agreement`). A function is given the attribution so far and returns whether it is
                good enough; with ``distributed`` every rank calls it with the same one.
            waypoints: Weights that the path passes through on its way from base to target, such as those that a
                `PathRecorder` kept of the training. The signed contributions of the straight segments add up before
                absolute values are taken; completeness still holds, and the places t are spread evenly over the
                segments.
            buffers: Whose buffers (running statistics) to use where base and target differ; needed if floating ones do.
            allow_unused: Globs of parameters that may differ although the loss does not use them; they count 0.
            precision: ``"bf16"`` evaluates the loss under autocast to bfloat16; gradients arrive in the parameters' own
                type and are added up in float64. ``None`` leaves the precision to you.
            internal_batch_size: How many points may share a pass, as in Captum; a point is one sample at one node. Here
                the samples of a pass are at the same node, and each gets its own gradient: faster if samples and
                network are small, with the same scores except for rounding. Shared are those that are tuples, lists and
                mappings of tensors of the same shapes, and of the same numbers and texts; others are evaluated by
                themselves. Costs memory: for every sample, its part of the pass and two copies of what moves along the
                path. Where that does not suffice, the number is halved, with a warning. The loss stays that of one
                sample; `torch.func.vmap` must be able to map it over samples.
            keep: Which scores are kept. ``"all"`` keeps every reduction of `FilterAttribution.scores`; the paper's,
                ``"sum_of_abs"``, needs a number for every weight. ``"signed"`` keeps ``"sum"`` and ``"abs_of_sum"``:
                gradients are reduced to units while the backward pass runs, no memory is needed for every weight, and
                the weights of a node are written once for eight samples. A sample may be a batch, if the loss sums
                over its rows: ``"sum"`` then is that of all rows, over the number of batches.
            checkpoint: File that keeps what is done.
            distributed: Share the samples with the other ranks of the default process group.
            progress: ``True`` or ``False`` for a progress bar, a function of ``(done, total)`` passes, or ``None`` for
                a bar in terminals after two seconds.
            samples_per_pass: Old name of ``internal_batch_size``; works until version 0.3.

        Returns:
            The attribution.

        Raises:
            StateMismatchError: An end point does not fit the model; everything wrong is in one message.
            SettingError: A method, number or data argument cannot be used.
            LossError: The loss is no real scalar, does not depend on (some of) the changed parameters, or cannot be
                mapped over samples although ``internal_batch_size`` asks for it: it draws random numbers, reads values
                of tensors, or writes in place, as batch normalisation in train mode does.
            NonFiniteError: A loss or gradient is infinite or not a number; its place on the path is named.
            ModelChangedError: The loss replaced, trained or wrote to parameters of the model, another thread is
                computing with other weights in it, or something has written to base or target during the call.
            StorageError: The checkpoint cannot be written, is damaged, or belongs to another job.
            DistributedError: Another rank failed, died, or was given something else.

        Note:
            With ``checkpoint``, the sums are written to the disk after every sample, in one atomic step. To resume a
            call that was killed, make it again: it skips what is done and returns the same bits as an uninterrupted
            call. It loses at most the sample it was working on; with ``aggregate="pooled"``, whose sums are as large as
            the weights and are written more rarely, at most 16; with ``internal_batch_size``, those of one pass. For
            the same bits, as many samples must share a pass as before. A finished job returns at once, and continues if
            data has more samples. A file belongs to one job: other weights, settings, units, train flags or samples, or
            another loss at base, are refused. Another PyTorch version, processor, number of threads or number of
            samples in a pass is warned about. The randomness is that of the job's first start. Writing takes about 15
            ms, and 50 ms more per million numbers (6 per unit): it is worth it if a sample takes longer than that.
            Samples must be made of tensors, arrays, pictures, numbers, texts, bytes, paths and ``None``, in tuples,
            lists, mappings and dataclasses; the loss itself is only known by its value.

            With ``distributed``, the processes of `torch.distributed` share the samples out: rank r of n computes
            samples r, r + n, and so on. Every rank makes the same call with the same data, iterates over all of it, and
            gets the same bits. They are within 1e-10 of those of a single process (within the rounding of the network,
            if samples share passes). The ranks speak after every sample: if one raises, all raise; if one dies, the
            others raise at the latest after the timeout of the process group. Other weights, settings or samples on
            some rank are refused. The checkpoint of rank r is kept at ``<stem>.rank<r><suffix>``.

            All processes of the mesh of a model that ``fully_shard`` has split make the same call with the same data,
            without ``distributed``, and get the same scores. Each holds its part of base, target and the sums. Base and
            target may be sharded like the model. Nodes must be those of a fixed rule, one sample in a pass.
        """
        if samples_per_pass is not None:
            internal_batch_size = renamed(
                "samples_per_pass", samples_per_pass, "internal_batch_size", internal_batch_size
            )
        batch_size = 1 if internal_batch_size is None else internal_batch_size
        ranks = self._ranks(distributed=distributed, checkpoint=checkpoint)
        lock, mode, caller = ModelLock(self.model), GradientMode(), CallersRandomness()

        def prepare() -> tuple[EstimatorSettings, AttributionTask]:
            lock.take()
            mode.enter()
            caller.enter()
            plan = EstimatorSettings(method, n_steps, tolerance, aggregate, until, batch_size, keep)
            return plan, self._job(ranks, base, target, loss, data, waypoints, buffers, allow_unused, precision)

        def compute() -> Estimator[Any]:
            more = {"until": until is None, "internal_batch_size": batch_size}
            begin = partial(_begin, _met(ranks, prepare), ranks, checkpoint, more, is_shared=distributed)
            (run, file), answers = ranks.run_on_all(partial(begin, with_data=data is not None))
            ranks.agree(answers, "a shared job")
            for reason in (rounding_warning(run.job.path.rounded, run.job.path.base), training_warning(self.model)):
                if reason:
                    warnings.warn(reason, FilterAttrWarning, stacklevel=4)
            shown = progress if callable(progress) or not ranks.rank else False  # only the first rank has a bar
            with counted(shown, _passes(ranks, data, run.passes), "pass", title="attributing") as run.advance:
                SampleLoop(run, ranks, file, caller.state).run(None if data is None else series(data))
            return run

        # threads that Python starts would otherwise split the work differently than the main thread does
        torch.set_num_threads(torch.get_num_threads())
        try:
            run = restoring(compute, caller.leave, mode.restore, lock.release)
        except Exception as error:
            note = pair_note(data)
            if note:
                error.add_note(note)
            raise
        attribution = run.result()
        reason = run.node.doubt or warning_text(attribution)
        if reason:
            warnings.warn(reason, FilterAttrWarning, stacklevel=2)
        return attribution

    def estimate(
        self,
        base: Weights,
        target: Weights,
        loss: Loss,
        data: Sequence[Any] | None = None,
        *,
        n_steps: int | None = None,
        keep: Keep = "all",
        **settings: Any,
    ) -> CostEstimate:
        """Say what `attribute` will cost: passes, seconds and bytes.

        Five nodes of the first sample are computed, and the fastest of them counts. Bytes are counted from shapes.
        What the loss needs by itself, such as activations, is not among them.

        Args:
            base: As for `attribute`.
            target: As for `attribute`.
            loss: As for `attribute`.
            data: Samples that can be counted and asked for by number, such as a list or a map-style data set.
            n_steps: As for `attribute`.
            keep: As for `attribute`.
            **settings: Further arguments of `attribute` about the path: ``buffers``, ``allow_unused``, ``precision``.

        Returns:
            The estimate.

        Raises:
            SettingError: The data cannot be counted, or hold nothing.

        Example:
            >>> _ = torch.manual_seed(0)
            >>> base, target = nn.Linear(100, 10), nn.Linear(100, 10)
            >>> loss = lambda model, x: model(x).square().sum()
            >>> cost = FilterAttributor(base).estimate(base, target, loss, torch.rand(8, 100), n_steps=4)
            >>> cost.n_passes, cost.n_units, cost.weight_bytes
            (32, 1000, 4040)
        """
        if data is not None and not (hasattr(data, "__len__") and hasattr(data, "__getitem__") and len(data)):
            raise SettingError(
                f"an estimate needs at least one sample, and their number; got {type(data).__name__}. Pass a list or a "
                "data set."
            )
        times = [perf_counter()]
        first = None if data is None else [data[0]]
        watch = lambda *_: times.append(perf_counter())  # noqa: E731
        attribution = self.attribute(base, target, loss, first, n_steps=5, keep=keep, progress=watch, **settings)
        n_samples = 1 if data is None else len(data)
        moving = {name: value for name, value in _held(_swap_of(self.model)).items() if is_number(value)}
        sizes = {name: value.numel() * value.element_size() for name, value in moving.items()}
        sums = {name: value.numel() * sum_type(value).itemsize for name, value in moving.items()}
        largest = max(sums.values(), default=0)
        n_units = sum(map(math.prod, units_of(attribution.parameters).values()))
        kept = sum(
            len([name for name in reductions if name in attribution.means]) for reductions in STATISTICS.values()
        )
        return CostEstimate(
            n_samples=n_samples,
            n_passes=n_samples * (DEFAULT_STEPS if n_steps is None else n_steps),
            seconds_per_pass=min(after - before for before, after in pairwise(times[1:])),
            n_units=n_units,
            weight_bytes=sum(sizes.values()),
            engine_bytes=sum(sizes.values()) + (largest if attribution.is_signed else sum(sums.values()) + largest),
            score_bytes=8 * (kept + (SAMPLES_AT_A_NODE if attribution.is_signed else 0)) * n_units,
        )

    def _ranks(self, *, distributed: bool, checkpoint: object) -> ProcessGroup:
        """The processes that work on a call: this one, those that share the samples, or those that hold the model."""
        if not is_sharded(self.model):
            return ProcessGroup.joined() if distributed else ProcessGroup()
        if distributed or checkpoint is not None:
            raise SettingError(
                "a model that fully_shard has split is computed by all processes of its mesh, each sample by all of "
                "them, and keeps no checkpoint: leave out distributed=True and checkpoint=."
            )
        return LockstepGroup(ShardedSwap(self.model).process_group)

    def _job(
        self,
        ranks: ProcessGroup,
        base: Weights,
        target: Weights,
        loss: Loss,
        data: Iterable[Any] | None,
        waypoints: Iterable[StateLike],
        buffers: Side | None,
        allow_unused: str | Sequence[str],
        precision: Precision | None,
    ) -> AttributionTask:
        """Check what a run needs."""
        swap = ShardedSwap(self.model) if isinstance(ranks, LockstepGroup) else ParameterSwap(self.model)
        parameters = self._scored_parameters(swap)
        if buffers not in (None, "base", "target"):
            raise SettingError(f'buffers must be None, "base" or "target"; got {buffers!r}.')
        corners = {f"waypoint {index}": state for index, state in enumerate(waypoints)}
        path = _path(swap, base, target, corners, buffers)
        check_precision(precision, path.base)
        check_call(loss, with_data=data is not None)
        if data is not None:
            series(data)  # before any work
        globs = (allow_unused,) if isinstance(allow_unused, str) else tuple(allow_unused)
        unused = first_names(swap, globs) if globs else frozenset()  # names of nothing do no harm here
        return AttributionTask(self.model, swap, path, loss, parameters, unused, precision)

    def scored_parameters(self) -> dict[str, ScoredParameter]:
        """Find the parameters that are scored, and their units.

        Returns:
            Parameter name to how it is scored, in the order of the network.

        Raises:
            UnitError: Units do not fit (all misfits are gathered), or no parameter is selected.

        Example:
            >>> FilterAttributor(nn.Conv2d(2, 3, 5)).scored_parameters()["weight"].units_shape
            torch.Size([3, 2])
        """
        return dict(self._scored_parameters(_swap_of(self.model)))

    def _scored_parameters(self, swap: ParameterSwap, guesses: list[str] | None = None) -> dict[str, ScoredParameter]:
        """The same as the last time, unless something is another that it depends on, or a predicate decides."""
        basis = _basis_of_units(self.model, swap, self.unit, self.select)
        if callable(self.select) or self._scored[0] != basis:
            self._scored = basis, scored_parameters(self.model, swap, self.unit, self.select, guesses)
        return self._scored[1]


def _basis_of_units(model: nn.Module, swap: ParameterSwap, unit: UnitLike, select: Select | None) -> tuple[object, ...]:
    """Everything that decides what is scored, except for a predicate, to be compared with that of an earlier call.

    Modules are compared by identity, class, and the attributes that are numbers, texts and flags: these say how a layer
    stores its weights.
    """
    modules = [
        (module, type(module), {key: value for key, value in vars(module).items() if type(value) in (bool, int, str)})
        for module in model.modules()
    ]
    shown = [(value.shape, value.dtype, hasattr(value, "quant_state")) for value in swap.parameters.values()]
    wanted = dict(unit) if isinstance(unit, Mapping) else unit
    chosen = select if select is None or isinstance(select, str) or callable(select) else tuple(select)
    return dict(swap.aliases), modules, shown, wanted, chosen, tuple(REGISTERED)


def _swap_of(model: nn.Module) -> ParameterSwap:
    return ShardedSwap(model) if is_sharded(model) else ParameterSwap(model)


def _held(swap: ParameterSwap) -> Mapping[str, Tensor]:
    """What this process holds of the parameters."""
    return swap.held if isinstance(swap, ShardedSwap) else swap.parameters


def _path(
    swap: ParameterSwap, base: Weights, target: Weights, corners: Mapping[str, StateLike], buffers: Side | None
) -> Path:
    """The path between weights; of a sharded model, in the part that this process holds."""
    states = {"base": _loaded(base), **corners, "target": _loaded(target)}
    plain = (
        swap.local_states(states)
        if isinstance(swap, ShardedSwap)
        else {role: plain_state(state, role, swap.aliases) for role, state in states.items()}
    )
    fitted = fit_states(
        plain["base"],
        plain["target"],
        parameters=_held(swap),
        buffers=swap.buffers,
        aliases=swap.aliases,
        keep_buffers=buffers,
        waypoints=[plain[role] for role in corners],
        names_first=any(isinstance(end, str | PathLike) for end in (base, target)),
    )
    return ShardedPath.through(fitted) if isinstance(swap, ShardedSwap) else Path.through(fitted)


def _loaded(weights: Weights) -> StateLike:
    """Weights themselves; those of a file are mapped into memory."""
    return mapped_state(FilePath(weights)) if isinstance(weights, str | PathLike) else weights


def _met(
    ranks: ProcessGroup, prepare: Callable[[], tuple[EstimatorSettings, AttributionTask]]
) -> Callable[[], tuple[EstimatorSettings, AttributionTask]]:
    """Let the processes that hold parts of a model prepare a call, and learn what moves in the parts of the others."""
    if not isinstance(ranks, LockstepGroup):
        return prepare
    (plan, job), _ = ranks.run_on_all(lambda: (prepare(), {}))
    if isinstance(job.path, ShardedPath):
        job.path.meet(ranks.add_up)
    return lambda: (plan, job)


def _begin(
    prepare: Callable[[], tuple[EstimatorSettings, AttributionTask]],
    ranks: ProcessGroup,
    checkpoint: str | PathLike[str] | None,
    more: Message,
    *,
    is_shared: bool,
    with_data: bool,
) -> tuple[tuple[Estimator[Any], JobFile | None], Message]:
    """Prepare the run and the file that keeps it, and say what must be the same for all processes."""
    plan, job = prepare()
    run = plan.run(job)
    if checkpoint is None and ranks.size == 1:
        return (run, None), {}
    identity = run.identity(with_data=with_data)
    file = None if checkpoint is None else _job_file(checkpoint, identity, ranks if is_shared else None, run)
    return (run, file), {**identity, "checkpoint": file is not None, **more}


def _job_file(
    checkpoint: str | PathLike[str], job: Mapping[str, Any], ranks: ProcessGroup | None, run: Estimator[Any]
) -> JobFile:
    """The file that keeps a job; each rank has its own."""
    if not isinstance(checkpoint, str | PathLike):
        raise SettingError(f"checkpoint must be a path; got {type(checkpoint).__name__}.")
    path = FilePath(checkpoint)
    if ranks is not None:
        path = path.with_name(f"{path.stem}.rank{ranks.rank}{path.suffix}")
    share = {"rank": f"{ranks.rank} of {ranks.size}" if ranks is not None else "0 of 1"}
    return JobFile(path, {**job, **share}, job_environment(run.job.device, run.samples_per_pass))


def _passes(ranks: ProcessGroup, data: Iterable[Any] | None, passes: int | None) -> int | None:
    """How many passes this rank has before it, as far as that is known."""
    count = 1 if data is None else len(data) if isinstance(data, Sized) else None
    return None if count is None or passes is None else len(range(ranks.share, count, ranks.n_shares)) * passes
