"""Checks of the files that a command will write, before its work: no file is lost, and no run fails at its end."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path

from filterattr.errors import FilterAttrError


class OutputError(FilterAttrError, ValueError):
    """An output cannot be written, or would replace a file; the message says what to do."""


def check_file(
    option: str, path: Path, endings: Collection[str], *, overwrite: bool, inputs: Iterable[Path] = ()
) -> None:
    """Refuse a file that cannot be written or that already exists. Missing folders are made later.

    Args:
        option: The option that names the file.
        path: The file.
        endings: Known endings, such as ``.png``.
        overwrite: Whether an existing file may be replaced.
        inputs: Files that the command reads; they are never replaced.

    Raises:
        OutputError: The file cannot be written, or it exists and may not be replaced.
    """
    if path.suffix.lower() not in endings:
        listed = ", ".join(sorted(endings))
        raise OutputError(f"{option} must end in {'one of ' if len(endings) > 1 else ''}{listed}; got '{path}'.")
    if path.is_dir():
        raise OutputError(f"{option} must name a file; '{path}' is a folder.")
    if any(path.exists() and read.exists() and path.samefile(read) for read in inputs):
        raise OutputError(f"{option} must not be a file that the command reads; got '{path}'.")
    _check_place(option, path.parent)
    if path.exists() and not overwrite:
        raise OutputError(f"{option} names '{path}', which already exists: add --overwrite, or name another file.")


def check_folder(option: str, folder: Path, files: Iterable[str] = (), *, overwrite: bool = False) -> None:
    """Refuse a folder that cannot be written to or that already holds results. A missing folder is made later.

    Args:
        option: The option that names the folder.
        folder: The folder.
        files: Names of the files that will be written.
        overwrite: Whether existing results may be replaced.

    Raises:
        OutputError: The folder cannot be written to, or holds results that may not be replaced.
    """
    _check_place(option, folder)
    there = [name for name in files if (folder / name).exists()]
    if there and not overwrite:
        raise OutputError(
            f"{option} names '{folder}', which already holds results ({', '.join(there)}): add --overwrite, or name "
            "another folder."
        )


def _check_place(option: str, folder: Path) -> None:
    """Refuse a folder in which no file can be made, or which cannot be made itself."""
    there = next((place for place in (folder, *folder.absolute().parents) if place.exists()), folder)
    if not there.is_dir():
        raise OutputError(f"{option} must lie in a folder; '{there}' is a file.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"{option} must lie in a folder that can be written to; '{there}' cannot.")
