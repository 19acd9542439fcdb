"""Patches: the values of selected weights in target, for users who have base."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from filterattr.errors import StateMismatchError, gathered, name_some
from filterattr.files.layout import pieces
from filterattr.files.safetensors import read_tensors, write_tensors
from filterattr.intervention import check_selection
from filterattr.model.state_dict import StateLike, copied, plain_state, shared_names
from filterattr.results.scores import FilterSelection
from filterattr.results.stored import complete

_KIND = "patch"
_DIGITS = 16  # of a digest of one tensor: enough against mistakes, and a header that stays small
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32}  # what has more bytes is compared in parts of 8


class SparseWeights(NamedTuple):
    """New values of some weights of one parameter, in the coordinates of the checkpoint.

    Fields and types are those of sparse weight updates of inference servers, such as ``SparseWeightPatch(*weights)`` of
    vLLM.

    Attributes:
        name: Name of the parameter.
        indices: Flat indices into the parameter, ascending; ``int32``, or ``int64`` for 2^31 weights and more.
        values: The new values, one per index, in the type of the parameter.
        full_shape: Shape of the parameter.
    """

    name: str
    indices: Tensor
    values: Tensor
    full_shape: tuple[int, ...]


@dataclass(frozen=True, repr=False)
class Patch:
    """A patch, which changes base to base with the selected units of target.

    Attributes:
        weights: One entry per parameter that changes.
        base: Name to digest of every tensor of the base that the patch belongs to.
        aliases: Name of a parameter to its other names in base (tied weights).
    """

    weights: tuple[SparseWeights, ...]
    base: Mapping[str, str]
    aliases: Mapping[str, tuple[str, ...]]

    def __repr__(self) -> str:
        return f"Patch({self.count} weights in {len(self.weights)} parameters)"

    @property
    def count(self) -> int:
        """Number of weights that change."""
        return sum(len(part.indices) for part in self.weights)


def export_patch(selection: FilterSelection, base: StateLike, target: StateLike, path: str | Path) -> Patch:
    """Write the values of the selected units in target to a file. `apply_patch` adds them to base.

    Weights with equal bits in base and target are left out. The file has the safetensors format, with the tensors
    ``<parameter>.indices`` and ``<parameter>.values``. A weight takes 4 bytes for its index, and the bytes of its type.

    Args:
        selection: The units to ship.
        base: The weights that the receiver has; a module or a state dict.
        target: The weights that the units are taken from.
        path: The file to write; its name usually ends in ``.safetensors``.

    Returns:
        The patch, as `read_patch` reads it.

    Raises:
        StateMismatchError: Selected parameters are missing or have other shapes; the message names all of them.
        StorageError: The file cannot be written.

    Example:
        >>> import pathlib, tempfile
        >>> from filterattr import ScoredParameter, Unit, blend
        >>> base, target = {"w": torch.zeros(3)}, {"w": torch.tensor([1.0, 2.0, 3.0])}
        >>> chosen = FilterSelection(
        ...     {"w": torch.tensor([True, False, True])}, {"w": ScoredParameter(Unit("... -> ..."), (3,))}
        ... )
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "patch.safetensors"
        >>> export_patch(chosen, base, target, path)
        Patch(2 weights in 1 parameters)
        >>> apply_patch(base, path)
        {'w': tensor([1., 0., 3.])}
        >>> blend(base, target, chosen)
        {'w': tensor([1., 0., 3.])}
    """
    names = selection.parameters
    ends = {"base": plain_state(base, "base", names), "target": plain_state(target, "target", names)}
    check_selection(selection, ends)
    shared = shared_names(ends["base"])
    parts = [
        _part(name, marked, ends["base"][name], ends["target"][name]) for name, marked in selection.weights().items()
    ]
    changed = tuple(part for part in parts if len(part.indices))
    aliases = {part.name: tuple(other for other in shared[part.name] if other != part.name) for part in changed}
    patch = Patch(
        changed,
        {name: _digest(tensor) for name, tensor in ends["base"].items()},
        {name: others for name, others in aliases.items() if others},
    )
    _write(patch, path)
    return patch


def read_patch(path: str | Path) -> Patch:
    """Read a patch, for example to send it to an inference server or to convert it.

    Args:
        path: A file that `export_patch` wrote.

    Returns:
        The patch, on the CPU.

    Raises:
        StorageError: The file is missing, damaged, or no patch.

    Example:
        >>> read_patch("nowhere.safetensors")
        Traceback (most recent call last):
        ...
        filterattr.errors.StorageError: 'nowhere.safetensors' cannot be read: No such file or directory.
    """
    tensors, description = read_tensors(path, _KIND)
    with complete(path, _KIND):
        parts = [
            _checked(SparseWeights(name, tensors[f"{name}.indices"], tensors[f"{name}.values"], tuple(shape)))
            for name, shape in description["shapes"].items()
        ]
        patch = Patch(
            tuple(parts),
            dict(description["base"]),
            {name: tuple(others) for name, others in description["aliases"].items()},
        )
        _check_names(patch)
        return patch


def apply_patch(base: StateLike, patch: Patch | str | Path) -> dict[str, Tensor]:
    """Apply a patch to base.

    Args:
        base: The weights that the patch was made from; a module or a state dict.
        patch: The patch, or its file.

    Returns:
        A new state dict: base with the selected units of target, with the same bits as `filterattr.blend`. It shares no
        memory with ``base``. Tied weights stay tied.

    Raises:
        StateMismatchError: The patch belongs to another base; the message names the tensors that differ.
        StorageError: The file is missing, damaged, or no patch.

    Example:
        >>> import pathlib, tempfile
        >>> from filterattr import ScoredParameter, Unit
        >>> chosen = FilterSelection({"w": torch.tensor([True])}, {"w": ScoredParameter(Unit("... -> ..."), (1,))})
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "patch.safetensors"
        >>> patch = export_patch(chosen, {"w": torch.zeros(1)}, {"w": torch.ones(1)}, path)
        >>> apply_patch({"w": torch.full((1,), 0.5)}, patch)
        Traceback (most recent call last):
        ...
        filterattr.errors.StateMismatchError: base must be the one that the patch was made from: 'w' hold other ...
    """
    if not isinstance(patch, Patch):
        patch = read_patch(patch)
    state = plain_state(base, "base", patch.base)
    _check_base(state, patch)
    with torch.no_grad():
        result = copied(state)
        shared = shared_names(result)
        for part in patch.weights:
            names = [part.name, *patch.aliases.get(part.name, ())]
            patched = _patched(result[part.name], part)
            result |= dict.fromkeys([other for name in names for other in shared[name]], patched)
    return result


def _part(name: str, marked: Tensor, base: Tensor, target: Tensor) -> SparseWeights:
    """The weights of one parameter that are marked and differ."""
    base = base.detach().cpu()
    target = target.detach().cpu().to(base.dtype)
    changed = marked.reshape(-1) & (_bits(base) != _bits(target)).any(1)
    places = changed.nonzero().flatten()
    dtype = torch.int32 if base.numel() < 2**31 else torch.int64
    return SparseWeights(name, places.to(dtype), target.reshape(-1)[places], tuple(base.shape))


def _patched(base: Tensor, part: SparseWeights) -> Tensor:
    """A copy of a parameter with new values in some places."""
    patched = base.detach().resolve_conj().resolve_neg().contiguous().clone()
    _bits(patched)[part.indices.to(patched.device, torch.int64)] = _bits(part.values.to(patched.device))
    return patched


def _bits(values: Tensor) -> Tensor:
    """One row of integers a value, which tell -0 from 0 and NaN from NaN; of a contiguous tensor it is a view."""
    flat = values.resolve_conj().resolve_neg().reshape(-1)
    return flat.view(_BITS.get(flat.element_size(), torch.int64)).reshape(len(flat), -1)


def _digest(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    for piece in pieces(tensor):
        digest.update(piece)
    return digest.hexdigest()[:_DIGITS]


def _check_base(state: Mapping[str, Tensor], patch: Patch) -> None:
    missing = [name for name in patch.base if name not in state]
    unknown = [name for name in state if name not in patch.base]
    different = [name for name, digest in patch.base.items() if name in state and _digest(state[name]) != digest]
    different += [
        part.name
        for part in patch.weights
        if part.name in state
        and (tuple(state[part.name].shape), state[part.name].dtype) != (part.full_shape, part.values.dtype)
    ]
    findings = [
        f"{name_some(names)} {what}"
        for names, what in (
            (dict.fromkeys(different), "hold other values, or are of another type or shape"),
            (missing, "are missing"),
            (unknown, "were not in it"),
        )
        if names
    ]
    if findings:
        raise StateMismatchError(
            f"base must be the one that the patch was made from: {gathered(findings)}. Take the same file and the same "
            "type of numbers as when the patch was made."
        )


def _write(patch: Patch, path: str | Path) -> None:
    tensors = {f"{part.name}.indices": part.indices for part in patch.weights}
    tensors |= {f"{part.name}.values": part.values for part in patch.weights}
    description: dict[str, Any] = {
        "shapes": {part.name: list(part.full_shape) for part in patch.weights},
        "aliases": {name: list(others) for name, others in patch.aliases.items()},
        "base": dict(patch.base),
    }
    write_tensors(path, _KIND, tensors, description)


def _checked(part: SparseWeights) -> SparseWeights:
    """Refuse what was made up: places outside of the parameter, in no order, or without a value."""
    places, count = part.indices, math.prod(part.full_shape)
    if places.dtype not in (torch.int32, torch.int64) or places.ndim != 1 or part.values.shape != places.shape:
        raise ValueError(f"'{part.name}' needs one place for each value")
    if len(places) and not (int(places[0]) >= 0 and int(places[-1]) < count and bool((places.diff() > 0).all())):
        raise ValueError(f"the places of '{part.name}' must ascend from 0 to at most {count - 1}")
    return part


def _check_names(patch: Patch) -> None:
    """Refuse names that base does not have, and digests that are no texts."""
    named = {part.name for part in patch.weights}.union(patch.aliases, *patch.aliases.values())
    if not named <= patch.base.keys() or not all(isinstance(digest, str) for digest in patch.base.values()):
        raise ValueError("every parameter of the patch needs the digest of its base")
