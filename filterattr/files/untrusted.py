"""Weights that other programs wrote, with `torch.save` or as safetensors: only sound tensors are read.

No code of a file runs, and nothing is built that the file does not hold. Files are at most 16 GiB long. Lengths and
checksums are compared before a tensor is returned, which `torch.load` does not do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import torch
from torch import Tensor

from filterattr.errors import StorageError, gathered, name_some
from filterattr.files.kinds import HEAD_BYTES, kind_of
from filterattr.files.layout import LayoutError, read_entries, read_header
from filterattr.files.pickled import NotPlain, Storage
from filterattr.files.reading import reading
from filterattr.files.torch_file import ForeignClassError, TorchFileError, read_torch_file

# no sound checkpoint names what they hold; a hostile one does
_ACTING = frozenset(
    {"builtins", "os", "posix", "nt", "sys", "subprocess", "shutil", "socket", "importlib", "runpy", "pty", "ctypes"}
)
_Leaf: TypeAlias = Tensor | NotPlain | Storage


def read_untrusted(path: str | Path) -> Any:
    """Read a file of another program, or refuse it with the reason; its first bytes tell of which format it is.

    Args:
        path: The file.

    Returns:
        What the file holds, in general names to tensors, to further such mappings, or to plain values; on the CPU.

    Raises:
        StorageError: The file is missing, no regular file, larger than 16 GiB, empty, compressed or damaged, or holds
            anything but tensors and plain containers. Or a tensor in it is sparse, quantized or without data, shows
            more than its storage holds, or overlaps itself or another one. The message names file and key.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "bomb.pth"
        >>> torch.save({"weight": torch.zeros(1).expand(10**9)}, path)
        >>> read_untrusted(path)
        Traceback (most recent call last):
        ...
        filterattr.errors.StorageError: the tensors in '...bomb.pth' must be plain: 'weight' shows 4000000000 bytes ...
    """
    head = b""
    try:
        with reading(path) as (stream, size):
            head = stream.read(HEAD_BYTES)
            stream.seek(0)
            content = _content(head, stream, size)
    except ForeignClassError as error:
        raise StorageError(_foreign_classes(path, error.names)) from error
    except (TorchFileError, LayoutError) as error:
        raise StorageError(
            f"'{path}' must be a checkpoint of tensors alone, as torch.save or safetensors write it; "
            f"{_reason(head, error)}"
        ) from error
    findings = _unsound(content)
    if findings:
        raise StorageError(f"the tensors in '{path}' must be plain: {gathered(findings)}.")
    return content


def _reason(head: bytes, error: Exception) -> str:
    kind = kind_of(head)
    if kind is not None:
        return f"it is {kind}."
    return f"it is damaged or of another format: {error}. Get it again from where it came from."


def _content(head: bytes, stream: BinaryIO, size: int) -> Any:
    """Read a file of the format that its first bytes tell; safetensors begin with the length of a JSON object."""
    if head[8:9] != b"{":
        return read_torch_file(stream, size)
    entries, _ = read_header(stream, size)
    return read_entries(stream, entries)


def _foreign_classes(path: str | Path, names: list[str]) -> str:
    """Say which classes there are, and what to do; nobody is told to run what acts on the system."""
    advice = (
        "The file may be sound: if you trust where it comes from, load it yourself with torch.load(path, "
        "weights_only=False), and pass the dict of its weights."
    )
    if {name.partition(".")[0] for name in names} & _ACTING:
        advice = "Get it again from where it came from."
    return (
        f"'{path}' must be a checkpoint of tensors alone, as torch.save or safetensors write it; it also holds "
        f"{name_some(name[:200] for name in names)}, which would run code of its own to be read. {advice}"
    )


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
        if not isinstance(value, Tensor) or not value.numel():
            continue
        view = (value.dtype, value.storage_offset(), value.shape, value.stride())
        storages.setdefault(value.untyped_storage().data_ptr(), {}).setdefault(view, (key, value))
    for views in storages.values():
        findings += _overlaps(list(views.values()))
    return findings


def _tensors(content: object) -> Iterator[tuple[object, _Leaf]]:
    """Yield every tensor with its dotted key (the key itself, if it is no text); a container may hold itself."""
    waiting: deque[tuple[str, object]] = deque([("", content)])
    seen = set()
    while waiting:
        place, holder = waiting.popleft()
        if isinstance(holder, Tensor | NotPlain | Storage):
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
            if isinstance(value, Tensor | NotPlain) and not isinstance(key, str):
                yield key, value
            else:
                waiting.append((f"{place}.{key}" if place else str(key), value))


def _problem(tensor: _Leaf) -> str | None:
    """Say why one tensor is not plain."""
    if not isinstance(tensor, Tensor):
        return f"is {tensor.what}" if isinstance(tensor, NotPlain) else "is a storage, not a tensor"
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
        view = painted.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        if int(view.max()) >= 0:
            findings.append(f"'{name}' overlaps '{views[int(view.max())][0]}'")
        view.fill_(index)
    return findings
