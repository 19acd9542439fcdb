"""Progress of long evaluations: a bar, a user's function, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from filterattr.attribution import Progress

_BAR_AFTER_SECONDS = 2.0


@contextmanager
def counted(progress: Progress, total: int, what: str, done: int = 0) -> Iterator[Callable[[], None]]:
    """Show how far a job is.

    Args:
        progress: As in `FilterAttributor.attribute`: ``True`` or ``False`` for a bar, a function of ``(done, total)``,
            or ``None`` for a bar in terminals after two seconds.
        total: Number of steps of the whole job: what it costs, known before it starts.
        what: What a step is called.
        done: Steps that are done already.

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
    if progress is False or find_spec("tqdm") is None:
        yield lambda: None
        return
    from tqdm.auto import tqdm  # noqa: PLC0415 - optional

    disable = None if progress is None else False
    delay = _BAR_AFTER_SECONDS if progress is None else 0
    with tqdm(total=total, initial=done, unit=what, disable=disable, delay=delay) as bar:

        def advance() -> None:
            bar.update(1)

        yield advance
