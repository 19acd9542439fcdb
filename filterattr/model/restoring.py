"""What was changed is given back whatever happens, an interrupt while it is given back included."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")


def restoring(work: Callable[[], Answer], *give_back: Callable[[], object]) -> Answer:
    """Do something, and give everything back afterwards, twice.

    An interrupt can arrive at any instruction. One in the first ``finally`` leaves the second one to do its work, so
    that every step of giving back must be one that does no harm when it is done again. No ``with`` block can do this:
    an interrupt between its ``__enter__`` and its body skips its ``__exit__``.

    Args:
        work: What is done; all that must be given back is changed in here.
        give_back: What gives it back, in order; each does no harm twice, nor if nothing was changed.

    Returns:
        What ``work`` returns.

    Example:
        >>> given_back = []
        >>> restoring(lambda: "done", lambda: given_back.append("a"), lambda: given_back.append("b"))
        'done'
        >>> given_back
        ['a', 'b', 'a', 'b']
    """
    try:
        try:
            return work()
        finally:
            for give in give_back:
                give()
    finally:
        for give in give_back:
            give()
