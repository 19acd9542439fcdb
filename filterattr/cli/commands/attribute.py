"""``attribute``: score every unit of two checkpoints."""

from __future__ import annotations

import argparse
from pathlib import Path

from filterattr.cli.answers import answer, bar, columns
from filterattr.cli.commands.task import task_of
from filterattr.cli.outputs import check_file
from filterattr.results.attribution import FilterAttribution

_LAYERS = 10


def run(options: argparse.Namespace) -> None:
    """Attribute; a call that was killed is resumed."""
    check_file("--out", options.out, {".safetensors"}, overwrite=options.overwrite, inputs=_files(options))
    task = task_of(options)
    unfinished = options.out.with_suffix(".unfinished.safetensors")
    attribution = task.attributor.attribute(
        task.base, task.target, task.loss, task.samples, checkpoint=unfinished, **task.settings
    )
    attribution.save(options.out)
    unfinished.unlink(missing_ok=True)
    content = {
        "out": str(options.out),
        "loss_base": attribution.loss_base,
        "loss_target": attribution.loss_target,
        "completeness_error": attribution.completeness_error,
        "cosine": attribution.cosine,
        "n_samples": attribution.n_samples,
        "n_passes": attribution.n_passes,
        "concerns": attribution.concerns,
        "layers": [row._asdict() for row in attribution.per_layer()],
    }
    answer(options, f"{attribution}\n\n{_layers(attribution)}\n\nwrote {options.out}", content)


def _files(options: argparse.Namespace) -> list[Path]:
    return [path for path in (options.base, options.target) if path.is_file()]


def _layers(attribution: FilterAttribution) -> str:
    rows = sorted(attribution.per_layer(), key=lambda row: -row.share)
    longest = rows[0].share or 1.0
    cells = [
        [row.name, str(row.n_units), f"{row.share:.1%}", bar(row.share / longest).ljust(20)] for row in rows[:_LAYERS]
    ]
    more = f"\n... and {len(rows) - _LAYERS} more" if len(rows) > _LAYERS else ""
    return columns(["parameter", "units", "share", ""], cells) + more
