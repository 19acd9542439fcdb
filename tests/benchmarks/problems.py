"""The networks and image pairs that are measured: the paper's SRResNet, full size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sr_zoo.models import SRResNet


class RestorationPair:
    """A full-size SRResNet x2 before and after a small change of its weights, and a degraded image with its reference.

    How long a pass takes does not depend on what the weights are good for.

    Args:
        size: Width and height of the degraded image.
        features: Feature channels.
        blocks: Residual blocks.
    """

    def __init__(self, size: int = 64, features: int = 64, blocks: int = 16) -> None:
        torch.manual_seed(0)
        self.features, self.blocks = features, blocks
        self.model = self.build()
        self.base = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.target = {name: value + 0.1 * value.std() * torch.randn_like(value) for name, value in self.base.items()}
        self.degraded = torch.rand(1, 3, size, size)
        self.reference = torch.rand(1, 3, 2 * size, 2 * size)

    def build(self) -> nn.Module:
        """A network of this size with fresh weights."""
        return SRResNet(num_feat=self.features, num_block=self.blocks, upscale=2).eval()

    def loss(self, model: nn.Module, sample: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Squared error, summed over pixels and channels."""
        degraded, reference = (self.degraded, self.reference) if sample is None else sample
        return (model(degraded) - reference).square().sum()

    def bare_passes(self, forward_backward: int, forward: int) -> None:
        """What no attribution with so many nodes can do without."""
        for _ in range(forward_backward):
            self.model.zero_grad(set_to_none=True)
            self.loss(self.model).backward()
        with torch.no_grad():
            for _ in range(forward):
                self.loss(self.model)
        self.model.zero_grad(set_to_none=True)
