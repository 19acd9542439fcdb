"""Restore image files of any size, tile by tile. Gray stays gray, and transparency is kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn import functional

from sr_zoo.colours import coloured, profile_for
from sr_zoo.images import DAMAGE, READABLE, ImageError, check_finite, opened_picture, save_picture, to_float, to_uint8
from sr_zoo.models import TwoBranch, image_channels

MAX_PIXELS = 50_000_000
WIDEST_OVERLAP = 64

# tiles begin at multiples of it, which is what networks need that fold pixels into channels
_GRID = 8


@dataclass(frozen=True)
class Picture:
    """An image file in memory.

    Attributes:
        pixels: ``uint8`` of shape ``(3, H, W)``; a gray image has three equal channels.
        alpha: Opacity, ``uint8`` of shape ``(1, H, W)``, or ``None`` for an image without.
        is_gray: Whether the file was gray; the written file is then gray, too.
        profile: Colour profile (ICC) of the gray or RGB values; it is kept in the written file.
    """

    pixels: Tensor
    alpha: Tensor | None = None
    is_gray: bool = False
    profile: bytes | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.pixels.shape[-2:]
        return int(height), int(width)

    @classmethod
    def read(cls, path: str | Path) -> Picture:
        """Read an image file, upright as the camera meant it.

        CMYK colours are converted to sRGB with the profile of the file. A profile that does not fit the picture is left
        out, with a warning.

        Args:
            path: A PNG, JPEG, BMP, TIFF or WebP file with 8 bits per channel.

        Returns:
            The picture.

        Raises:
            ImageError: The file is missing, damaged or no image, or it holds more than 8 bits per channel or more than
                50 million pixels.

        Example:
            >>> Picture.read("no_such.png")
            Traceback (most recent call last):
            ...
            sr_zoo.images.ImageError: an image to restore must be a readable file; got 'no_such.png' ...
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is lower
                with opened_picture(path) as image:
                    _check_kind(image, path)
                    upright: Image.Image = ImageOps.exif_transpose(image)
                    is_gray = upright.mode in ("1", "L", "LA")
                    upright, profile = coloured(upright, image.info.get("icc_profile"), path)
                    channels = np.array(upright.convert("RGBA" if upright.has_transparency_data else "RGB"))
        except ImageError:
            raise
        except DAMAGE as error:
            raise ImageError(
                f"an image to restore must be a readable file; got '{path}' ({type(error).__name__}: {error}). "
                f"{READABLE} are read."
            ) from error
        planes = torch.from_numpy(channels).permute(2, 0, 1).contiguous()
        return cls(planes[:3], planes[3:] if len(planes) == 4 else None, is_gray, profile)

    def write(self, path: str | Path) -> None:
        """Write an image file; the extension chooses the format.

        Args:
            path: The file to write; missing folders are made. An existing file is replaced when the new file is
                complete.

        Raises:
            ImageError: The file cannot be written, or its format cannot hold transparency.
        """
        # weights of luma would shift a gray of three nearly equal channels by rounding
        planes = self.pixels.float().mean(0, keepdim=True).round().byte() if self.is_gray else self.pixels
        if self.alpha is not None:
            planes = torch.cat([planes, self.alpha])
        pixels = planes.permute(1, 2, 0).contiguous().numpy()
        image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
        save_picture(image, path, icc_profile=profile_for(image.mode, self.profile))


def _check_kind(image: Image.Image, path: str | Path) -> None:
    """Refuse what would lose bits unnoticed, or does not fit into memory."""
    # Pillow reads 16-bit colour as 8 bits without a word, but its decoder is told the truth
    decoder = str([part[3] for part in getattr(image, "tile", [])])
    if image.mode in ("I", "F") or image.mode.startswith("I;16") or ";16" in decoder:
        raise ImageError(
            f"an image to restore must hold 8 bits per channel; '{path}' holds more (mode {image.mode}). The networks "
            "were trained on 8 bits: convert it first."
        )
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(
            f"an image to restore may hold {MAX_PIXELS:,} pixels; '{path}' has {image.width}x{image.height}. Cut it."
        )


def restore_picture(
    network: nn.Module, picture: Picture, *, tile: int = 256, progress: Callable[[int, int], None] | None = None
) -> Picture:
    """Restore a picture. Its transparency is enlarged bicubically.

    A network of one channel restores gray pictures only.

    Args:
        network: Maps ``(N, 3, h, w)`` to ``(N, 3, upscale * h, upscale * w)``; either may have one channel instead.
        picture: The picture.
        tile: As in `restore`.
        progress: As in `restore`.

    Returns:
        A picture ``upscale`` times as large, of the same kind.

    Raises:
        ImageError: The tile is too small, or the picture has colours and the network takes gray pictures only.
        NonFiniteError: The network returns infinite values or NaN.

    Example:
        >>> from sr_zoo.models import SRResNet
        >>> picture = Picture(torch.zeros(3, 5, 6, dtype=torch.uint8), is_gray=True)
        >>> restore_picture(SRResNet(num_feat=4, num_block=1), picture).size
        (10, 12)
    """
    taken, made = image_channels(network)
    if {taken, made} - {1, 3}:
        raise ImageError(f"a network must map 1 or 3 channels to 1 or 3 to restore a picture; got {taken} to {made}.")
    if taken == 1 and not picture.is_gray:
        raise ImageError("a network of one channel restores gray pictures; this one has colours. Convert it to gray.")
    restored = restore(network, picture.pixels[None, :taken], tile=tile, progress=progress)[0]
    alpha = picture.alpha
    if alpha is not None:
        size = tuple(restored.shape[-2:])
        alpha = to_uint8(functional.interpolate(to_float(alpha[None]), size=size, mode="bicubic", antialias=True)[0])
    is_gray = made == 1 or (picture.is_gray and taken == 3)
    return replace(picture, pixels=restored.expand(3, -1, -1), alpha=alpha, is_gray=is_gray)


