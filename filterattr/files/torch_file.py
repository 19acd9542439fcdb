"""Files of `torch.save`, of today and of before version 1.6, read without `torch.load`: one reader decides.

First the pickle is read, and every storage that it names is compared with the content of the file. Then memory is
allocated, and filled from the file. A tensor that was not read from the file is never returned.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, BinaryIO

import torch
from torch import Tensor

from filterattr.files.archive import ArchiveError, Record, fill_from, read_directory
from filterattr.files.pickled import PickledError, StorageClaim, read_pickle
from filterattr.files.reading import bytes_of, fill

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_MOST_PICKLED_BYTES = 2**26


class TorchFileError(Exception):
    """A file is none of `torch.save`, or a damaged one; the message says why."""


class ForeignClassError(Exception):
    """A file holds objects of classes that are not read.

    Attributes:
        names: The classes and functions.
    """

    def __init__(self, names: set[str]) -> None:
        super().__init__(", ".join(sorted(names)))
        self.names = sorted(names)


def read_torch_file(stream: BinaryIO, size: int) -> Any:
    """Read what `torch.save` wrote.

    Args:
        stream: The file, at its beginning.
        size: Number of its bytes.

    Returns:
        Tensors on the CPU, and plain values.

    Raises:
        TorchFileError: The file is damaged, of another format, or claims what it does not hold.
        ForeignClassError: It holds something else than tensors and plain containers.

    Example:
        >>> stream = io.BytesIO()
        >>> torch.save({"a": torch.ones(2)}, stream)
        >>> _ = stream.seek(0)
        >>> read_torch_file(stream, len(stream.getvalue()))
        {'a': tensor([1., 1.])}
    """
    is_archive = stream.read(4) == b"PK\3\4"
    stream.seek(0)
    try:
        return _read_archive(stream, size) if is_archive else _read_old(stream, size)
    except (ArchiveError, PickledError, EOFError) as error:
        raise TorchFileError(str(error)) from error


def _read_archive(stream: BinaryIO, size: int) -> Any:
    records = read_directory(stream, size)
    pickles = [name for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise TorchFileError("an archive of torch.save holds one data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in records:
        raise TorchFileError("it is a program of TorchScript: save its state_dict() instead")
    order = _content(stream, records.get(f"{root}byteorder"))
    if order not in (b"", b"little"):
        raise TorchFileError("it was written on a machine with another order of bytes: load and save it there")
    storages = _Storages(lambda claimed: _record(records, root, claimed).size, size)
    content = _checked(io.BytesIO(_content(stream, records[pickles[0]])), storages)
    for key, memory in storages.memory.items():
        if memory.numel():
            fill_from(stream, records[f"{root}data/{key}"], bytes_of(memory))
    return content


def _record(records: dict[str, Record], root: str, claimed: StorageClaim) -> Record:
    record = records.get(f"{root}data/{claimed.key}")
    if record is None:
        raise PickledError(f"the storage '{claimed.key}' is missing")
    return record


def _content(stream: BinaryIO, record: Record | None) -> bytes:
    """Read a small record."""
    if record is None:
        return b""
    if record.size > _MOST_PICKLED_BYTES:
        raise TorchFileError(f"its part '{record.name}' holds {record.size} bytes")
    content = bytearray(record.size)
    fill_from(stream, record, memoryview(content))
    return bytes(content)


def _read_old(stream: BinaryIO, size: int) -> Any:
    """A row of pickles, and after them the storages."""
    storages = _Storages(lambda claimed: min(claimed.size, size), size)
    if _checked(stream, storages) != _MAGIC or _checked(stream, storages) != _PROTOCOL:
        raise TorchFileError("it does not begin as files of torch.save do")
    system = _checked(stream, storages)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise TorchFileError("it was written on a machine with another order of bytes: load and save it there")
    content = _checked(stream, storages)
    keys = _checked(stream, storages)
    if not isinstance(keys, list) or {*map(type, keys)} - {str} or sorted(keys) != sorted(storages.memory):
        raise TorchFileError("its list of storages is another one than its tensors name")
    for key in keys:
        memory, claimed = storages.memory[key], storages.claims[key]
        if int.from_bytes(stream.read(8), "little") != claimed.numel:
            raise TorchFileError(f"the storage '{key}' has another length than its tensors say")
        if memory.numel():
            fill(stream, bytes_of(memory))
    return content


def _checked(stream: BinaryIO, storages: _Storages) -> Any:
    """Read a pickle, or refuse it for what it holds besides tensors and plain values."""
    foreign: set[str] = set()
    content = read_pickle(stream, storages, foreign)
    if foreign:
        raise ForeignClassError(foreign)
    return content


class _Storages:
    """Memory for the storages that a pickle names, all of which lie in the file.

    Args:
        held: Number of bytes that the file holds for a claim.
        size: Number of bytes of the file.
    """

    def __init__(self, held: Callable[[StorageClaim], int], size: int) -> None:
        self.claims: dict[str, StorageClaim] = {}
        self.memory: dict[str, Tensor] = {}
        self._held = held
        self._left = size

    def __call__(self, claimed: StorageClaim) -> Tensor:
        known = self.claims.get(claimed.key)
        if known is None:
            self._allocate(claimed)
        elif known.size != claimed.size:
            raise PickledError(f"the storage '{claimed.key}' should hold both {known.size} and {claimed.size} bytes")
        return self.memory[claimed.key]

    def _allocate(self, claimed: StorageClaim) -> None:
        held = min(self._held(claimed), self._left)
        if claimed.size != held:
            raise PickledError(
                f"the storage '{claimed.key}' should hold {claimed.size} bytes; the file has {held} for it"
            )
        self._left -= held
        self.claims[claimed.key] = claimed
        self.memory[claimed.key] = torch.empty(claimed.size, dtype=torch.uint8, device="cpu")
