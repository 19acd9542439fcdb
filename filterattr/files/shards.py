"""Which files hold the weights of a checkpoint: a file itself, or those of a folder of the Hugging Face libraries."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from filterattr.errors import StorageError, name_some
from filterattr.files.reading import reading

WEIGHT_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_INDEX = ".index.json"
_MOST_INDEX_BYTES = 2**28


@dataclass(frozen=True)
class Shards:
    """The files of one checkpoint.

    Attributes:
        files: The files with weights.
        index: The file that says which of them holds what, if there is one.
        names: Name of a tensor to its file, as the index says it; empty without one.
    """

    files: tuple[Path, ...]
    index: Path | None = None
    names: dict[str, Path] | None = None


def shards_of(path: str | Path) -> Shards:
    """Find the files that hold the weights of a checkpoint.

    In a folder these are the shards that an index names, or the one file with weights; safetensors come before files of
    `torch.save`, as the libraries that write such folders do it.

    Args:
        path: A file, or a folder with ``model.safetensors``, ``pytorch_model.bin``, an index of shards, or one file of
            weights by any name.

    Returns:
        The files.

    Raises:
        StorageError: The folder holds no weights, several kinds of them, or an index that names what is not there.

    Example:
        >>> import tempfile
        >>> shards_of(tempfile.mkdtemp())
        Traceback (most recent call last):
        ...
        filterattr.errors.StorageError: the folder '...' must hold weights: a file that ends in .safetensors, .bin, ...
    """
    path = Path(path)
    if not path.is_dir():
        return Shards((path,))
    names = sorted(entry.name for entry in path.iterdir() if entry.is_file() and not entry.name.startswith("."))
    for ending in (".safetensors", *WEIGHT_ENDINGS[1:]):
        indices = [name for name in names if name.endswith(f"{ending}{_INDEX}")]
        single = [name for name in names if name.endswith(ending)]
        if len(indices) == 1:
            return _indexed(path / indices[0])
        if len(single) == 1 and not indices:
            return Shards((path / single[0],))
        if single or indices:
            raise StorageError(
                f"the folder '{path}' must hold one checkpoint; it holds {name_some(indices or single)}. Name one file "
                "of them."
            )
    raise StorageError(
        f"the folder '{path}' must hold weights: a file that ends in {', '.join(WEIGHT_ENDINGS[:-1])} or "
        f"{WEIGHT_ENDINGS[-1]}, or an index of such files; it holds {name_some(names) or 'nothing'}."
    )


def _indexed(index: Path) -> Shards:
    """The shards that an index names; they lie beside it."""
    with reading(index) as (stream, size):
        if size > _MOST_INDEX_BYTES:
            raise StorageError(f"'{index}' holds {size} bytes; at most {_MOST_INDEX_BYTES} are read.")
        text = stream.read()
    try:
        held = json.loads(text)["weight_map"]
        files = {str(name): str(file) for name, file in held.items()}
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"'{index}' must be JSON that maps names to files under 'weight_map': {error!r}.") from error
    shards = dict.fromkeys(files.values())
    outside = [file for file in shards if Path(file).name != file or file in (".", "..")]
    missing = [file for file in shards if not (index.parent / file).is_file()]
    if outside or missing or not shards:
        reason = f"names {name_some(outside or missing)}" if shards else "names none"
        raise StorageError(
            f"'{index}' must name files beside it, all of which are there; it {reason}. Get the folder again from "
            "where it came from."
        )
    names = {name: index.parent / file for name, file in files.items()}
    return Shards(tuple(index.parent / file for file in shards), index, names)
