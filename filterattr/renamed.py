"""Arguments that have a new name: the old one works for one release and says so."""

from __future__ import annotations

import warnings
from typing import TypeVar

from filterattr.errors import SettingError

V = TypeVar("V")


def renamed(old: str, value: V | None, new: str, given: V | None, *, stacklevel: int = 3) -> V | None:
    """Take the value of an argument under its old or its new name.

    Args:
        old: The old name.
        value: What was given under it; ``None`` if nothing was.
        new: The new name.
        given: What was given under that.
        stacklevel: Which frame the warning points to: 3 is the caller of the function that calls this one.

    Returns:
        The value.

    Raises:
        SettingError: There is one under both names.

    Example:
        >>> renamed("quadrature", None, "method", "riemann_left")
        'riemann_left'
    """
    if value is None:
        return given
    if given is not None:
        raise SettingError(f"{old}= is the old name of {new}=; got {value!r} and {given!r}. Give {new}= alone.")
    warnings.warn(
        f"{old}= is called {new}= since version 0.2: say {new}={value!r}. The old name works until 0.3.",
        FutureWarning,
        stacklevel=stacklevel,
    )
    return value
