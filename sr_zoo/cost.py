"""The cost of a network: parameters and multiply-adds, counted without any computation."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


class Cost(NamedTuple):
    """The cost of a network.

    Attributes:
        parameters: Number of weights and biases.
        multiply_adds: Multiplications that are added up, in convolutions and matrix products, for one image.
    """

    parameters: int
    multiply_adds: int


def cost(network: nn.Module, height: int = 32, width: int = 32, channels: int = 3) -> Cost:
    """Count parameters, and multiply-adds for one image.

    Args:
        network: Takes images of shape ``(1, channels, height, width)``. It is not changed; it may be on the meta
            device.
        height: Height of the image.
        width: Width of the image.
        channels: Number of channels of the image.

    Returns:
        The cost of convolutions, matrix products and attention; other operations are not counted.

    Example:
        >>> cost(nn.Conv2d(3, 8, 3, padding=1))
        Cost(parameters=224, multiply_adds=221184)
    """
    shadow = copy.deepcopy(network).to("meta")
    image = torch.empty(1, channels, height, width, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shadow(image)
    return Cost(sum(parameter.numel() for parameter in network.parameters()), counter.get_total_flops() // 2)
