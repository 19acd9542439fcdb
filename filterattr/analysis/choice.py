"""Choose the price and the size of a signed set by measuring it, on the samples that the scores were found with.

No price of collateral is right for every pair, and what a set is expected to remove is not what it removes. Both are
measured here, for a few prices and sizes, with forward passes alone.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from filterattr.analysis.masking import Masking
from filterattr.analysis.outputs import Outputs
from filterattr.analysis.record import Record, Row
from filterattr.errors import FilterAttrWarning, SettingError, gathered, name_some
from filterattr.jobs.progress import Progress, counted
from filterattr.results.attribution import FilterAttribution
from filterattr.results.scores import FilterScores, FilterSelection, count_of
from filterattr.results.signed import prices_of, signed_contrast
from filterattr.units.unit import Immutable

PRICES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
_SIZES = 7  # of every price, each smaller than the next by the square root of two


@dataclass(frozen=True)
class Candidate(Immutable):
    """The set of one price, and what was measured of it.

    Attributes:
        price: Of collateral, in the score.
        count: Number of units.
        removed: Share of the function that masking removes, by its loss; not a number without a loss.
        reverted: How far the outputs of the function come back to base.
        moved: Every guard to how far its outputs leave target.
        is_enough: Whether it removes what was asked for; without a loss, whether it reverts as much.
    """

    price: float
    count: int
    removed: float
    reverted: float
    moved: Mapping[str, float]
    is_enough: bool


@dataclass(frozen=True)
class Candidates(Record):
    """The sets that a choice was made among.

    Attributes:
        function: The function.
        candidates: One for each price that has units with a positive score.
    """

    function: str
    candidates: tuple[Candidate, ...]

    def rows(self) -> list[Row]:
        """One row a candidate."""
        return [
            {
                "function": self.function,
                "price": candidate.price,
                "count": candidate.count,
                "removed": candidate.removed,
                "reverted": candidate.reverted,
                **{f"moved {name}": share for name, share in candidate.moved.items()},
                "enough": candidate.is_enough,
            }
            for candidate in self.candidates
        ]


@dataclass(frozen=True, eq=False)
class Chosen(Immutable):
    """What was chosen.

    Attributes:
        selection: The set.
        scores: The signed scores at its price; the set is the highest of them.
        price: The price.
        candidates: All sets that were compared, with their measures.
        n_forwards: Forward passes that it took.
    """

    selection: FilterSelection
    scores: FilterScores
    price: float
    candidates: Candidates
    n_forwards: int


def choose(
    outputs: Outputs,
    attributions: Mapping[str, FilterAttribution],
    of: str,
    *,
    masking: Masking | None = None,
    until: float = 0.85,
    amount: float = 0.01,
    prices: Sequence[float] = PRICES,
    collateral: float | Mapping[str, float] = 1.0,
    progress: Progress = None,
) -> Chosen:
    r"""Choose the price and the size of a signed set by what masking it does.

    For every price, the set is the smallest that removes ``until`` of the function. Of these sets, the one with the
    largest :math:`\mathrm{reverted}_D - \sum_{D' \ne D} \lambda_{D'}\, \mathrm{moved}_{D'}` is chosen. Everything is
    measured on the samples of ``outputs``: give it those that the scores were found with, and report on others.

    Args:
        outputs: The networks and the samples, with guards such as clean inputs.
        attributions: Name of each of the same functions to its attribution.
        of: The function.
        masking: The loss on samples of the function, if ``until`` is a share of the loss; without it, ``until`` is a
            share that the outputs must come back.
        until: What the set must remove (or revert), in (0, 1].
        amount: Its largest size, as for `filterattr.FilterScores.top`. Seven sizes down to an eighth of it are tried.
        prices: The prices of collateral that are tried, as for `filterattr.signed_contrast`.
        collateral: The price of what is moved, in the measure: one for all guards, or one for each by name.
        progress: As in `filterattr.FilterAttributor.attribute`, counted in prices.

    Returns:
        The set, its scores, and all candidates; a `FilterAttrWarning` says that no set was enough, and the one that
        came nearest is returned.

    Raises:
        SettingError: A number makes no sense, or the functions differ.
        StateMismatchError: The units do not fit the end points.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from filterattr import FilterAttributor
        >>> from filterattr.analysis import Outputs, choose
        >>> base, target = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        >>> with torch.no_grad():
        ...     _ = base.weight.zero_(), target.weight.copy_(torch.eye(2))
        >>> loss = lambda model, x: (model(x) - x).square().sum()
        >>> samples = {"first": [torch.tensor([3.0, 1.0])], "second": [torch.tensor([0.0, 1.0])]}
        >>> attributor = FilterAttributor(target, unit="filter")
        >>> found = {name: attributor.attribute(base, target, loss, some) for name, some in samples.items()}
        >>> outputs = Outputs(target, base, target, lambda model, x: model(x), samples)
        >>> chosen = choose(outputs, found, "first", amount=2)
        >>> chosen.selection["weight"], chosen.price
        (tensor([ True, False]), 1.0)
    """
    guards = _checked(outputs, attributions, of, masking, until, amount, prices, collateral)
    measure = _Measure(outputs, masking, of)
    compared: list[tuple[Candidate, FilterScores, FilterSelection]] = []
    with counted(progress, len(prices), "price") as step:
        for price in prices:
            scores = signed_contrast(attributions, of, collateral=price)
            largest = min(count_of(amount, scores.n_units), int((scores.flat() > 0).sum()))
            if largest:
                compared.append(_smallest(measure, scores, largest, price, until))
            step()
    if not compared:
        raise SettingError(f"no price leaves a unit with a positive score for {of!r}; try lower prices.")
    enough = [entry for entry in compared if entry[0].is_enough]
    if enough:
        candidate, scores, selection = max(enough, key=lambda entry: _worth(entry[0], guards))
    else:
        candidate, scores, selection = max(compared, key=lambda entry: measure.share(entry[0]))
        warnings.warn(
            f"no set of {count_of(amount, scores.n_units)} units or fewer {measure.verb} {until:g} of {of!r}; the best "
            f"{measure.verb} {measure.share(candidate):.3g}. Give it a larger amount, or search the set.",
            FilterAttrWarning,
            stacklevel=2,
        )
    return Chosen(
        selection, scores, candidate.price, Candidates(of, tuple(entry[0] for entry in compared)), measure.n_forwards
    )


class _Measure:
    """Measures sets, and counts what that takes."""

    def __init__(self, outputs: Outputs, masking: Masking | None, of: str) -> None:
        self._outputs, self._masking, self._of = outputs, masking, of
        self.verb = "reverts" if masking is None else "removes"
        self.n_forwards = 0

    def share(self, candidate: Candidate) -> float:
        """What is compared with ``until``."""
        return candidate.reverted if self._masking is None else candidate.removed

    def share_of(self, selection: FilterSelection) -> float:
        """The same, measured on the function alone."""
        if self._masking is not None:
            self.n_forwards += sum(map(len, self._masking.data.values()))
            return self._masking.removed(selection)[self._of]
        self.n_forwards += len(self._outputs.data[self._of])
        return self._outputs.shares(selection, (self._of,))[0][self._of]

    def candidate(self, selection: FilterSelection, price: float, share: float, until: float) -> Candidate:
        """Everything about a set."""
        self.n_forwards += sum(map(len, self._outputs.data.values()))
        reverted, moved = self._outputs.shares(selection)
        return Candidate(
            price=price,
            count=selection.count,
            removed=math.nan if self._masking is None else share,
            reverted=reverted[self._of],
            moved={name: share for name, share in moved.items() if name != self._of},
            is_enough=share >= until,
        )


def _smallest(
    measure: _Measure, scores: FilterScores, largest: int, price: float, until: float
) -> tuple[Candidate, FilterScores, FilterSelection]:
    """The smallest of a few sizes that is enough, found by bisection; the largest if none is."""
    counts = sorted({max(1, round(largest * 2 ** (-step / 2))) for step in range(_SIZES)})
    least, most = 0, len(counts) - 1
    shares: dict[int, float] = {}
    while least < most:
        middle = (least + most) // 2
        shares[middle] = measure.share_of(scores.top(counts[middle]))
        least, most = (least, middle) if shares[middle] >= until else (middle + 1, most)
    selection = scores.top(counts[least])
    share = shares[least] if least in shares else measure.share_of(selection)
    return measure.candidate(selection, price, share, until), scores, selection


def _worth(candidate: Candidate, guards: Mapping[str, float]) -> float:
    """What a set reverts less the prices of what it moves; what says the same at both ends has no scale."""
    moved = {name: share for name, share in candidate.moved.items() if not math.isnan(share)}
    return candidate.reverted - sum(guards[name] * share for name, share in moved.items())


def _checked(
    outputs: Outputs,
    attributions: Mapping[str, FilterAttribution],
    of: str,
    masking: Masking | None,
    until: float,
    amount: float,
    prices: Sequence[float],
    collateral: float | Mapping[str, float],
) -> dict[str, float]:
    """Find everything wrong before the first pass, and give the prices of the measure."""
    findings = []
    if set(outputs.data) != set(attributions):
        findings.append(f"outputs has {name_some(outputs.data)}, and attributions {name_some(attributions)}")
    if masking is not None and of not in masking.data:
        findings.append(f"masking has no samples of {of!r}")
    if not 0 < until <= 1:
        findings.append(f"until is {until}")
    if not prices:
        findings.append("there is no price")
    if not amount > 0:
        findings.append(f"amount is {amount}")
    if findings:
        raise SettingError(
            "a choice needs the same functions in outputs, attributions and masking, an amount above 0, until in "
            f"(0, 1], and at least one price; {gathered(findings)}."
        )
    return prices_of(outputs.data, of, collateral, "choose")
