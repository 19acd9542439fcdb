r"""The integral of the loss gradient along the path, times the weight change, per unit and sample.

.. math:: A_i = (\theta_i - \bar\theta_i) \int_0^1 \frac{\partial L(\gamma(t))}{\partial \gamma_i}\, dt,
   \qquad \gamma(t) = \bar\theta + t\,(\theta - \bar\theta)
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from os import PathLike
from pathlib import Path as FilePath
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from filterattr.errors import (
    FilterAttrWarning,
    LossError,
    SettingError,
    UnitError,
    name_some,
)
from filterattr.estimators.base import Job, Precision, Run, check_precision
from filterattr.estimators.pooled import Until
from filterattr.estimators.settings import Plan
from filterattr.files.safetensors import JobFile
from filterattr.integral.node import Loss as Loss
from filterattr.integral.path import Path, Side
from filterattr.jobs.distributed import Message, Ranks
from filterattr.jobs.progress import Progress as Progress
from filterattr.jobs.progress import counted
from filterattr.jobs.sample_loop import Walk, job_environment
from filterattr.jobs.samples import pair_note, series
from filterattr.model.lock import Claim
from filterattr.model.modes import GradientMode
from filterattr.model.random_state import CallersRandomness
from filterattr.model.restoring import restoring
from filterattr.model.state_dict import StateLike, plain_state, unwrap_model
from filterattr.model.swap import Slots
from filterattr.model.training import modules_in_training
from filterattr.names import Names
from filterattr.results.attribution import FilterAttribution
from filterattr.results.concerns import COMPLETENESS, barrier_concern, buffers_concern, concerns_about
from filterattr.units.scored import ScoredParameter, units_of
from filterattr.units.unit import UnitLike, assigned, has_only_groups, is_guess, unit_of

Select: TypeAlias = str | Sequence[str] | Callable[[str, nn.Module, nn.Parameter], bool]
Aggregate: TypeAlias = Literal["per_sample", "pooled"]

_ROUNDED_LIMIT = 0.1  # of the changes of a parameter
_MANY_UNITS = 10_000_000
_NUMBERS_OF_A_UNIT = 6, 4  # float64 numbers that a run holds, and for a single weight


class FilterAttributor:
    """Attribute the change of a loss between two sets of weights to the filters of a network.

    The model is never written to: it computes with copies while the loss runs, and gets its own objects back whatever
    happens.

    Args:
        model: Any module that the loss uses. Data-parallel wrappers and `torch.compile` are looked through.
        unit: What is scored: ``"kernel"`` (one 2-D slice, an input-output pair; the default, but for linear layers with
            more than ten million weights in all, which are scored by filter), ``"filter"`` (an output channel),
            ``"input"`` (an input channel), ``"layer"``, ``"weight"``, an einops pattern such as
            ``"(heads d) i -> heads"``, a `Unit` with sizes, or a mapping from name globs to these. A `Group` in the
            mapping makes units that span several parameters; its key is a glob of module names.
        select: Which parameters are scored: a glob, several, or a predicate on name, module and parameter. The default
            is every parameter of two or more dimensions and every member of a group; the latter alone if ``unit`` maps
            to nothing but groups. Everything floating moves along the path either way.

    Raises:
        UnsupportedModelError: The weights of the model cannot be exchanged.
        UnitError: A unit does not fit, or no parameter is selected.

    Example:
        >>> import torch
        >>> from torch import nn
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
        slots = Slots(self.model)
        guesses: list[str] = []
        scored = self._scored(slots, guesses)
        single = _single_weights(scored) if unit is None else []
        if single:
            self.unit = {**dict.fromkeys(single, "filter"), "*": "kernel"}
            scored = self._scored(slots)
        for doubt in _doubts_of_units(scored, single, guesses):
            warnings.warn(doubt, FilterAttrWarning, stacklevel=2)

    def attribute(
        self,
        base: StateLike,
        target: StateLike,
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
        samples_per_pass: int = 1,
        checkpoint: str | PathLike[str] | None = None,
        distributed: bool = False,
        progress: Progress = None,
    ) -> FilterAttribution:
        """Integrate from base to target.

        The model computes with the weights of every node on the line from base to target, and each sample is
        integrated by itself. Before the scores of the result, look at its ``concerns``, which ``print`` shows: they say
        whether to believe them. A `FilterAttrWarning` tells of a completeness error, a barrier on the way, changes that
        round away in the model's type, and modules in train mode.

        Args:
            base: Weights that lack the function: a module or a state dict (wrappers, ``"params_ema"`` and ``module.``
                are looked through).
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
            tolerance: For ``"adaptive"``, 0.01 by default: a sample is done when its completeness error is at most
                this, and at most this part of its top 1 % of units (by ``"sum_of_abs"``) would still change with more
                nodes, which is taken as half of what changed with the last refinement.
            aggregate: ``"per_sample"`` takes absolute values for every sample before the mean over samples (the
                paper's). ``"pooled"`` takes them after it: then one drawn node per sample is enough, at a sixteenth of
                the time, but weights whose attributions have different signs in different samples get lower scores.
                Losses and completeness error are NaN then, as no sample but the first is seen at the ends.
            until: For ``"pooled"``, when to stop before the data end; asked after 16, 24, 32, 48, 64, 96, ... samples.
                ``"settled"`` stops when 95 % of the top 1 % of units are expected to be those of infinitely many
                samples (`FilterAttribution.agreement`). A function is given the attribution so far and returns whether
                it is good enough; with ``distributed`` every rank calls it with the same one.
            waypoints: Weights that the path passes through on its way from base to target, such as those that a
                `PathRecorder` kept of the training. The signed contributions of the straight segments add up before
                absolute values are taken; completeness holds as ever, and the places t are spread evenly over the
                segments.
            buffers: Whose buffers (running statistics) to use where base and target differ; needed if floating ones do.
            allow_unused: Globs of parameters that may differ although the loss does not use them; they count 0.
            precision: ``"bf16"`` evaluates the loss under autocast to bfloat16; gradients arrive in the parameters' own
                type and are added up in float64. ``None`` leaves the precision to you.
            samples_per_pass: How many samples in a row may share a pass, each with its own gradient: faster where
                samples and network are small, and the same scores but for rounding. Shared are those that are tuples,
                lists and mappings of tensors of the same shapes, and of the same numbers and texts; others are
                evaluated by themselves. Costs memory: for every sample, its part of the pass and three float32 copies
                of what moves along the path. Where that does not suffice, the number is halved, with a warning. The
                loss stays that of one sample; `torch.func.vmap` must be able to map it over samples.
            checkpoint: File that keeps what is done.
            distributed: Share the samples with the other ranks of the default process group.
            progress: ``True`` or ``False`` for a progress bar, a function of ``(done, total)`` passes, or ``None`` for
                a bar in terminals after two seconds.

        Returns:
            The attribution.

        Raises:
            StateMismatchError: An end point does not fit the model; everything wrong is in one message.
            SettingError: A method, number or data argument cannot be used.
            LossError: The loss is no real scalar, does not depend on (some of) the changed parameters, or cannot be
                mapped over samples although ``samples_per_pass`` asks for it: it draws random numbers, reads values of
                tensors, or writes in place, as batch normalisation in train mode does.
            NonFiniteError: A loss or gradient is infinite or not a number; its place on the path is named.
            ModelChangedError: The loss replaced, trained or wrote to parameters of the model, or another thread is
                computing with other weights in it.
            StorageError: The checkpoint cannot be written, is damaged, or belongs to another job.
            DistributedError: Another rank failed, died, or was given something else.

        Note:
            With ``checkpoint``, the sums are put on the disk after every sample, in one atomic step. A call that was
            killed at any moment and is made again skips what is done, loses at most the sample it was working on (with
            ``aggregate="pooled"``, whose sums are as large as the weights and put away more rarely, at most 16), and
            returns the same bits as an uninterrupted call (with ``samples_per_pass``, it loses at most those of one
            pass, and as many must go into a pass as before for the same bits); a finished job returns at once, and
            goes on if data has got more samples. The file knows its job: other weights, settings, units, train flags
            or samples, or another loss at base, are refused; another PyTorch version, processor, or number of threads
            or of samples in a pass is warned about. The randomness is that of the job's first start. Writing takes
            about 15 ms, and 50 ms more per million numbers (6 for every unit): it pays where a sample takes longer
            than that. Samples must be made of tensors, arrays, pictures, numbers, texts, bytes, paths and ``None``, in
            tuples, lists, mappings and dataclasses; the loss itself is only known by its value.

            With ``distributed``, the processes of `torch.distributed` share the samples out: rank r of n computes
            samples r, r + n, and so on. Every rank makes the same call with the same data, which it passes through as
            a whole, and gets the same bits, within 1e-10 of those of a single process (within the rounding of the
            network, if samples share passes). The ranks speak after every sample: if one raises, all raise; if one
            dies, the others raise at the latest after the timeout of the process group. Other weights, settings or
            samples on some rank are refused. The checkpoint of rank r is kept at ``<stem>.rank<r><suffix>``.
        """
        ranks = Ranks.joined() if distributed else Ranks()
        claim, mode, caller = Claim(self.model), GradientMode(), CallersRandomness()

        def prepare() -> tuple[tuple[Run[Any], JobFile | None], Message]:
            claim.take()
            mode.enter()
            caller.enter()
            plan = Plan(method, n_steps, tolerance, aggregate, until, samples_per_pass)
            run = plan.run(self._job(base, target, loss, data, waypoints, buffers, allow_unused, precision))
            if checkpoint is None and ranks.size == 1:
                return (run, None), {}
            identity = run.identity(with_data=data is not None)
            file = None if checkpoint is None else _job_file(checkpoint, identity, ranks if distributed else None, run)
            more = {"checkpoint": file is not None, "until": until is None, "samples_per_pass": samples_per_pass}
            return (run, file), {**identity, **more}

        def compute() -> Run[Any]:
            (run, file), answers = ranks.together(prepare)
            ranks.agree(answers, "a shared job")
            for reason in (_rounding(run.job.path), _training(self.model)):
                if reason:
                    warnings.warn(reason, FilterAttrWarning, stacklevel=4)
            shown = progress if callable(progress) or not ranks.rank else False  # only the first rank has a bar
            with counted(shown, _passes(ranks, data, run.passes), "pass", title="attributing") as run.advance:
                Walk(run, ranks, file, caller.state).through(None if data is None else series(data))
            return run

        # threads that Python starts would otherwise split the work differently than the main thread does
        torch.set_num_threads(torch.get_num_threads())
        try:
            run = restoring(compute, caller.leave, mode.restore, claim.release)
        except Exception as error:
            note = pair_note(data)
            if note:
                error.add_note(note)
            raise
        attribution = run.result()
        reason = run.path_loss.doubt or _doubt(attribution)
        if reason:
            warnings.warn(reason, FilterAttrWarning, stacklevel=2)
        return attribution

    def _job(
        self,
        base: StateLike,
        target: StateLike,
        loss: Loss,
        data: Iterable[Any] | None,
        waypoints: Iterable[StateLike],
        buffers: Side | None,
        allow_unused: str | Sequence[str],
        precision: Precision | None,
    ) -> Job:
        """Check and clone what a run needs."""
        slots = Slots(self.model)
        parameters = self._scored(slots)
        if buffers not in (None, "base", "target"):
            raise SettingError(f'buffers must be None, "base" or "target"; got {buffers!r}.')
        path = Path.between(
            plain_state(base, "base", slots.aliases),
            plain_state(target, "target", slots.aliases),
            parameters=slots.parameters,
            buffers=slots.buffers,
            aliases=slots.aliases,
            keep_buffers=buffers,
            waypoints=[plain_state(state, f"waypoint {index}", slots.aliases) for index, state in enumerate(waypoints)],
        )
        check_precision(precision, path.base)
        _check_call(loss, data)
        globs = (allow_unused,) if isinstance(allow_unused, str) else tuple(allow_unused)
        unused = _first_names(slots, globs)  # names of nothing do no harm here
        return Job(self.model, slots, path, loss, parameters, unused, precision)

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
        return self._scored(Slots(self.model))

    def _scored(self, slots: Slots, guesses: list[str] | None = None) -> dict[str, ScoredParameter]:
        """Find the parameters that are scored; those whose outputs and inputs nothing tells are added to a list."""
        scored: dict[str, ScoredParameter] = {}
        findings = []
        unit = assigned(self.unit, slots.parameters, slots.aliases)
        named = self._named(slots)
        keys = list(self.unit) if isinstance(self.unit, Mapping) else []
        for name, parameter in slots.parameters.items():
            owner = slots.owners[name]
            module = _computing_module(self.model, owner.path, owner.module)
            member = unit.members.get(name)
            if not self._is_selected(name, module, parameter, named, is_member=member is not None):
                continue
            if member is not None:
                scored[name] = ScoredParameter(member.unit, tuple(parameter.shape), member.group)
                continue
            try:
                if name not in unit.choices:
                    raise UnitError(
                        f"every scored parameter needs a unit; no glob of {name_some(keys)} matches '{name}'. "
                        "Add '*' as the last key, or leave the parameter out with select=."
                    )
                choice = unit.choices[name]
                scored[name] = ScoredParameter(unit_of(name, parameter, module, choice), tuple(parameter.shape))
                if guesses is not None and is_guess(name, parameter, module, choice):
                    guesses.append(f"{name} {tuple(parameter.shape)} of {type(module).__name__}")
            except UnitError as error:
                findings.append(str(error))
        if findings:
            findings = list(dict.fromkeys(findings))  # an unknown name is found once for every parameter
            more = f" (and {len(findings) - 5} more)" if len(findings) > 5 else ""
            raise UnitError(" ".join(findings[:5]) + more)
        if not scored:
            raise UnitError(
                f"at least one parameter must be scored; select={self.select!r} leaves none of "
                f"{name_some(slots.parameters) or 'no parameters'}."
            )
        return scored

    def _named(self, slots: Slots) -> frozenset[str]:
        """First names of the parameters that ``select`` names."""
        if self.select is None or callable(self.select):
            return frozenset()
        texts = (self.select,) if isinstance(self.select, str) else tuple(self.select)
        unknown = _names(slots).unknown(texts)
        if unknown:
            raise UnitError(
                f"select={repr(self.select)[:200]} must name parameters of the model; nothing is like "
                f"{_names(slots).describe_some(unknown)}. Names are those of model.named_parameters()."
            )
        return _first_names(slots, texts)

    def _is_selected(
        self, name: str, module: nn.Module, parameter: nn.Parameter, named: frozenset[str], *, is_member: bool
    ) -> bool:
        is_packed = hasattr(parameter, "quant_state")  # bitsandbytes keeps packed bits, also in floating types
        if is_packed or not (parameter.is_floating_point() or parameter.is_complex()):
            return False
        if self.select is None:
            return is_member or (parameter.ndim >= 2 and not has_only_groups(self.unit))
        if callable(self.select):
            return bool(self.select(name, module, parameter))
        return name in named


