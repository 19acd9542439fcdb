"""Ctrl-C between two iterations, not inside of one: what is saved then is a state that the training goes on from."""

from __future__ import annotations

import signal
import sys
import threading
import time
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
def noted_interrupt(*, is_quiet: bool = False, repeats_within: float = 0.0) -> Iterator[Callable[[], bool]]:
    """Take note of the first Ctrl-C instead of stopping at once; a second one stops at once.

    Only the main thread hears of Ctrl-C; in others, and where it is ignored, nothing is changed.

    Args:
        is_quiet: Leave it to another process to say what happens now.
        repeats_within: Seconds in which further ones count as the first: a terminal sends it to all processes, and
            ``torchrun`` hands it on.

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
    noted: list[float] = []

    def note(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if noted and now - noted[0] < repeats_within:
            return
        if noted:
            before(number, frame)
        noted.append(now)
        if not is_quiet:
            sys.stderr.write("\nfinishing this iteration, then saving; Ctrl-C again stops at once\n")

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(noted)
    finally:
        signal.signal(signal.SIGINT, before)
