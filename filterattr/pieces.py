"""Float64 work on tensors of a lower precision, piece by piece: a whole copy would double their memory."""

from __future__ import annotations

import torch
from torch import Tensor

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