def _single_weights(scored: Mapping[str, ScoredParameter]) -> list[str]:
    """Parameters whose kernels are single weights, where these are too many to be scored each by default."""
    single = {name: one for name, one in scored.items() if len(one.shape) > 1 and one.is_weight_by_weight}
    return list(single) if sum(math.prod(one.shape) for one in single.values()) > _MANY_UNITS else []


def _doubts_of_units(
    scored: Mapping[str, ScoredParameter], single: Sequence[str], guesses: Sequence[str]
) -> Iterator[str]:
    """Yield what must be known about the units before any work."""
    if single:
        count = sum(math.prod(scored[name].shape) for name in single)
        yield (
            f"unit= was not given, and the kernels of {name_some(single)} are single weights, {count:,} in all: these "
            'are scored by filter (output neuron). Say unit="filter", or unit="kernel" for single weights.'
        )
    if guesses:
        yield (
            f"nothing tells which axes are outputs and inputs of {name_some(guesses)}; experts are taken as (expert, "
            "output, input), others as (output, input, window). Say it with filterattr.register_layout, or give them "
            "a pattern with unit={...}."
        )
    sizes = {name: shape.numel() for name, shape in units_of(scored).items()}
    units = sum(sizes.values())
    weights = sum(math.prod(one.shape) for one in scored.values())
    if units > _MANY_UNITS and units > weights / 4:
        alone = sum(sizes.get(name, 0) for name, one in scored.items() if one.is_weight_by_weight)
        size = 8 * (_NUMBERS_OF_A_UNIT[1] * alone + _NUMBERS_OF_A_UNIT[0] * (units - alone))
        yield (
            f"{units:,} units for {weights:,} weights: their scores take {size / 2**30:.1f} GiB, "
            f'{size / (4 * weights):.1f} times the weights in float32. unit="filter" has one score an output, and '
            "select= scores less."
        )


