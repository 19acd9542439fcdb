"""The difference between two checkpoints, parameter by parameter, read from the disk in parts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from filterattr.analysis.record import Record, Row
from filterattr.errors import StateMismatchError, name_some
from filterattr.files.lazy import StoredTensor, stored_weights
from filterattr.jobs.progress import Progress, counted

_PART = 2**18  # weights in a part: two of them and their difference stay in the cache of a processor
_WIDE = (torch.float64, torch.complex64, torch.complex128, torch.int32, torch.int64, torch.uint32, torch.uint64)


@dataclass(frozen=True)
class ParameterChange:
    """The difference in one parameter, or in a group of parameters.

    Attributes:
        name: Name of the parameter, or the common beginning of the names in the group.
        n_weights: Number of weights.
        changed: Share of the weights that are not equal, in [0, 1].
        relative: Norm of the difference divided by the norm of the weights of the first checkpoint; infinite if these
            are 0.
        share: Its share of the squared norm of the difference of all parameters, in [0, 1].
        largest: The largest change of one weight.
    """

    name: str
    n_weights: int
    changed: float
    relative: float
    share: float
    largest: float


@dataclass(frozen=True)
class CheckpointDifference(Record):
    """The difference between two checkpoints.

    Attributes:
        entries: One row per parameter that both checkpoints have in the same shape, from the largest share to the
            smallest.
        only_first: Names that only the first checkpoint has.
        only_second: Names that only the second checkpoint has.
        other_shapes: Name to both shapes, as text, where the shapes differ.
        relative: Norm of the difference of all weights divided by the norm of the weights of the first checkpoint.
        n_bytes: Number of bytes that were compared, of both files together.
    """

    entries: tuple[ParameterChange, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    other_shapes: Mapping[str, str]
    relative: float
    n_bytes: int

    @property
    def is_equal(self) -> bool:
        """Whether both checkpoints hold the same names, shapes and values."""
        is_same = not self.only_first and not self.only_second and not self.other_shapes
        return is_same and all(not entry.changed for entry in self.entries)

    def rows(self) -> list[Row]:
        """One row per parameter."""
        return [dict(vars(entry)) for entry in self.entries]


def compare_checkpoints(
    first: str | Path,
    second: str | Path,
    *,
    key: str | None = None,
    depth: int | None = None,
    progress: Progress = None,
) -> CheckpointDifference:
    """Compare two checkpoints weight by weight.

    Safetensors files and shards are read part by part. Files of `torch.save` are read completely.

    Args:
        first: A file, or a folder as Hugging Face libraries write it.
        second: The file or folder to compare it with.
        key: The entry of `torch.save` files that holds the weights, as for `filterattr.load_state`.
        depth: Group the parameters by this many leading parts of their names; ``None`` does not group them.
        progress: As for `FilterAttributor.attribute`, counted in parameters.

    Returns:
        The differences, the largest first. Values are compared, not bits: -0 equals 0, and NaN equals NaN.

    Raises:
        StorageError: A file is missing or damaged, or holds something other than tensors.
        StateMismatchError: The checkpoints have no parameter of the same shape in common.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> torch.save({"a": torch.ones(4), "b": torch.ones(2)}, folder / "first.pt")
        >>> torch.save({"a": torch.tensor([1.0, 1.0, 1.0, 3.0]), "b": torch.ones(2)}, folder / "second.pt")
        >>> compare_checkpoints(folder / "first.pt", folder / "second.pt").entries[0]
        ParameterChange(name='a', n_weights=4, changed=0.25, relative=1.0, share=1.0, largest=2.0)
    """
    ends = stored_weights(first, key=key), stored_weights(second, key=key)
    both = [name for name in ends[0] if name in ends[1] and ends[0][name].shape == ends[1][name].shape]
    if not both:
        raise StateMismatchError(
            f"both checkpoints must have parameters in common; '{first}' has {name_some(ends[0]) or 'none'}, "
            f"'{second}' {name_some(ends[1]) or 'none'}."
        )
    groups: dict[str, _Sums] = {}
    with counted(progress, len(both), "parameter", title="comparing") as step:
        for name in both:
            group = name if depth is None else ".".join(name.split(".")[:depth])
            groups.setdefault(group, _Sums()).add(ends[0][name], ends[1][name])
            step()
    total = math.fsum(sums.squares for sums in groups.values())
    entries = [sums.entry(name, total) for name, sums in groups.items()]
    return CheckpointDifference(
        tuple(sorted(entries, key=lambda entry: -entry.share)),
        tuple(name for name in ends[0] if name not in ends[1]),
        tuple(name for name in ends[1] if name not in ends[0]),
        _other_shapes(*ends),
        _ratio(total, math.fsum(sums.lengths for sums in groups.values())),
        sum(end[name].nbytes for end in ends for name in both),
    )


class _Sums:
    """Sums over the parts of the parameters."""

    def __init__(self) -> None:
        self.count = self.changed = 0
        self.squares = self.lengths = self.largest = 0.0

    def add(self, first: StoredTensor, second: StoredTensor) -> None:
        """Add one parameter."""
        self.count += first.numel
        wide = first.dtype in _WIDE or second.dtype in _WIDE
        for part, other in zip(first.parts(_PART), second.parts(_PART), strict=True):
            self._add_part(_as_numbers(part, wide=wide), _as_numbers(other, wide=wide))

    def _add_part(self, first: Tensor, second: Tensor) -> None:
        difference = second - first
        squares, lengths = float(torch.dot(difference, difference)), float(torch.dot(first, first))
        if not math.isfinite(squares + lengths):
            first, difference = self._without_oddities(first.double(), second.double())
            squares, lengths = float(torch.dot(difference, difference)), float(torch.dot(first, first))
        self.lengths += lengths
        if squares or bool(difference.any()):  # tiny numbers have squares of 0
            least, most = torch.aminmax(difference)
            self.changed += int(np.count_nonzero(difference.numpy() != 0))  # several times as fast as PyTorch's
            self.squares += squares
            self.largest = max(self.largest, float(most), -float(least))

    def _without_oddities(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Count infinite and NaN weights separately, as they have no norm."""
        odd = ~(first.isfinite() & second.isfinite())
        odd_first, odd_second = first[odd], second[odd]
        changed = int(((odd_first != odd_second) & ~(odd_first.isnan() & odd_second.isnan())).sum())
        self.changed += changed
        self.largest = math.inf if changed else self.largest
        first = torch.where(odd, 0.0, first)
        return first, torch.where(odd, 0.0, second) - first

    def entry(self, name: str, total: float) -> ParameterChange:
        """The row of a group."""
        return ParameterChange(
            name,
            self.count,
            self.changed / max(1, self.count),
            _ratio(self.squares, self.lengths),
            self.squares / total if total else 0.0,
            self.largest,
        )


def _as_numbers(values: Tensor, *, wide: bool) -> Tensor:
    """The values as real numbers of sufficient precision; float32 is not copied."""
    if values.is_complex():
        values = torch.view_as_real(values.resolve_conj()).reshape(-1)
    return values.to(torch.float64 if wide else torch.float32)


def _ratio(squares: float, lengths: float) -> float:
    if not squares:
        return 0.0
    return math.sqrt(squares / lengths) if lengths else math.inf


def _other_shapes(first: Mapping[str, StoredTensor], second: Mapping[str, StoredTensor]) -> dict[str, str]:
    shapes = {name: (tensor.shape, second[name].shape) for name, tensor in first.items() if name in second}
    return {name: f"{before} and {after}" for name, (before, after) in shapes.items() if before != after}
