"""Sections for what the evaluation finds: curves with their nulls, specificity, modulation, predictions."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from filterattr.analysis.prediction import UNSURE, Confusion
from filterattr.analysis.record import Estimate
from filterattr.analysis.results import Curve, Modulation, NullCurve, SpecificityMatrix, bounded
from filterattr.display.page.charts import Axes, Line, line_chart, round_range
from filterattr.display.page.markup import Markup, element, joined, number
from filterattr.display.page.section import Section, Verdict, details, side_by_side
from filterattr.display.page.tables import boxed, estimate_text, folded, table

_HIGHEST_SHARE = 1.5
_SIGNIFICANT = 0.05


def curves_section(curves: Sequence[Curve], nulls: Sequence[NullCurve]) -> Section:
    """Show what masking or grafting more and more units does, beside random sets.

    Args:
        curves: The curves.
        nulls: Their nulls.

    Returns:
        The section.
    """
    charts: list[Markup] = []
    verdicts: list[Verdict] = []
    for intervention in ("mask", "graft"):
        same = [curve for curve in curves if curve.intervention == intervention]
        own_nulls = [null for null in nulls if null.intervention == intervention]
        for function in dict.fromkeys(name for curve in same for name in curve.shares):
            here = [curve for curve in same if function in curve.shares]
            charts.append(_curve_chart(function, here, own_nulls))
            verdicts += _null_verdicts(function, here, own_nulls)
    rows = [row for curve in curves for row in curve.rows()]
    p_rows = [row for curve in curves for null in nulls for row in _p_rows(curve, null)]
    hidden = [details("All numbers of the curves", table(folded(rows), "Curves"))]
    if p_rows:
        hidden.append(details("p-values against random sets", table(p_rows, "p-values")))
    note = element(
        "p",
        "Share 0: nothing happened; 1: the function is gone (masking) or there (grafting); above 1 the network is "
        "damaged. Ribbons: intervals over the samples. Gray: 95% of the random sets, and their mean.",
        class_="note",
    )
    return Section("curves", "Effects of masking", tuple(verdicts), joined(side_by_side(charts), note, hidden))


def modulation_section(modulations: Sequence[Modulation]) -> Section:
    """Show what a change of the strength of the units of a function does.

    Args:
        modulations: One per function.

    Returns:
        The section.
    """
    charts = [_modulation_chart(modulation) for modulation in modulations]
    rows = [row for modulation in modulations for row in modulation.rows()]
    verdicts = []
    for modulation in modulations:
        monotone = modulation.is_monotone()
        rest = [
            name
            for name in modulation.shares
            if name != modulation.function and modulation.loss_target[name] < modulation.loss_base[name]
        ]
        moved = "; ".join(f"{name} moves by at most {modulation.flatness(name):.2f}" for name in rest)
        verdicts.append(
            Verdict(
                f"Strength of the units of {modulation.function}: it gets better at "
                f"{'every' if monotone else 'not every'} step from 0 to 1{f', while {moved}' if moved else ''}.",
                monotone,
            )
        )
    note = element("p", "Strength 0: the units of base; 1: those of target. Share 0: as in target.", class_="note")
    body = joined(side_by_side(charts), note, details("All numbers", table(folded(rows), "Modulation")))
    return Section("modulation", "Strength", tuple(verdicts), body)


def matrix_section(matrix: SpecificityMatrix) -> Section:
    """Show what masking every set does to every function.

    Args:
        matrix: The matrix.

    Returns:
        The section.
    """
    functions = list(next(iter(matrix.shares.values())))
    rows = [
        (
            f"{name} ({number(matrix.counts[name])})",
            [_share_cell(row[function], is_diagonal=function == name) for function in functions],
        )
        for name, row in matrix.shares.items()
    ]
    caption = "Removed of every function (columns) by masking the set of every function (rows)"
    box = _heat_table("masked set", functions, rows, caption)
    confidence = f"{matrix.confidence:.0%}"
    if matrix.is_diagonal_dominant:
        verdict = "Every set removes most of its own function, and every function is removed most by its own set"
        verdict += f": all {confidence} intervals of the margins exclude 0."
    else:
        missing = [
            f"{name} against {other} ({estimate_text(margin, 2)})"
            for margins in (matrix.row_margins, matrix.column_margins)
            for name, row in margins.items()
            for other, margin in row.items()
            if not margin.is_positive
        ]
        verdict = f"Not all sets are specific; these margins do not exceed 0: {'; '.join(missing)}."
    note = element(
        "p",
        f"Brackets: {confidence} intervals over the samples. A framed cell is a set's own function. Where target is no "
        "better than base (a clean input, say) a share says little.",
        class_="note",
    )
    hidden = details("All margins", table(folded(matrix.rows()), "Specificity"))
    verdicts = (Verdict(verdict, matrix.is_diagonal_dominant),)
    return Section("matrix", "Specificity", verdicts, joined(box, note, hidden))


def predictions_section(confusions: Sequence[Confusion]) -> Section:
    """Show how often the function that an input needs was predicted.

    Args:
        confusions: One per method.

    Returns:
        The section.
    """
    boxes, verdicts = [], []
    for matrix in confusions:
        answers = sorted({answer for row in matrix.counts.values() for answer in row} - set(matrix.counts) - {UNSURE})
        columns = [*matrix.counts, *answers, UNSURE]
        rows = [(label, _answer_cells(label, row, columns)) for label, row in matrix.counts.items()]
        boxes.append(_heat_table("true", columns, rows, f"{matrix.method}: answers (columns) for true labels (rows)"))
        verdicts.append(
            Verdict(
                f"{matrix.method}: {estimate_text(matrix.accuracy, 2)} of {number(matrix.n_samples)} samples right, "
                f"{matrix.unsure_share.value:.2f} unsure."
            )
        )
    return Section("predictions", "Predictions", tuple(verdicts), joined(boxes))


def _answer_cells(label: str, row: Mapping[str, int], columns: Sequence[str]) -> list[Markup]:
    total = sum(row.values())
    cells = []
    for answer in columns:
        count = row.get(answer, 0)
        share = count / total if total else math.nan
        cells.append(_heat_cell(number(count), f"{share:.1%}" if count else "", share, is_diagonal=answer == label))
    return cells


def _share_range(lines: Sequence[Line]) -> tuple[float, float]:
    values = [value for line in lines for part in (line.ys, line.lows, line.highs) for value in part]
    ticks = round_range([max(value, -0.5) for value in values], include=[0.0, 1.0], most=_HIGHEST_SHARE)
    return ticks[0], ticks[-1]


def _curve_chart(function: str, curves: Sequence[Curve], nulls: Sequence[NullCurve]) -> Markup:
    """One function, all rankings; the nulls of the ranking that does most to it."""
    intervention = curves[0].intervention
    lines = []
    for slot, curve in enumerate(curves):
        kept = [place for place, fraction in enumerate(curve.fractions) if fraction > 0]
        estimates = [curve.shares[function][place] for place in kept]
        label = curve.ranking if curve.order == "most" else f"{curve.ranking}, least important first"
        lines.append(_estimates_line(label, [100 * curve.fractions[place] for place in kept], estimates, slot))
    foremost = [curve for curve in curves if curve.order == "most"]
    if foremost:
        strongest = max(foremost, key=lambda candidate: _area(candidate, function)).ranking
        for null in nulls:
            if null.ranking == strongest and function in null.shares:
                kept = [place for place, fraction in enumerate(null.fractions) if fraction > 0]
                bands = [null.bands(function)[place] for place in kept]
                lines.append(
                    Line(
                        f"{null.null}, as many as {strongest}",
                        tuple(100 * null.fractions[place] for place in kept),
                        tuple(band.mean for band in bands),
                        tuple(band.low for band in bands),
                        tuple(band.high for band in bands),
                        slot=None,
                    )
                )
    places = sorted({place for line in lines for place in line.xs})
    ticks = [(place, number(place)) for place in (0.1, 1.0, 10.0, 100.0) if places[0] <= place <= places[-1]]
    ticks += [(place, "") for place in (places[0], places[-1]) if place not in dict(ticks)]
    verb = {"mask": "masking", "graft": "grafting"}[intervention]
    done = {"mask": "removed", "graft": "recovered"}[intervention]
    axes = Axes("units (%)", f"{function} {done}", tuple(ticks), _share_range(lines), log=True, rules=(0.0, 1.0))
    words = "; ".join(f"{line.label}: {_at(line, 1.0)}" for line in lines)
    description = f"Share of {function} {done} by {verb} more and more units. At the size next to 1%: {words}."
    return line_chart(lines, axes, title=f"{function}: {done} by {verb}", description=description)


def _area(curve: Curve, function: str) -> float:
    area = curve.area(function)
    return -1.0 if math.isnan(area) else area


def _at(line: Line, place: float) -> str:
    nearest = min(range(len(line.xs)), key=lambda index: abs(math.log(line.xs[index] / place)))
    return f"{line.ys[nearest]:.2f} at {number(line.xs[nearest])}%"


def _estimates_line(label: str, places: Sequence[float], estimates: Sequence[Estimate], slot: int) -> Line:
    return Line(
        label,
        tuple(places),
        tuple(estimate.value for estimate in estimates),
        tuple(estimate.low for estimate in estimates),
        tuple(estimate.high for estimate in estimates),
        slot=slot,
    )


def _p_rows(curve: Curve, null: NullCurve) -> Iterator[dict[str, Any]]:
    matched = curve.order == "most" and (curve.ranking, curve.intervention) == (null.ranking, null.intervention)
    if not matched or not set(null.fractions) <= set(curve.fractions):
        return
    observed = {name: dict(zip(curve.fractions, shares, strict=True)) for name, shares in curve.shares.items()}
    for function in null.shares:
        if function in observed:
            pairs = zip(null.fractions, null.bands(function), null.p_values(curve, function), strict=True)
            for fraction, band, p in pairs:
                yield {
                    "ranking": curve.ranking,
                    "intervention": curve.intervention,
                    "function": function,
                    "units (%)": 100 * fraction,
                    "share": observed[function][fraction].value,
                    "null": null.null,
                    "mean of null": band.mean,
                    "sd of null": band.sd,
                    "draws": null.n_draws,
                    "p": p,
                }


def _null_verdicts(function: str, curves: Sequence[Curve], nulls: Sequence[NullCurve]) -> Iterator[Verdict]:
    """What the ranking that does most to a function does at the size next to 1%, against its nulls."""
    foremost = [curve for curve in curves if curve.order == "most"]
    if not foremost:
        return
    curve = max(foremost, key=lambda candidate: _area(candidate, function))
    rows = [row for null in nulls for row in _p_rows(curve, null) if row["function"] == function]
    if not rows:
        return
    nearest = min((row["units (%)"] for row in rows if row["units (%)"] > 0), key=lambda size: abs(math.log(size)))
    here = [row for row in rows if row["units (%)"] == nearest]
    done = {"mask": ("Masking", "removes"), "graft": ("Grafting", "brings")}[curve.intervention]
    against = " and ".join(f"{row['mean of null']:.2f} by {row['null']} sets ({_p_text(row)})" for row in here)
    doubtful = any(row["p"] > _SIGNIFICANT and not _is_smallest(row) for row in here)
    yield Verdict(
        f"{done[0]} the first {number(nearest)}% of {curve.ranking} {done[1]} {here[0]['share']:.2f} of {function}, "
        f"against {against}.",
        False if doubtful else True if all(row["p"] <= _SIGNIFICANT for row in here) else None,
    )


def _p_text(row: Mapping[str, Any]) -> str:
    few = f", the smallest that {row['draws']} draws allow" if _is_smallest(row) and row["p"] > _SIGNIFICANT else ""
    return f"p = {row['p']:.3f}{few}"


def _is_smallest(row: Mapping[str, Any]) -> bool:
    return bool(row["p"] * (1 + row["draws"]) < 1.5)


def _modulation_chart(modulation: Modulation) -> Markup:
    lines = [
        _estimates_line(name, modulation.strengths, shares, slot)
        for slot, (name, shares) in enumerate(modulation.shares.items())
    ]
    ticks = tuple((strength, number(strength)) for strength in modulation.strengths)
    axes = Axes("strength of the units", "removed", ticks, _share_range(lines), rules=(0.0,))
    words = "; ".join(f"{line.label}: from {line.ys[0]:.2f} to {line.ys[-1]:.2f}" for line in lines)
    title = f"Strength of {number(modulation.count)} units of {modulation.function}"
    ends = f"{number(modulation.strengths[0])} to {number(modulation.strengths[-1])}"
    description = f"Share removed while the strength goes from {ends}: {words}."
    return line_chart(lines, axes, title=title, description=description)


def _heat_table(corner: str, columns: Sequence[str], rows: Sequence[tuple[str, list[Markup]]], caption: str) -> Markup:
    """A table whose cells are the darker the closer their share is to 1."""
    head = [element("th", name, scope="col") for name in (corner, *columns)]
    body = [element("tr", element("th", name, scope="row"), cells) for name, cells in rows]
    key = "h" + hashlib.sha256(joined(caption, head, body).encode()).hexdigest()[:12]
    parts = (element("thead", element("tr", head)), element("tbody", body))
    return boxed(element("table", *parts, class_="heat", aria_labelledby=key), caption, key)


def _share_cell(share: Estimate, *, is_diagonal: bool) -> Markup:
    known = share.low == share.low and share.high == share.high
    value, _, ends = estimate_text(share, 2).partition(" ")
    return _heat_cell(value, ends if known else "", share.value, is_diagonal=is_diagonal)


def _heat_cell(value: str, below: str, share: float, *, is_diagonal: bool) -> Markup:
    level = 0 if math.isnan(share) else round(10 * bounded(share))
    inside = (element("strong", value), element("span", below) if below else None)
    return element("td", *inside, class_=f"h{level}{' own' if is_diagonal else ''}")
