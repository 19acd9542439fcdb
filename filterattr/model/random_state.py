"""The global random generators: the same draw at every node of a sample, and the caller's state afterwards."""

from __future__ import annotations

import os
import random
import threading
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from filterattr.errors import ModelChangedError

_LONGEST_TURN = 600.0  # seconds
_PAUSE = 2e-4
_HOLDER: dict[str, Turn] = {}
_WAITING: dict[int, Turn] = {}
_CALLERS: dict[int, CallersRandomness] = {}
_LAST: dict[str, CallersRandomness] = {}  # that entered


def _generators() -> list[torch.Generator]:
    """The CPU's generator, and those of CUDA devices if CUDA is in use already."""
    cuda = list(torch.cuda.default_generators) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    return [torch.default_generator, *cuda]


class RandomState:
    """The random state of PyTorch, Python and NumPy when the object was made.

    `restore` brings it back, `update` takes the present one instead.

    Example:
        >>> state = RandomState()
        >>> first = torch.rand(1)
        >>> state.restore()
        >>> bool(first == torch.rand(1))
        True
    """

    def __init__(self) -> None:
        self._states: list[tuple[torch.Generator, Tensor]] = []
        self._others: tuple[Any, Any] = (None, None)
        self.update()

    def update(self) -> None:
        """Remember the present state instead."""
        self._states = [(generator, generator.get_state()) for generator in _generators()]
        self._others = random.getstate(), np.random.get_state()  # noqa: NPY002 - losses may use the global one

    def restore(self) -> None:
        """Set all generators back; doing it twice does no harm."""
        for generator, state in self._states:
            generator.set_state(state)
        random.setstate(self._others[0])
        np.random.set_state(self._others[1])  # noqa: NPY002

    def is_present(self) -> bool:
        """Whether Python's and NumPy's generators are still in the remembered state."""
        remembered: Any = self._others[1]
        now: Any = np.random.get_state()  # noqa: NPY002
        same = remembered[2:] == now[2:] and np.array_equal(remembered[1], now[1])
        return bool(same and random.getstate() == self._others[0])

    def is_untouched(self) -> bool:
        """Whether all generators are still in the remembered state."""
        same = all(torch.equal(generator.get_state(), state) for generator, state in self._states)
        return same and self.is_present()

    def of_processor(self) -> Tensor:
        """The remembered state of PyTorch's generator for the CPU."""
        return self._states[0][1]


def derive_seed(state: Tensor) -> int:
    """Draw a seed from a state of PyTorch's generator for the CPU, without using that state up.

    Args:
        state: From `RandomState.of_processor`.

    Returns:
        The seed.
    """
    generator = torch.Generator()
    generator.set_state(state)
    return int(torch.randint(2**62, (), generator=generator, device="cpu"))


def has_drawn(seed: int) -> bool:
    """Find out whether random numbers were drawn since `seed_all`.

    Args:
        seed: What it was given.

    Returns:
        Whether a generator of PyTorch, Python or NumPy is in another state than then.

    Example:
        >>> seed_all(3)
        >>> before = has_drawn(3)
        >>> _ = torch.rand(1)
        >>> before, has_drawn(3)
        (False, True)
    """
    for generator in _generators():
        fresh = torch.Generator(generator.device)
        fresh.manual_seed(seed % 2**63)
        if not torch.equal(fresh.get_state(), generator.get_state()):
            return True
    now: Any = np.random.get_state()  # noqa: NPY002
    then: Any = np.random.RandomState(seed % 2**32).get_state()
    same = now[2:] == then[2:] and np.array_equal(now[1], then[1])
    return not same or random.getstate()[1] != random.Random(seed).getstate()[1]


def seed_all(seed: int) -> None:
    """Seed every generator in use.

    Args:
        seed: Any whole number; reduced modulo 2**63.

    Example:
        >>> seed_all(3)
        >>> first = torch.rand(1)
        >>> seed_all(3)
        >>> bool(first == torch.rand(1))
        True
    """
    holder = _HOLDER.get("turn")
    if holder is not None:
        holder.go_on()
    for generator in _generators():
        generator.manual_seed(seed % 2**63)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002


