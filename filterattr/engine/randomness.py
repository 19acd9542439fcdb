"""PyTorch's random generators: the same draw at every node of a sample, and the caller's state afterwards."""

from __future__ import annotations

import torch
from torch import Tensor


def _generators() -> list[torch.Generator]:
    """The CPU's generator, and those of CUDA devices if CUDA is in use already."""
    cuda = list(torch.cuda.default_generators) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    return [torch.default_generator, *cuda]


class RandomState:
    """PyTorch's random state when the object was made; `restore` brings it back, `update` takes the present one.

    Example:
        >>> state = RandomState()
        >>> first = torch.rand(1)
        >>> state.restore()
        >>> bool(first == torch.rand(1))
        True
    """

    def __init__(self) -> None:
        self._states: list[tuple[torch.Generator, Tensor]] = []
        self.update()

    def update(self) -> None:
        """Remember the present state instead."""
        self._states = [(generator, generator.get_state()) for generator in _generators()]

    def restore(self) -> None:
        """Set all generators back; doing it twice does no harm."""
        for generator, state in self._states:
            generator.set_state(state)

    def derive_seed(self) -> int:
        """Return a seed that depends on the remembered state of the CPU, without using that state up."""
        generator = torch.Generator()
        generator.set_state(self._states[0][1])
        return int(torch.randint(2**62, (), generator=generator))


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
