"""Plots of the evaluation: curves with the bands of their nulls, matrices, modulation and stability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from filterattr.analysis.prediction import UNSURE, Confusion
from filterattr.analysis.record import Estimate
from filterattr.analysis.results import Band, Curve, Modulation, NullCurve, RankingTable, SpecificityMatrix
from filterattr.analysis.stability import Stability
from filterattr.display.plot import COLOURS, axes_for
from filterattr.errors import SettingError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = ("o", "s", "^", "D", "v", "P")


def plot_curves(
    curves: Mapping[str, Curve], function: str, axis: Axes | None = None, nulls: Sequence[NullCurve] = ()
) -> Axes:
    """Draw the effect of masking (or grafting) on one function, by size of the set, with the bands of the nulls.

    The axes fit the curves and bands; shares above 1.5 (damaged networks) and below -0.5 are cut off. Fractions have a
    logarithmic scale, with 0 next to the smallest.

    Args:
        curves: Label to curve.
        function: The function whose share is drawn.
        axis: Axes to draw on; a new figure of pyplot by default.
        nulls: Nulls to draw: their mean (line) and the central 95% of the draws (band).

    Returns:
        The axes.

    Raises:
        SettingError: Curves and nulls have different interventions.
    """
    kinds = {curve.intervention for curve in curves.values()} | {null.intervention for null in nulls}
    if len(kinds) != 1:
        raise SettingError(f"curves and nulls must be of one intervention; got {', '.join(sorted(kinds)) or 'none'}.")
    axis = axes_for(axis)
    drawn: list[Band] = []
    for null, shade, style in zip(nulls, ("0.55", "0.75", "0.85"), (":", "--", "-."), strict=False):
        bands = null.bands(function)
        drawn += bands
        places = [100 * fraction for fraction in null.fractions]
        axis.fill_between(places, [b.low for b in bands], [b.high for b in bands], color=shade, alpha=0.35, lw=0)
        axis.plot(places, [b.mean for b in bands], color="0.3", ls=style, lw=1, label=f"{null.null} ({null.n_draws})")
    for place, (label, curve) in enumerate(curves.items()):
        _line(axis, [100 * fraction for fraction in curve.fractions], curve.shares[function], label, place)
    word = "removed" if kinds == {"mask"} else "recovered"
    axis.set(xlabel=f"units {'masked' if word == 'removed' else 'grafted'} (%)", ylabel=f"share of {function} {word}")
    _fit(axis, [*curves.values(), *nulls], [*_ends(curves, function), *(end for b in drawn for end in (b.low, b.high))])
    _finish(axis)
    return axis


def plot_specificity(matrix: SpecificityMatrix, axis: Axes | None = None) -> Axes:
    """Draw the matrix as a heat map, with its numbers and intervals; the diagonal is framed.

    Args:
        matrix: The matrix.
        axis: Axes to draw on; a new figure of pyplot by default.

    Returns:
        The axes.
    """
    axis = axes_for(axis)
    sets = list(matrix.shares)
    functions = list(matrix.shares[sets[0]])
    entries = [[matrix.shares[name][function] for function in functions] for name in sets]
    texts = [[_interval(entry) for entry in row] for row in entries]
    _heat(axis, [[entry.value for entry in row] for row in entries], texts, sets, functions)
    for row, name in enumerate(sets):
        frame = axis.add_patch(_square(functions.index(name), row))
        frame.set(fill=False, edgecolor="black", linewidth=2)
    axis.set(xlabel="function", ylabel="set that was masked")
    verdict = "" if matrix.is_diagonal_dominant else "not "
    axis.set_title(f"share removed; {verdict}diagonal-dominant ({100 * matrix.confidence:g}%)", fontsize=10)
    return axis


def plot_confusion(confusion: Confusion, axis: Axes | None = None) -> Axes:
    """Draw a confusion matrix: shares of each true label (colour) and numbers of samples (text).

    Args:
        confusion: The matrix.
        axis: Axes to draw on; a new figure of pyplot by default.

    Returns:
        The axes.
    """
    axis = axes_for(axis)
    labels = list(confusion.counts)
    answers = list(confusion.counts[labels[0]])
    if not any(row[UNSURE] for row in confusion.counts.values()):
        answers.remove(UNSURE)
    counts = [[confusion.counts[label][answer] for answer in answers] for label in labels]
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    _heat(axis, shares, [[str(count) for count in row] for row in counts], labels, answers)
    accuracy = confusion.accuracy
    axis.set(xlabel="answer", ylabel="truth")
    axis.set_title(
        f"{confusion.method}: {100 * accuracy.value:.1f}% right "
        f"[{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}], n = {confusion.n_samples}",
        fontsize=10,
    )
    return axis


def plot_modulation(modulation: Modulation, axis: Axes | None = None) -> Axes:
    """Draw the removed share of every function while the units of one are modulated between base and target.

    Functions at which target is not better than base have no share and are left out.

    Args:
        modulation: The result.
        axis: Axes to draw on; a new figure of pyplot by default.

    Returns:
        The axes.
    """
    axis = axes_for(axis)
    better = [name for name, loss in modulation.loss_target.items() if loss < modulation.loss_base[name]]
    for place, name in enumerate(better):
        label = f"{name} (own)" if name == modulation.function else name
        _line(axis, modulation.strengths, modulation.shares[name], label, place)
    axis.axhline(0, color="0.6", lw=0.8)
    axis.axvline(1, color="0.6", lw=0.8, ls=":")
    axis.set(
        xlabel=f"strength of the {modulation.function} units (0 base, 1 target)", ylabel="share of the function removed"
    )
    axis.set_ylim(-0.3, 1.5)
    _finish(axis)
    return axis


def plot_stability(stability: Stability, axis: Axes | None = None) -> Axes:
    """Draw the agreement of the sets of two disjoint groups of samples, by size of the groups.

    Args:
        stability: The result.
        axis: Axes to draw on; a new figure of pyplot by default.

    Returns:
        The axes.
    """
    axis = axes_for(axis)
    _line(axis, stability.sizes, stability.overlap, "overlap", 0)
    _line(axis, stability.sizes, stability.reproduced, "Jaccard index", 1)
    axis.axhline(stability.count / stability.n_units, color="0.6", lw=0.8, ls=":", label="overlap by chance")
    axis.set_xscale("log", base=2)
    axis.set_xticks(stability.sizes, [str(size) for size in stability.sizes])
    axis.set(xlabel="samples in each of two disjoint groups", ylabel="agreement of their sets", ylim=(0, 1.02))
    _finish(axis)
    return axis


def plot_rankings(table: RankingTable, function: str, fraction: float, axis: Axes | None = None) -> Axes:
    """Draw the shares that the top units of every ranking remove, best first.

    A dot is the share of the function of the ranking, a ring the largest share of another function.

    Args:
        table: The comparison.
        function: The function of the rankings.
        fraction: The share of the units.
        axis: Axes to draw on; a new figure of pyplot by default.

    Returns:
        The axes.

    Raises:
        SettingError: The table has no such rows.
    """
    axis = axes_for(axis)
    rows = [row for row in table.entries if row.function == function and row.fraction == fraction]
    if not rows:
        raise SettingError(f"the table holds no rows of {function!r} at {fraction}.")
    rows.sort(key=lambda row: row.shares[function].value)
    for place, row in enumerate(rows):
        share = row.shares[function]
        colour = COLOURS[1] if row.ranking == table.reference else COLOURS[0]
        axis.plot([share.low, share.high], [place, place], color=colour, lw=2, alpha=0.5)
        axis.plot([share.value], [place], "o", color=colour)
        axis.plot([share.value - row.specificity.value], [place], "o", mfc="none", color="0.5")
    axis.set_yticks(range(len(rows)), [row.ranking for row in rows], fontsize=8)
    axis.axvline(0, color="0.6", lw=0.8)
    axis.axvline(1, color="0.6", lw=0.8)
    axis.set(xlabel=f"share removed by masking {100 * fraction:g}% (ring: the most of another function)")
    axis.spines[["top", "right"]].set_visible(False)
    return axis


def _ends(curves: Mapping[str, Curve], function: str) -> list[float]:
    """All that a picture of shares must show: values, and the ends of their intervals."""
    return [
        end
        for curve in curves.values()
        for estimate in curve.shares[function]
        for end in (estimate.value, estimate.low, estimate.high)
    ]


def _fit(axis: Axes, lines: Sequence[Curve | NullCurve], shares: Sequence[float]) -> None:
    """Fit the axes of fractions and shares to what is drawn."""
    percents = sorted({100 * fraction for line in lines for fraction in line.fractions})
    smallest, largest = next((percent for percent in percents if percent), 1.0), percents[-1] or 1.0
    axis.set_xscale("symlog", linthresh=smallest, linscale=0.4)
    ticks: list[float] = []
    for percent in percents:
        if not ticks or not ticks[-1] or percent > 1.8 * ticks[-1]:  # closer ones would overlap
            ticks.append(percent)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.set_xlim(-0.05 * smallest, 1.1 * largest)
    shown = np.clip([0.0, 0.05, *(share for share in shares if np.isfinite(share))], -0.5, 1.5)
    low, high = float(shown.min()), float(shown.max())
    axis.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    for mark in (0, 1):
        if mark <= axis.get_ylim()[1]:
            axis.axhline(mark, color="0.6", lw=0.8, zorder=1)


def _line(axis: Axes, places: Sequence[float], estimates: Sequence[Estimate], label: str, number: int) -> None:
    """A line with its interval as a band."""
    colour = COLOURS[number % len(COLOURS)]
    lows, highs = [estimate.low for estimate in estimates], [estimate.high for estimate in estimates]
    axis.fill_between(places, lows, highs, color=colour, alpha=0.2, lw=0)
    marker = _MARKERS[number % len(_MARKERS)]
    axis.plot(places, [estimate.value for estimate in estimates], color=colour, marker=marker, ms=4, label=label)


def _heat(
    axis: Axes,
    values: Sequence[Sequence[float]],
    texts: Sequence[Sequence[str]],
    rows: Sequence[str],
    columns: Sequence[str],
) -> None:
    shown = np.clip(np.nan_to_num(np.array(values, dtype=np.float64)), 0, 1)
    axis.imshow(shown, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, line in enumerate(texts):
        for column, text in enumerate(line):
            colour = "white" if shown[row, column] > 0.6 else "black"
            axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(rows)), rows)


def _interval(estimate: Estimate) -> str:
    if np.isnan(estimate.low):
        return f"{estimate.value:.2f}"
    return f"{estimate.value:.2f}\n[{estimate.low:.2f}, {estimate.high:.2f}]"


def _square(column: int, row: int) -> Any:
    from matplotlib.patches import Rectangle  # noqa: PLC0415 - slow to import

    return Rectangle((column - 0.5, row - 0.5), 1, 1)


def _finish(axis: Axes) -> None:
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
