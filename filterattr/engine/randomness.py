"""The global random generators: the same draw at every node of a sample, and the caller's state afterwards."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


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
        own: Any = self._others[1]
        now: Any = np.random.get_state()  # noqa: NPY002
        same = own[2:] == now[2:] and np.array_equal(own[1], now[1])
        return bool(same and random.getstate() == self._others[0])

    def is_untouched(self) -> bool:
        """Whether all generators are still in the remembered state."""
        same = all(torch.equal(generator.get_state(), state) for generator, state in self._states)
        return same and self.is_present()

    def derive_seed(self) -> int:
        """Return a seed that depends on the remembered state of the CPU, without using that state up."""
        generator = torch.Generator()
        generator.set_state(self._states[0][1])
        return int(torch.randint(2**62, (), generator=generator, device="cpu"))


def has_drawn(seed: int) -> bool:
    """Find out whether anybody has drawn random numbers since `seed_all`.

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
    for generator in _generators():
        generator.manual_seed(seed % 2**63)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