def _names(slots: Slots) -> Names:
    """All names of all parameters."""
    return Names(name for name, first in slots.aliases.items() if first in slots.parameters)


def _first_names(slots: Slots, texts: Sequence[str]) -> frozenset[str]:
    """First names of the parameters that names and globs mean, whichever of its names a tied one is given."""
    return frozenset(slots.aliases[name] for name in _names(slots).first_of(texts))


def _rounding(path: Path) -> str | None:
    """What the model's types make of the changes, where they round many of them away."""
    hit = {name: one for name, one in path.rounded.items() if one.n_lost > _ROUNDED_LIMIT * one.n_moved}
    if not hit:
        return None
    n_moved, n_lost = (sum(counts) for counts in zip(*hit.values(), strict=True))
    kinds = ", ".join(sorted({str(path.base[name].dtype) for name in hit}))
    return (
        f"{n_lost / n_moved:.0%} of the changes between base and target round away in the model's {kinds} "
        f"({n_lost} of {n_moved} weights, in {name_some(hit)}): these weights count 0, and the others have changed by "
        'other amounts. Load the model in float32, the type of the weights, and use precision="bf16" for speed.'
    )


def _training(model: nn.Module) -> str | None:
    """Which modules compute as in training, if any."""
    found = modules_in_training(model)
    if not found:
        return None
    kinds = ", ".join(dict.fromkeys(found.values()))
    return (
        f"{name_some(found)} ({kinds}) are in train mode: the loss that is attributed is that of a network in training,"
        " with units dropped at random or statistics of the sample alone. Call model.eval() unless that is meant."
    )


