"""The section of the page on channels: what every method removes, and how good it is for the passes that it spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from filterattr.analysis import NullCurve
from filterattr.display.page import (
    Axes,
    Line,
    Section,
    Verdict,
    details,
    element,
    estimate_text,
    folded,
    joined,
    line_chart,
    number,
    round_range,
    side_by_side,
    table,
)
from sr_zoo.study.contest import ContestRow, ContestTable
from sr_zoo.study.stages.channels import ATTRIBUTION, CONTRAST, LAYER_METHODS

_DRAWN = (ATTRIBUTION, f"{ATTRIBUTION}, sum_of_abs", *LAYER_METHODS)  # as many as a chart has colours
_JUDGED = (*_DRAWN, "gradient x change at target")


def best_rows(table: ContestTable, function: str, methods: Sequence[str] = _JUDGED) -> list[ContestRow]:
    """Every method at its largest number of steps with the strict contrast, the reference first.

    Args:
        table: The contest.
        function: The function.
        methods: Which methods.

    Returns:
        One row per method.
    """
    rows = []
    for method in methods:
        own = [row for row in table.entries if (row.method, row.form, row.function) == (method, CONTRAST, function)]
        rows += [max(own, key=lambda row: row.steps)] if own else []
    return rows


def channels_section(results: Mapping[str, Any]) -> Section:
    """Draw and list what the stage ``channels`` found.

    Args:
        results: Its results.

    Returns:
        The section.
    """
    contest: ContestTable = results["table"]
    nulls = [one for name, one in results.items() if name.startswith("null")]
    functions = list(dict.fromkeys(row.function for row in contest.entries))
    charts, verdicts = [], []
    for function in functions:
        rows = best_rows(contest, function, _DRAWN)
        charts += [
            _curves(contest, rows, nulls, function, "removed"),
            _curves(contest, rows, nulls, function, "collateral"),
            _quality(contest, function),
        ]
        verdicts.append(_verdict(best_rows(contest, function), function))
    note = element(
        "p",
        f"All methods rank the same {number(contest.n_units)} output channels (kernels and bias) from the same crops, "
        "with the strict contrast; the highest are set back to base. Area: mean share from the smallest to the largest "
        "set, every doubling counting alike. Layer integrated gradients need a path for every layer; their passes are "
        "counted one by one.",
        class_="note",
    )
    numbers = table(folded(contest.rows()), f"Rankings of {number(contest.n_units)} channels")
    body = joined(side_by_side(charts), note, details("All numbers of the channels", numbers))
    return Section("channels", "Which channels?", tuple(verdicts), body)


def _curves(
    contest: ContestTable, rows: Sequence[ContestRow], nulls: Sequence[NullCurve], function: str, kind: str
) -> Any:
    """What the methods remove of a function, or of the others, over the size of the set."""
    places = tuple(100 * fraction for fraction in contest.fractions)
    lines = [Line(row.method, places, getattr(row, kind), slot=slot) for slot, row in enumerate(rows)]
    for null in nulls if kind == "removed" else []:
        if null.null == "random":
            bands = null.bands(function)
            lows, highs = tuple(band.low for band in bands), tuple(band.high for band in bands)
            lines.append(Line("random", places, tuple(band.mean for band in bands), lows, highs, slot=None))
    values = [value for line in lines for value in (*line.ys, *line.highs)]
    ticks = round_range([max(value, 0.0) for value in values], include=[0.0, 1.0], most=1.5)
    axes = Axes(
        "channels (%)",
        f"{function} removed" if kind == "removed" else "others removed",
        tuple((place, number(place)) for place in places),
        (ticks[0], ticks[-1]),
        log=True,
        rules=(0.0, 1.0),
    )
    title = f"{function}: removed" if kind == "removed" else f"{function}: collateral"
    words = "; ".join(f"{line.label}: " + ", ".join(f"{value:.2f}" for value in line.ys) for line in lines)
    return line_chart(lines, axes, title=title, description=f"At {', '.join(map(number, places))}%: {words}.")


def _quality(contest: ContestTable, function: str) -> Any:
    """The margin of every method over the passes that it spent."""
    lines = []
    for slot, method in enumerate(_DRAWN):
        rows = [row for row in contest.entries if (row.method, row.form, row.function) == (method, CONTRAST, function)]
        rows.sort(key=lambda row: row.n_passes)
        if rows:
            margins = [row.margin for row in rows]
            lines.append(
                Line(
                    method,
                    tuple(float(row.n_passes) for row in rows),
                    tuple(margin.value for margin in margins),
                    tuple(margin.low for margin in margins) if method == ATTRIBUTION else (),
                    tuple(margin.high for margin in margins) if method == ATTRIBUTION else (),
                    slot=slot,
                )
            )
    places = sorted({place for line in lines for place in line.xs})
    powers = [2.0**power for power in range(12) if places[0] <= 2.0**power <= places[-1]]
    ticks = [(place, number(place)) for place in powers]
    ticks += [(place, "") for place in (places[0], places[-1]) if place not in powers]
    shown = round_range([value for line in lines for value in (*line.ys, *line.lows, *line.highs)], include=[0.0])
    axes = Axes("passes per crop", "own minus other area", tuple(ticks), (shown[0], shown[-1]), log=True, rules=(0.0,))
    words = "; ".join(
        f"{line.label}: " + ", ".join(f"{y:.2f} for {number(x)}" for x, y in zip(line.xs, line.ys, strict=True))
        for line in lines
    )
    title = f"{function}: quality for the passes spent"
    return line_chart(lines, axes, title=title, description=f"Area of {function} minus that of the others: {words}.")


def _verdict(rows: Sequence[ContestRow], function: str) -> Verdict:
    """Who does best, and whether the attribution is behind."""
    best = max(rows, key=lambda row: row.margin.value)
    own = rows[0]
    chance = f"p = {own.p_margin:.3f} against random channels"
    if own.p_margin_in_layers == own.p_margin_in_layers:
        chance += f", {own.p_margin_in_layers:.3f} against others of the same layers"
    text = (
        f"Channels of {function} by the attribution: area {estimate_text(own.own, 2)} of their function, "
        f"{own.other.value:.2f} of others ({chance})"
    )
    if best is own:
        return Verdict(f"{text}; no other with the same loss and contrast does better.", True)
    if best.advantage.is_positive:
        return Verdict(f"{text}; {best.method} is ahead by {estimate_text(best.advantage, 2)}.", False)
    return Verdict(f"{text}; {best.method} is level with it, {estimate_text(best.advantage, 2)}.")
