"""One file format for tensors with a description: safetensors, written atomically, with a digest of its content.

No pickle is read or written anywhere. The digest covers the description and every tensor's name, type, shape and bytes,
and lives in the safetensors metadata: the file stays readable for every safetensors tool, and a damaged one is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from filterattr.errors import StorageError

FORMAT = "filterattr-1"
MAX_BYTES = 16 * 2**30


def write_tensors(path: str | Path, kind: str, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write tensors and a JSON description as one file, or leave the old file as it was.

    The bytes go to a temporary file beside the target, are flushed to the disk, and replace the target in one step.

    Args:
        path: Where to write; missing folders are made.
        kind: What the file holds, such as ``"attribution"``; `read_tensors` checks it.
        tensors: Name to tensor; views and tied tensors are copied.
        description: Anything that JSON can hold.

    Raises:
        StorageError: The safetensors package is missing, the description is not JSON, or the disk refuses.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "scores.safetensors"
        >>> write_tensors(path, "note", {"a": torch.ones(2)}, {"seed": 0})
        >>> read_tensors(path, "note")
        ({'a': tensor([1., 1.])}, {'seed': 0})
    """
    path = Path(path)
    content = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        text = json.dumps(description, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise StorageError(f"the description of '{path}' must be JSON: {error}.") from error
    metadata = {
        "format": FORMAT,
        "kind": kind,
        "description": text,
        "digest": _digest(kind, text, content),
    }
    payload = _safetensors().save(content, metadata=metadata)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            stream.write(payload)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        raise StorageError(
            f"'{path}' could not be written ({error}); an older file there is unharmed. Free some space or choose "
            "another folder."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def read_tensors(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of `write_tensors`, or refuse it with the reason.

    Args:
        path: The file.
        kind: What it must hold.

    Returns:
        The tensors, on the CPU, and the description.

    Raises:
        StorageError: The file is missing, larger than 16 GiB, no safetensors file, of another kind, or damaged.

    Example:
        >>> read_tensors("nowhere.safetensors", "attribution")
        Traceback (most recent call last):
        ...
        filterattr.errors.StorageError: 'nowhere.safetensors' cannot be read: No such file or directory.
    """
    safetensors = _safetensors()
    try:
        size = Path(path).stat().st_size
        if size > MAX_BYTES:
            raise StorageError(f"'{path}' holds {size} bytes; at most {MAX_BYTES} are read.")
        payload = Path(path).read_bytes()
    except OSError as error:
        raise StorageError(f"'{path}' cannot be read: {error.strerror}.") from error
    try:
        tensors = safetensors.load(payload)
        length = int.from_bytes(payload[:8], "little")
        metadata = json.loads(payload[8 : 8 + length]).get("__metadata__", {})
    except Exception as error:  # the loader raises a type of its own for every kind of damage
        raise StorageError(
            f"'{path}' is not a readable safetensors file: {error}. It is damaged or of another format."
        ) from error
    if metadata.get("format") != FORMAT or metadata.get("kind") != kind:
        raise StorageError(
            f"'{path}' must be a {kind} file of the format {FORMAT}; it says format "
            f"{metadata.get('format')!r}, kind {metadata.get('kind')!r}."
        )
    text = metadata.get("description", "")
    if metadata.get("digest") != _digest(kind, text, tensors):
        raise StorageError(
            f"'{path}' is damaged: its content does not match its digest. Restore a backup or compute it again."
        )
    return tensors, json.loads(text)


def _digest(kind: str, text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over everything that a reader relies on, in an order that does not depend on the writer."""
    digest = hashlib.sha256()
    digest.update(json.dumps([FORMAT, kind, text]).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _flush_folder(folder: Path) -> None:
    """Make the renaming itself durable; not every platform can open a folder."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _safetensors() -> Any:
    """Import safetensors on first use: attributing needs no files."""
    try:
        import safetensors.torch  # noqa: PLC0415 - optional
    except ImportError as error:
        raise StorageError("files need the safetensors package: pip install safetensors.") from error
    return safetensors.torch
