"""Sections for what was attributed, chosen, seen and noted: pictures, tables, and verdicts in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from filterattr.analysis.health import PathHealth, path_health
from filterattr.analysis.record import Record
from filterattr.display.page.charts import Axes, Line, bar_chart, line_chart, round_range
from filterattr.display.page.markup import Markup, element, joined, number
from filterattr.display.page.pictures import Dial, Strip, panel_of
from filterattr.display.page.section import Section, Verdict, side_by_side
from filterattr.display.page.tables import folded, table
from filterattr.display.plot import short_names
from filterattr.results.attribution import FilterAttribution
from filterattr.results.scores import FilterScores, FilterSelection

MOST_ROWS = 500


def path_section(attributions: Mapping[str, FilterAttribution]) -> Section:
    """Say and show whether the attributions can be trusted.

    Args:
        attributions: Label to attribution.

    Returns:
        The section.
    """
    health = {label: path_health(attribution) for label, attribution in attributions.items()}
    charts = [_path_chart(label, path, slot) for slot, (label, path) in enumerate(health.items())]
    rows = [
        {
            "inputs": label,
            "loss of base": path.loss_base,
            "loss of target": path.loss_target,
            "barrier (%)": 100 * path.barrier,
            "monotony": path.monotony,
            "cosine": path.cosine,
            "completeness error (%)": 100 * path.completeness_error,
            "not scored (%)": 100 * path.remainder_share,
            "samples": attributions[label].n_samples,
        }
        for label, path in health.items()
    ]
    notes = (
        "Barrier: how far the loss rises above base and target on the path, relative to their difference. Completeness "
        "error: how far the sum of all attributions is from the change of the loss. Not scored: the share of the "
        "absolute attributions of parameters without units, such as biases. Monotony 1: the loss only falls. Cosine: "
        "between the weights of base and target."
    )
    body = joined(side_by_side(charts), table(rows, "Path health", tools=False), element("p", notes, class_="note"))
    verdicts = tuple(
        Verdict(f"{label}: {path}", None if path.is_healthy and not path.is_seen else path.is_healthy)
        for label, path in health.items()
    )
    return Section("path", "Checks of the path", verdicts, body)


def filters_section(
    selections: Mapping[str, FilterSelection],
    scores: Mapping[str, FilterScores],
    attributions: Mapping[str, FilterAttribution],
) -> Section:
    """Show where the chosen units sit, and list them.

    Args:
        selections: Label to chosen units.
        scores: Label to the scores that they were chosen by.
        attributions: Label to attribution.

    Returns:
        The section.
    """
    charts = []
    if selections:
        shares = [
            (label, [100 * float(chosen.double().mean()) for chosen in selection.values()])
            for label, selection in selections.items()
        ]
        names = short_names(list(next(iter(selections.values()))))
        words = "; ".join(f"{label}: {_largest(names, values, '%')}" for label, values in shares)
        charts.append(
            bar_chart(
                names,
                shares,
                title="Selected units by layer",
                description=f"Selected units of every layer in per cent of its units. Most: {words}.",
                x_label="selected units of a layer (%)",
            )
        )
    by_units: dict[tuple[str, ...], list[tuple[str, FilterAttribution]]] = {}
    for label, attribution in attributions.items():
        by_units.setdefault(tuple(row.name for row in attribution.per_layer()), []).append((label, attribution))
    for layers, members in by_units.items():
        parts = [(label, [100 * row.share for row in ranking.per_layer()]) for label, ranking in members]
        names = short_names(layers)
        words = "; ".join(f"{label}: {_largest(names, values, '%')}" for label, values in parts)
        charts.append(
            bar_chart(
                names,
                parts,
                title="Scores by layer",
                description=f"Share of every layer in the sum of all scores, in per cent. Most: {words}.",
                x_label="share of all scores (%)",
            )
        )
    tables = [
        _units_table(label, selection, scores.get(label), attributions) for label, selection in selections.items()
    ]
    tables += [
        _units_table(label, ranking.top(min(100, ranking.n_units)), ranking, attributions)
        for label, ranking in scores.items()
        if label not in selections
    ]
    verdicts = tuple(_size_verdicts(selections))
    return Section("filters", "Selected units", verdicts, joined(side_by_side(charts), tables))


def pictures_section(strips: Sequence[Strip | Dial]) -> Section:
    """Show pictures.

    Args:
        strips: Strips and dials.

    Returns:
        The section.
    """
    return Section("pictures", "Pictures", (), joined([panel_of(strip) for strip in strips]))


def tables_section(key: str, title: str, tables: Mapping[str, Record | Sequence[Mapping[str, Any]]]) -> Section:
    """Show tables.

    Args:
        key: Anchor of the section.
        title: Its heading.
        tables: Caption to a result of `filterattr.analysis`, or to rows.

    Returns:
        The section.
    """
    shown = [
        _capped(folded(content.rows() if isinstance(content, Record) else content), caption)
        for caption, content in tables.items()
    ]
    return Section(key, title, (), joined(shown))


def provenance_section(provenance: Mapping[str, Any]) -> Section:
    """List where the results come from.

    Args:
        provenance: Name to anything that can be written; mappings are spelled out.

    Returns:
        The section.
    """
    rows = [
        element("tr", element("th", name, scope="row"), element("td", element("code", text)))
        for name, text in _flat(provenance)
    ]
    pairs = element("table", element("tbody", rows), class_="pairs", aria_label="Provenance")
    return Section("provenance", "Provenance", (), pairs)


def _capped(rows: Sequence[Mapping[str, Any]], caption: str) -> Markup:
    if not rows:
        return element("p", f"{caption}: nothing.")
    if len(rows) <= MOST_ROWS:
        return table(rows, caption)
    return table(rows[:MOST_ROWS], f"{caption} (the first {MOST_ROWS} of {number(len(rows))} rows)")


def _path_chart(label: str, health: PathHealth, slot: int) -> Markup:
    if not health.is_seen:
        return element("p", f"{label}: samples were pooled, so the loss on the path is not known.")
    scale = max(abs(health.loss_base), abs(health.loss_target)) or 1.0
    losses = tuple(loss / scale for loss in health.losses)
    higher = max(health.loss_base, health.loss_target) / scale
    ticks = round_range(losses, include=[0.0])
    words = (
        f"The loss goes from {number(health.loss_base)} at base to {number(health.loss_target)} at target; its highest "
        f"value on the path is {number(max(health.losses))}; barrier {health.barrier:.1%}."
    )
    places = tuple((place / 4, number(place / 4)) for place in range(5))
    axes = Axes(
        "place on the path (0 base, 1 target)", "loss / larger end", places, (ticks[0], ticks[-1]), rules=(higher,)
    )
    lines = [Line(label, health.places, losses, slot=slot)]
    if health.barrier:
        level = tuple(higher for _ in health.places)
        raised = tuple(max(loss, higher) for loss in losses)
        lines.append(Line("barrier", health.places, level, level, raised, slot=None))
    return line_chart(lines, axes, title=f"Loss on the path, {label}", description=words)


def _largest(names: Sequence[str], values: Sequence[float], unit: str) -> str:
    order = sorted(range(len(names)), key=lambda place: -values[place])[:3]
    return ", ".join(f"{names[place]} {number(round(values[place], 2))} {unit}" for place in order)


def _size_verdicts(selections: Mapping[str, FilterSelection]) -> Iterator[Verdict]:
    for label, selection in selections.items():
        layers = sum(bool(chosen.any()) for chosen in selection.values())
        share = selection.count / selection.n_units
        yield Verdict(
            f"{label}: {number(selection.count)} of {number(selection.n_units)} units ({share:.2%}), in {layers} of "
            f"{len(selection)} layers."
        )
    labels = list(selections)
    for place, first in enumerate(labels):
        for second in labels[place + 1 :]:
            if selections[first].parameters == selections[second].parameters:
                shared = selections[first].overlap(selections[second])
                yield Verdict(f"{first} and {second} share {f'{shared:.0%} of their units' if shared else 'no unit'}.")


def _units_table(
    label: str,
    selection: FilterSelection,
    scores: FilterScores | None,
    attributions: Mapping[str, FilterAttribution],
) -> Markup:
    """List chosen units with the score that chose them and the scores of every attribution."""
    places = [(name, tuple(place)) for name, chosen in selection.items() for place in np.argwhere(chosen.numpy())]
    columns = {"score": scores} if scores is not None else {}
    columns |= {
        f"attribution, {name}": attribution.scores()
        for name, attribution in attributions.items()
        if attribution.parameters == selection.parameters
    }
    values = {
        key: torch.cat([column[name][selection[name]] for name in selection]).tolist()
        for key, column in columns.items()
    }
    first = next(iter(values.values()), [])
    order = sorted(range(len(places)), key=lambda place: -first[place]) if first else range(len(places))
    rows = [
        {
            "rank": rank,
            "parameter": places[place][0],
            "unit": " ".join(str(int(index)) for index in places[place][1]),
            **{key: column[place] for key, column in values.items()},
        }
        for rank, place in enumerate(order, 1)
    ]
    return _capped(rows, f"Units of {label}")


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, entry in value.items():
        name = f"{prefix}{key}"
        if isinstance(entry, Mapping):
            yield from _flat(entry, f"{name} / ")
        elif isinstance(entry, list | tuple):
            yield name, ", ".join(map(str, entry))
        else:
            yield name, str(entry)
