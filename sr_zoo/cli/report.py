"""``report``: the page of a study, from its stored results alone."""

from __future__ import annotations

import argparse
import sys

from sr_zoo.study import StudyError, open_archive
from sr_zoo.study.page import write_report


def run(options: argparse.Namespace) -> None:
    """Write ``report.html`` and ``summary.md`` into the folder."""
    if not options.study.is_dir():
        raise StudyError(f"a study is a folder; got '{options.study}'. Make one with python -m sr_zoo study --out.")
    for file in write_report(open_archive(options.study)):
        sys.stdout.write(f"wrote {file}\n")
