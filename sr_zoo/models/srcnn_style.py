"""The plain nine-layer convolutional network of the FAIG paper, with its published parameter names."""

from __future__ import annotations

from torch import Tensor, nn

from sr_zoo.models.blocks import NEGATIVE_SLOPE, check_upscale

_WIDTHS = (64, 128, 128, 128, 128, 128)


class SRCNNStyle(nn.Module):
    """Plain stack of 3x3 convolutions with sub-pixel upsampling and no skip connection.

    Maps degraded images ``(N, 3, H, W)`` in [0, 1] to ``(N, 3, upscale * H, upscale * W)``. For x2 it has nine
    convolutions with 156,224 two-dimensional kernels. The parameters are named ``features.N.weight`` and
    ``features.N.bias`` as in the published checkpoints.

    Args:
        upscale: Upscaling factor: 2, 3 or 4.

    Raises:
        ValueError: The factor is not 2, 3 or 4.

    Example:
        >>> import torch
        >>> network = SRCNNStyle(upscale=2)
        >>> network(torch.rand(1, 3, 8, 8)).shape
        torch.Size([1, 3, 16, 16])

    References:
        Xie et al., "Finding Discriminative Filters for Specific Degradations in Blind Super-Resolution",
        NeurIPS 2021.
    """

    def __init__(self, upscale: int = 2) -> None:
        check_upscale(upscale)
        super().__init__()
        self.upscale = upscale
        layers: list[nn.Module] = []
        channels = 3
        for width in _WIDTHS:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.LeakyReLU(NEGATIVE_SLOPE)]
            channels = width
        factor, repeats = (2, upscale // 2) if upscale != 3 else (3, 1)
        for _ in range(repeats):
            layers += [
                nn.Conv2d(channels, channels * factor**2, 3, padding=1),
                nn.PixelShuffle(factor),
                nn.LeakyReLU(NEGATIVE_SLOPE),
            ]
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.LeakyReLU(NEGATIVE_SLOPE)]
        layers += [nn.Conv2d(channels, 3, 3, padding=1)]
        self.features = nn.Sequential(*layers)
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, degraded: Tensor) -> Tensor:
        """Restore ``(N, 3, H, W)`` to ``(N, 3, upscale * H, upscale * W)``."""
        restored: Tensor = self.features(degraded)
        return restored
