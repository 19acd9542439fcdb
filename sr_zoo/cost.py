"""What a network costs: parameters and multiply-adds, counted without computing anything."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


class Cost(NamedTuple):
    """What a network costs.

    Attributes:
        parameters: Number of weights and biases.
        multiply_adds: Multiplications that are added up, in convolutions and matrix products, for one image.
    """

    parameters: int
    multiply_adds: int


def cost(network: nn.Module, height: int = 32, width: int = 32, channels: int = 3) -> Cost:
    """Count parameters, and multiply-adds for one image.

    Args:
        network: Maps ``(1, channels, height, width)`` to anything; it is left alone, and may be on the meta device.
        height: Of the image.
        width: Of the image.
        channels: Of the image.

    Returns:
        The cost; what is no convolution, matrix product or attention is not counted.

    Example:
        >>> cost(nn.Conv2d(3, 8, 3, padding=1))
        Cost(parameters=224, multiply_adds=221184)
    """
    shadow = copy.deepcopy(network).to("meta")
    image = torch.empty(1, channels, height, width, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shadow(image)
    return Cost(sum(parameter.numel() for parameter in network.parameters()), counter.get_total_flops() // 2)
