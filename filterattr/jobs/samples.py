"""Samples as people have them: iterables, and data sets that know their length and give one item after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeGuard

from torch import Tensor

from filterattr.errors import SettingError


def series(data: Any, role: str = "data") -> Iterable[Any]:
    """Make samples iterable.

    Args:
        data: An iterable, or what has ``__getitem__`` and ``__len__``, such as a map-style data set of PyTorch.
        role: What it is called in messages.

    Returns:
        The same if it is an iterable, and else its items 0, 1, ... up to its length.

    Raises:
        SettingError: It is neither, or a mapping or text, which are single samples.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> list(series(TensorDataset(torch.arange(2))))
        [(tensor(0),), (tensor(1),)]
    """
    if isinstance(data, Mapping | str | bytes):
        raise SettingError(
            f"{role} must be an iterable of samples, such as a list or a DataLoader; got {type(data).__name__}. If "
            f"that is one sample, pass it in a list: {role}=[sample]."
        )
    if isinstance(data, Iterable):
        return data
    if not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        missing = " without a length (__len__)" if hasattr(data, "__getitem__") else ""
        raise SettingError(
            f"{role} must be an iterable of samples, or a data set with __getitem__ and __len__; got "
            f"{type(data).__name__}{missing}. Pass a list, a DataLoader, or a generator of samples."
        )
    return _Items(data)


class _Items:
    """The items of a data set, from the beginning in every loop."""

    def __init__(self, data: Any) -> None:
        self._data = data

    def __iter__(self) -> Iterator[Any]:
        return (self._data[index] for index in range(len(self._data)))

    def __len__(self) -> int:
        return len(self._data)


def pair_note(data: object) -> str | None:
    """What to say where inputs and labels were passed beside each other, and the loss could not use one alone.

    Args:
        data: What was passed as samples.

    Returns:
        A note for an error, or ``None`` if the samples do not look like that.
    """
    if not isinstance(data, tuple) and not _are_columns(data):
        return None
    return (
        f"filterattr: data is a {type(data).__name__} of {len(data)}, and every item of it is one sample. A sample of "
        "several parts is passed as data=[(x, y)]; where every row of x and y is a sample, pass data=list(zip(x, y))."
    )


def _are_columns(data: object) -> TypeGuard[list[Tensor]]:
    """Whether a list holds tensors of equal length but different kinds, such as inputs and labels."""
    if not isinstance(data, list) or len(data) < 2 or not all(isinstance(item, Tensor) and item.ndim for item in data):
        return False
    return len({len(item) for item in data}) == 1 and len({(item.dtype, item.shape[1:]) for item in data}) > 1


class Sample(NamedTuple):
    """One sample on its way to a computation.

    Attributes:
        arguments: What the loss gets after the model.
        seed: Seed of its randomness.
        number: Its place in the data.
    """

    arguments: tuple[Any, ...]
    seed: int
    number: int
