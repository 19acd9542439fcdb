"""Search the set itself: which units, put back to base, revert one function and move nothing else?

1. *Continuous greedy*: in every step the units with the largest derivatives of the objective move a little, as many as
   the set has. The straight path of an attribution moves all units at once; this one moves those that will be in the
   set.
2. *Mask optimisation*: Adam on one number per unit. The network is that of the set of the highest numbers, and the
   derivatives at its mask are taken for those of the numbers (straight-through).

Both go by batches of the search samples; the best set that was looked at on all of them is the answer.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from filterattr.analysis.masks import MaskObjective, Worth
from filterattr.analysis.outputs import Outputs
from filterattr.analysis.record import Record, Row
from filterattr.errors import FilterAttrWarning, SettingError, StorageError, gathered
from filterattr.files.fingerprint import fingerprint
from filterattr.jobs.checkpoint import JobFile
from filterattr.jobs.progress import Progress, counted
from filterattr.results.scores import FilterScores, FilterSelection, count_of, mark_top
from filterattr.units.unit import Immutable

Phase: TypeAlias = Literal["start", "greedy", "mask"]
PHASES: tuple[Phase, ...] = get_args(Phase)
_SECONDS_BETWEEN_WRITES = 20.0
_LOOKS = 4  # at all samples, in one round of mask optimisation
_DECAYS = 0.9, 0.999  # of Adam
_NONE = float("-inf")  # what no set yet is worth
_NEAREST = 1.1  # two sizes that differ by less are not told apart


@dataclass(frozen=True)
class SearchStep(Immutable):
    """One step of a search.

    Attributes:
        phase: ``"start"`` is the set of the scores, then ``"greedy"`` and ``"mask"``.
        count: Size of the set that is looked for.
        is_look: Whether this is the set itself on all samples, or the present mask on a batch.
        objective: What is reverted less the prices of what is moved.
        reverted: Of the function.
        moved: Of every other function that has a price.
    """

    phase: Phase
    count: int
    is_look: bool
    objective: float
    reverted: float
    moved: Mapping[str, float]


@dataclass(frozen=True)
class SearchHistory(Record):
    """All steps of a search.

    Attributes:
        function: The function.
        steps: The steps.
    """

    function: str
    steps: tuple[SearchStep, ...]

    def rows(self) -> list[Row]:
        """One row a step."""
        return [
            {
                "function": self.function,
                "phase": step.phase,
                "count": step.count,
                "look": step.is_look,
                "objective": step.objective,
                "reverted": step.reverted,
                **{f"moved {name}": share for name, share in step.moved.items()},
            }
            for step in self.steps
        ]


@dataclass(frozen=True, eq=False)
class Searched(Immutable):
    """What a search found.

    Attributes:
        selection: The set.
        scores: One number a unit, whose highest are the set: a ranking around its size.
        reverted: What the set reverts on the samples of the search; measure it on others.
        moved: What it moves there.
        history: All steps.
        n_passes: Forward-backward passes that the search took, those before an interruption among them.
        n_forwards: Forward passes beside them.
    """

    selection: FilterSelection
    scores: FilterScores
    reverted: float
    moved: Mapping[str, float]
    history: SearchHistory
    n_passes: int
    n_forwards: int


def search(
    outputs: Outputs,
    start: FilterScores,
    of: str,
    *,
    amount: float = 0.01,
    until: float | None = None,
    collateral: float | Mapping[str, float] = 1.0,
    greedy_steps: int = 12,
    steps: int = 40,
    batch: int = 8,
    rate: float = 0.2,
    seed: int = 0,
    checkpoint: str | PathLike[str] | None = None,
    progress: Progress = None,
) -> Searched:
    """Search the set of some size that reverts one function most and moves the others least.

    Give it signed scores to start from, and samples that are not those of the report. Inputs that need no function
    (clean images, general text) belong into ``outputs``, too, as guards.

    Args:
        outputs: The networks and the samples of the search.
        start: Scores of the units to search among, such as those of `filterattr.signed_contrast`.
        of: The function that is to be reverted; all others of ``outputs`` guard.
        amount: Size of the set, as for `filterattr.FilterScores.top`.
        until: A share that must be reverted: the set is the smallest that was found to do so on the samples of the
            search, and ``amount`` the largest size. The size is halved between the last two as long as they differ by
            a tenth; every size takes another half of ``steps``.
        collateral: The price of what is moved, one for all guards or one for each by name.
        greedy_steps: Steps of continuous greedy; 0 leaves it out.
        steps: Steps of mask optimisation; 0 leaves it out.
        batch: Samples of every function in a step, all of them if there are fewer.
        rate: Of mask optimisation: how far a number of the mask goes in its first steps; it falls to 0.
        seed: Of the batches.
        checkpoint: File to go on from after an interruption; needs samples whose content can be compared.
        progress: As in `filterattr.FilterAttributor.attribute`, counted in steps.

    Returns:
        The set, with its history and what it took.

    Raises:
        SettingError: A number makes no sense, the function is unknown, or nothing can be reverted.
        StateMismatchError: The units do not fit the end points.
        LossError: The output has no derivatives.
        NonFiniteError: A derivative is infinite or not a number.
        StorageError: The checkpoint is damaged, of another search, or cannot be written.

    Example:
        >>> from torch import nn
        >>> from filterattr import FilterAttributor
        >>> from filterattr.analysis import Outputs, magnitude
        >>> base, target = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        >>> with torch.no_grad():
        ...     _ = base.weight.zero_(), target.weight.copy_(torch.eye(4))
        >>> inputs = {"first": [torch.tensor([1.0, 0, 0, 1])], "last": [torch.tensor([0.0, 0, 0, 1])]}
        >>> outputs = Outputs(base, base, target, lambda model, x: model(x), inputs)
        >>> rows = magnitude(FilterAttributor(base, unit="filter"), target)  # all alike
        >>> found = search(outputs, rows, "first", amount=1)
        >>> found.selection["weight"], found.reverted, found.moved
        (tensor([ True, False, False, False]), 0.5, {'last': 0.0})
    """
    job = _Search(
        MaskObjective(outputs, start, of, collateral),
        start,
        _Settings(count_of(amount, start.n_units), until, greedy_steps, steps, batch, rate, seed),
    )
    file = None if checkpoint is None else _SearchFile(checkpoint, outputs, start, of, job)
    state = job.beginning() if file is None else file.read() or job.beginning()
    written = time.monotonic()
    try:
        with counted(progress, None if until is not None else job.n_steps, "step", state.n_done) as step:
            while not state.is_done:
                state = job.advanced(state)  # in one assignment, so that an interrupt leaves a whole state
                step()
                if file is not None and time.monotonic() - written > _SECONDS_BETWEEN_WRITES:
                    file.write(state)
                    written = time.monotonic()
    finally:
        if file is not None:
            file.write(state)
    return job.result(state, of)


@dataclass(frozen=True)
class _Settings:
    count: int
    until: float | None
    greedy_steps: int
    steps: int
    batch: int
    rate: float
    seed: int

    def check(self) -> None:
        """Find everything wrong before the first pass."""
        findings = [] if self.count > 0 else ["amount is no unit at all"]
        findings += [
            f"{name} is {value}"
            for name, value, least in (
                ("greedy_steps", self.greedy_steps, 0),
                ("steps", self.steps, 0),
                ("batch", self.batch, 1),
            )
            if value < least
        ]
        if not 0 < self.rate < float("inf"):
            findings.append(f"rate is {self.rate}")
        if self.until is not None and not 0 < self.until <= 1:
            findings.append(f"until is {self.until}")
        if findings:
            raise SettingError(
                "a search needs at least 1 unit, steps of 0 or more, a batch of 1 or more, a rate above 0 and until "
                f"in (0, 1]; {gathered(findings)}."
            )


@dataclass(frozen=True)
class _State:
    """Everything that a search knows between two steps."""

    phase: Phase
    step: int  # in the present round
    n_done: int  # steps in all
    count: int  # size that the present round looks for
    too_few: int  # largest size that was found not to suffice
    values: Tensor  # the mask of continuous greedy, then the numbers behind the mask
    first: Tensor  # moments of Adam
    second: Tensor
    best: Tensor  # numbers whose highest are the best set of the present round
    worth: Worth
    answer: Tensor  # the same of the last size that sufficed
    answer_count: int  # that size; 0 if there is none
    answer_worth: Worth
    n_passes: int
    n_forwards: int
    history: tuple[SearchStep, ...]
    is_done: bool = False


class _Search:
    """The steps of a search; a state leads to the next one, and to nothing else."""

    def __init__(self, objective: MaskObjective, start: FilterScores, settings: _Settings) -> None:
        settings.check()
        self.settings = settings
        self._objective, self._start = objective, start
        self._sizes = {name: len(places) for name, places in objective.everything.items()}

    @property
    def n_steps(self) -> int:
        """Of a search for one size."""
        return self.settings.greedy_steps + self.settings.steps

    def beginning(self) -> _State:
        """Nothing is done but a look at the set of the scores."""
        nothing = torch.zeros(self._start.n_units, dtype=torch.float64, device="cpu")
        values = self._start.flat().double().cpu()
        chosen = mark_top(values, self.settings.count).double()
        worth = self._objective.worth(chosen)
        state = _State(
            phase="greedy" if self.settings.greedy_steps else "mask",
            step=0,
            n_done=0,
            count=self.settings.count,
            too_few=0,
            values=nothing,
            first=nothing,
            second=nothing,
            best=values,
            worth=worth,
            answer=values,
            answer_count=0,
            answer_worth=worth,
            n_passes=0,
            n_forwards=sum(self._sizes.values()),
            history=(self._step("start", self.settings.count, worth, is_look=True),),
        )
        return state if self.settings.greedy_steps else self._into_round(state, chosen)

    def advanced(self, state: _State) -> _State:
        """Take one step."""
        return self._greedy(state) if state.phase == "greedy" else self._masked(state)

    def result(self, state: _State, of: str) -> Searched:
        """Say what was found."""
        best = state.best, state.count, state.worth
        values, count, worth = (state.answer, state.answer_count, state.answer_worth) if state.answer_count else best
        until = self.settings.until
        if until is not None and worth.reverted < until:
            warnings.warn(
                f"no set of {self.settings.count} units was found that reverts {until:g} of {of!r}; the best reverts "
                f"{worth.reverted:.3g}. Give it a larger amount, more steps, or a lower price of collateral.",
                FilterAttrWarning,
                stacklevel=3,
            )
        return Searched(
            selection=FilterSelection(self._start._split(mark_top(values, count)), self._start.parameters),
            scores=FilterScores(self._start._split(values), self._start.parameters),
            reverted=worth.reverted,
            moved=worth.moved,
            history=SearchHistory(of, state.history),
            n_passes=state.n_passes,
            n_forwards=state.n_forwards,
        )

    def _greedy(self, state: _State) -> _State:
        worth, gradient, n_passes = self._differentiated(state.values, state)
        moving = mark_top(gradient, state.count)
        state = replace(
            state,
            step=state.step + 1,
            n_done=state.n_done + 1,
            values=state.values + moving.double() / self.settings.greedy_steps,
            n_passes=state.n_passes + n_passes,
            history=(*state.history, self._step("greedy", state.count, worth)),
        )
        if state.step < self.settings.greedy_steps:
            return state
        return self._into_round(self._looked_at(state), state.values)

    def _masked(self, state: _State) -> _State:
        total, step = self._steps_of_a_round(state), state.step + 1
        if step > total:  # nothing to optimise
            return self._next_size(state)
        chosen = mark_top(state.values, state.count).double()
        worth, gradient, n_passes = self._differentiated(chosen, state)
        first = _DECAYS[0] * state.first + (1 - _DECAYS[0]) * gradient
        second = _DECAYS[1] * state.second + (1 - _DECAYS[1]) * gradient.square()
        mean, size = first / (1 - _DECAYS[0] ** step), (second / (1 - _DECAYS[1] ** step)).sqrt()
        rate = self.settings.rate * (1 - (step - 1) / total)
        state = replace(
            state,
            step=step,
            n_done=state.n_done + 1,
            values=state.values + rate * mean / (size + self._least(size, state.count)),
            first=first,
            second=second,
            n_passes=state.n_passes + n_passes,
            history=(*state.history, self._step("mask", state.count, worth)),
        )
        if step * _LOOKS // total > (step - 1) * _LOOKS // total:
            state = self._looked_at(state)
        return state if step < total else self._next_size(state)

    @staticmethod
    def _least(size: Tensor, count: int) -> float:
        """What keeps units that hardly matter from moving as fast as those that do."""
        return max(float(size.topk(count).values[-1]), 1e-30)

    def _differentiated(self, mask: Tensor, state: _State) -> tuple[Worth, Tensor, int]:
        places = {name: self._batch(size, state.n_done) for name, size in self._sizes.items()}
        return *self._objective.derivatives(mask, places), sum(map(len, places.values()))

    def _batch(self, size: int, number: int) -> list[int]:
        """Samples of a step: every sample once, in a new order, before any comes again."""
        wanted = min(self.settings.batch, size)
        per_epoch = size // wanted
        epoch, inside = divmod(number, per_epoch)
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + epoch)
        order: list[int] = torch.randperm(size, generator=generator, device="cpu").tolist()
        return order[inside * wanted : (inside + 1) * wanted]

    def _looked_at(self, state: _State) -> _State:
        """Look at the present set on all samples, and keep it if it is the best of its size."""
        worth = self._objective.worth(mark_top(state.values, state.count).double())
        look = self._step(state.phase, state.count, worth, is_look=True)
        n_forwards = state.n_forwards + sum(self._sizes.values())
        state = replace(state, n_forwards=n_forwards, history=(*state.history, look))
        return state if worth.objective <= state.worth.objective else replace(state, best=state.values, worth=worth)

    def _steps_of_a_round(self, state: _State) -> int:
        return self.settings.steps if state.count == self.settings.count else self.settings.steps // 2

    def _into_round(self, state: _State, values: Tensor) -> _State:
        """Begin to optimise the mask of one size."""
        nothing = torch.zeros_like(values)
        state = replace(state, phase="mask", step=0, values=values, first=nothing, second=nothing)
        return state if self._steps_of_a_round(state) else self._next_size(state)

    def _next_size(self, state: _State) -> _State:
        """Go on with another size, or end."""
        until = self.settings.until
        if until is None:
            return replace(state, is_done=True)
        too_few, enough = state.too_few, state.count
        if state.worth.reverted >= until:
            state = replace(state, answer=state.best, answer_count=state.count, answer_worth=state.worth)
        elif not state.answer_count:
            return replace(state, is_done=True)
        else:
            too_few, enough = state.count, state.answer_count
        if enough - too_few <= 1 or (too_few and enough / too_few < _NEAREST):
            return replace(state, is_done=True)
        count = round((max(too_few, 1) * enough) ** 0.5) if too_few else enough // 2
        count = min(max(count, too_few + 1), enough - 1)
        values = state.answer if state.answer_count else state.values
        state = replace(state, count=count, too_few=too_few, values=values, worth=state.worth._replace(objective=_NONE))
        return self._into_round(self._looked_at(state), values)

    @staticmethod
    def _step(phase: Phase, count: int, worth: Worth, *, is_look: bool = False) -> SearchStep:
        return SearchStep(phase, count, is_look, *worth)


_TENSORS = ("values", "first", "second", "best", "answer")


class _SearchFile:
    """The state of a search on disk."""

    def __init__(self, path: str | PathLike[str], outputs: Outputs, start: FilterScores, of: str, job: _Search) -> None:
        names = list(start.parameters)
        identity = {
            "base": fingerprint({name: outputs._base[name] for name in names}),
            "target": fingerprint(outputs._target),
            "scores": fingerprint(dict(start.items())),
            "samples": fingerprint(outputs.data, "data"),
            # a function cannot be compared, but what it says at both ends can
            "outputs": fingerprint(
                {name: values.round(6).tolist() for name, values in outputs.apart_from_base.items()}
            ),
            "function": of,
            "prices": fingerprint(dict(job._objective.prices)),
            **asdict(job.settings),
        }
        self._file = JobFile(Path(path), identity, {"torch": str(torch.__version__)})

    def read(self) -> _State | None:
        """The state, if there is one."""
        stored = self._file.read()
        if stored is None:
            return None
        numbers = dict(stored.numbers)
        try:
            numbers.pop("n_samples")
            tensors: dict[str, Any] = {name: stored.tensors[name] for name in _TENSORS}
            return _State(
                **tensors,
                worth=Worth(**numbers.pop("worth")),
                answer_worth=Worth(**numbers.pop("answer_worth")),
                history=tuple(SearchStep(**step) for step in numbers.pop("history")),
                **numbers,
            )
        except (KeyError, TypeError) as error:
            raise StorageError(f"'{self._file.path}' is no complete search: {error!r}.") from error

    def write(self, state: _State) -> None:
        """Replace the state in one step."""
        numbers = {name: getattr(state, name) for name in _State.__dataclass_fields__ if name not in _TENSORS}
        numbers["worth"] = state.worth._asdict()
        numbers["answer_worth"] = state.answer_worth._asdict()
        numbers["history"] = [asdict(step) for step in state.history]
        numbers["n_samples"] = state.n_done
        self._file.write({name: getattr(state, name) for name in _TENSORS}, numbers)
