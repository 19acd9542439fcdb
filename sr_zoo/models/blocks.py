"""Parts that the networks share: initialisation, the residual block, and the sub-pixel upsampler."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

NEGATIVE_SLOPE = 0.1
SCALES = (2, 3, 4)


def check_upscale(upscale: int) -> None:
    """Refuse an upscaling factor that no published network of this zoo has.

    Args:
        upscale: The factor.

    Raises:
        ValueError: It is not 2, 3 or 4.

    Example:
        >>> check_upscale(5)
        Traceback (most recent call last):
        ...
        ValueError: upscale must be one of 2, 3, 4; got 5.
    """
    if upscale not in SCALES:
        raise ValueError(f"upscale must be one of {', '.join(map(str, SCALES))}; got {upscale}.")


def check_sizes(**sizes: int) -> None:
    """Refuse sizes that are no positive whole numbers, by name and all at once.

    Args:
        sizes: Name to number of channels or blocks.

    Raises:
        ValueError: At least one is not a whole number or is below 1.

    Example:
        >>> check_sizes(num_feat=64, num_block=0)
        Traceback (most recent call last):
        ...
        ValueError: sizes must be positive whole numbers; got num_block=0.
    """
    wrong = [f"{name}={size!r}" for name, size in sizes.items() if not isinstance(size, int) or size < 1]
    if wrong:
        raise ValueError(f"sizes must be positive whole numbers; got {', '.join(wrong)}.")


def scaled_kaiming_(convolutions: Iterable[nn.Conv2d], scale: float) -> None:
    """Kaiming-normal weights times ``scale``, zero biases; small residual branches train stably.

    Args:
        convolutions: The layers to initialise in place.
        scale: Factor on the standard deviation; EDSR-like networks without normalisation use 0.1.

    Example:
        >>> layer = nn.Conv2d(8, 8, 3)
        >>> scaled_kaiming_([layer], 0.1)
        >>> float(layer.bias.detach().abs().sum())
        0.0
    """
    for convolution in convolutions:
        nn.init.kaiming_normal_(convolution.weight)
        convolution.weight.data.mul_(scale)
        if convolution.bias is not None:
            nn.init.zeros_(convolution.bias)


class ResidualBlock(nn.Module):
    """``x + conv2(relu(conv1(x)))``, without normalisation; ``(N, C, H, W)`` to the same shape.

    Args:
        channels: Number of channels C.

    Example:
        >>> import torch
        >>> ResidualBlock(4)(torch.zeros(1, 4, 8, 8)).shape
        torch.Size([1, 4, 8, 8])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.relu = nn.ReLU()
        scaled_kaiming_([self.conv1, self.conv2], 0.1)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C, H, W)``."""
        result: Tensor = features + self.conv2(self.relu(self.conv1(features)))
        return result
