"""One file format for tensors with a description: safetensors, written atomically, with a digest of its content.

No pickle is read or written anywhere. The digest covers the description and every tensor's name, type, shape and bytes,
and lives in the safetensors metadata: the file stays readable for every safetensors tool, and a damaged one is refused.
Files are at most 16 GiB long and their headers at most 64 MiB; both are checked before anything is read.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from filterattr.errors import StorageError, is_out_of_memory
from filterattr.files.kinds import HEAD_BYTES, kind_of
from filterattr.files.layout import (
    MAX_HEADER_BYTES,
    Entry,
    LayoutError,
    can_hold,
    pieces,
    read_entries,
    read_header,
    write_layout,
)
from filterattr.files.reading import MAX_BYTES, reading
from filterattr.files.writing import replacing

FORMAT = "filterattr-1"

_BY_NAME = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}


def write_tensors(path: str | Path, kind: str, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write tensors and a JSON description as one file, or leave the old file as it was.

    The bytes go to a temporary file beside the target, are flushed to the disk, and replace the target in one step, as
    `replacing` says. They are written tensor by tensor: nothing is held beside the tensors. The same content gives the
    same bytes.

    Args:
        path: Where to write; missing folders are made.
        kind: What the file holds, such as ``"attribution"``; `read_tensors` checks it.
        tensors: Name to tensor of any strided layout and type; of views and tied tensors every one is written by
            itself.
        description: Anything that JSON can hold.

    Raises:
        StorageError: A tensor is sparse, quantized or on the meta device, the description is not JSON, the file would
            be larger than 16 GiB, or the disk refuses.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "scores.safetensors"
        >>> write_tensors(path, "note", {"a": torch.ones(2)}, {"seed": 0})
        >>> read_tensors(path, "note")
        ({'a': tensor([1., 1.])}, {'seed': 0})
    """
    text = _checked_text(path, description)
    _check_tensors(path, tensors)
    metadata = {"format": FORMAT, "kind": kind, "description": text}
    exotic = {name: tensor for name, tensor in tensors.items() if not can_hold(tensor.dtype)}
    if exotic:
        metadata["types"] = json.dumps({name: [str(value.dtype), list(value.shape)] for name, value in exotic.items()})
    try:
        metadata["digest"] = _digest(kind, text, tensors)
        content = {**tensors, **{name: _as_bytes(tensor) for name, tensor in exotic.items()}}
        with replacing(path) as stream:
            write_layout(stream, content, metadata)
    except LayoutError as error:
        raise StorageError(
            f"the names and the description of '{path}' must fit into {MAX_HEADER_BYTES} bytes."
        ) from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise StorageError(
            f"the memory does not suffice to write '{path}'; an older file there is unharmed. Free memory first."
        ) from error


