"""SRResNet without normalisation, with the parameter names of BasicSR's ``MSRResNet``."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from sr_zoo.models.blocks import NEGATIVE_SLOPE, ResidualBlock, check_sizes, check_upscale, scaled_kaiming_


class SRResNet(nn.Module):
    """One-branch super-resolution network: residual body, sub-pixel upsampling, bilinear skip.

    Maps degraded images ``(N, num_in_ch, H, W)`` in [0, 1] to ``(N, num_out_ch, upscale * H, upscale * W)``. With the
    default sizes it has 36 convolutions with 151,936 two-dimensional kernels (x2).

    The parameter names (``conv_first``, ``body.N.conv1``, ``body.N.conv2``, ``upconv1``, ``upconv2`` for x4,
    ``conv_hr``, ``conv_last``) are those of the published checkpoints, so these load without renaming.
    Activations are not in place, because layer attribution methods need what a layer really put out.

    Args:
        num_in_ch: Channels of the degraded image.
        num_out_ch: Channels of the restored image.
        num_feat: Feature channels.
        num_block: Residual blocks in the body.
        upscale: Upscaling factor: 2, 3 or 4.

    Raises:
        ValueError: The factor is not 2, 3 or 4, a size is not a positive whole number, or the bilinear skip cannot be
            added because ``num_in_ch`` is neither 1 nor ``num_out_ch``.

    Example:
        >>> import torch
        >>> network = SRResNet(num_feat=8, num_block=1, upscale=2)
        >>> network(torch.rand(1, 3, 12, 10)).shape
        torch.Size([1, 3, 24, 20])

    References:
        Ledig et al., "Photo-Realistic Single Image Super-Resolution Using a Generative Adversarial Network",
        CVPR 2017; without batch normalisation as in Lim et al. (EDSR), CVPR workshops 2017.
    """

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        num_block: int = 16,
        upscale: int = 2,
    ) -> None:
        check_upscale(upscale)
        check_sizes(num_in_ch=num_in_ch, num_out_ch=num_out_ch, num_feat=num_feat, num_block=num_block)
        if num_in_ch not in (1, num_out_ch):
            raise ValueError(f"num_in_ch must be 1 or num_out_ch ({num_out_ch}) for the skip; got {num_in_ch}.")
        super().__init__()
        self.upscale = upscale
        self.num_in_ch, self.num_out_ch = num_in_ch, num_out_ch
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        self.body = nn.Sequential(*(ResidualBlock(num_feat) for _ in range(num_block)))
        factor = 2 if upscale == 4 else upscale
        self.upconv1 = nn.Conv2d(num_feat, num_feat * factor**2, 3, 1, 1)
        if upscale == 4:
            self.upconv2 = nn.Conv2d(num_feat, num_feat * factor**2, 3, 1, 1)
        self.pixel_shuffle = nn.PixelShuffle(factor)
        self.conv_hr = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch, 3, 1, 1)
        self.lrelu = nn.LeakyReLU(NEGATIVE_SLOPE)
        outer = [self.conv_first, self.upconv1, self.conv_hr, self.conv_last]
        scaled_kaiming_([*outer, self.upconv2] if upscale == 4 else outer, 0.1)

    def forward(self, degraded: Tensor) -> Tensor:
        """Restore ``(N, C, H, W)`` to ``(N, C, upscale * H, upscale * W)``."""
        features = self.body(self.lrelu(self.conv_first(degraded)))
        features = self.lrelu(self.pixel_shuffle(self.upconv1(features)))
        if self.upscale == 4:
            features = self.lrelu(self.pixel_shuffle(self.upconv2(features)))
        residual: Tensor = self.conv_last(self.lrelu(self.conv_hr(features)))
        return residual + functional.interpolate(
            degraded, scale_factor=self.upscale, mode="bilinear", align_corners=False
        )