@torch.no_grad()
def restore(
    network: nn.Module, degraded: Tensor, *, tile: int = 256, progress: Callable[[int, int], None] | None = None
) -> Tensor:
    """Restore images in tiles, so that memory does not grow with the image.

    The tiles overlap by the receptive field of the network, up to 64 pixels. For a network as deep as SRResNet, the
    result equals that of the complete image except for the last bits. For a deeper network the difference is too
    small to see. A two-branch network first predicts the degradation from all tiles.

    Args:
        network: Maps ``(N, 3, h, w)`` to ``(N, 3, upscale * h, upscale * w)``, on any device; its train flag is not
            changed.
        degraded: Shape ``(N, 3, H, W)``, floating in [0, 1] or ``uint8``, on any device.
        tile: Width and height of a tile without the overlap, in pixels of the degraded image; at least 16.
        progress: Called with the number of finished tiles and of all tiles.

    Returns:
        Shape ``(N, 3, upscale * H, upscale * W)`` on the CPU: ``uint8`` (rounded and clipped) for ``uint8``, otherwise
        floating as the network returns it.

    Raises:
        ImageError: The tile is smaller than 16 pixels.
        NonFiniteError: The network returns infinite values or NaN.

    Example:
        >>> from sr_zoo.models import SRResNet
        >>> restore(SRResNet(num_feat=4, num_block=1), torch.rand(1, 3, 40, 50), tile=16).shape
        torch.Size([1, 3, 80, 100])
    """
    if tile < 16:
        raise ImageError(f"a tile must be at least 16 pixels wide; got {tile}.")
    tile += -tile % _GRID
    scale = int(getattr(network, "upscale", 1))
    parameter = next(network.parameters(), torch.empty(0, device="cpu"))
    overlap = reach(network)
    overlap += -overlap % _GRID

    def load(piece: Tensor) -> Tensor:
        return (to_float(piece) if piece.dtype == torch.uint8 else piece).to(parameter)

    count, _, height, width = degraded.shape
    compute: Callable[[Tensor], Tensor] = network
    if isinstance(network, TwoBranch):
        compute = partial(network.restore, condition=_condition(network, degraded, tile, load))
    result: Tensor | None = None
    tiles = [(top, left) for top in range(0, height, tile) for left in range(0, width, tile)]
    for done, (top, left) in enumerate(tiles):
        bottom, right = min(top + tile, height), min(left + tile, width)
        first_row, first_column = max(top - overlap, 0), max(left - overlap, 0)
        wide = degraded[..., first_row : bottom + overlap, first_column : right + overlap]
        restored = check_finite(compute(load(wide)).cpu())
        rows = slice((top - first_row) * scale, (bottom - first_row) * scale)
        columns = slice((left - first_column) * scale, (right - first_column) * scale)
        inner = restored[..., rows, columns]
        inner = to_uint8(inner) if degraded.dtype == torch.uint8 else inner
        if result is None:
            result = inner.new_empty(count, inner.shape[1], height * scale, width * scale)
        result[..., top * scale : bottom * scale, left * scale : right * scale] = inner
        if progress is not None:
            progress(done + 1, len(tiles))
    if result is None:
        raise ImageError(f"an image to restore must have pixels; got shape {tuple(degraded.shape)}.")
    return result


def reach(network: nn.Module) -> int:
    """Half the width of the receptive field of a network, in pixels of its input, at most 64.

    It is an upper bound from the kernels of all convolutions, as if they followed one another at the resolution of the
    input.

    Args:
        network: The network.

    Returns:
        Pixels.

    Example:
        >>> reach(nn.Sequential(nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 5, dilation=2)))
        7
    """
    looks = 2  # interpolation around the convolutions
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            looks += max(d * (k - 1) // 2 for d, k in zip(module.dilation, module.kernel_size, strict=True))
    # a network that folds pixels into channels looks further with every convolution
    return min(looks * int(getattr(network, "fold", 1)), WIDEST_OVERLAP)


def _condition(network: TwoBranch, degraded: Tensor, tile: int, load: Callable[[Tensor], Tensor]) -> Tensor:
    """What the predictor says of the whole image: it is linear in the mean over the pixels, so tiles add up."""
    predictor, (height, width) = network.predictor, degraded.shape[-2:]
    overlap, total = _GRID, torch.zeros((), device="cpu")
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            bottom, right = min(top + tile, height), min(left + tile, width)
            first_row, first_column = max(top - overlap, 0), max(left - overlap, 0)
            features = predictor.features(
                load(degraded[..., first_row : bottom + overlap, first_column : right + overlap])
            )
            inner = features[..., top - first_row : bottom - first_row, left - first_column : right - first_column]
            total = total.to(inner) + inner.sum((2, 3))
    condition: Tensor = predictor.describe(total / (height * width))
    return condition
