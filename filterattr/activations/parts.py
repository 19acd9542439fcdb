"""What a model or layer returns, taken apart: the activations in it, and what it would return for each node."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from filterattr.errors import SettingError


def parts_of(returned: Any, count: int) -> list[Any]:
    """Take apart what a model returned.

    Args:
        returned: A tensor with the samples first, or a tuple, list, mapping, namedtuple or dataclass of such; ``None``,
            texts and flags in it belong to every node.
        count: Number of nodes.

    Returns:
        One object a node, of the type of ``returned``.

    Raises:
        SettingError: There is something else in it.

    Example:
        >>> import torch
        >>> parts_of({"logits": torch.arange(4), "cache": None}, 2)
        [{'logits': tensor([0, 1]), 'cache': None}, {'logits': tensor([2, 3]), 'cache': None}]
    """
    if isinstance(returned, Tensor) and returned.ndim and len(returned) % count == 0:
        size = len(returned) // count
        return [returned[number * size : (number + 1) * size] for number in range(count)]
    if returned is None or isinstance(returned, str | bool):
        return [returned] * count
    if isinstance(returned, tuple | list):
        rows = zip(*(parts_of(value, count) for value in returned), strict=True) if returned else [()] * count
        return [_sequence(returned, row) for row in rows]
    if isinstance(returned, Mapping):
        return _rebuilt(returned, dict(returned), count)
    if dataclasses.is_dataclass(returned) and not isinstance(returned, type):
        return _rebuilt(returned, dict(_entries(returned)), count)
    got = f"shape {tuple(returned.shape)}" if isinstance(returned, Tensor) else type(returned).__name__
    raise SettingError(
        "several nodes in a pass need a model that returns tensors with the samples first, or tuples, lists, mappings "
        f"or dataclasses of them; got {got} for {count} nodes. Leave internal_batch_size out, or return a tensor "
        "with forward=."
    )


def activations_in(returned: Any) -> Tensor | None:
    """Find the activations in what a layer returns: the first floating tensor, as blocks of transformers put it first.

    Args:
        returned: A tensor, or a tuple, list, mapping or dataclass, which may hold others.

    Returns:
        The tensor, or ``None`` if there is none.

    Example:
        >>> import torch
        >>> activations_in((torch.ones(2, 3), None))
        tensor([[1., 1., 1.],
                [1., 1., 1.]])
    """
    if isinstance(returned, Tensor):
        return returned if returned.is_floating_point() and returned.ndim else None
    inside = (activations_in(value) for _, value in _entries(returned))
    return next((value for value in inside if value is not None), None)


def with_activations(returned: Any, activations: Tensor) -> Any:
    """Put other activations in the place of those that a layer returned.

    Args:
        returned: What `activations_in` found some in; it stays as it is.
        activations: The others.

    Returns:
        An object of the same type.

    Example:
        >>> import torch
        >>> with_activations({"hidden": torch.ones(1), "cache": None}, torch.zeros(1))
        {'hidden': tensor([0.]), 'cache': None}
    """
    if isinstance(returned, Tensor):
        return activations
    place = next(key for key, value in _entries(returned) if activations_in(value) is not None)
    values = dict(_entries(returned))
    values[place] = with_activations(values[place], activations)
    if isinstance(returned, tuple | list):
        return _sequence(returned, values.values())
    return _with_values(returned, values)


def _entries(returned: Any) -> list[tuple[Any, Any]]:
    """Places and values of a container."""
    if isinstance(returned, tuple | list):
        return list(enumerate(returned))
    if isinstance(returned, Mapping):
        return list(returned.items())
    if dataclasses.is_dataclass(returned) and not isinstance(returned, type):
        return [(part.name, getattr(returned, part.name)) for part in dataclasses.fields(returned)]
    return []


def _sequence(returned: Any, items: Any) -> Any:
    """A namedtuple takes its items one by one."""
    return type(returned)(*items) if hasattr(returned, "_fields") else type(returned)(items)


def _rebuilt(returned: Any, values: Mapping[Any, Any], count: int) -> list[Any]:
    """Copies of a mapping or dataclass with other values: a constructor may want anything."""
    parts = {key: parts_of(value, count) for key, value in values.items()}
    return [_with_values(returned, {key: value[number] for key, value in parts.items()}) for number in range(count)]


def _with_values(returned: Any, values: Mapping[Any, Any]) -> Any:
    other = copy.copy(returned)
    for key, value in values.items():
        if isinstance(other, Mapping):
            other[key] = value  # type: ignore[index]
        else:
            object.__setattr__(other, key, value)  # it may be frozen
    return other
