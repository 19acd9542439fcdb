"""Weights that others wrote, with `torch.save` or as safetensors: nothing but sound tensors is read.

Only tensors and plain containers are unpickled (``weights_only``), so that no code of the file runs. Files are at most
16 GiB long, which is checked before anything is read; the checksums of the archive are checked too, which `torch.load`
does not do.
"""

from __future__ import annotations

import errno
import os
import stat
import warnings
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from filterattr.errors import StorageError, gathered, name_some

MAX_BYTES = 16 * 2**30


def read_checkpoint(path: str | Path) -> Any:
    """Read a file of somebody else, or refuse it with the reason; its first bytes tell of which format it is.

    Args:
        path: The file.

    Returns:
        What the file holds, in general names to tensors, to further such mappings, or to plain values; on the CPU.

    Raises:
        StorageError: The file is missing, no regular file, larger than 16 GiB, empty, compressed or damaged; holds
            anything but tensors and plain containers; or a tensor in it is sparse, quantized or without data, shows
            more than its storage holds, or overlaps itself or another one; file and key are named.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "bomb.pth"
        >>> torch.save({"weight": torch.zeros(1).expand(10**9)}, path)
        >>> read_checkpoint(path)
        Traceback (most recent call last):
        ...
        filterattr.errors.StorageError: the tensors in '...bomb.pth' must be plain: 'weight' shows 4000000000 bytes ...
    """
    path = Path(path)
    try:
        _check_file(path)
        if _is_safetensors(path):
            return _read_safetensors(path)
        with warnings.catch_warnings():
            # it tells that TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD does not count here, as it should be
            warnings.filterwarnings("ignore", message="Environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"'{path}' cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # unpickling raises nearly every type there is
        # PyTorch's own text recommends to unpickle it all the same, which would run whatever the file says
        raise StorageError(
            f"'{path}' must be a checkpoint of tensors alone, as torch.save or safetensors write it; it is damaged, "
            f"of another format, or would run code of its own ({type(error).__name__}). Get it again from where it "
            "came from."
        ) from error
    findings = _unsound(content)
    if findings:
        raise StorageError(f"the tensors in '{path}' must be plain: {gathered(findings)}.")
    return content


def _is_safetensors(path: Path) -> bool:
    """Such a file begins with the length of its header, a JSON object."""
    with path.open("rb") as stream:
        return stream.read(9)[8:] == b"{"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read tensors that cannot overlap nor hold code; the format checks its own offsets."""
    try:
        from safetensors.torch import load_file  # noqa: PLC0415 - optional
    except ImportError as error:
        raise StorageError("files need the safetensors package: pip install safetensors.") from error
    return load_file(path)


def _check_file(path: Path) -> None:
    """Refuse what is not worth unpickling."""
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        raise StorageError(f"'{path}' must be a regular file; it is a pipe or a device.")
    if found.st_size > MAX_BYTES:
        raise StorageError(f"'{path}' holds {found.st_size} bytes; at most {MAX_BYTES} are read.")
    with path.open("rb") as stream:
        head = stream.read(64).lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise StorageError(f"'{path}' is a web page, not weights: the download went wrong.")
    if not head.startswith(b"pk"):
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > found.st_size or any(entry.compress_type for entry in entries):
            raise StorageError(f"'{path}' is compressed, which torch.save never does; it may unpack to any size.")
        damaged = archive.testzip()
    if damaged is not None:
        raise StorageError(f"'{path}' is damaged: its part '{damaged}' does not match its checksum.")


def _unsound(content: object) -> list[str]:
    """Describe every key that is no text and every tensor that is not plain."""
    findings: list[str] = []
    storages: dict[int, dict[tuple[object, ...], tuple[str, Tensor]]] = {}
    for key, value in _tensors(content):
        if not isinstance(key, str):
            findings.append(f"the key {key!r} must be a text")
            continue
        problem = _problem(value)
        if problem:
            findings.append(f"'{key}' {problem}")
            continue
        if not value.numel():
            continue
        view = (value.dtype, value.storage_offset(), value.shape, value.stride())
        storages.setdefault(value.untyped_storage().data_ptr(), {}).setdefault(view, (key, value))
    for views in storages.values():
        findings += _overlaps(list(views.values()))
    return findings


def _tensors(content: object) -> Iterator[tuple[object, Tensor]]:
    """Yield every tensor with its dotted key (the key itself, if it is no text); a container may hold itself."""
    waiting: deque[tuple[str, object]] = deque([("", content)])
    seen = set()
    while waiting:
        place, holder = waiting.popleft()
        if isinstance(holder, Tensor):
            yield place, holder
            continue
        if id(holder) in seen:
            continue
        seen.add(id(holder))
        pairs: Iterable[tuple[Any, object]] = ()
        if isinstance(holder, Mapping):
            pairs = holder.items()
        elif isinstance(holder, list | tuple | set):
            pairs = ((str(index), value) for index, value in enumerate(holder))
        for key, value in pairs:
            if isinstance(value, Tensor) and not isinstance(key, str):
                yield key, value
            else:
                waiting.append((f"{place}.{key}" if place else str(key), value))


def _problem(tensor: Tensor) -> str | None:
    """Say why one tensor is not plain."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        return f"is {tensor.layout} of {tensor.dtype} on {tensor.device}"
    held = tensor.untyped_storage().nbytes()
    if tensor.nbytes > held:
        return f"shows {tensor.nbytes} bytes of a storage of {held}"
    reached = 0
    for stride, length in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if length > 1 and stride <= reached:
            return f"overlaps itself (shape {tuple(tensor.shape)}, strides {tensor.stride()})"
        reached += stride * (length - 1)
    return None


def _overlaps(views: list[tuple[str, Tensor]]) -> list[str]:
    """Name the views of one storage that share elements with an earlier one without being equal to it."""
    if len(views) < 2:
        return []
    if len({tensor.dtype for _, tensor in views}) > 1:
        return [f"{name_some(name for name, _ in views)} show one storage as different types"]
    first = views[0][1]
    painted = torch.full(
        (first.untyped_storage().nbytes() // first.element_size(),), -1, dtype=torch.int32, device="cpu"
    )
    findings = []
    for index, (name, tensor) in enumerate(views):
        own = painted.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        if int(own.max()) >= 0:
            findings.append(f"'{name}' overlaps '{views[int(own.max())][0]}'")
        own.fill_(index)
    return findings
