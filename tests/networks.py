"""Small networks and losses that several test modules use."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def smooth_network() -> nn.Module:
    """Everything differentiable, so that Gauss-Legendre converges exponentially; grouped and transposed layers."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Tanh(),
        nn.ConvTranspose2d(4, 2, 2, stride=2),
        nn.GELU(),
        nn.Conv2d(2, 1, 1),
    ).double()


def relu_network() -> nn.Module:
    """Piecewise linear, with kinks along the path."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.LeakyReLU(0.1),
        nn.Conv2d(6, 1, 3),
    ).double()


def squared_sum(model: nn.Module, image: Tensor) -> Tensor:
    """A scalar of a network's output."""
    return model(image).square().sum()


def image(seed: int = 0, size: int = 8) -> Tensor:
    """A random gray picture of shape ``(1, 1, size, size)``."""
    return torch.rand(1, 1, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
