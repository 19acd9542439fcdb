"""What a model returned for several nodes in one pass, taken apart into what it would return for each."""

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
        fields = {field.name: getattr(returned, field.name) for field in dataclasses.fields(returned)}
        return _rebuilt(returned, fields, count)
    got = f"shape {tuple(returned.shape)}" if isinstance(returned, Tensor) else type(returned).__name__
    raise SettingError(
        "several nodes in a pass need a model that returns tensors with the samples first, or tuples, lists, mappings "
        f"or dataclasses of them; got {got} for {count} nodes. Leave internal_batch_size out, or return a tensor "
        "with forward=."
    )


def _sequence(returned: Any, items: Any) -> Any:
    """A namedtuple takes its items one by one."""
    return type(returned)(*items) if hasattr(returned, "_fields") else type(returned)(items)


def _rebuilt(returned: Any, values: Mapping[Any, Any], count: int) -> list[Any]:
    """Copies of a mapping or dataclass with other values: a constructor may want anything."""
    parts = {key: parts_of(value, count) for key, value in values.items()}
    copies = [copy.copy(returned) for _ in range(count)]
    for number, part in enumerate(copies):
        for key, value in parts.items():
            if isinstance(part, Mapping):
                part[key] = value[number]  # type: ignore[index]
            else:
                object.__setattr__(part, key, value[number])  # it may be frozen
    return copies
