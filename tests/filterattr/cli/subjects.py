"""A small network with its loss and samples, as users name them on the command line."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH = 6


def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, WIDTH, 3), nn.SiLU(), nn.Conv2d(WIDTH, 1, 3))


def loss(network: nn.Module, sample: tuple[Tensor, Tensor]) -> Tensor:
    value: Tensor = (network(sample[0]) - sample[1]).square().sum()
    return value


def data() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.rand(1, 1, 8, 8, generator=generator), torch.rand(1, 1, 4, 4, generator=generator)) for _ in range(3)
    ]


def no_data() -> list[Tensor]:
    return []


def failing() -> nn.Module:
    raise ZeroDivisionError("the constructor divides by zero")


NUMBER = 3