def read_tensors(path: str | Path, kind: str | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of `write_tensors`, or refuse it with the reason.

    The tensors are read directly into their final memory, and returned if the digest is right.

    Args:
        path: The file.
        kind: What it must hold; ``None`` for anything.

    Returns:
        The tensors, on the CPU, and the description.

    Raises:
        StorageError: The file is missing, no regular file, larger than 16 GiB or than the memory, no safetensors file,
            of another kind, or damaged.

    Example:
        >>> read_tensors("nowhere.safetensors", "attribution")
        Traceback (most recent call last):
        ...
        filterattr.errors.StorageError: 'nowhere.safetensors' cannot be read: No such file or directory.
    """
    head = b""
    try:
        with reading(path) as (stream, size):
            head = stream.read(HEAD_BYTES)
            stream.seek(0)
            entries, metadata = read_header(stream, size)
            _check_kind(path, kind, metadata)
            types = _types(metadata, entries)
            tensors = read_entries(stream, entries)
    except LayoutError as error:
        raise _unreadable(path, error, kind_of(head)) from error
    tensors |= {name: tensors[name].view(dtype).reshape(shape) for name, (dtype, shape) in types.items()}
    text = metadata.get("description", "")
    if metadata.get("digest") != _digest(metadata["kind"], text, tensors):
        raise StorageError(
            f"'{path}' is damaged: its content does not match its digest. Restore a backup or compute it again."
        )
    return tensors, _description(path, text)


def own_kind(path: str | Path) -> str | None:
    """What a file holds if it says that it was written by `write_tensors`, so that its digest must be checked.

    Args:
        path: The file.

    Returns:
        The kind that it was written as; ``None`` for files of others.

    Raises:
        StorageError: It cannot be read at all.
    """
    try:
        with reading(path) as (stream, size):
            _, metadata = read_header(stream, size)
    except LayoutError:
        return None
    is_own = metadata.get("format") == FORMAT or {"kind", "digest"} <= metadata.keys()
    return metadata.get("kind", "") if is_own else None


def _checked_text(path: str | Path, description: Mapping[str, Any]) -> str:
    try:
        return json.dumps(description, sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise StorageError(f"the description of '{path}' must be JSON: {error}.") from error


def _check_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse what has no plain bytes, or too many of them."""
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type == "meta":
            raise StorageError(
                f"'{name}' of '{path}' must be a strided tensor with data; it is {tensor.layout} of {tensor.dtype} on "
                f"{tensor.device}. Convert it first."
            )
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if size > MAX_BYTES - MAX_HEADER_BYTES:
        raise StorageError(f"'{path}' would hold {size} bytes; at most {MAX_BYTES - MAX_HEADER_BYTES} are written.")


def _as_bytes(tensor: Tensor) -> Tensor:
    """A row of bytes; only rare types come here, so that a copy does no harm."""
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return plain.reshape(-1).view(torch.uint8)


def _digest(kind: str, text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over everything that a reader relies on, in an order that does not depend on the writer."""
    digest = hashlib.sha256()
    digest.update(json.dumps([FORMAT, kind, text]).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        for piece in pieces(tensor):
            digest.update(piece)
    return digest.hexdigest()


def _check_kind(path: str | Path, kind: str | None, metadata: Mapping[str, str]) -> None:
    """Refuse files of other formats, and of other kinds of this one."""
    if metadata.get("format") != FORMAT or "kind" not in metadata or kind not in (None, metadata["kind"]):
        raise StorageError(
            f"'{path}' must be a {kind or 'known'} file of the format {FORMAT}; it says format "
            f"{metadata.get('format')!r}, kind {metadata.get('kind')!r}."
        )


def _types(metadata: Mapping[str, str], entries: list[Entry]) -> dict[str, tuple[torch.dtype, list[int]]]:
    """The tensors that are kept as bytes, with the types and shapes that they really have."""
    sizes = {entry.name: entry.end - entry.begin for entry in entries if entry.dtype is torch.uint8}
    types = {}
    try:
        for name, (dtype, shape) in json.loads(metadata.get("types", "{}")).items():
            types[name] = _BY_NAME[dtype], shape
            if math.prod(shape) * _BY_NAME[dtype].itemsize != sizes[name] or any(side < 0 for side in shape):
                raise LayoutError(f"'{name}' cannot be {dtype} of the shape {shape}")
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise LayoutError(f"its types cannot be read ({error!r})") from error
    return types


def _description(path: str | Path, text: str) -> dict[str, Any]:
    try:
        description = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(description, dict):
        raise StorageError(f"the description in '{path}' must be a JSON object; got {type(description).__name__}.")
    return description


def _unreadable(path: str | Path, reason: Exception, other: str | None = None) -> StorageError:
    if other is not None:
        return StorageError(f"'{path}' is not a readable safetensors file: it is {other}.")
    kind = "" if isinstance(reason, LayoutError) else f"{type(reason).__name__}: "
    return StorageError(
        f"'{path}' is not a readable safetensors file: {kind}{reason}. It is damaged or of another format."
    )
