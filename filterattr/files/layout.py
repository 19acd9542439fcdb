"""The layout of safetensors files, written and read one tensor after the other: nothing is held beside the tensors.

Eight bytes with the length of the header, a JSON header with type, shape and place of every tensor, then their bytes
without gaps. All of the header is checked before anything is allocated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from filterattr.files.reading import bytes_of, fill

MAX_HEADER_BYTES = 64 * 2**20
_MOST_DIMENSIONS = 64
_PIECE_BYTES = 2**22

# in the order in which the reference implementation sorts them; what older releases of it cannot hold is not written
_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
}
_NEWER = {
    "C64": torch.complex64,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": getattr(torch, "float8_e8m0fnu", None),
}
_TYPES = {name: dtype for dtype, name in _NAMES.items()} | {name: dtype for name, dtype in _NEWER.items() if dtype}
_RANKS = {dtype: rank for rank, dtype in enumerate(_NAMES)}


class LayoutError(Exception):
    """A file does not have this layout; the message says in what."""


class Entry(NamedTuple):
    """Where one tensor lies.

    Attributes:
        name: Its name.
        dtype: Its type.
        shape: Its shape.
        begin: Place of its first byte after the header.
        end: Place after its last byte.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def can_hold(dtype: torch.dtype) -> bool:
    """Whether every supported reader of the layout knows a type.

    Args:
        dtype: The type.

    Example:
        >>> can_hold(torch.bfloat16), can_hold(torch.complex128)
        (True, False)
    """
    return dtype in _NAMES


def write_layout(stream: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata; the same content gives the same bytes.

    Args:
        stream: Where to write.
        tensors: Name to strided tensor of a type that `can_hold` knows; they are not copied as a whole.
        metadata: Names to texts.

    Raises:
        LayoutError: The header would be longer than 64 MiB.

    Example:
        >>> import io
        >>> stream = io.BytesIO()
        >>> write_layout(stream, {"a": torch.ones(2)}, {"format": "pt"})
        >>> _ = stream.seek(0)
        >>> entries, metadata = read_header(stream, len(stream.getvalue()))
        >>> read_entries(stream, entries), metadata
        ({'a': tensor([1., 1.])}, {'format': 'pt'})
    """
    order = sorted(tensors, key=lambda name: (-_RANKS[tensors[name].dtype], name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    place = 0
    for name in order:
        tensor = tensors[name]
        size = tensor.numel() * tensor.element_size()
        entry = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [place, place + size]}
        header[name] = entry
        place += size
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise LayoutError(f"names and metadata must fit into {MAX_HEADER_BYTES} bytes")
    stream.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        stream.writelines(pieces(tensors[name]))


def pieces(tensor: Tensor) -> Iterator[memoryview]:
    r"""The bytes of a tensor in its logical order, in parts; only a part is copied, where that is needed at all.

    Args:
        tensor: A strided tensor on any device.

    Example:
        >>> b"".join(pieces(torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8).t()))
        b'\x01\x03\x02\x04'
    """
    tensor = tensor.detach()
    if not tensor.numel():
        return
    is_plain = tensor.device.type == "cpu" and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()
    size = tensor.numel() * tensor.element_size()
    if is_plain or size <= _PIECE_BYTES:
        yield bytes_of(tensor.resolve_conj().resolve_neg().cpu().contiguous())
    elif len(tensor) == 1:
        yield from pieces(tensor[0])
    else:
        rows = max(1, len(tensor) * _PIECE_BYTES // size)
        for begin in range(0, len(tensor), rows):
            yield from pieces(tensor[begin : begin + rows])


def read_header(stream: BinaryIO, size: int) -> tuple[list[Entry], dict[str, str]]:
    """Read and check the header; the stream is then at the first tensor.

    Args:
        stream: At the beginning of the file.
        size: Number of bytes of the file.

    Returns:
        Where the tensors lie, in the order of the file, and the metadata.

    Raises:
        LayoutError: A length, a type, a shape or a place cannot be; or the tensors leave gaps, overlap, or do not end
            with the file.
    """
    first = stream.read(8)
    length = int.from_bytes(first, "little")
    if len(first) < 8 or length > min(size - 8, MAX_HEADER_BYTES):
        raise LayoutError(f"a header of {length} bytes in a file of {size} (at most {MAX_HEADER_BYTES} are read)")
    text = stream.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise LayoutError(f"{type(error).__name__}: {error}") from error
    if not isinstance(header, dict):
        raise LayoutError("its header is no JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise LayoutError("its metadata must be texts")
    entries = sorted(
        (_entry(name, given) for name, given in header.items()), key=lambda entry: (entry.begin, entry.end)
    )
    _check_places(entries, size - 8 - length)
    return entries, metadata


def read_entries(stream: BinaryIO, entries: Iterable[Entry]) -> dict[str, Tensor]:
    """Read tensors, each directly into its final memory.

    Args:
        stream: At the first tensor.
        entries: What `read_header` gave.

    Returns:
        Name to tensor, on the CPU.

    Raises:
        LayoutError: The file ends too early.
    """
    tensors = {}
    for entry in entries:
        tensor = torch.empty(entry.shape, dtype=entry.dtype, device="cpu")
        if tensor.numel():
            try:
                fill(stream, bytes_of(tensor))
            except EOFError as error:
                raise LayoutError(str(error)) from error
        tensors[entry.name] = tensor
    return tensors


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two readers could take two different entries of one name."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a name stands there twice")
    return content


def _entry(name: str, given: object) -> Entry:
    """Check one entry by itself."""
    if not isinstance(given, dict) or set(given) != {"dtype", "shape", "data_offsets"}:
        raise LayoutError(f"the entry '{name}' must hold dtype, shape and data_offsets")
    dtype, shape, places = _TYPES.get(str(given["dtype"])), given["shape"], given["data_offsets"]
    if dtype is None:
        raise LayoutError(f"'{name}' is of the type {given['dtype']!r}, which is not known here")
    if not _are_sizes(shape) or len(shape) > _MOST_DIMENSIONS or math.prod(side or 1 for side in shape) >= 2**60:
        raise LayoutError(f"'{name}' cannot have the shape {shape!r}")
    if not _are_sizes(places) or len(places) != 2 or places[1] - places[0] != math.prod(shape) * dtype.itemsize:
        raise LayoutError(f"'{name}' of the shape {shape!r} in {dtype} cannot lie at {places!r}")
    return Entry(name, dtype, tuple(shape), *places)


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**63 for size in value)


def _check_places(entries: list[Entry], rest: int) -> None:
    """Every byte of the file belongs to one tensor."""
    place = 0
    for entry in entries:
        if entry.begin != place:
            raise LayoutError(f"'{entry.name}' begins at {entry.begin} instead of {place}")
        place = entry.end
    if place != rest:
        raise LayoutError(f"its header promises {place} bytes of tensors, it holds {rest}")
