"""Checkpoints as people have them: files of `torch.save` and safetensors, with the names of other trainers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from torch import Tensor

from filterattr.errors import StateMismatchError, name_some
from filterattr.files.lazy import stored_weights

Rename: TypeAlias = Mapping[str, str] | Callable[[str], str | None]


def load_state(
    path: str | Path, *, key: str | None = None, prefix: str = "", rename: Rename | None = None
) -> dict[str, Tensor]:
    """Read the weights of a checkpoint; no code of the file is run.

    Args:
        path: A file of `torch.save` or a safetensors file, or a folder as Hugging Face libraries write it, whose shards
            are read one after the other.
        key: Where in the file the weights are, with dots for nested ones (``"optimizer.ema"``). By default they are
            looked for under ``"params_ema"``, ``"params"`` (BasicSR) and ``"state_dict"`` (Lightning), and are the
            whole content otherwise.
        prefix: Only the names that begin with it are read, without it. ``"model."`` takes the network out of a
            Lightning module that calls it ``model``, and leaves a loss network beside it behind.
        rename: Beginning of a name to what stands there instead (the first that matches counts), or a function from
            name to name; a function may return ``None`` to leave the entry out. It sees names without the prefix.

    Returns:
        Name to tensor, on the CPU, for `FilterAttributor.attribute` or ``load_state_dict``.

    Raises:
        StorageError: The file is missing, damaged, or holds anything but tensors and plain containers; classes are
            named. Files that this library wrote must match their digest.
        StateMismatchError: There is nothing under the key, no name has the prefix, or two names become one.

    Example:
        >>> import tempfile, pathlib, torch
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "last.ckpt"
        >>> weights = {"net.body.weight": torch.zeros(2), "vgg.weight": torch.zeros(3)}
        >>> torch.save({"epoch": 3, "state_dict": weights}, path)
        >>> load_state(path, prefix="net.", rename={"body": "layers.0"})
        {'layers.0.weight': tensor([0., 0.])}
    """
    state = {name: tensor.read() for name, tensor in stored_weights(path, key=key).items()}
    inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if not inside:
        raise StateMismatchError(
            f"no name in '{path}' begins with '{prefix}'; they are {name_some(state) or 'none at all'}."
        )
    return _renamed(inside, rename or {}, path)


def _renamed(state: dict[str, Tensor], rename: Rename, path: str | Path) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    for name, value in state.items():
        new = rename(name) if callable(rename) else _replaced(name, rename)
        if new is None:
            continue
        if new in renamed:
            raise StateMismatchError(f"rename= makes '{new}' of both '{origins[new]}' and '{name}' in '{path}'.")
        renamed[new], origins[new] = value, name
    return renamed


def _replaced(name: str, beginnings: Mapping[str, str]) -> str:
    old = next((old for old in beginnings if name.startswith(old)), None)
    return name if old is None else beginnings[old] + name.removeprefix(old)
