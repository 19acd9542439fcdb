"""Photographs on disk to tensors of shape ``(3, H, W)`` in [0, 1], and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})


class ImageError(ValueError):
    """A photograph or a folder of photographs cannot be used; the message names the file."""


def list_photographs(folder: str | Path) -> list[Path]:
    """List the image files directly inside a folder, sorted by name.

    Args:
        folder: The folder. Files are taken by extension (``png``, ``jpg``, ``jpeg``, ``bmp``, ``tif``,
            ``tiff``, ``webp``); hidden files are passed over.

    Returns:
        At least one path.

    Raises:
        ImageError: The folder does not exist or holds no image.

    Example:
        >>> list_photographs("no such folder")
        Traceback (most recent call last):
        ...
        sr_zoo.images.ImageError: a folder of photographs must exist; got 'no such folder'. ...
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ImageError(
            f"a folder of photographs must exist; got '{folder}'. Check the path, or give the folder "
            "that directly contains the image files."
        )
    paths = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")
    )
    if not paths:
        raise ImageError(
            f"a folder of photographs must hold at least one image; '{folder}' holds none that ends in "
            f"{', '.join(sorted(EXTENSIONS))}."
        )
    return paths


def read_image(path: str | Path) -> Tensor:
    """Read one photograph as RGB.

    Gray images are repeated over the three channels; an alpha channel is dropped.

    Args:
        path: An image file that Pillow can open.

    Returns:
        A ``uint8`` tensor of shape ``(3, H, W)`` with values 0 to 255.

    Raises:
        ImageError: The file is missing, is no image, or is damaged.

    Example:
        >>> read_image("no_such.png")
        Traceback (most recent call last):
        ...
        sr_zoo.images.ImageError: a photograph must be a readable image file; got 'no_such.png' ...
    """
    try:
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(
            f"a photograph must be a readable image file; got '{path}' ({type(error).__name__}: {error})."
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def to_float(image: Tensor) -> Tensor:
    """Turn 8-bit pixels into ``float32`` values in [0, 1].

    Args:
        image: A ``uint8`` tensor of any shape.

    Returns:
        A tensor of the same shape, ``pixel / 255``.

    Example:
        >>> to_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
        tensor([0.0000, 0.2000, 1.0000])
    """
    return image.to(torch.float32) / 255


def to_uint8(image: Tensor) -> Tensor:
    """Round values in [0, 1] to 8-bit pixels; values outside are clipped.

    Args:
        image: A floating tensor of any shape.

    Returns:
        A ``uint8`` tensor of the same shape.

    Example:
        >>> to_uint8(torch.tensor([-1.0, 0.2, 2.0]))
        tensor([  0,  51, 255], dtype=torch.uint8)
    """
    return (image.detach().to(torch.float32) * 255).round().clamp(0, 255).to(torch.uint8)


def write_image(path: str | Path, image: Tensor) -> None:
    """Write an image file; the extension chooses the format.

    Args:
        path: Where to write; missing folders are made.
        image: A tensor of shape ``(3, H, W)``, either ``uint8`` or floating in [0, 1].

    Raises:
        ImageError: The tensor does not have three channels.

    Example:
        >>> write_image("gray.png", torch.zeros(1, 4, 4))
        Traceback (most recent call last):
        ...
        sr_zoo.images.ImageError: an image must have shape (3, H, W); got (1, 4, 4). ...
    """
    if image.ndim != 3 or image.shape[0] != 3:
        raise ImageError(
            f"an image must have shape (3, H, W); got {tuple(image.shape)}. Repeat a gray channel three times."
        )
    pixels = image if image.dtype == torch.uint8 else to_uint8(image)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy()).save(path)