def _doubt(attribution: FilterAttribution) -> str | None:
    """What a reader of the numbers must know first."""
    if not attribution.remainder and not any(bool(one.any()) for one in attribution.scores().kept.values()):
        return (
            "every attribution is 0: the loss does not change with any weight that differs between base and target. If "
            "both are one model that was trained in place, keep its weights from before: copy.deepcopy(model)."
        )
    if attribution.n_unsettled:
        return (
            f"{attribution.n_unsettled} of {attribution.n_samples} samples have not reached the tolerance "
            f"{attribution.tolerance} with {attribution.n_steps} nodes (completeness error "
            f"{attribution.completeness_error:.2g} over all); allow more with n_steps, or a larger tolerance."
        )
    path = attribution.path_numbers()
    barrier = barrier_concern(path)
    if attribution.completeness_error > COMPLETENESS and attribution.n_steps > 1:
        change = attribution.loss_target - attribution.loss_base
        gap = (
            f"the attributions should sum to the loss change {change:.4g} but sum to {attribution.total:.4g} (relative "
            f"error {attribution.completeness_error:.2g})"
            if attribution.n_samples == 1
            else "the attributions should sum to the loss change of every sample, but miss it (relative error "
            f"{attribution.completeness_error:.2g} over {attribution.n_samples} samples, whose errors do not cancel; "
            f"in the mean they sum to {attribution.total:.4g} for a change of {change:.4g})"
        )
        cure = f"use more steps than {attribution.n_steps} or another method than {attribution.method!r}."
        return f"{gap}; {cure if barrier is None else _at_its_beginning(barrier)}"
    # a training may well go over a hill; that base and target are far apart is seen on the straight way
    barrier = barrier if attribution.n_segments == 1 else None
    if barrier or buffers_concern(path):
        return f"the path from base to target can hardly be believed. {' '.join(concerns_about(path))}"
    return None


