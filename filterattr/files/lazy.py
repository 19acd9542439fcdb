"""Weights that are known from the headers of their files, and read when they are asked for."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from filterattr.errors import StateMismatchError, StorageError, name_some
from filterattr.files.layout import LayoutError, read_header
from filterattr.files.reading import bytes_of, fill, reading
from filterattr.files.safetensors import own_kind, read_tensors
from filterattr.files.shards import Shards, shards_of
from filterattr.files.untrusted import read_untrusted
from filterattr.model.state_dict import inner_key, plain_state

_HEAD = 8  # bytes that hold the length of a header


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """One tensor of a checkpoint.

    Attributes:
        name: Its name in the file, with the prefixes of trainers.
        dtype: Its type.
        shape: Its shape.
        path: The file.
        begin: Place of its first byte in the file.
        held: The tensor itself, where a file cannot be read in parts.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    path: Path
    begin: int = 0
    held: Tensor | None = None

    @property
    def numel(self) -> int:
        """Number of its weights."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of its bytes."""
        return self.numel * self.dtype.itemsize

    def read(self) -> Tensor:
        """Read it as a whole.

        Returns:
            The tensor, on the CPU.

        Raises:
            StorageError: The disk cannot read it, or the file was cut meanwhile.
        """
        if self.held is not None:
            return self.held
        flat = next(self.parts(max(1, self.numel)), torch.empty(0, dtype=self.dtype, device="cpu"))
        return flat.reshape(self.shape)

    def parts(
        self, count: int, begin: int = 0, end: int | None = None, *, memory: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Read it in parts; each is valid until the next one is asked for.

        Args:
            count: Number of weights in a part; the last one may have less.
            begin: The first weight of the flat tensor that is read.
            end: The first one after it that is not; all are read by default.
            memory: Bytes in which a part has its place; they are allocated by default.

        Yields:
            Rows of weights, in the order of the flat tensor.

        Raises:
            StorageError: The disk cannot read it, or the file was cut meanwhile.
        """
        end = self.numel if end is None else end
        if self.held is not None:
            flat = self.held.reshape(-1)
            yield from (flat[place : min(place + count, end)] for place in range(begin, end, count))
            return
        size = min(count, end - begin)
        if memory is None:
            memory = torch.empty(size * self.dtype.itemsize, dtype=torch.uint8, device="cpu")
        buffer = memory[: size * self.dtype.itemsize].view(self.dtype)
        content = bytes_of(buffer)
        with reading(self.path) as (buffered, _):
            stream = buffered.raw  # type: ignore[attr-defined]  # whose bytes go where they belong at once
            stream.seek(self.begin + begin * self.dtype.itemsize)
            for place in range(begin, end, count):
                n_weights = min(count, end - place)
                try:
                    fill(stream, content[: n_weights * self.dtype.itemsize])
                except EOFError as error:
                    raise StorageError(f"'{self.path}' was cut while it was read: {error}.") from error
                yield buffer[:n_weights]


def stored_weights(path: str | Path, *, key: str | None = None) -> dict[str, StoredTensor]:
    """Look at the weights of a checkpoint; of safetensors only the headers are read.

    Files of `torch.save` and of this library are read at once, and their checksums compared.

    Args:
        path: A file, or a folder as Hugging Face libraries write it.
        key: Where in files of `torch.save` the weights are, as for `filterattr.load_state`.

    Returns:
        Name to tensor, without the prefixes of trainers.

    Raises:
        StorageError: A file is missing, damaged or holds anything but tensors; or the files of a folder do not fit
            together.
        StateMismatchError: There is nothing under the key, or an entry is no plain tensor.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> torch.save({"module.w": torch.ones(2, 3)}, folder / "pytorch_model.bin")
        >>> tensors = stored_weights(folder)
        >>> tensors["w"].name, tensors["w"].shape
        ('module.w', (2, 3))
        >>> tensors["w"].read()
        tensor([[1., 1., 1.],
                [1., 1., 1.]])
    """
    tensors = stored_tensors(path, key=key)
    return {plain: tensors[name] for plain, name in plain_names(tensors, path).items()}


def mapped_state(path: str | Path) -> dict[str, Tensor]:
    """Map the weights of a checkpoint into memory: the system reads what is used, and forgets it where memory is short.

    Only safetensors can be mapped. Files of `torch.save` and of this library are read as a whole.

    Args:
        path: A file, or a folder as Hugging Face libraries write it.

    Returns:
        Name to tensor, without the prefixes of trainers. What is written to them does not reach the file.

    Raises:
        StorageError: As for `stored_weights`.
        StateMismatchError: As for `stored_weights`.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import save_file
        >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save_file({"w": torch.ones(2)}, path)
        >>> mapped_state(path)
        {'w': tensor([1., 1.])}
    """
    files: dict[Path, mmap.mmap] = {}
    state = {}
    for name, tensor in stored_weights(path).items():
        if tensor.held is not None or tensor.begin % tensor.dtype.itemsize or not tensor.numel:
            state[name] = tensor.read()
            continue
        if tensor.path not in files:
            with reading(tensor.path) as (stream, _):
                files[tensor.path] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        flat = torch.frombuffer(files[tensor.path], dtype=tensor.dtype, count=tensor.numel, offset=tensor.begin)
        state[name] = flat.view(tensor.shape)
    return state


def stored_tensors(path: str | Path, *, key: str | None = None) -> dict[str, StoredTensor]:
    """Look at the tensors of a checkpoint, by their names in its files.

    Args:
        path: As for `stored_weights`.
        key: As for `stored_weights`.

    Returns:
        Name in the file to tensor.

    Raises:
        StorageError: As for `stored_weights`.
        StateMismatchError: As for `stored_weights`.
    """
    shards = shards_of(path)
    tensors: dict[str, StoredTensor] = {}
    for file in shards.files:
        held = _in_file(file, key)
        repeated = [name for name in held if name in tensors]
        if repeated:
            raise StorageError(f"'{file}' and '{tensors[repeated[0]].path}' both hold {name_some(repeated)}.")
        tensors |= held
    _check_index(shards, tensors)
    return tensors


def plain_names(names: Iterable[str], path: str | Path) -> dict[str, str]:
    """Take off what trainers put in front of names.

    Args:
        names: Names in a file.
        path: The file, for messages.

    Returns:
        Plain name to name in the file; counters of trainers are left out.

    Example:
        >>> plain_names(["module.a", "module.b"], "file.pth")
        {'a': 'module.a', 'b': 'module.b'}
    """
    names = list(names)
    places = plain_state({name: torch.tensor(place) for place, name in enumerate(names)}, f"'{path}'")
    return {plain: names[int(place)] for plain, place in places.items()}


def is_headed(path: str | Path) -> bool:
    """Whether a file begins as safetensors do: with the length of a JSON object, and the object.

    Args:
        path: The file.

    Raises:
        StorageError: It cannot be read at all.
    """
    with reading(path) as (stream, _):
        return stream.read(_HEAD + 1)[_HEAD:] == b"{"


def _in_file(path: Path, key: str | None) -> dict[str, StoredTensor]:
    """What one file holds, by its names there."""
    if not is_headed(path):
        return _held(_inner_state(read_untrusted(path), key, path), path)
    held = _headed(path) if own_kind(path) is None else _held(read_tensors(path, None)[0], path)
    if key is not None:
        _inner_state(held, key, path)  # which says that there is no such thing in it
    return held


def _headed(path: Path) -> dict[str, StoredTensor]:
    """What a safetensors file holds, from its header."""
    try:
        with reading(path) as (stream, size):
            entries, _ = read_header(stream, size)
            first = stream.tell()
    except LayoutError as error:
        raise StorageError(
            f"'{path}' must be a checkpoint of tensors alone, as torch.save or safetensors write it; it is damaged or "
            f"of another format: {error}. Get it again from where it came from."
        ) from error
    return {
        entry.name: StoredTensor(entry.name, entry.dtype, entry.shape, path, first + entry.begin) for entry in entries
    }


def _inner_state(content: object, key: str | None, path: str | Path) -> dict[str, Tensor]:
    """Find the weights in what a file of `torch.save` holds, by their names there."""
    for part in inner_key(content, key, f"'{path}'"):
        content = content[part]  # type: ignore[index]
    if not isinstance(content, Mapping):
        raise StateMismatchError(f"'{path}' must hold names of tensors; it holds {type(content).__name__}.")
    plain_state(content, f"'{path}'")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _held(tensors: Mapping[str, Tensor], path: Path) -> dict[str, StoredTensor]:
    return {
        name: StoredTensor(name, tensor.dtype, tuple(tensor.shape), path, held=tensor)
        for name, tensor in tensors.items()
    }


def _check_index(shards: Shards, tensors: Mapping[str, StoredTensor]) -> None:
    """An index must name what the files hold, where they hold it."""
    if shards.names is None:
        return
    wrong = [name for name, file in shards.names.items() if name not in tensors or tensors[name].path != file]
    wrong += [name for name in tensors if name not in shards.names]
    if wrong:
        raise StorageError(
            f"'{shards.index}' and its files must agree; {name_some(wrong)} are in no file, or in another one than it "
            "says. Get the folder again from where it came from."
        )
