"""Every error and warning that `filterattr` raises on purpose: one root, a handful of children."""

from __future__ import annotations

from collections.abc import Iterable


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
    """A parameter of the model was replaced while an attribution was running."""


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
    return listed((repr(str(name)) for name in names), limit)


def listed(texts: Iterable[str], limit: int = 5) -> str:
    """List at most ``limit`` texts for a message, and count the rest.

    Args:
        texts: What to list.
        limit: How many to spell out.

    Example:
        >>> listed(["4x4", "5x5", "6x6"], limit=1)
        '4x4 and 2 more'
    """
    texts = list(texts)
    spelt = ", ".join(texts[:limit])
    return f"{spelt} and {len(texts) - limit} more" if len(texts) > limit else spelt


def gathered(findings: Iterable[str], limit: int = 5) -> str:
    """Join at most ``limit`` findings to one text for an error, and count the rest.

    Args:
        findings: Parts of a sentence.
        limit: How many to spell out.

    Example:
        >>> gathered(["'a' has no shape", "'b' is scripted", "'c' is sharded"], limit=2)
        "'a' has no shape; 'b' is scripted; and 1 more"
    """
    findings = list(findings)
    more = [f"and {len(findings) - limit} more"] if len(findings) > limit else []
    return "; ".join([*findings[:limit], *more])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch or Python ran out of memory; the CPU's allocator has no type of its own for that.

    Args:
        error: What was raised.
    """
    import torch  # noqa: PLC0415 - errors are known before PyTorch is

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        part in str(error) for part in ("DefaultCPUAllocator", "not enough memory", "can't allocate memory")
    )
