"""Write weights in the layout of a given checkpoint: names, types, shards, nesting, and the other files."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from filterattr.errors import StateMismatchError, StorageError, gathered, name_some
from filterattr.files.layout import pieces, read_header
from filterattr.files.lazy import StoredTensor, is_headed, plain_names, stored_tensors
from filterattr.files.reading import reading
from filterattr.files.safetensors import own_kind, read_tensors, write_tensors
from filterattr.files.shards import WEIGHT_ENDINGS, shards_of
from filterattr.files.untrusted import read_untrusted
from filterattr.files.writing import replacing
from filterattr.model.state_dict import inner_key, plain_state, shared_names

_OTHER_WEIGHTS = (*WEIGHT_ENDINGS, ".h5", ".msgpack", ".onnx", ".gguf", ".index.json")
_PLAIN = (bool, int, float, str, type(None))


def write_checkpoint(
    state: nn.Module | Mapping[str, Tensor], like: str | Path, out: str | Path, *, key: str | None = None
) -> Path:
    """Write weights as a checkpoint in the layout of a given one.

    Names, types, order, shards and metadata are those of ``like``. From a folder, all other files (configuration,
    tokenizer) are copied, except weights in other formats. In a file of `torch.save`, the weights keep their entry,
    such as ``"params_ema"``. Numbers and texts beside them are kept. Other tensors, such as raw weights or the state of
    an optimizer, are left out, because they belong to another network. Weights that ``state`` lacks are those of
    ``like``.

    Args:
        state: A module, or name to tensor. A mapping may compute a tensor on access; each tensor is read once, shard by
            shard.
        like: A file of `torch.save` or safetensors, or a folder as Hugging Face libraries write it.
        out: The new file or folder. A folder appears when it is complete.
        key: The entry of a `torch.save` file that holds the weights, as for `filterattr.load_state`.

    Returns:
        ``out``.

    Raises:
        StateMismatchError: ``state`` has names that ``like`` lacks, or other shapes; the message names all of them.
        StorageError: ``like`` cannot be read, ``out`` is an existing folder, or the files cannot be written.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> base = Path(tempfile.mkdtemp()) / "net_g.pth"
        >>> torch.save({"params_ema": {"w": torch.zeros(2)}, "iter": 5}, base)
        >>> merged = write_checkpoint({"w": torch.ones(2)}, base, base.with_name("merged.pth"))
        >>> torch.load(merged)
        {'params_ema': {'w': tensor([1., 1.])}, 'iter': 5}
    """
    like, out = Path(like), Path(out)
    held = stored_tensors(like, key=key)
    plain_of = {name: plain for plain, name in plain_names(held, like).items()}
    tensors = {plain: held[name] for name, plain in plain_of.items()}
    values: Mapping[str, Tensor] = plain_state(state, "state", tensors) if isinstance(state, nn.Module) else state
    _check(values, tensors, like)

    tied = shared_names({plain: tensor.held for plain, tensor in tensors.items() if tensor.held is not None})

    def read(name: str) -> Tensor:
        plain = plain_of.get(name, "")
        given = next((other for other in tied.get(plain, [plain]) if other in values), None)
        return held[name].read() if given is None else values[given].detach().to("cpu").to(held[name].dtype)

    if not like.is_dir():
        _write_file(like, out, read, key)
        return out
    shards = shards_of(like)
    with _new_folder(out) as folder:
        for file in shards.files:
            _write_file(file, folder / file.name, read, key)
        _copy_rest(like, folder, shards.index)
    return out


def _check(values: Mapping[str, Tensor], tensors: Mapping[str, StoredTensor], like: Path) -> None:
    """Every weight must have a place in the file; other names of one that has are none of their own."""
    missing = [name for name in values if name not in tensors]
    if isinstance(values, dict):  # others compute their tensors when they are asked for
        shared = shared_names(values)
        missing = [name for name in missing if not any(other in tensors for other in shared[name])]
    findings = [f"{name_some(missing)} have no place in it"] if missing else []
    if isinstance(values, dict):
        findings += [
            f"'{name}' has shape {tuple(value.shape)}, not {tensors[name].shape}"
            for name, value in values.items()
            if name in tensors and tuple(value.shape) != tensors[name].shape
        ]
    if findings:
        raise StateMismatchError(
            f"the weights must fit the layout of '{like}': {gathered(findings)}. Its names are {name_some(tensors)}."
        )


def _write_file(like: Path, out: Path, read: Callable[[str], Tensor], key: str | None) -> None:
    """Write one file in the layout of another."""
    kind = own_kind(like)
    if kind is not None:
        tensors, description = read_tensors(like, kind)
        write_tensors(out, kind, {name: read(name) for name in tensors}, description)
    elif is_headed(like):
        _write_headed(like, out, read)
    else:
        content = read_untrusted(like)
        content = _with_weights(content, inner_key(content, key, f"'{like}'"), read)
        with replacing(out) as stream:
            torch.save(content, stream)


def _write_headed(like: Path, out: Path, read: Callable[[str], Tensor]) -> None:
    """The header says types, shapes and places, all of which stay; so do its bytes."""
    with reading(like) as (source, size):
        entries, _ = read_header(source, size)
        length = source.tell()
        source.seek(0)
        header = source.read(length)
    with replacing(out) as stream:
        stream.write(header)
        for entry in entries:
            stream.writelines(pieces(read(entry.name)))


def _with_weights(content: Mapping[str, Any], keys: Sequence[str], read: Callable[[str], Tensor]) -> dict[str, Any]:
    """Put the new weights where the old ones were; of what stands beside them, plain values stay."""
    if keys:
        return {
            name: _with_weights(value, keys[1:], read) if name == keys[0] else value
            for name, value in content.items()
            if name == keys[0] or isinstance(value, _PLAIN)
        }
    written: dict[tuple[int, torch.Size], Tensor] = {}  # tied weights are written once, as before
    weights: dict[str, Any] = {}
    for name, value in content.items():
        place = (value.data_ptr(), value.shape) if isinstance(value, Tensor) and value.numel() else None
        if place is None:
            weights[name] = value
        else:
            if place not in written:
                written[place] = read(name).contiguous().clone()
            weights[name] = written[place]
    return weights


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Give a folder to fill, which gets its name when it is complete; nothing is left of it otherwise."""
    if out.exists():
        raise StorageError(f"the folder '{out}' already exists: name another one, or remove it.")
    folder = out.absolute().with_name(f".{out.name}.{secrets.token_hex(4)}.part")
    try:
        try:
            folder.mkdir(parents=True)
            yield folder
            folder.replace(out)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        if error.errno is None:  # raised by hand, in the block: not by the disk
            raise
        raise StorageError(
            f"the folder '{out}' could not be written ({error.strerror}). Choose another one."
        ) from error


def _copy_rest(like: Path, folder: Path, index: Path | None) -> None:
    """Copy all that is no weights; what lies in folders inside belongs to other parts, and comes along as a whole."""
    for path in sorted(like.rglob("*")):
        inside = path.relative_to(like)
        is_other = len(inside.parts) == 1 and path.name.endswith(_OTHER_WEIGHTS) and path != index
        if path.is_file() and not is_other and not any(part.startswith(".") for part in inside.parts):
            with reading(path) as (source, _), replacing(folder / inside) as stream:
                shutil.copyfileobj(source, stream)
