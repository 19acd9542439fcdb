"""One file format for tensors with a description: safetensors, written atomically, with a digest of its content.

No pickle is read or written anywhere. The digest covers the description and every tensor's name, type, shape and bytes,
and lives in the safetensors metadata: the file stays readable for every safetensors tool, and a damaged one is refused.
Files are at most 16 GiB long and their headers at most 64 MiB; both are checked before anything is read.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import torch
from torch import Tensor

from filterattr.errors import StorageError
from filterattr.files.writing import replace_file

FORMAT = "filterattr-1"
MAX_BYTES = 16 * 2**30
MAX_HEADER_BYTES = 64 * 2**20

# what every supported release of safetensors can hold; other types are kept as bytes, with a note in the metadata
_PLAIN = {
    torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.uint64,
    torch.int64, torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float32, torch.float64,
}  # fmt: skip
_Parts: TypeAlias = tuple[bytes, memoryview]
_BY_NAME = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}


def write_tensors(path: str | Path, kind: str, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write tensors and a JSON description as one file, or leave the old file as it was.

    The bytes go to a temporary file beside the target, are flushed to the disk, and replace the target in one step.
    Temporary files that killed processes of this machine left for the same target are removed. The same content gives
    the same bytes.

    Args:
        path: Where to write; missing folders are made.
        kind: What the file holds, such as ``"attribution"``; `read_tensors` checks it.
        tensors: Name to tensor of any strided layout and type; views and tied tensors are copied.
        description: Anything that JSON can hold.

    Raises:
        StorageError: The safetensors package is missing, a tensor is sparse, quantized or on the meta device, the
            description is not JSON, the file would be larger than 16 GiB, or the disk refuses.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "scores.safetensors"
        >>> write_tensors(path, "note", {"a": torch.ones(2)}, {"seed": 0})
        >>> read_tensors(path, "note")
        ({'a': tensor([1., 1.])}, {'seed': 0})
    """
    path = Path(path)
    replace_file(path, _pack(path, kind, tensors, description))


