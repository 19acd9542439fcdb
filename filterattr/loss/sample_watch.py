"""A sample is the same at every node: the loss gets new containers, and writes to the sample are found."""

from __future__ import annotations

import copy
from collections import UserDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from operator import is_
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from filterattr.errors import LossError

_PLAIN = (Tensor, bool, int, float, complex, str, bytes, type(None), np.ndarray)


def fresh(value: Any) -> Any:
    """Copy mappings, lists, sets and data classes, however deep, with the same tensors in them.

    Args:
        value: A sample, or a part of one.

    Returns:
        An equal value of the same class; itself where nothing can be added or taken away.

    Example:
        >>> batch = {"x": torch.ones(2), "labels": [1, 2]}
        >>> fresh(batch)["labels"].pop()
        2
        >>> batch["labels"], fresh(batch)["x"] is batch["x"]
        ([1, 2], True)
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is dict:
        return {key: fresh(part) for key, part in value.items()}
    if kind in (list, set, deque):
        return kind(map(fresh, value)) if kind is not set else set(value)
    if isinstance(value, tuple):
        parts = [fresh(part) for part in value]
        if all(map(is_, parts, value)):
            return value
        return value._make(parts) if hasattr(value, "_make") else tuple(parts) if kind is tuple else value
    if isinstance(value, dict | list | UserDict | SimpleNamespace) or (
        is_dataclass(value) and not isinstance(value, type)
    ):
        return _copied(value)
    return value


def _copied(value: Any) -> Any:
    """A copy of an object of another class; itself if its class cannot be copied."""
    try:
        copied = copy.copy(value)
        for key, part in _items(value):
            renewed = fresh(part)
            if renewed is part:
                continue
            if isinstance(value, dict | list | UserDict):
                copied[key] = renewed
            else:
                object.__setattr__(copied, key, renewed)
    except Exception:  # noqa: BLE001 - a class of the user's may do anything; a second look finds what matters
        return value
    return copied


def _items(value: Any) -> list[tuple[Any, Any]]:
    """What lies in a container or a data class, with what leads to it; nothing for everything else."""
    if isinstance(value, dict | UserDict):
        return list(value.items())
    if isinstance(value, list | tuple | deque):
        return list(enumerate(value))
    if isinstance(value, SimpleNamespace):
        return list(vars(value).items())
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in fields(value) if hasattr(value, field.name)]
    return []


@dataclass
class _Watched:
    """A tensor or an array of a sample, and what it held after an evaluation that wrote to it."""

    name: str
    value: Any
    version: int = 0
    content: Any = None

    def compare(self) -> None:
        """Refuse what is another value than the last time."""
        if self.content is None:
            self.content = self.value.detach().clone() if isinstance(self.value, Tensor) else self.value.copy()
        elif not _equal(self.content, self.value):
            raise LossError(
                f"the loss must leave its sample as it is, but writes to {self.name}: every evaluation gets what the "
                f"last one has made of it. Work on a copy (x.{'clone' if isinstance(self.value, Tensor) else 'copy'}()"
                "), or with functions that return a new tensor, such as x.sub(...) instead of x.sub_(...)."
            )


class SampleWatch:
    """Find that a loss writes to its sample, so that every evaluation gets another one.

    Version counters tell of a write, the contents after two of them whether it matters: to write the same again, as
    ``clamp_`` does, does not. Arrays have no such counters, and are compared after the first two evaluations.

    Args:
        arguments: What the loss gets after the model.
        index: Number of the sample, for the message.
        with_arrays: Whether arrays are compared, too.

    Example:
        >>> image = torch.ones(2)
        >>> watch = SampleWatch(({"image": image},), 0)
        >>> for _ in range(2):
        ...     _ = image.sub_(0.5)
        ...     watch.check()
        Traceback (most recent call last):
        ...
        filterattr.errors.LossError: the loss must leave its sample as it is, but writes to sample 0 ['image']: ...
    """

    def __init__(self, arguments: tuple[Any, ...], index: int, *, with_arrays: bool = False) -> None:
        self._tensors: list[_Watched] = []
        self._arrays: list[_Watched] = []
        for argument in arguments:
            for place, value in _leaves(argument):
                name = f"sample {index} {place}".rstrip()
                if isinstance(value, Tensor):
                    self._tensors.append(_Watched(name, value, value._version))
                elif with_arrays:
                    self._arrays.append(_Watched(name, value))

    def check(self) -> None:
        """Look at the sample after an evaluation.

        Raises:
            LossError: It is another one after every evaluation; the entry is named.
        """
        for watched in self._tensors:
            if watched.value._version != watched.version:
                watched.version = watched.value._version
                watched.compare()
        is_second = any(watched.content is not None for watched in self._arrays)
        for watched in self._arrays:
            watched.compare()
        if is_second:
            self._arrays = []


def _equal(first: Any, second: Any) -> bool:
    """Whether two values are equal, bit for bit in arrays."""
    if isinstance(first, Tensor):
        return first.shape == second.shape and bool(torch.equal(first, second.detach()))
    return bool(first.tobytes() == second.tobytes())


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the tensors and arrays of a sample that can be written to, each with its place."""
    if isinstance(value, Tensor):
        if not value.is_inference():
            yield name, value
    elif isinstance(value, np.ndarray):
        if value.flags.writeable and not value.dtype.hasobject:
            yield name, value
    else:
        is_object = isinstance(value, SimpleNamespace) or is_dataclass(value)
        for key, part in _items(value):
            yield from _leaves(part, f"{name}.{key}" if is_object else f"{name}[{key!r}]")
