"""KeyboardInterrupt at a chosen instruction: stricter than real signals, which arrive only at calls and jumps."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

TESTS = str(__file__).rpartition("/")[0]


class Injection:
    """Count the instructions that some code executes below a call, and raise KeyboardInterrupt at one of them.

    Args:
        is_meant: Whether the instructions of a code file count; frames of the tests never do.
        at: The number of the instruction to raise at, from 1; ``None`` only counts.
        event: ``"opcode"``, or ``"return"`` for the end of functions called ``__enter__``.

    Attributes:
        count: Instructions seen so far.
        place: Where it was raised.
    """

    def __init__(self, is_meant: Callable[[str], bool], at: int | None = None, event: str = "opcode") -> None:
        self.is_meant, self.at, self.event = is_meant, at, event
        self.count = 0
        self.place = "nowhere"

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Trace the block."""
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            yield
        finally:
            sys.settrace(before)

    def _enter(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        name = frame.f_code.co_filename
        if name.startswith(TESTS) and not name.endswith("drafts.py"):
            return None
        if not self.is_meant(name) or (self.event == "return" and frame.f_code.co_name != "__enter__"):
            return None
        frame.f_trace_opcodes = self.event == "opcode"
        frame.f_trace_lines = False
        return self._step

    def _step(self, frame: FrameType, event: str, _argument: Any) -> Any:
        if event == self.event:
            self.count += 1
            if self.count == self.at:
                self.place = f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}"
                raise KeyboardInterrupt(self.place)
        return self._step


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise KeyboardInterrupt after a while, if the block is not done by then; other users of the timer get it back."""
    tracer = sys.gettrace()
    sys.settrace(None)  # a coverage tool that is interrupted inside its own lock waits for ever
    handler = signal.signal(signal.SIGALRM, signal.default_int_handler)
    waiting = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *waiting)
        sys.settrace(tracer)