def read_tensors(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of `write_tensors`, or refuse it with the reason.

    Args:
        path: The file.
        kind: What it must hold.

    Returns:
        The tensors, on the CPU, and the description.

    Raises:
        StorageError: The file is missing, no regular file, larger than 16 GiB, no safetensors file, of another kind,
            or damaged.

    Example:
        >>> read_tensors("nowhere.safetensors", "attribution")
        Traceback (most recent call last):
        ...
        filterattr.errors.StorageError: 'nowhere.safetensors' cannot be read: No such file or directory.
    """
    safetensors = _safetensors()
    path = Path(path)
    try:
        size = _checked_size(path)
        with path.open("rb") as stream:
            head, header = _read_header(path, stream, size)
            metadata = _checked_metadata(path, kind, header, size - len(head))
            payload = head + stream.read(size - len(head))
    except OSError as error:
        raise StorageError(f"'{path}' cannot be read: {error.strerror}.") from error
    try:
        tensors = safetensors.load(payload)
        for name, (dtype, shape) in json.loads(metadata.get("types", "{}")).items():
            tensors[name] = tensors[name].view(_BY_NAME[dtype]).reshape(shape)
    except Exception as error:  # the loader raises a type of its own for every kind of damage
        raise _unreadable(path, error) from error
    text = metadata.get("description", "")
    if metadata.get("digest") != _digest(kind, text, tensors):
        raise StorageError(
            f"'{path}' is damaged: its content does not match its digest. Restore a backup or compute it again."
        )
    try:
        description = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(description, dict):
        raise StorageError(f"the description in '{path}' must be a JSON object; got {type(description).__name__}.")
    return tensors, description


class StoredJob(NamedTuple):
    """What a `JobFile` held.

    Attributes:
        tensors: Name to tensor, on the CPU.
        numbers: Everything else of the job's state.
        environment: Where it was computed.
    """

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]
    environment: dict[str, Any]


class JobFile:
    """The state of one job on disk, which no other job can take for its own.

    Args:
        path: The file.
        identity: What makes the job this one: name to a digest, number or text. Any difference refuses the file.
        environment: What the job should have in common with its former part, but need not.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "job.safetensors"
        >>> JobFile(path, {"n_steps": 16}, {}).write({"sums": torch.ones(2)}, {"n_samples": 3})
        >>> JobFile(path, {"n_steps": 16}, {}).read().numbers
        {'n_samples': 3}
        >>> JobFile(path, {"n_steps": 8}, {}).read()
        Traceback (most recent call last):
        ...
        filterattr.errors.StorageError: '...' belongs to another job: it has n_steps 16, here 8. Give every job ...
    """

    def __init__(self, path: str | Path, identity: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.identity = dict(identity)
        self.environment = dict(environment)

    def read(self) -> StoredJob | None:
        """Read the state of this job.

        Returns:
            The state, or ``None`` if there is no file yet, or one of another job with ``n_samples`` 0.

        Raises:
            StorageError: The file is damaged or belongs to another job; what differs is named.
        """
        if not self.path.exists():
            return None
        tensors, description = read_tensors(self.path, "checkpoint")
        try:
            identity, environment = dict(description["identity"]), dict(description["environment"])
            numbers = dict(description["numbers"])
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(f"'{self.path}' is not a complete checkpoint: {error!r}.") from error
        different = [
            _difference(name, identity.get(name), self.identity.get(name))
            for name in {**self.identity, **identity}
            if identity.get(name) != self.identity.get(name)
        ]
        if different and not numbers.get("n_samples"):
            return None  # nothing was done yet that could be mixed up
        if different:
            raise StorageError(
                f"'{self.path}' belongs to another job: it has {', '.join(different)}. Give every job a file of its "
                "own, or delete this one."
            )
        return StoredJob(tensors, numbers, environment)

    def write(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Replace the state in one step.

        Args:
            tensors: Name to tensor.
            numbers: Anything that JSON can hold.

        Raises:
            StorageError: The disk refuses; the former state is unharmed.
        """
        description = {"identity": self.identity, "environment": self.environment, "numbers": dict(numbers)}
        write_tensors(self.path, "checkpoint", tensors, description)


def _difference(name: str, stored: object, present: object) -> str:
    """Say in what two jobs differ; digests say nothing to a reader."""
    is_digest = any(
        isinstance(value, str) and len(value) == 2 * hashlib.sha256().digest_size for value in (stored, present)
    )
    return f"another {name}" if is_digest else f"{name} {stored}, here {present}"


def _pack(path: Path, kind: str, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> _Parts:
    """Turn tensors and description into the bytes of a file, in parts: joining them would copy them all."""
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type == "meta":
            raise StorageError(
                f"'{name}' of '{path}' must be a strided tensor with data; it is {tensor.layout} of {tensor.dtype} on "
                f"{tensor.device}. Convert it first."
            )
    content = {name: _own_copy(tensor) for name, tensor in tensors.items()}
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
    exotic = {name: tensor for name, tensor in content.items() if tensor.dtype not in _PLAIN}
    if exotic:
        metadata["types"] = json.dumps({name: [str(value.dtype), list(value.shape)] for name, value in exotic.items()})
        content |= {name: _bytes_of(value) for name, value in exotic.items()}
    size = sum(tensor.nbytes for tensor in content.values())
    if size > MAX_BYTES - MAX_HEADER_BYTES:
        raise StorageError(f"'{path}' would hold {size} bytes; at most {MAX_BYTES - MAX_HEADER_BYTES} are written.")
    payload: bytes = _safetensors().save(content, metadata=metadata)
    begin = 8 + int.from_bytes(payload[:8], "little")
    # safetensors writes the entries of the header in any order; the same content must give the same file
    header = json.dumps(json.loads(payload[8:begin]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > MAX_HEADER_BYTES:
        raise StorageError(f"the names and the description of '{path}' must fit into {MAX_HEADER_BYTES} bytes.")
    return len(header).to_bytes(8, "little") + header, memoryview(payload)[begin:]


def _own_copy(tensor: Tensor) -> Tensor:
    """Copy a tensor to the CPU, contiguous: a slice must not drag the tensor along that it was cut from."""
    plain = tensor.detach().resolve_conj().resolve_neg().cpu()
    return torch.empty(plain.shape, dtype=plain.dtype, device="cpu").copy_(plain)


def _bytes_of(tensor: Tensor) -> Tensor:
    """View a contiguous tensor as a row of bytes."""
    return tensor.reshape(-1).view(torch.uint8)


def _digest(kind: str, text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over everything that a reader relies on, in an order that does not depend on the writer."""
    digest = hashlib.sha256()
    digest.update(json.dumps([FORMAT, kind, text]).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(_bytes_of(tensor).numpy().data)
    return digest.hexdigest()


def _checked_size(path: Path) -> int:
    """Size of a file that is safe to read at all."""
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        raise StorageError(f"'{path}' must be a regular file; it is a pipe or a device.")
    if found.st_size > MAX_BYTES:
        raise StorageError(f"'{path}' holds {found.st_size} bytes; at most {MAX_BYTES} are read.")
    return found.st_size


def _read_header(path: Path, stream: BinaryIO, size: int) -> tuple[bytes, dict[str, Any]]:
    """Read the header alone: its length, which comes first, is not to be trusted."""
    first = stream.read(8)
    length = int.from_bytes(first, "little")
    if len(first) < 8 or length > min(size - 8, MAX_HEADER_BYTES):
        raise _unreadable(path, f"a header of {length} bytes in a file of {size} (at most {MAX_HEADER_BYTES} are read)")
    text = stream.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(header, dict):
        raise _unreadable(path, "its header is no JSON object")
    return first + text, header


def _checked_metadata(path: Path, kind: str, header: dict[str, Any], rest: int) -> dict[str, Any]:
    """Take the metadata out of the header, if it is one of ours and its tensors fill the rest of the file."""
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT or metadata.get("kind") != kind:
        says = metadata if isinstance(metadata, dict) else {}
        raise StorageError(
            f"'{path}' must be a {kind} file of the format {FORMAT}; it says format "
            f"{says.get('format')!r}, kind {says.get('kind')!r}."
        )
    try:
        promised = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise _unreadable(path, error) from error
    if promised != rest:
        raise _unreadable(path, f"its header promises {promised} bytes of tensors, it holds {rest}")
    return metadata


def _unreadable(path: Path, reason: object) -> StorageError:
    reason = f"{type(reason).__name__}: {reason}" if isinstance(reason, Exception) else reason
    return StorageError(f"'{path}' is not a readable safetensors file: {reason}. It is damaged or of another format.")


def _safetensors() -> Any:
    """Import safetensors on first use: attributing needs no files."""
    try:
        import safetensors.torch  # noqa: PLC0415 - optional
    except ImportError as error:
        raise StorageError("files need the safetensors package: pip install safetensors.") from error
    return safetensors.torch
