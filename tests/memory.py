"""How much memory is in use, as glibc counts it.

What the process holds is more: freed pieces of odd sizes stay with the allocator.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable

import pytest

needs_glibc = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="asks glibc for its memory")


class _Allocator(ctypes.Structure):
    """What glibc tells about its memory."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    )


def allocated() -> int:
    """Bytes that are in use."""
    found = ctypes.CDLL(None).mallinfo2
    found.restype = _Allocator
    numbers = found()
    return int(numbers.uordblks + numbers.hblkhd)


def peak_of(work: Callable[[], object]) -> int:
    """The most bytes that are seen in use while something is done; a thread looks three times a millisecond."""
    peak, done = [allocated()], threading.Event()

    def watch() -> None:
        while not done.wait(3e-4):
            peak[0] = max(peak[0], allocated())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return peak[0]
