"""``report``: write attributions and selections as one HTML page."""

from __future__ import annotations

import argparse

from filterattr.cli.answers import answer
from filterattr.cli.outputs import check_file
from filterattr.display import report
from filterattr.results.attribution import FilterAttribution
from filterattr.results.scores import FilterSelection


def run(options: argparse.Namespace) -> None:
    """Write the page."""
    inputs = [*options.attributions, *options.selection]
    check_file("--out", options.out, {".html"}, overwrite=options.overwrite, inputs=inputs)
    attributions = {path.stem: FilterAttribution.load(path) for path in options.attributions}
    selections = {path.stem: FilterSelection.load(path) for path in options.selection}
    report(
        options.out,
        options.title,
        question=options.question,
        attributions=attributions,
        selections=selections,
        scores={} if selections else {label: attribution.scores() for label, attribution in attributions.items()},
        provenance={"attributions": ", ".join(map(str, options.attributions))},
    )
    answer(options, f"wrote {options.out}", {"out": str(options.out)})