class Turn:
    """The right of one thread to seed the generators and to draw: they belong to the whole process.

    Threads take turns in the order in which they ask. Calls of one thread may lie inside each other. No lock is held,
    as an interrupt could leave one locked, and no thread waits for ever: it can wait for another one inside of its
    loss.

    Example:
        >>> turn = Turn()
        >>> try:
        ...     turn.take()
        ... finally:
        ...     turn.release()
        True
    """

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._process = os.getpid()
        self._begun = 0.0

    def take(self, *, wait: bool = True) -> bool:
        """Take the turn; call it inside two nested ``try``, each with `release` in its ``finally``.

        Args:
            wait: Whether to wait for other threads.

        Returns:
            Whether this thread has the turn.

        Raises:
            ModelChangedError: Another thread has not ended its turn for ten minutes.
        """
        self._thread, self._begun = threading.get_ident(), time.monotonic()
        holder = _HOLDER.get("turn")
        if holder is not None and holder._thread == self._thread and holder._process == self._process:
            return True  # a call around this one has it, and others wait for that
        if not wait:
            return not _WAITING and self._is_mine()
        _WAITING[id(self)] = self
        try:
            while not (next(iter([*_WAITING.values()])) is self and self._is_mine()):
                self._look_at_holder()
                time.sleep(_PAUSE)
                self._begun = time.monotonic()
        finally:
            _WAITING.pop(id(self), None)
        return True

    def release(self) -> None:
        """End the turn; doing it twice, or without having taken it, does no harm."""
        _WAITING.pop(id(self), None)
        if _HOLDER.get("turn") is self:
            _HOLDER.pop("turn", None)

    def go_on(self) -> None:
        """Begin the turn again, if it is this thread's: who waits for it sees that there is progress."""
        if self._thread == threading.get_ident():
            self._begun = time.monotonic()

    def _is_mine(self) -> bool:
        """Take the turn if no thread has it, in one step of the interpreter; a call around this one may have it."""
        holder = _HOLDER.setdefault("turn", self)
        if holder._process != self._process:  # it was another thread's of the process that this one was forked from
            _HOLDER["turn"] = holder = self
        return holder._thread == self._thread

    def _look_at_holder(self) -> None:
        holder = _HOLDER.get("turn")
        if holder is not None and time.monotonic() - holder._begun > _LONGEST_TURN:
            raise ModelChangedError(
                "one thread at a time can draw random numbers, as all of them share the generators; another thread "
                f"has been inside of its loss for {_LONGEST_TURN / 60:.0f} minutes. Run the calls one after the other, "
                "or in processes."
            )


class CallersRandomness:
    """The random state outside of all calls that run at present: each begins with it, and the last restores it.

    `enter` and `leave` are plain calls, as in `filterattr.model.context`.

    Example:
        >>> caller = CallersRandomness()
        >>> try:
        ...     caller.enter()
        ...     seed_all(0)
        ... finally:
        ...     caller.leave()
    """

    def __init__(self) -> None:
        self.state: RandomState
        self._thread = threading.get_ident()
        self._turn = Turn()
        self._is_leaving = False

    def enter(self) -> None:
        """Take note of the present state, or of that before another thread began."""
        while True:
            last, callers = _LAST.get("caller"), [*_CALLERS.values()]
            self.state = RandomState()
            if any(caller._thread == self._thread for caller in callers):
                break  # a call inside of one of this thread goes on with what that has drawn
            if callers:
                self.state = callers[0].state  # even if it has left since: it may have drawn before it did
                break
            if _LAST.get("caller") is last:
                break  # nobody came since there was nobody: the state was outside of all calls
        _LAST["caller"] = self
        _CALLERS[id(self)] = self

    def leave(self) -> None:
        """Set the generators back, unless another thread goes on with them; doing it twice does no harm."""
        if id(self) not in _CALLERS:
            return
        self._is_leaving = True  # before others are looked for: of two that leave at once, one must set them back
        others = [caller for caller in [*_CALLERS.values()] if not caller._is_leaving]
        if not others or any(caller._thread == self._thread for caller in others):
            try:
                if self._turn.take(wait=False):
                    self.state.restore()
            finally:
                self._turn.release()
        _CALLERS.pop(id(self), None)
