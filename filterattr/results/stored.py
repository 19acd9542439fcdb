"""What is scored, as a file describes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from filterattr.errors import StorageError
from filterattr.units.unit import ScoredParameter, Unit


def described(parameters: Mapping[str, ScoredParameter]) -> list[list[Any]]:
    """Turn parameters into JSON.

    Args:
        parameters: Parameter name to how it is scored.

    Returns:
        One list a parameter, for `parameters_of`.
    """
    return [
        [name, scored.unit.pattern, dict(scored.unit.sizes), list(scored.shape), scored.group]
        for name, scored in parameters.items()
    ]


def parameters_of(description: Mapping[str, Any]) -> dict[str, ScoredParameter]:
    """Undo `described`.

    Args:
        description: Holds it under ``"parameters"``; it may come from a forged file.

    Returns:
        Parameter name to how it is scored.

    Raises:
        TypeError, ValueError, KeyError: It is no such description; see `complete`.
    """
    parameters = {}
    for name, pattern, sizes, shape, group in description["parameters"]:
        if not isinstance(name, str) or not isinstance(pattern, str) or not isinstance(group, str | None):
            raise TypeError("names and patterns must be texts")
        parameters[name] = ScoredParameter(Unit(pattern, dict(sizes)), tuple(shape), group)
    if not parameters:
        raise ValueError("no parameters")
    return parameters


def stored_tensor(tensors: Mapping[str, Tensor], key: str, shape: torch.Size, dtype: torch.dtype | None) -> Tensor:
    """Take one tensor out of a file's content, if it fits its units.

    Args:
        tensors: The content.
        key: Name of the tensor.
        shape: The shape it must have.
        dtype: The type it must have; ``None`` for any.

    Returns:
        The tensor.

    Raises:
        KeyError, ValueError: It is missing, or another one; see `complete`.
    """
    tensor = tensors[key]
    if tensor.shape != shape or dtype not in (None, tensor.dtype):
        raise ValueError(f"'{key}' is {tensor.dtype} of shape {tuple(tensor.shape)}")
    return tensor


@contextmanager
def complete(path: str | Path, kind: str) -> Iterator[None]:
    """Refuse whatever does not fit together: a file whose digest is right can still be made up.

    Args:
        path: The file.
        kind: What it should be, for the message.

    Raises:
        StorageError: Anything in the block failed.
    """
    try:
        yield
    except (ArithmeticError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise StorageError(f"'{path}' is not a complete {kind}: {error!r}.") from error
