"""What is scored, and the numbers of an attribution, as a file describes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from filterattr.errors import StorageError
from filterattr.units.unit import ScoredParameter, Unit

# name of a field of an attribution to what a file must hold for it; a list becomes a tuple
_PLAIN: dict[str, type] = {
    "loss_base": float,
    "loss_target": float,
    "remainder": float,
    "total": float,
    "completeness_error": float,
    "path_places": list,
    "path_losses": list,
    "cosine": float,
    "n_samples": int,
    "n_passes": int,
    "method": str,
    "n_steps": int,
    "n_segments": int,
    "aggregate": str,
    "n_unsettled": int,
}

# those after agreement came after version 0.1
_OPTIONAL: dict[str, type] = {
    "precision": str,
    "tolerance": float,
    "agreement": float,
    "unscored_abs": float,
    "true_loss_base": float,
    "true_loss_target": float,
}

FIELDS = (*_PLAIN, *_OPTIONAL)


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


def fields_of(description: Mapping[str, Any]) -> dict[str, Any]:
    """Take the plain fields of an attribution out of a description.

    Args:
        description: It may come from a forged file, or from one of an older version.

    Returns:
        Name of the field to value.

    Raises:
        KeyError, TypeError: A field is missing, or of another type; see `complete`.
    """
    fields = {name: _plain(name, description[name]) for name in _PLAIN}
    return fields | {name: _optional(name, description.get(name)) for name in _OPTIONAL}


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


def _plain(name: str, value: Any) -> Any:
    """Check one plain field of a file."""
    items = value if isinstance(value, list) else [value]
    kind = _PLAIN[name]
    if isinstance(value, list) != (kind is list) or not all(
        type(item) is (float if kind is list else kind) for item in items
    ):
        raise TypeError(f"{name} must be {kind.__name__}")
    return tuple(value) if kind is list else value


def _optional(name: str, value: Any) -> Any:
    """Check one field that may be missing in the result, and in the file of an older version."""
    if value is not None and type(value) is not _OPTIONAL[name]:
        raise TypeError(f"{name} must be {_OPTIONAL[name].__name__}")
    return value
