"""Checks of what a command will write, before it works: nothing is lost, and nothing fails at the end."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path

from filterattr.errors import FilterAttrError


class OutputError(FilterAttrError, ValueError):
    """What was named with an option cannot be written to, or would be lost; the message says how to go on."""


def check_file(
    option: str, path: Path, endings: Collection[str], *, overwrite: bool, inputs: Iterable[Path] = ()
) -> None:
    """Refuse a file that cannot be written, or that holds something already; folders that lack are made later.

    Args:
        option: The option that names it.
        path: The file.
        endings: Endings that are known, such as ``.png``.
        overwrite: Whether a file that is there may be replaced.
        inputs: Files that the command reads; they are never replaced.

    Raises:
        OutputError: It cannot be.
    """
    if path.suffix.lower() not in endings:
        listed = ", ".join(sorted(endings))
        raise OutputError(f"{option} must end in {'one of ' if len(endings) > 1 else ''}{listed}; got '{path}'.")
    if path.is_dir():
        raise OutputError(f"{option} must name a file; '{path}' is a folder.")
    if any(path.exists() and read.exists() and path.samefile(read) for read in inputs):
        raise OutputError(f"{option} must be another file than what is read; got '{path}'.")
    _check_place(option, path.parent)
    if path.exists() and not overwrite:
        raise OutputError(f"{option} names '{path}', which already exists: add --overwrite, or name another file.")


def check_folder(option: str, folder: Path, files: Iterable[str] = (), *, overwrite: bool = False) -> None:
    """Refuse a folder that cannot be written to, or that already holds results; one that lacks is made later.

    Args:
        option: The option that names it.
        folder: The folder.
        files: Names of what will be written.
        overwrite: Whether results that are there may be replaced.

    Raises:
        OutputError: It cannot be.
    """
    _check_place(option, folder)
    there = [name for name in files if (folder / name).exists()]
    if there and not overwrite:
        raise OutputError(
            f"{option} names '{folder}', which already holds results ({', '.join(there)}): add --overwrite, or name "
            "another folder."
        )


def _check_place(option: str, folder: Path) -> None:
    """Whether files can be made in a folder, or the folder itself."""
    there = next((place for place in (folder, *folder.absolute().parents) if place.exists()), folder)
    if not there.is_dir():
        raise OutputError(f"{option} must lie in a folder; '{there}' is a file.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"{option} must lie in a folder that can be written to; '{there}' cannot.")
