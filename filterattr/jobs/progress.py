"""Progress of long work: a bar, a user's function, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

Progress: TypeAlias = bool | Callable[[int, int | None], None] | None

_BAR_AFTER_SECONDS = 2.0


@contextmanager
def counted(
    progress: Progress, total: int | None, what: str, done: int = 0, *, title: str | None = None
) -> Iterator[Callable[[], None]]:
    """Show how far a job is.

    Args:
        progress: ``True`` or ``False`` for a bar, a function of ``(done, total)``, or ``None`` for a bar in terminals
            after two seconds.
        total: Number of steps of the whole job, if it is known before it starts.
        what: What a step is called.
        done: Steps that are done already.
        title: What stands before the bar.

    Yields:
        A function to call after every step.

    Example:
        >>> seen = []
        >>> with counted(lambda done, total: seen.append((done, total)), 2, "draw") as step:
        ...     step()
        ...     step()
        >>> seen
        [(1, 2), (2, 2)]
    """
    if callable(progress):
        count = done

        def report() -> None:
            nonlocal count
            count += 1
            progress(count, total)

        yield report
        return
    try:
        if progress is False:
            raise ImportError
        from tqdm.auto import tqdm  # noqa: PLC0415 - optional
    except ImportError:
        yield lambda: None
        return
    disable = None if progress is None else False
    delay = _BAR_AFTER_SECONDS if progress is None else 0
    with tqdm(total=total, initial=done, desc=title, unit=what, disable=disable, delay=delay) as bar:

        def advance() -> None:
            bar.update(1)

        yield advance
