"""Where a merged checkpoint may be written."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from filterattr.cli.outputs import OutputError, check_file, check_folder


def check_out(options: argparse.Namespace, like: Path, inputs: Iterable[Path]) -> None:
    """Refuse an output that cannot be written, before any work.

    Args:
        options: The options of the command.
        like: The file or folder whose layout the output takes.
        inputs: Other files that the command reads.

    Raises:
        OutputError: The output cannot be written, or exists and may not be replaced.
    """
    if not like.is_dir():
        endings = {like.suffix.lower()} if like.suffix else {options.out.suffix.lower()}
        check_file("--out", options.out, endings, overwrite=options.overwrite, inputs=(like, *inputs))
        return
    check_folder("--out", options.out)
    if options.out.exists():
        raise OutputError(f"--out names '{options.out}', which already exists: name another folder, or remove it.")