def _at_its_beginning(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def _job_file(checkpoint: str | PathLike[str], job: Mapping[str, Any], ranks: Ranks | None, run: Run[Any]) -> JobFile:
    """The file that keeps a job; each rank has its own."""
    if not isinstance(checkpoint, str | PathLike):
        raise SettingError(f"checkpoint must be a path; got {type(checkpoint).__name__}.")
    path = FilePath(checkpoint)
    if ranks is not None:
        path = path.with_name(f"{path.stem}.rank{ranks.rank}{path.suffix}")
    share = {"rank": f"{ranks.rank} of {ranks.size}" if ranks is not None else "0 of 1"}
    return JobFile(path, {**job, **share}, job_environment(run.job.device, run.samples_per_pass))


def _computing_module(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """The module that computes with a parameter: not the list that holds a parametrized weight."""
    parent, found, _ = path.partition(".parametrizations.")
    if path.startswith("parametrizations."):
        return model
    return model.get_submodule(parent) if found else module


def _check_call(loss: Loss, data: Iterable[Any] | None) -> None:
    """Check before any work that the loss can be called and the data iterated."""
    if not callable(loss):
        raise LossError(f"loss must be a function; got {type(loss).__name__}.")
    if data is not None:
        series(data)
    expected = "loss(model)" if data is None else "loss(model, sample)"
    try:
        signature = inspect.signature(loss)
    except (TypeError, ValueError):  # builtins have no signature
        return
    try:
        signature.bind(*(("model",) if data is None else ("model", "sample")))
    except TypeError as error:
        hint = "no data was given" if data is None else "data was given"
        raise LossError(
            f"loss must be callable as {expected}, because {hint}; its signature is {signature} ({error})."
        ) from error


def _passes(ranks: Ranks, data: Iterable[Any] | None, passes: int | None) -> int | None:
    """How many passes this rank has before it, as far as that is known."""
    count = 1 if data is None else len(data) if isinstance(data, Sized) else None
    return None if count is None or passes is None else len(range(ranks.rank, count, ranks.size)) * passes
