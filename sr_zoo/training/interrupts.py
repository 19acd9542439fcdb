"""Ctrl-C between two iterations, not inside of one: what is saved then is a state that the training goes on from."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class TrainingInterrupted(KeyboardInterrupt):
    """The user stopped a training, and it was saved; the message says how to go on.

    Example:
        >>> issubclass(TrainingInterrupted, KeyboardInterrupt)
        True
    """


@contextmanager
def noted_interrupt() -> Iterator[Callable[[], bool]]:
    """Take note of the first Ctrl-C instead of stopping at once; a second one stops at once.

    Only the main thread hears of Ctrl-C; in others, and where it is ignored, nothing is changed.

    Yields:
        A function that says whether there was one.

    Example:
        >>> with noted_interrupt() as is_interrupted:
        ...     signal.raise_signal(signal.SIGINT)
        ...     print(is_interrupted())
        True
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield lambda: False
        return
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if noted:
            before(number, frame)
        noted.append(number)
        sys.stderr.write("\nfinishing this iteration, then saving; Ctrl-C again stops at once\n")

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(noted)
    finally:
        signal.signal(signal.SIGINT, before)
