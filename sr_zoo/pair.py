"""Two networks as a pair: what one of them has learnt and the other has not."""

from __future__ import annotations

import torch
from torch import nn


def same_weights(base: nn.Module, target: nn.Module) -> bool:
    """Whether two networks hold the same weights, so that nothing tells them apart.

    Args:
        base: The one.
        target: The other.

    Returns:
        Whether names, shapes and values are equal.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> same_weights(layer, layer), same_weights(layer, nn.Linear(2, 2))
        (True, False)
    """
    first, second = base.state_dict(), target.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
