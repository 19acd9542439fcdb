"""``study``: every claim about discovered kernels as a measurement, on a shipped pair or the user's own."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import sys
from typing import Any

from filterattr.cli import check_folder
from sr_zoo.cli.keys import keys_of
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
