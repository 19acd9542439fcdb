"""The one way to write a file: beside the target, flushed to the disk, and renamed over it when it is complete.

Whatever happens, the old file stays whole until the new one is. Links are followed, the mode of the old file is kept.
Devices and pipes cannot be renamed over: they get the finished bytes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from filterattr.errors import StorageError
from filterattr.files.reading import checked_path

_COPIED_AT_ONCE = 2**20
_MOST_LINKS = 40
_CURES = {
    errno.ENOSPC: "The disk is full: free some space or choose another folder.",
    errno.EDQUOT: "The quota of the disk is used up: free some space or choose another folder.",
    errno.EFBIG: "The file is larger than the disk or a limit of this process allows; choose another folder.",
    errno.EACCES: "Choose a folder that may be written to.",
    errno.EPERM: "Choose a folder that may be written to.",
    errno.EROFS: "Choose a folder that may be written to.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.EISDIR: "It is a folder: name a file in it.",
    errno.ENXIO: "Nobody reads from it: start the reader first.",
}


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """Give a stream for a whole new file, and put it in place of the old one at the end of the block.

    The stream can be written, read and moved in, so that every writer of pictures, tables or archives can have it. If
    the block raises, nothing has happened. Temporary files that killed processes of this machine left for the same
    target are removed. A symbolic link stays, and what it points to is replaced; mode and, where that is permitted,
    owner of an old file are kept. A pipe or a character device gets the bytes when they are complete.

    Args:
        path: Where to write; missing folders are made.

    Yields:
        A binary stream.

    Raises:
        StorageError: The disk refuses, the path cannot be one of a file, or an old file may not be written to; the
            old file is unharmed. Errors of the block that do not come from the disk pass as they are.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "table.csv"
        >>> with replacing(path) as stream:
        ...     _ = stream.write(b"unit,score")
        >>> path.read_text()
        'unit,score'
    """
    path = checked_path(path)
    try:
        target = _behind_links(path)
        old = _status(target)
        is_file = old is None or (stat.S_ISREG(old.st_mode) and not _is_descriptor(target))
        with _beside(target, old) if is_file else _into(target, old) as stream:
            yield stream
    except OSError as error:
        if error.errno is None:  # raised by hand, in the block: not by the disk
            raise
        raise _refused(path, error) from error


def replace_file(path: str | Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a whole file from its bytes, or leave the old one as it was; `replacing` says how.

    Args:
        path: Where to write; missing folders are made.
        parts: Its bytes, in parts.

    Raises:
        StorageError: The disk refuses.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "page.html"
        >>> replace_file(path, [b"<!doctype html>"])
        >>> path.read_bytes()
        b'<!doctype html>'
    """
    with replacing(path) as stream:
        stream.writelines(parts)


def _behind_links(path: Path) -> Path:
    """Follow symbolic links to the file that is meant, which need not exist."""
    for _ in range(_MOST_LINKS):
        path = Path(os.path.realpath(path.parent)) / path.name
        if _is_descriptor(path) or not path.is_symlink():
            return path
        path = path.parent / path.readlink()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _is_descriptor(path: Path) -> bool:
    """Whether a path is an open file of this process, such as what /dev/stdout points to."""
    return path.parent == Path(f"/proc/{os.getpid()}/fd") and path.name.isdecimal()


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def _beside(path: Path, old: os.stat_result | None) -> Iterator[BinaryIO]:
    """Write a temporary file in the same folder, and rename it."""
    if old is not None and not os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise PermissionError(errno.EACCES, "it is read-only")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    partial = path.with_name(f"{_part_prefix(path)}{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        with open(partial, "x+b", opener=_opener(old)) as stream:
            yield stream
            stream.flush()
            if old is not None:
                _take_over(stream.fileno(), old)
            os.fsync(stream.fileno())
        partial.replace(path)
        _flush_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _opener(old: os.stat_result | None) -> Callable[[str, int], int]:
    """A private file must not be open to others while its successor is written."""
    mode = 0o666 if old is None else 0o600
    return lambda name, flags: os.open(name, flags, mode)


def _take_over(descriptor: int, old: os.stat_result) -> None:
    """Give the new file the owner and the mode of the old one; not every platform has them."""
    if hasattr(os, "fchown") and (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
        with contextlib.suppress(OSError):
            os.fchown(descriptor, old.st_uid, old.st_gid)
    if hasattr(os, "fchmod"):
        with contextlib.suppress(OSError):
            os.fchmod(descriptor, stat.S_IMODE(old.st_mode))


@contextlib.contextmanager
def _into(path: Path, old: os.stat_result | None) -> Iterator[BinaryIO]:
    """Write to what cannot be replaced; its reader gets nothing before everything is there."""
    if old is not None and stat.S_ISDIR(old.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if old is not None and (stat.S_ISBLK(old.st_mode) or stat.S_ISSOCK(old.st_mode)):
        raise OSError(errno.EINVAL, "it is a disk or a socket")
    with tempfile.TemporaryFile() as stream:
        yield stream
        stream.seek(0)
        with os.fdopen(_open_special(path), "wb", buffering=0) as device:
            shutil.copyfileobj(stream, device, _COPIED_AT_ONCE)


def _open_special(path: Path) -> int:
    """Open a pipe or device; a pipe without a reader is refused, as waiting for one might take for ever."""
    if _is_descriptor(path):
        return os.dup(int(path.name))
    descriptor = os.open(path, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))
    os.set_blocking(descriptor, True)
    return descriptor


def _refused(path: str | Path, error: OSError) -> StorageError:
    cure = _CURES.get(error.errno or 0, "Choose another path.")
    return StorageError(
        f"'{path}' could not be written ({error.strerror or error}); an older file there is unharmed. {cure}"
    )


def _part_prefix(path: Path) -> str:
    """First part of the names of temporary files: for which file, on which machine; the process follows."""
    machine = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
    name = path.name
    if len(os.fsencode(name)) > 120:
        name = f"{name[:20]}.{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"
    return f".{name}.{machine}."


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary files that killed processes left for this target."""
    prefix = _part_prefix(path)
    with contextlib.suppress(OSError):  # a folder need not be readable to be written to
        for name in os.listdir(path.parent):  # noqa: PTH208 - names alone, of perhaps many files
            process = name.removeprefix(prefix).partition(".")[0]
            is_part = name.startswith(prefix) and name.endswith(".part")
            if is_part and process.isdecimal() and not _is_alive(int(process)):
                with contextlib.suppress(OSError):
                    (path.parent / name).unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    """Whether a process of this machine exists; where asking is not safe, it does."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _flush_folder(folder: Path) -> None:
    """Make the renaming itself durable; not every platform can open a folder."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
