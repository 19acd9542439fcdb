"""The residual-in-residual dense network of ESRGAN and Real-ESRGAN, with the parameter names of its checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sr_zoo.models.blocks import brief, check_sizes, scaled_kaiming_

_SLOPE = 0.2
_DAMPING = 0.2
_UNSHUFFLE = {1: 4, 2: 2, 4: 1}


class DenseBlock(nn.Module):
    """Five convolutions, each of which sees the input and all earlier outputs; ``(N, C, H, W)`` to the same shape.

    Args:
        channels: Number of channels C.
        growth: Channels that each convolution but the last adds.

    Example:
        >>> DenseBlock(4, 2)(torch.zeros(1, 4, 8, 8)).shape
        torch.Size([1, 4, 8, 8])
    """

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, growth, 3, 1, 1)
        self.conv2 = nn.Conv2d(channels + growth, growth, 3, 1, 1)
        self.conv3 = nn.Conv2d(channels + 2 * growth, growth, 3, 1, 1)
        self.conv4 = nn.Conv2d(channels + 3 * growth, growth, 3, 1, 1)
        self.conv5 = nn.Conv2d(channels + 4 * growth, channels, 3, 1, 1)
        self.lrelu = nn.LeakyReLU(_SLOPE)
        scaled_kaiming_([self.conv1, self.conv2, self.conv3, self.conv4, self.conv5], 0.1)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C, H, W)``."""
        seen = features
        for convolution in (self.conv1, self.conv2, self.conv3, self.conv4):
            seen = torch.cat([seen, self.lrelu(convolution(seen))], dim=1)
        result: Tensor = features + _DAMPING * self.conv5(seen)
        return result


class ResidualInResidual(nn.Module):
    """Three dense blocks with a damped skip around them; ``(N, C, H, W)`` to the same shape.

    Args:
        channels: Number of channels C.
        growth: Channels that each convolution of a dense block adds.

    Example:
        >>> ResidualInResidual(4, 2)(torch.zeros(1, 4, 8, 8)).shape
        torch.Size([1, 4, 8, 8])
    """

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = DenseBlock(channels, growth)
        self.rdb2 = DenseBlock(channels, growth)
        self.rdb3 = DenseBlock(channels, growth)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C, H, W)``."""
        result: Tensor = features + _DAMPING * self.rdb3(self.rdb2(self.rdb1(features)))
        return result


class RRDBNet(nn.Module):
    """Large super-resolution network of dense blocks, with nearest-neighbour upsampling.

    Maps degraded images ``(N, num_in_ch, H, W)`` in [0, 1] to ``(N, num_out_ch, upscale * H, upscale * W)``. It always
    enlarges by four; for smaller factors it first folds 2x2 or 4x4 pixels into channels, as Real-ESRGAN does. Sizes
    that are no multiple are extended by repeating the last pixels, and cut again.

    The parameter names (``conv_first``, ``body.N.rdb1.conv1`` ..., ``conv_body``, ``conv_up1``, ``conv_up2``,
    ``conv_hr``, ``conv_last``) are those of the published checkpoints. Activations are not in place.

    Args:
        num_in_ch: Channels of the degraded image.
        num_out_ch: Channels of the restored image.
        num_feat: Feature channels.
        num_block: Blocks in the body.
        num_grow_ch: Channels that each convolution of a dense block adds.
        upscale: Upscaling factor: 1, 2 or 4.

    Raises:
        ValueError: The factor is not 1, 2 or 4, or a size is not a positive whole number.

    Example:
        >>> network = RRDBNet(num_feat=4, num_block=1, num_grow_ch=2, upscale=2)
        >>> network(torch.rand(1, 3, 7, 10)).shape
        torch.Size([1, 3, 14, 20])

    References:
        Wang et al., "ESRGAN: Enhanced Super-Resolution Generative Adversarial Networks", ECCV workshops 2018; Wang et
        al., "Real-ESRGAN", 2021.
    """

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        num_block: int = 23,
        num_grow_ch: int = 32,
        upscale: int = 4,
    ) -> None:
        if type(upscale) is not int or upscale not in _UNSHUFFLE:
            raise ValueError(f"upscale must be one of {', '.join(map(str, _UNSHUFFLE))}; got {brief(upscale)}.")
        check_sizes(
            num_in_ch=num_in_ch, num_out_ch=num_out_ch, num_feat=num_feat, num_block=num_block, num_grow_ch=num_grow_ch
        )
        super().__init__()
        self.upscale = upscale
        self.num_in_ch, self.num_out_ch = num_in_ch, num_out_ch
        self.fold = _UNSHUFFLE[upscale]
        self.conv_first = nn.Conv2d(num_in_ch * self.fold**2, num_feat, 3, 1, 1)
        self.body = nn.Sequential(*(ResidualInResidual(num_feat, num_grow_ch) for _ in range(num_block)))
        self.conv_body = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.conv_up1 = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.conv_up2 = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.conv_hr = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch, 3, 1, 1)
        self.lrelu = nn.LeakyReLU(_SLOPE)

    def forward(self, degraded: Tensor) -> Tensor:
        """Restore ``(N, C, H, W)`` to ``(N, C, upscale * H, upscale * W)``."""
        height, width = (length * self.upscale for length in degraded.shape[-2:])
        missing = [-length % self.fold for length in degraded.shape[-2:]]
        if any(missing):
            degraded = functional.pad(degraded, (0, missing[1], 0, missing[0]), mode="replicate")
        features = self.conv_first(functional.pixel_unshuffle(degraded, self.fold))
        features = features + self.conv_body(self.body(features))
        for convolution in (self.conv_up1, self.conv_up2):
            features = self.lrelu(convolution(functional.interpolate(features, scale_factor=2, mode="nearest")))
        restored: Tensor = self.conv_last(self.lrelu(self.conv_hr(features)))
        return restored[..., :height, :width]
