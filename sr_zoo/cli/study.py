"""``study``: every claim about discovered kernels as a measurement, on a shipped pair or the user's own."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import sys
from pathlib import Path
from typing import Any

from sr_zoo.cli.keys import add_key, keys_of
from sr_zoo.cli.numbers import LARGEST_SEED, whole_number
from sr_zoo.cli.outputs import add_overwrite, check_folder
from sr_zoo.cli.program import Commands
from sr_zoo.degradations import SPELLING
from sr_zoo.pretrained import ARCHITECTURES
from sr_zoo.study import (
    STAGES,
    Settings,
    Sources,
    StudyError,
    full_settings,
    make_plan,
    open_archive,
    open_subject,
    quick_settings,
)
from sr_zoo.study import run_study as run_stages
from sr_zoo.study.page import write_report
from sr_zoo.study.pipeline import refuse_another_study, stored_setting
from sr_zoo.training import PRECISIONS


def add(commands: Commands) -> None:
    """Add the command to the program."""
    parser = commands.add_parser(
        "study",
        help="test every claim about discovered kernels on a pair of networks, with nulls and intervals",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    sources = Sources()
    parser.add_argument("--base", default=sources.base, help="weights: a shipped name or a file")
    parser.add_argument("--target", default=sources.target, help="weights: a shipped name or a file")
    add_key(parser, of_pair=True)
    parser.add_argument("--model", choices=tuple(ARCHITECTURES), help="network of files that do not say it (BasicSR's)")
    parser.add_argument(
        "--model-arguments",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="such as num_feat=64 num_block=16 upscale=2",
    )
    parser.add_argument("--search", type=Path, help="folder of photographs to find kernels on")
    parser.add_argument("--test", type=Path, help="folder of other photographs to evaluate on")
    parser.add_argument("--images", type=Path, help="one folder for both: every second photograph is tested on")
    parser.add_argument(
        "--degradations",
        nargs="+",
        default=list(sources.degradations),
        metavar="DEGRADATION",
        help=f"what target has learnt to undo: {SPELLING}",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("study_output"), help="folder of the study; an old one goes on"
    )
    add_overwrite(parser)
    parser.add_argument("--quick", action="store_true", help="small numbers: minutes instead of hours")
    parser.add_argument("--stages", nargs="+", choices=[stage.name for stage in STAGES], help="only these")
    parser.add_argument("--dry-run", action="store_true", help="only say what it costs")
    for name, least, most, help_text in (
        ("crop", 32, 16_384, "width of a crop in pixels"),
        ("search-crops", 4, 10_000, "crops to search on"),
        ("test-crops", 4, 10_000, "crops to evaluate on"),
        ("steps", 1, 1024, "nodes of the attribution"),
        ("null-draws", 2, 100_000, "random sets of every size and kind"),
        ("retrain-seeds", 1, 1_000, "trainings of every set of places"),
        ("retrain-iterations", 1, 10_000_000, "iterations of each"),
        ("adaptive-iterations", 0, 10_000_000, "iterations of tuning the patches"),
        ("seed", 0, LARGEST_SEED, "seed of everything random"),
    ):
        parser.add_argument(
            f"--{name}",
            type=whole_number(least, most),
            default=argparse.SUPPRESS,
            help=f"{help_text} (instead of the preset)",
        )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=argparse.SUPPRESS,
        help="of trainings; if not given, that of an old study, or what the processor computes fast",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Say what it costs, run it, and write its page."""
    names = {field.name for field in dataclasses.fields(Settings)}
    changes: dict[str, Any] = {name: value for name, value in vars(options).items() if name in names}
    check_folder("--out", options.out)
    archive = open_archive(options.out)
    if "precision" not in changes and (stored := stored_setting(archive, "precision")) is not None:
        changes["precision"] = stored
    settings = quick_settings(**changes) if options.quick else full_settings(**changes)
    keys = keys_of(options, [options.base, options.target])
    sources = Sources(
        base=options.base,
        target=options.target,
        model=options.model,
        arguments=_arguments(options.model_arguments, options.model),
        search=options.search,
        test=options.test,
        images=options.images,
        degradations=tuple(options.degradations),
        keys=(keys[0], keys[1]),
    )
    subject = open_subject(sources, settings)
    stages = [stage for stage in STAGES if options.stages is None or stage.name in options.stages]
    refuse_another_study(subject, settings, archive, stages, overwrite=options.overwrite)
    plan = make_plan(subject, settings, archive, stages)
    sys.stdout.write(f"{plan}\n")
    if options.dry_run:
        return
    run_stages(subject, settings, options.out, stages=stages, overwrite=options.overwrite, report=_say)
    for file in write_report(archive):
        sys.stdout.write(f"wrote {file}\n")


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _arguments(pairs: list[str], model: str | None) -> dict[str, Any]:
    """Read ``NAME=VALUE`` pairs; values are Python literals, or texts."""
    if pairs and model is None:
        raise StudyError("--model-arguments belong to a network: name it with --model.")
    wrong = [pair for pair in pairs if "=" not in pair]
    if wrong:
        raise StudyError(f"--model-arguments must be NAME=VALUE; got {', '.join(wrong)}.")
    found: dict[str, Any] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            found[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            found[name] = value
    return found
