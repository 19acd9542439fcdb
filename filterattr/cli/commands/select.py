"""``select``: select the units with the highest scores."""

from __future__ import annotations

import argparse

from filterattr.cli.answers import answer
from filterattr.cli.commands.scored import scores_of
from filterattr.cli.outputs import check_file


def run(options: argparse.Namespace) -> None:
    """Select units, and write the selection."""
    check_file("--out", options.out, {".safetensors"}, overwrite=options.overwrite, inputs=[options.scores])
    scores = scores_of(options.scores, options.reduction)
    if options.only:
        scores = scores.only(*options.only)
    selection = scores.top(options.fraction if options.count is None else options.count)
    selection.save(options.out)
    per_layer = {name: count for name, count in selection.per_layer().items() if count}
    content = {"out": str(options.out), "n_units": selection.n_units, "count": selection.count, "per_layer": per_layer}
    answer(options, f"{selection}\nwrote {options.out}", content)
