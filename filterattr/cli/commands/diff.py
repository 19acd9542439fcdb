"""``diff``: what differs between two checkpoints."""

from __future__ import annotations

import argparse

from filterattr.analysis import CheckpointDifference, compare_checkpoints
from filterattr.cli.answers import answer, bar, columns, size
from filterattr.cli.outputs import check_file
from filterattr.display import report
from filterattr.display.page import Section, bar_chart
from filterattr.errors import name_some

_BARS = 40  # of a chart


def run(options: argparse.Namespace) -> None:
    """Compare two checkpoints, print the difference, and write a page if asked."""
    if options.html is not None:
        check_file("--html", options.html, {".html"}, overwrite=options.overwrite)
    difference = compare_checkpoints(options.first, options.second, key=options.key, depth=options.depth)
    if options.html is not None:
        _write_page(difference, options)
    content = {name: value for name, value in vars(difference).items() if name != "entries"}
    answer(
        options, _text(difference, options), {**content, "is_equal": difference.is_equal, "entries": difference.rows()}
    )


def _text(difference: CheckpointDifference, options: argparse.Namespace) -> str:
    changed = [entry for entry in difference.entries if entry.changed]
    lines = [_summary(difference), ""]
    shown = changed[: options.top or None]
    if shown:
        longest = max(entry.share for entry in shown)
        rows = [
            [
                entry.name,
                size(entry.n_weights),
                f"{entry.changed:.1%}",
                f"{entry.relative:.2e}",
                f"{entry.share:.1%}",
                bar(entry.share / longest if longest else 0.0).ljust(20),
            ]
            for entry in shown
        ]
        lines += [columns(["parameter", "weights", "changed", "relative", "share", ""], rows)]
    if len(changed) > len(shown):
        lines.append(f"... and {len(changed) - len(shown)} more (--top 0 prints all)")
    lines += [line for line in _apart(difference) if line]
    return "\n".join(lines).rstrip()


def _summary(difference: CheckpointDifference) -> str:
    count, compared = len(difference.entries), size(difference.n_bytes)
    if difference.is_equal:
        return f"both hold the same weights ({count} parameters, {compared} bytes compared)"
    changed = sum(bool(entry.changed) for entry in difference.entries)
    return (
        f"{changed} of {count} parameters differ; the difference is {difference.relative:.3g} times as long as the "
        f"first ({compared} bytes compared)"
    )


def _apart(difference: CheckpointDifference) -> list[str]:
    shapes = [f"{name} ({shapes})" for name, shapes in difference.other_shapes.items()]
    return [
        f"only in the first: {name_some(difference.only_first)}" if difference.only_first else "",
        f"only in the second: {name_some(difference.only_second)}" if difference.only_second else "",
        f"of other shapes: {name_some(shapes)}" if shapes else "",
    ]


def _write_page(difference: CheckpointDifference, options: argparse.Namespace) -> None:
    shown = [entry for entry in difference.entries if entry.changed][:_BARS]
    words = ", ".join(f"{entry.name} {entry.share:.1%}" for entry in shown[:3])
    chart = bar_chart(
        [entry.name for entry in shown],
        [("share", [100 * entry.share for entry in shown])],
        title="Where the difference is",
        description=f"Share of each parameter in the squared length of the difference, in per cent. Most: {words}.",
        x_label="share of the squared length (%)",
    )
    report(
        options.html,
        f"{options.first} and {options.second}",
        question="\n\n".join([_summary(difference), *(line for line in _apart(difference) if line)]),
        further=[Section("difference", "What differs", (), chart)] if shown else (),
        tables={"Parameters": difference},
    )
