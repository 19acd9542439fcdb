"""The one way to open a file for reading: it must be a file of a sane size, and a refusal has the true reason."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from filterattr.errors import StorageError, is_out_of_memory

MAX_BYTES = 16 * 2**30


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file of another program.

    Args:
        path: The file.

    Yields:
        A binary stream at its beginning, and the number of its bytes.

    Raises:
        StorageError: The file is missing, no regular file or larger than 16 GiB, the disk cannot read it, or the memory
            does not suffice for it. Other errors of the block pass as they are.

    Example:
        >>> with reading("nowhere.safetensors"):
        ...     pass
        Traceback (most recent call last):
        ...
        filterattr.errors.StorageError: 'nowhere.safetensors' cannot be read: No such file or directory.
    """
    path = checked_path(path)
    size = 0
    try:
        with os.fdopen(_opened(path), "rb") as stream:
            size = _checked_size(path, os.fstat(stream.fileno()))
            yield stream, size
    except OSError as error:
        if error.errno is None:  # raised by hand, such as the timeout of a caller
            raise
        raise StorageError(f"'{path}' cannot be read: {error.strerror}.") from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise StorageError(
            f"the memory does not suffice to read '{path}', which needs about {size} bytes. That says nothing against "
            "the file: free memory, or read it on a larger machine."
        ) from error


def checked_path(path: str | Path) -> Path:
    r"""Refuse what no system could open.

    Args:
        path: A path.

    Returns:
        The same.

    Raises:
        StorageError: It holds a null character, or one that file names of this system cannot hold.

    Example:
        >>> checked_path("a" + chr(0))
        Traceback (most recent call last):
        ...
        filterattr.errors.StorageError: 'a\x00' cannot be the path of a file: it holds a null character. ...
    """
    try:
        if b"\0" not in os.fsencode(path):
            return Path(path)
        reason = "it holds a null character"
    except UnicodeEncodeError as error:
        reason = str(error)
    raise StorageError(f"{os.fspath(path)!r} cannot be the path of a file: {reason}. Choose another one.")


def fill(stream: BinaryIO, buffer: memoryview) -> None:
    """Read exactly as many bytes as a buffer holds, into it.

    Args:
        stream: Where to read.
        buffer: Writable bytes.

    Raises:
        EOFError: There are not as many.
    """
    done = 0
    while done < len(buffer):
        count = stream.readinto(buffer[done:])  # type: ignore[attr-defined]
        if not count:
            raise EOFError(f"it ends {len(buffer) - done} bytes too early")
        done += count


def bytes_of(tensor: Tensor) -> memoryview:
    """View a contiguous tensor on the CPU as a row of bytes.

    Args:
        tensor: The tensor; what is written to the bytes is written to it.

    Example:
        >>> bytes_of(torch.ones(2)).nbytes
        8
    """
    data: memoryview = tensor.reshape(-1).view(torch.uint8).numpy().data
    return data


def _opened(path: Path) -> int:
    """Open without waiting: a pipe without a writer would hold everything up."""
    return os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))


def _checked_size(path: Path, status: os.stat_result) -> int:
    if stat.S_ISDIR(status.st_mode):
        raise StorageError(f"'{path}' cannot be read: Is a directory.")
    if not stat.S_ISREG(status.st_mode):
        raise StorageError(f"'{path}' must be a regular file; it is a pipe or a device.")
    if status.st_size > MAX_BYTES:
        raise StorageError(f"'{path}' holds {status.st_size} bytes; at most {MAX_BYTES} are read.")
    return status.st_size
