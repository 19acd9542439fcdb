"""Attributions that can be written down without any integration."""

from __future__ import annotations

from torch import Tensor


def linear_loss(gradient: Tensor, base: Tensor, target: Tensor) -> Tensor:
    """``L(w) = <g, w>``: the gradient is the same everywhere."""
    return gradient * (target - base)


def quadratic_loss(matrix: Tensor, base: Tensor, target: Tensor) -> Tensor:
    """``L(w) = w' M w / 2`` with symmetric M: the mean gradient is that of the middle of the path."""
    return (matrix @ ((base + target) / 2)) * (target - base)


def cubic_loss(base: Tensor, target: Tensor) -> Tensor:
    """``L(w) = sum w^3``: every weight is on its own, so that its attribution is its own change of the loss."""
    return target**3 - base**3
