"""``report``: the page of a study, from its stored results alone."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sr_zoo.cli.program import Commands
from sr_zoo.study import StudyError, open_archive
from sr_zoo.study.page import write_report


def add(commands: Commands) -> None:
    """Add the command to the program."""
    parser = commands.add_parser("report", help="write the page of a study again, from its stored results")
    parser.add_argument("study", type=Path, help="folder of the study")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Write ``report.html`` and ``summary.md`` into the folder."""
    if not options.study.is_dir():
        raise StudyError(f"a study is a folder; got '{options.study}'. Make one with python -m sr_zoo study --out.")
    for file in write_report(open_archive(options.study)):
        sys.stdout.write(f"wrote {file}\n")
