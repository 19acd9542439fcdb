"""Parts that the networks share: initialisation, the residual block, and the sub-pixel upsampler."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

NEGATIVE_SLOPE = 0.1
SCALES = (2, 3, 4)

# far above every published network; what a file asks for beyond is never built
MOST_BLOCKS = 1000
MOST_CHANNELS = 2**16


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
    if type(upscale) is not int or upscale not in SCALES:
        raise ValueError(f"upscale must be one of {', '.join(map(str, SCALES))}; got {brief(upscale)}.")


def check_sizes(**sizes: int) -> None:
    """Refuse sizes that no network has, by name and all at once; they may come from a file that says anything.

    Args:
        sizes: Name to number of channels or blocks.

    Raises:
        ValueError: At least one is not a whole number, is below 1, or is above what is ever built: 1,000 blocks or
            65,536 channels.

    Example:
        >>> check_sizes(num_feat=64, num_block=0)
        Traceback (most recent call last):
        ...
        ValueError: sizes must be positive whole numbers; got num_block=0. At most 1000 blocks and 65536 channels ...
    """
    wrong = [f"{name}={brief(size)}" for name, size in sizes.items() if not _is_size(name, size)]
    if wrong:
        raise ValueError(
            f"sizes must be positive whole numbers; got {', '.join(wrong)}. At most {MOST_BLOCKS} blocks and "
            f"{MOST_CHANNELS} channels are built."
        )


def _is_size(name: str, size: object) -> bool:
    """Whether a value is a size; ``True`` is an integer of Python, too."""
    return type(size) is int and 1 <= size <= (MOST_BLOCKS if name == "num_block" else MOST_CHANNELS)


def brief(value: object) -> str:
    """Spell a value for a message, in at most 60 characters.

    Args:
        value: Anything that a file may hold.

    Returns:
        Its representation, cut off if it is long.

    Example:
        >>> brief(10**5000)
        'a number of about 5000 digits'
    """
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a number of about {round(value.bit_length() * 0.30103)} digits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def image_channels(network: nn.Module) -> tuple[int, int]:
    """Tell how many channels the images of a network have.

    Args:
        network: Any network; one that does not say so is taken to have three.

    Returns:
        Channels of the degraded image and of the restored one.

    Example:
        >>> image_channels(nn.Identity())
        (3, 3)
    """
    taken, made = (getattr(network, name, 3) for name in ("num_in_ch", "num_out_ch"))
    return int(taken), int(made)


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
