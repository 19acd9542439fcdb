"""Rank correlations of cheap rankings with an oracle, on the units that the oracle knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from filterattr.analysis.record import Estimate, Record, Row
from filterattr.analysis.resampling import Array, interval
from filterattr.analysis.results import spread
from filterattr.errors import SettingError
from filterattr.results.scores import FilterScores, FilterSelection


@dataclass(frozen=True)
class AgreementRow:
    """How well one ranking agrees with the oracle.

    Attributes:
        ranking: Name of the ranking.
        spearman: Spearman's rank correlation.
        kendall: Kendall's tau-b.
        top_overlap: Share of the oracle's upper tenth that is in the upper tenth of the ranking.
    """

    ranking: str
    spearman: Estimate
    kendall: Estimate
    top_overlap: Estimate


@dataclass(frozen=True)
class Agreement(Record):
    """Rankings compared with an oracle on the units that it knows.

    Attributes:
        oracle: Name of the oracle.
        function: Name of the function.
        n_units: Number of units that were compared.
        entries: One row per ranking; the intervals are over the units.
    """

    oracle: str
    function: str
    n_units: int
    entries: tuple[AgreementRow, ...]

    def rows(self) -> list[Row]:
        """One row per ranking."""
        return [
            {
                "ranking": row.ranking,
                "oracle": self.oracle,
                "function": self.function,
                "n_units": self.n_units,
                **spread("spearman", row.spearman),
                **spread("kendall", row.kendall),
                **spread("top_overlap", row.top_overlap),
            }
            for row in self.entries
        ]


def agreement(
    oracle: FilterScores,
    rankings: Mapping[str, FilterScores],
    units: FilterSelection,
    *,
    function: str,
    name: str = "knock-out",
    draws: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> Agreement:
    """Correlate rankings with an oracle; needs scipy.

    Args:
        oracle: Scores of the oracle, such as `filterattr.analysis.knockout.KnockOut.scores`.
        rankings: Name to scores of the same units.
        units: The units that the oracle knows.
        function: Name of the function.
        name: Name of the oracle.
        draws: Bootstrap draws over the units.
        confidence: Share of the draws inside the intervals.
        seed: Seed of the draws.

    Returns:
        Spearman's and Kendall's correlation and the overlap of the upper tenths, for every ranking. A correlation
        with a ranking that scores all units alike is not a number.

    Raises:
        SettingError: There are fewer than three units, the rankings score other units, or scipy is not installed.

    Example:
        >>> import torch
        >>> from filterattr import ScoredParameter, Unit
        >>> like = {"w": ScoredParameter(Unit("... -> ..."), (20,))}
        >>> oracle = FilterScores({"w": torch.arange(20.0)}, like)
        >>> found = agreement(oracle, {"square": FilterScores({"w": oracle["w"] ** 2}, like)}, oracle.top(1.0),
        ...                   function="task")
        >>> found.entries[0].spearman.value
        1.0
    """
    stats = load_scipy()
    chosen = units.flat().numpy()
    for scores in rankings.values():
        scores.check_same_units(oracle)
    oracle.check_same_units(units)
    truth = oracle.flat().double().numpy()[chosen]
    if len(truth) < 3 or not np.isfinite(truth).all():
        raise SettingError(
            f"at least three units with a finite score of the oracle are needed; got {len(truth)}, "
            f"{int(np.isfinite(truth).sum())} of them finite."
        )
    picks = np.random.default_rng(seed).integers(len(truth), size=(draws, len(truth)))

    def estimated(measure: Callable[[Array, Array], float], values: Array) -> Estimate:
        value = measure(truth, values)
        return interval(value, np.array([measure(truth[pick], values[pick]) for pick in picks]), confidence)

    def spearman(first: Array, second: Array) -> float:
        return _correlation(stats.spearmanr, first, second)

    def kendall(first: Array, second: Array) -> float:
        return _correlation(stats.kendalltau, first, second)

    entries = []
    for ranking, scores in rankings.items():
        values = scores.flat().double().numpy()[chosen]
        rows = (estimated(measure, values) for measure in (spearman, kendall, _top_overlap))
        entries.append(AgreementRow(ranking, *rows))
    return Agreement(name, function, len(truth), tuple(entries))


def load_scipy() -> Any:
    """Import `scipy.stats` on first use: only tests and rank correlations need it.

    Returns:
        The module.

    Raises:
        SettingError: scipy is not installed.
    """
    try:
        import scipy.stats  # noqa: PLC0415 - optional
    except ImportError as error:
        raise SettingError("this needs scipy: pip install 'filterattr[stats]'.") from error
    return scipy.stats


def _correlation(measure: Callable[[Array, Array], Any], first: Array, second: Array) -> float:
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(measure(first, second).statistic)


def _top_overlap(first: Array, second: Array) -> float:
    """Share of the upper tenth of one ranking that is in the upper tenth of the other; a tenth is at least one unit."""
    count = max(1, round(0.1 * len(first)))
    tops = (set(np.argsort(-values, kind="stable")[:count].tolist()) for values in (first, second))
    return len(set.intersection(*tops)) / count
