"""The difference between two checkpoints, parameter by parameter, read from the disk in parts."""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from filterattr.analysis.record import Record, Row
from filterattr.errors import StateMismatchError, name_some
from filterattr.files.lazy import StoredTensor, stored_weights
from filterattr.jobs.progress import Progress, counted

Array: TypeAlias = NDArray[Any]
_SPAN = 2**22  # weights that a thread opens both files for
_PART = 2**18  # weights in a part: two of them and their difference stay in the cache of a processor
_ROW = 2**13
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

    At most four threads read safetensors files and shards part by part. Files of `torch.save` are read completely.

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
        sums = _in_order(_spans((ends[0][name], ends[1][name]) for name in both))
        for name in both:
            group = groups.setdefault(name if depth is None else ".".join(name.split(".")[:depth]), _Sums())
            for _ in range(0, ends[0][name].numel, _SPAN):
                group.add(next(sums))
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
    """Sums over the spans of the parameters."""

    def __init__(self, count: int = 0) -> None:
        self.count, self.changed = count, 0
        self.squares = self.lengths = self.largest = 0.0

    def add(self, other: _Sums) -> None:
        """Add those of other weights."""
        self.count += other.count
        self.changed += other.changed
        self.squares += other.squares
        self.lengths += other.lengths
        self.largest = max(self.largest, other.largest)

    def add_part(self, first: Array, second: Array, unequal: Array, difference: Array) -> None:
        """Add weights, a row each; the last two are memory for as many marks and numbers."""
        changed = _n_rows(np.not_equal(first, second, out=unequal))
        lengths, squares = _squared_length(first.reshape(-1)), 0.0
        if changed:
            squares = _squared_length(np.subtract(second, first, out=difference).reshape(-1))
        if not math.isfinite(squares + lengths):
            self._add_oddities(first.astype(np.float64), second.astype(np.float64))
            return
        self.changed += changed
        self.lengths += lengths
        if changed:  # tiny numbers have squares of 0
            self.squares += squares
            self.largest = max(self.largest, float(difference.max()), -float(difference.min()))

    def _add_oddities(self, first: Array, second: Array) -> None:
        """Count infinite and NaN weights separately, as they have no norm."""
        odd = ~(np.isfinite(first) & np.isfinite(second))
        unequal = (first != second) & ~(np.isnan(first) & np.isnan(second))
        first = np.where(odd, 0.0, first)
        difference = np.where(odd, 0.0, second) - first
        self.changed += _n_rows(unequal)
        self.squares += _squared_length(difference.reshape(-1))
        self.lengths += _squared_length(first.reshape(-1))
        self.largest = max(self.largest, math.inf if (odd & unequal).any() else float(np.abs(difference).max()))

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


@dataclass(frozen=True)
class _Span:
    """Weights of one parameter, which one thread reads and compares."""

    first: StoredTensor
    second: StoredTensor
    begin: int
    end: int

    def sums(self) -> _Sums:
        """Read and compare them."""
        sums, wide = _Sums(self.end - self.begin), self.first.dtype in _WIDE or self.second.dtype in _WIDE
        memory, marks, numbers = _memory()
        unequal, difference = marks.numpy(), numbers.view(torch.float64 if wide else torch.float32).numpy()
        ends = zip((self.first, self.second), memory, strict=True)
        parts = (end.parts(_PART, self.begin, self.end, memory=held) for end, held in ends)
        with np.errstate(all="ignore"):  # infinite squares are seen afterwards
            for pair in zip(*parts, strict=True):
                first, second = (_as_numbers(part, wide=wide) for part in pair)
                shaped = (held[: first.size].reshape(first.shape) for held in (unequal, difference))
                sums.add_part(first, second, *shaped)
        return sums


_HELD = threading.local()


def _memory() -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """Bytes for a part of both ends, marks, and bytes for differences: a thread takes the same ones again."""
    if not hasattr(_HELD, "memory"):
        ends = tuple(torch.empty(16 * _PART, dtype=torch.uint8, device="cpu") for _ in range(2))
        marks = torch.empty(2 * _PART, dtype=torch.bool, device="cpu")  # complex numbers are two
        _HELD.memory = ends, marks, torch.empty(16 * _PART, dtype=torch.uint8, device="cpu")
    held: tuple[tuple[Tensor, Tensor], Tensor, Tensor] = _HELD.memory
    return held


def _spans(pairs: Iterable[tuple[StoredTensor, StoredTensor]]) -> Iterator[_Span]:
    for first, second in pairs:
        yield from (_Span(first, second, k, min(k + _SPAN, first.numel)) for k in range(0, first.numel, _SPAN))


def _in_order(spans: Iterable[_Span]) -> Iterator[_Sums]:
    """Compare in several threads: one waits for the disk while another one computes."""
    pool = ThreadPoolExecutor(_threads())
    waiting: deque[Future[_Sums]] = deque()
    try:
        for span in spans:
            waiting.append(pool.submit(span.sums))
            if len(waiting) > 2 * _threads():
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _threads() -> int:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(4, max(2, allowed))


def _n_rows(marks: Array) -> int:
    """How many weights are marked; a complex one has two marks."""
    return int(np.count_nonzero(marks if marks.ndim == 1 else marks.any(axis=1)))


def _squared_length(values: Array) -> float:
    """The sum of squares, row by row: rows are too short for BLAS to start threads, and their sums exact enough."""
    n_rows = len(values) // _ROW
    rows, rest = values[: n_rows * _ROW].reshape(n_rows, 1, _ROW), values[n_rows * _ROW :]
    return float(np.matmul(rows, rows.transpose(0, 2, 1)).sum(dtype=np.float64)) + float(np.dot(rest, rest))


def _as_numbers(values: Tensor, *, wide: bool) -> Array:
    """The values as real numbers of sufficient precision, two in a row for a complex one; float32 is not copied."""
    if values.is_complex():
        values = torch.view_as_real(values.resolve_conj())
    numbers: Array = values.to(torch.float64 if wide else torch.float32).numpy()
    return numbers


def _ratio(squares: float, lengths: float) -> float:
    if not squares:
        return 0.0
    return math.sqrt(squares / lengths) if lengths else math.inf


def _other_shapes(first: Mapping[str, StoredTensor], second: Mapping[str, StoredTensor]) -> dict[str, str]:
    shapes = {name: (tensor.shape, second[name].shape) for name, tensor in first.items() if name in second}
    return {name: f"{before} and {after}" for name, (before, after) in shapes.items() if before != after}
