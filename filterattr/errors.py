"""Every error and warning that `filterattr` raises on purpose: one root, a handful of children."""

from __future__ import annotations

from collections.abc import Iterable

import torch


class FilterAttrError(Exception):
    """Root of all errors of this library; catch it to catch them all."""


class StateMismatchError(FilterAttrError, ValueError):
    """The end points do not fit each other or the model; the message names every parameter concerned."""


class UnsupportedModelError(FilterAttrError, TypeError):
    """The model is of a kind whose weights cannot be exchanged; the message names the module."""


class LossError(FilterAttrError, ValueError):
    """The loss did not return one finite real scalar that depends on the model."""


class NonFiniteError(FilterAttrError, ArithmeticError):
    """A weight, a loss or a gradient is infinite or not a number."""


class UnitError(FilterAttrError, ValueError):
    """A unit does not fit the parameters it is meant for, or no parameter is scored at all."""


class SettingError(FilterAttrError, ValueError):
    """An argument is outside the values it can take."""


class ModelChangedError(FilterAttrError, RuntimeError):
    """Somebody replaced a parameter of the model while an attribution was running."""


class StorageError(FilterAttrError, ValueError):
    """A file cannot be written, is damaged, or is not one of ours."""


class DistributedError(FilterAttrError, RuntimeError):
    """Another process of a shared job failed, died, or was given something else; all processes stop."""


class FilterAttrWarning(UserWarning):
    """Something that does not stop the computation but that its reader must know."""


def name_some(names: Iterable[object], limit: int = 5) -> str:
    """List at most ``limit`` names for a message, and count the rest.

    Args:
        names: What to list.
        limit: How many to spell out.

    Returns:
        ``"'a', 'b' and 3 more"``.

    Example:
        >>> name_some(["a", "b", "c"], limit=2)
        "'a', 'b' and 1 more"
    """
    names = list(names)
    listed = ", ".join(repr(str(name)) for name in names[:limit])
    return f"{listed} and {len(names) - limit} more" if len(names) > limit else listed


def is_out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch or Python ran out of memory; the CPU's allocator has no type of its own for that.

    Args:
        error: What was raised.
    """
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        part in str(error) for part in ("DefaultCPUAllocator", "not enough memory", "can't allocate memory")
    )
