"""One run at a time works in a folder; a run that was killed leaves nothing that stops the next one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filterattr import FilterAttrError

if sys.platform != "win32":
    import fcntl

NAME = ".lock"


class FolderInUseError(FilterAttrError, RuntimeError):
    """Another process works in the folder; the message names both."""


@contextmanager
def sole_run(folder: str | Path) -> Iterator[None]:
    """Keep other runs out of a folder.

    The operating system holds the lock for this process and lets it go when the process ends, however it ends. Where
    the system or the disk of the folder knows no locks, nothing is kept out.

    Args:
        folder: The folder; it is made if it is not there, and goes again if nothing was written.

    Yields:
        Nothing.

    Raises:
        FolderInUseError: Another run is at work there.
        OSError: The folder cannot be made or written to.

    Example:
        >>> import tempfile
        >>> with sole_run(tempfile.mkdtemp()) as nothing:
        ...     print(nothing)
        None
    """
    path = Path(folder) / NAME
    is_new = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _locked(path)
    try:
        yield
    finally:
        if file is not None:
            path.unlink(missing_ok=True)  # while it is held: whoever opens it now sees that it is gone
            os.close(file)
        if is_new and not any(path.parent.iterdir()):
            path.parent.rmdir()


def _locked(path: Path) -> int | None:
    """Open and lock the file, and make sure that it is still the one under its name."""
    if sys.platform == "win32":
        return None
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(file, 20).decode(errors="replace").strip()
            os.close(file)
            raise FolderInUseError(
                f"one run at a time works in a folder; '{path.parent}' is in use by process {holder or '(unknown)'}. "
                "Wait for it, stop it, or name another folder."
            ) from error
        except OSError:  # a network disk without locks
            os.close(file)
            path.unlink(missing_ok=True)
            return None
        if _is_under(path, file):
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
            return file
        os.close(file)


def _is_under(path: Path, file: int) -> bool:
    """Whether a run that ended has not taken the file away in between."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False
