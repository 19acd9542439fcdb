"""``export``: write a selection or scores for other programs."""

from __future__ import annotations

import argparse
import json
from fnmatch import fnmatchcase

from filterattr.analysis import lora_ranks, pruning_masks
from filterattr.cli.answers import answer, size
from filterattr.cli.commands.scored import scores_of
from filterattr.cli.commands.weights import weights_of
from filterattr.cli.outputs import check_file
from filterattr.errors import SettingError
from filterattr.export import export_patch, lora_arguments
from filterattr.files import replace_file, write_tensors
from filterattr.results.scores import FilterSelection


def run(options: argparse.Namespace) -> None:
    """Write the chosen form."""
    {"patch": _patch, "ranks": _ranks, "masks": _masks}[options.form](options)


def _patch(options: argparse.Namespace) -> None:
    inputs = [path for path in (options.selection, options.base, options.target) if path.is_file()]
    check_file("--out", options.out, {".safetensors"}, overwrite=options.overwrite, inputs=inputs)
    selection = FilterSelection.load(options.selection)
    base, target = (weights_of(path, options.key) for path in (options.base, options.target))
    patch = export_patch(selection, base, target, options.out)
    n_bytes, base_bytes = options.out.stat().st_size, sum(value.nbytes for value in base.values())
    text = f"{patch}, {size(n_bytes)} bytes ({n_bytes / max(1, base_bytes):.2%} of base)\nwrote {options.out}"
    answer(options, text, {"out": str(options.out), "weights": patch.count, "bytes": n_bytes, "base_bytes": base_bytes})


def _ranks(options: argparse.Namespace) -> None:
    check_file("--out", options.out, {".json"}, overwrite=options.overwrite, inputs=[options.scores])
    scores = scores_of(options.scores)
    wide = [
        name
        for name, scored in scores.parameters.items()
        if fnmatchcase(name, "*.weight") and len(scored.shape) > 1 and scored.group is None
    ]
    if not wide:
        raise SettingError(f"ranks are given to weights of modules; '{options.scores}' has scores of none.")
    budget = lora_ranks(scores.only(*wide), options.rank)
    arguments = lora_arguments(budget, scaling=options.scaling)
    replace_file(options.out, [f"{json.dumps(arguments, indent=2)}\n".encode()])
    text = f"{budget.total} parameters in {len(arguments['rank_pattern'])} layers\nwrote {options.out}"
    answer(options, text, {"out": str(options.out), "parameters": budget.total, "arguments": arguments})


def _masks(options: argparse.Namespace) -> None:
    check_file("--out", options.out, {".safetensors"}, overwrite=options.overwrite, inputs=[options.selection])
    selection = FilterSelection.load(options.selection)
    masks = pruning_masks(selection, keep=options.keep)
    write_tensors(options.out, "masks", masks, {})
    pruned = sum(int((~mask).sum()) for mask in masks.values())
    answer(options, f"{pruned} weights are pruned\nwrote {options.out}", {"out": str(options.out), "pruned": pruned})
