"""Work on tensors in pieces of a good size: large ones are cut, small ones lie side by side in one buffer."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

import torch
from torch import Tensor

SMALL = 2**13  # entries; an operation on fewer costs more for its call than for its work
_ALIGNMENT = 64  # entries
PIECE = 2**16  # entries; two float64 pieces stay in a processor's second cache


def flat_pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    """Cut a tensor without gaps into flat views; tensors of the same layout are cut alike.

    Args:
        tensor: Dense, in any order of its dimensions.

    Returns:
        Views in the order of the memory.

    Example:
        >>> [len(piece) for piece in flat_pieces(torch.zeros(70_000))]
        [65536, 4464]
    """
    flat = tensor.as_strided((tensor.numel(),), (1,))
    return torch.split(flat, PIECE) if flat.numel() > PIECE else (flat,)


def wide_type(tensor: Tensor) -> torch.dtype:
    """``float64``, or ``complex128`` for complex tensors."""
    return torch.complex128 if tensor.is_complex() else torch.float64


def wide(tensor: Tensor) -> Tensor:
    """The tensor in its `wide_type`: itself if it has it already."""
    return tensor.to(wide_type(tensor))


def side_by_side(tensors: Mapping[str, Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Make zeros of the layouts of tensors, in one buffer for each type and device.

    Args:
        tensors: Name to a dense tensor.

    Returns:
        The buffers, and name to view; the views begin where fresh memory could begin, so that nobody computes slower or
        in another way with them.

    Example:
        >>> buffers, views = side_by_side({"a": torch.ones(2, 3), "b": torch.ones(5)})
        >>> buffers[0].add_(1)[:6].eq(1).all(), {name: tuple(view.shape) for name, view in views.items()}
        (tensor(True), {'a': (2, 3), 'b': (5,)})
    """
    groups: dict[tuple[torch.device, torch.dtype], dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        groups.setdefault((tensor.device, tensor.dtype), {})[name] = tensor
    buffers, views = [], {}
    for (device, kind), members in groups.items():
        begins = list(accumulate((_aligned(tensor.numel()) for tensor in members.values()), initial=0))
        buffers.append(torch.zeros(begins.pop(), dtype=kind, device=device))
        for begin, (name, tensor) in zip(begins, members.items(), strict=True):
            views[name] = buffers[-1].as_strided(tensor.shape, tensor.stride(), begin)
    return buffers, views


def _aligned(size: int) -> int:
    """The next place where a tensor may begin: PyTorch's own begin at multiples of 64 bytes."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT
