r"""Results of the evaluation: curves, nulls, matrices and tables. They hold no weights.

A *share* is the change of a loss by an intervention, divided by the difference of the losses of base and target.
Masking sets units of target back to base, and the share is removed. Grafting sets units of base to target, and the
share is recovered:

.. math:: \mathrm{removed} = \frac{L(\mathrm{masked}) - L(\mathrm{target})}{L(\mathrm{base}) - L(\mathrm{target})},
   \qquad \mathrm{recovered} = \frac{L(\mathrm{base}) - L(\mathrm{graft})}{L(\mathrm{base}) - L(\mathrm{target})}

0: nothing changed. 1: the function is gone, or back. Above 1: the masked network is damaged. If target is not better
than base, as a restoration network on clean inputs, a share has no meaning; look at the losses. A share is NaN if both
have the same loss.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from filterattr.analysis.record import Estimate, Record, Row
from filterattr.analysis.resampling import p_value
from filterattr.errors import SettingError
from filterattr.units.unit import Immutable

Intervention: TypeAlias = Literal["mask", "graft"]
Order: TypeAlias = Literal["most", "least"]
Null: TypeAlias = Literal["random", "layer-matched"]
Estimates: TypeAlias = Mapping[str, tuple[Estimate, ...]]


def bounded(share: float) -> float:
    """Clip a share to [0, 1], so that a destroyed network counts no more than a removed function.

    Args:
        share: The share.

    Returns:
        The nearest number in [0, 1].

    Example:
        >>> bounded(3.7), bounded(-0.1), bounded(0.4)
        (1.0, 0.0, 0.4)
    """
    return share if math.isnan(share) else min(max(share, 0.0), 1.0)


def area_under(fractions: Sequence[float], shares: Sequence[float], scale: Literal["linear", "log"] = "log") -> float:
    """Area under a curve of bounded shares, in [0, 1]: the mean share over all sizes of the set.

    Args:
        fractions: Sizes of the sets, ascending.
        shares: Shares of the sets; they are clipped to [0, 1].
        scale: ``"linear"`` weights all fractions equally. ``"log"`` weights all doublings equally, so that small sets
            count; it leaves out the fraction 0.

    Returns:
        The trapezoid area over the range of the fractions; NaN for fewer than two fractions.

    Example:
        >>> area_under([0.0, 0.5, 1.0], [0.0, 1.0, 1.0], "linear")
        0.75
    """
    pairs = [(p, bounded(share)) for p, share in zip(fractions, shares, strict=True) if scale == "linear" or p > 0]
    if len(pairs) < 2:
        return math.nan
    places = np.array([p if scale == "linear" else math.log(p) for p, _ in pairs])
    return float(np.trapezoid([share for _, share in pairs], places) / (places[-1] - places[0]))


@dataclass(frozen=True)
class Curve(Record):
    """The effect of masking or grafting the first units of a ranking, for several sizes of the set.

    Attributes:
        ranking: Name of the ranking, such as ``"deblurring"`` or ``"magnitude"``.
        intervention: ``"mask"`` or ``"graft"``.
        order: ``"most"`` or ``"least"`` important units first.
        fractions: Shares of all units, ascending.
        counts: Numbers of units.
        losses: Function to the mean loss at every fraction, with its interval over the samples.
        shares: Function to the share at every fraction, unbounded (see the head of this module).
        loss_base: Function to the mean loss of base.
        loss_target: Function to the mean loss of target.
        n_samples: Function to number of samples.
    """

    ranking: str
    intervention: Intervention
    order: Order
    fractions: tuple[float, ...]
    counts: tuple[int, ...]
    losses: Estimates
    shares: Estimates
    loss_base: Mapping[str, float]
    loss_target: Mapping[str, float]
    n_samples: Mapping[str, int]

    def area(self, function: str, scale: Literal["linear", "log"] = "log") -> float:
        """Area under the bounded share of one function.

        Args:
            function: The function.
            scale: As in `area_under`.

        Returns:
            The mean bounded share, in [0, 1].
        """
        return area_under(self.fractions, [estimate.value for estimate in self.shares[function]], scale)

    def rows(self) -> list[Row]:
        """One row per function and fraction."""
        return [
            {
                "ranking": self.ranking,
                "intervention": self.intervention,
                "order": self.order,
                "function": function,
                "fraction": fraction,
                "count": count,
                **spread("loss", self.losses[function][place]),
                **spread("share", shares[place]),
                "bounded": bounded(shares[place].value),
            }
            for function, shares in self.shares.items()
            for place, (fraction, count) in enumerate(zip(self.fractions, self.counts, strict=True))
        ]


class Band(NamedTuple):
    """Summary of the draws of a null at one fraction.

    Attributes:
        mean: Mean of the removed (or recovered) shares.
        sd: Standard deviation of the shares.
        low: Lower end of the band. `NullCurve.bands` takes the share of the draws inside.
        high: Upper end of the band.
    """

    mean: float
    sd: float
    low: float
    high: float


@dataclass(frozen=True)
class NullCurve(Record):
    """The effect of masking or grafting random units.

    Attributes:
        null: ``"random"`` units, or ``"layer-matched"``: the same number in every parameter as in the ranking.
        ranking: Name of the ranking whose sizes are matched.
        intervention: ``"mask"`` or ``"graft"``.
        fractions: Shares of all units, ascending.
        counts: Numbers of units.
        shares: Function to fraction to one share per draw.
    """

    null: Null
    ranking: str
    intervention: Intervention
    fractions: tuple[float, ...]
    counts: tuple[int, ...]
    shares: Mapping[str, tuple[tuple[float, ...], ...]]

    @property
    def n_draws(self) -> int:
        """Number of random sets of every size."""
        return len(next(iter(self.shares.values()))[0])

    def bands(self, function: str, confidence: float = 0.95) -> tuple[Band, ...]:
        """Summarise the draws.

        Args:
            function: The function.
            confidence: Share of the draws inside the band.

        Returns:
            One band per fraction.
        """
        tails = [(1 - confidence) / 2, (1 + confidence) / 2]
        bands = []
        for drawn in self.shares[function]:
            low, high = np.quantile(drawn, tails)
            bands.append(Band(float(np.mean(drawn)), float(np.std(drawn, ddof=1)), float(low), float(high)))
        return tuple(bands)

    def p_values(self, curve: Curve, function: str) -> tuple[float, ...]:
        """Chance that random units have at least the effect of the units of a curve.

        Args:
            curve: The curve, most important units first.
            function: The function.

        Returns:
            One p-value per fraction of this null, by `p_value`.

        Raises:
            SettingError: The curve lacks a fraction of the null, or has another intervention.
        """
        lacking = [fraction for fraction in self.fractions if fraction not in curve.fractions]
        if lacking or curve.intervention != self.intervention:
            raise SettingError(
                f"the curve must hold every fraction of the null and be a {self.intervention}; it is a "
                f"{curve.intervention} and lacks {lacking or 'none'}."
            )
        observed = dict(zip(curve.fractions, curve.shares[function], strict=True))
        drawn = zip(self.fractions, self.shares[function], strict=True)
        return tuple(p_value(observed[fraction].value, values) for fraction, values in drawn)

    def rows(self) -> list[Row]:
        """One row per function and fraction, with mean, standard deviation and the band of 95%."""
        return [
            {
                "null": self.null,
                "ranking": self.ranking,
                "intervention": self.intervention,
                "function": function,
                "fraction": fraction,
                "count": count,
                "draws": self.n_draws,
                **band._asdict(),
            }
            for function in self.shares
            for fraction, count, band in zip(self.fractions, self.counts, self.bands(function), strict=True)
        ]


@dataclass(frozen=True)
class SpecificityMatrix(Record):
    """The shares that masking the set of every function removes from every function.

    Attributes:
        counts: Set to its number of units. The sets have the names of the functions they were found for.
        shares: Set to function to the share of the function that masking the set removes.
        row_margins: Set d to other function e: removed of d minus removed of e, by the set of d. It is positive if the
            set removes more of its function than of e.
        column_margins: Function d to other set e: removed of d by the set of d, minus removed of d by the set of e. It
            is positive if the set of d removes more of d.
        n_samples: Function to number of samples.
        confidence: Confidence level of the intervals.
    """

    counts: Mapping[str, int]
    shares: Mapping[str, Mapping[str, Estimate]]
    row_margins: Mapping[str, Mapping[str, Estimate]]
    column_margins: Mapping[str, Mapping[str, Estimate]]
    n_samples: Mapping[str, int]
    confidence: float

    @property
    def is_row_dominant(self) -> bool:
        """Whether every set removes more of its function than of any other, with intervals that exclude 0."""
        return all(margin.is_positive for row in self.row_margins.values() for margin in row.values())

    @property
    def is_column_dominant(self) -> bool:
        """Whether its own set removes more of every function than any other set, with intervals that exclude 0."""
        return all(margin.is_positive for column in self.column_margins.values() for margin in column.values())

    @property
    def is_diagonal_dominant(self) -> bool:
        """Whether the diagonal is the largest entry of its row and of its column."""
        return self.is_row_dominant and self.is_column_dominant

    def rows(self) -> list[Row]:
        """One row per set and function; the margins of the diagonal are left out."""
        nothing = Estimate(math.nan)
        return [
            {
                "set": name,
                "count": self.counts[name],
                "function": function,
                **spread("share", share),
                **spread("row_margin", self.row_margins[name].get(function, nothing)),
                **spread("column_margin", self.column_margins.get(function, {}).get(name, nothing)),
            }
            for name, row in self.shares.items()
            for function, share in row.items()
        ]


@dataclass(frozen=True)
class RankingRow(Immutable):
    """The shares that the top units of one ranking remove.

    Attributes:
        ranking: Name of the ranking.
        function: The function of the ranking.
        fraction: Share of all units.
        count: Number of units.
        n_passes: Number of forward-backward passes of the ranking.
        shares: Function to the removed share.
        advantage: Removed share of its function minus that of the reference ranking, on the same samples.
        specificity: Removed share of its function minus the largest removed share of another function.
    """

    ranking: str
    function: str
    fraction: float
    count: int
    n_passes: int
    shares: Mapping[str, Estimate]
    advantage: Estimate
    specificity: Estimate


@dataclass(frozen=True)
class RankingTable(Record):
    """Rankings side by side: same units, same numbers of masked units, same samples, same loss.

    Attributes:
        reference: The ranking that the others are compared with.
        entries: One row per ranking, function and fraction.
    """

    reference: str
    entries: tuple[RankingRow, ...]

    def not_beaten(self) -> tuple[RankingRow, ...]:
        """Rows that the reference does not beat: the other ranking is as good or better, or the interval includes 0."""
        return tuple(row for row in self.entries if row.ranking != self.reference and not row.advantage.is_negative)

    def rows(self) -> list[Row]:
        """One row per ranking, function and fraction; ``removed_<function>`` are the shares."""
        functions = list(dict.fromkeys(name for row in self.entries for name in row.shares))
        nothing = Estimate(math.nan)
        return [
            {
                "ranking": row.ranking,
                "function": row.function,
                "fraction": row.fraction,
                "count": row.count,
                "n_passes": row.n_passes,
                **{
                    key: number
                    for function in functions
                    for key, number in spread(f"removed_{function}", row.shares.get(function, nothing)).items()
                },
                **spread("advantage", row.advantage),
                **spread("specificity", row.specificity),
            }
            for row in self.entries
        ]


@dataclass(frozen=True)
class Modulation(Record):
    """The effect of modulating the units of one function from base (0) to target (1) and beyond.

    Attributes:
        function: The function of the units.
        count: Number of units.
        strengths: The strengths, ascending.
        losses: Function to loss at every strength.
        shares: Function to the removed share at every strength; it is 0 at strength 1.
        steps: Function to the change of its share from each strength to the next, on the same samples. A negative
            change is an improvement.
        loss_base: Function to the mean loss of base.
        loss_target: Function to the mean loss of target.
    """

    function: str
    count: int
    strengths: tuple[float, ...]
    losses: Estimates
    shares: Estimates
    steps: Estimates
    loss_base: Mapping[str, float]
    loss_target: Mapping[str, float]

    def is_monotone(self, function: str | None = None, tolerance: float = 0.0) -> bool:
        """Whether a function never gets worse from strength 0 to 1.

        Args:
            function: The function; by default the function of the units.
            tolerance: Largest rise of the loss at a step, as a share of the difference of base and target.

        Returns:
            Whether no step between 0 and 1 rises by more than the tolerance.
        """
        name = function or self.function
        sign = 1 if self.loss_target[name] < self.loss_base[name] else -1
        steps = zip(itertools.pairwise(self.strengths), self.steps[name], strict=True)
        return all(sign * step.value <= tolerance for (low, high), step in steps if low >= 0 and high <= 1)

    def flatness(self, function: str) -> float:
        """Largest change of a function between strengths 0 and 1, relative to target.

        Args:
            function: The function.

        Returns:
            The largest absolute share, with its interval; 0 if the function does not change.
        """
        inside = [share for s, share in zip(self.strengths, self.shares[function], strict=True) if 0 <= s <= 1]
        ends = [number for share in inside for number in (share.value, share.low, share.high)]
        return max((abs(number) for number in ends if not math.isnan(number)), default=math.nan)

    def rows(self) -> list[Row]:
        """One row per function and strength."""
        return [
            {
                "dialled": self.function,
                "count": self.count,
                "function": function,
                "strength": strength,
                **spread("loss", self.losses[function][place]),
                **spread("share", shares[place]),
            }
            for function, shares in self.shares.items()
            for place, strength in enumerate(self.strengths)
        ]


def spread(name: str, estimate: Estimate) -> Row:
    """Columns of a table for an estimate: its value and both ends of its interval.

    Args:
        name: Name of the column; ``_low`` and ``_high`` are added for the ends.
        estimate: The estimate.

    Returns:
        Column to number.

    Example:
        >>> from filterattr.analysis import Estimate
        >>> spread("share", Estimate(0.5, 0.4, 0.7))
        {'share': 0.5, 'share_low': 0.4, 'share_high': 0.7}
    """
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
