"""Read photographs as tensors of shape ``(3, H, W)``, and write them."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from filterattr import FilterAttrError, NonFiniteError, StorageError
from filterattr.files import replace_file

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})

# Pillow tells a format by content, knows dozens, and starts other programs for some: only these are opened
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
READABLE = "PNG, JPEG, BMP, TIFF and WebP"

# what Pillow's decoders raise at files that are no images or are cut off
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


class ImageError(FilterAttrError, ValueError):
    """A photograph or a folder of photographs cannot be used; the message names the file."""


def list_photographs(folder: str | Path) -> list[Path]:
    """List the image files directly inside a folder, sorted by name.

    Args:
        folder: The folder. Files are taken by extension (``png``, ``jpg``, ``jpeg``, ``bmp``, ``tif``,
            ``tiff``, ``webp``); hidden files are ignored.

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
        path
        for path in folder.iterdir()
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file()
    )
    if not paths:
        raise ImageError(
            f"a folder of photographs must hold at least one image; '{folder}' holds none that ends in "
            f"{', '.join(sorted(EXTENSIONS))}."
        )
    return paths


@contextmanager
def opened_picture(path: str | Path) -> Iterator[Image.Image]:
    """Open a file of one of `FORMATS`, with any extension.

    Args:
        path: The file.

    Yields:
        The picture; its pixels are decoded on access.

    Raises:
        OSError: The file cannot be read, or is of no such format.

    Example:
        >>> from pathlib import Path
        >>> import tempfile
        >>> import torch
        >>> path = Path(tempfile.mkdtemp()) / "a.png"
        >>> write_image(path, torch.zeros(3, 4, 6))
        >>> with opened_picture(path) as image:
        ...     print(image.format, image.size)
        PNG (6, 4)
    """
    with Image.open(path, formats=FORMATS) as image:
        yield image


def read_image(path: str | Path) -> Tensor:
    """Read one photograph as RGB, upright as the camera meant it (EXIF orientation).

    Gray images are repeated over the three channels. Values of 16 bits are rounded to 8 bits. Palettes become colours,
    and transparent pixels are laid on white. The first picture of an animation is taken.

    Args:
        path: A PNG, JPEG, BMP, TIFF or WebP file.

    Returns:
        A ``uint8`` tensor of shape ``(3, H, W)`` with values 0 to 255.

    Raises:
        ImageError: The file is missing, is no image, is damaged, or holds 32-bit values, whose white is unknown.

    Example:
        >>> read_image("no_such.png")
        Traceback (most recent call last):
        ...
        sr_zoo.images.ImageError: a photograph must be a readable image file; got 'no_such.png' ...
    """
    try:
        with opened_picture(path) as image:
            pixels = _rgb_pixels(image)
    except DAMAGE as error:
        raise ImageError(
            f"a photograph must be a readable image file; got '{path}' ({type(error).__name__}: {error}). "
            f"{READABLE} are read."
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _rgb_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Turn an opened file into 8-bit RGB of shape ``(H, W, 3)``."""
    # older Pillows open a 16-bit PNG as 32-bit integers
    is_16_bit = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    if image.mode in ("I", "F") and not is_16_bit:
        raise ValueError(f"mode {image.mode} holds 32-bit values; convert it to 8 or 16 bits per channel first")
    upright: Any = ImageOps.exif_transpose(image)
    if is_16_bit:
        gray = np.rint(np.asarray(upright, dtype=np.float64) / 257).astype(np.uint8)
        return np.stack([gray] * 3, axis=-1)
    if upright.has_transparency_data:
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright.convert("RGBA"))
    return np.array(upright.convert("RGB"))


def to_float(image: Tensor) -> Tensor:
    """Turn 8-bit pixels into ``float32`` values in [0, 1].

    Args:
        image: A ``uint8`` tensor of any shape.

    Returns:
        A tensor of the same shape, ``pixel / 255``.

    Raises:
        ImageError: The tensor is not ``uint8``.

    Example:
        >>> to_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
        tensor([0.0000, 0.2000, 1.0000])
    """
    if image.dtype != torch.uint8:
        raise ImageError(f"8-bit pixels must be uint8; got {image.dtype}. Values in [0, 1] become 8-bit by to_uint8.")
    return image.to(torch.float32) / 255


def check_finite(image: Tensor) -> Tensor:
    """Check that all values of an image are finite.

    Args:
        image: A tensor of any shape, such as the output of a network.

    Returns:
        The tensor itself.

    Raises:
        NonFiniteError: Some values are infinite or not a number.

    Example:
        >>> check_finite(torch.tensor([0.5, float("nan")]))
        Traceback (most recent call last):
        ...
        filterattr.errors.NonFiniteError: an image must be finite; 1 of 2 values are infinite or not a number. ...
    """
    wrong = image.numel() - int(image.isfinite().sum())
    if wrong:
        raise NonFiniteError(
            f"an image must be finite; {wrong} of {image.numel()} values are infinite or not a number. If a network "
            "made it, its weights are damaged, or too large for the type that it computes in."
        )
    return image


def to_uint8(image: Tensor) -> Tensor:
    """Round values in [0, 1] to 8-bit pixels; values outside are clipped.

    Args:
        image: A floating tensor of any shape.

    Returns:
        A ``uint8`` tensor of the same shape.

    Raises:
        NonFiniteError: A value is infinite or not a number.

    Example:
        >>> to_uint8(torch.tensor([-1.0, 0.2, 2.0]))
        tensor([  0,  51, 255], dtype=torch.uint8)
    """
    return (check_finite(image.detach()).to(torch.float32) * 255).round().clamp(0, 255).to(torch.uint8)


def write_image(path: str | Path, image: Tensor) -> None:
    """Write an image file; the extension chooses the format.

    Args:
        path: Where to write; missing folders are made.
        image: A tensor of shape ``(3, H, W)``, either ``uint8`` or floating in [0, 1].

    Raises:
        ImageError: The tensor does not have three channels or is of another type, or the file cannot be written.

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
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise ImageError(f"an image must be uint8 or floating in [0, 1]; got {image.dtype}.")
    pixels = image if image.dtype == torch.uint8 else to_uint8(image)
    save_picture(Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy()), path)


def save_picture(image: Image.Image, path: str | Path, **options: Any) -> None:
    """Write a picture of Pillow in one step; the extension chooses the format.

    Args:
        image: The picture.
        path: Where to write; missing folders are made.
        **options: Options of Pillow for the format.

    Raises:
        ImageError: The extension is unknown, the format cannot hold the picture, or the file cannot be written.

    Example:
        >>> from PIL import Image
        >>> save_picture(Image.new("RGB", (2, 2)), "a.unknown")
        Traceback (most recent call last):
        ...
        sr_zoo.images.ImageError: 'a.unknown' cannot be written: unknown file extension '.unknown'. ...
    """
    suffix = Path(path).suffix.lower()
    if suffix not in EXTENSIONS:
        raise ImageError(
            f"'{path}' cannot be written: unknown file extension {suffix!r}. {', '.join(sorted(EXTENSIONS))} are known."
        )
    # in memory first: Pillow hides what the disk says, and an encoder may stop in the middle
    stream = io.BytesIO()
    try:
        image.save(stream, format=Image.registered_extensions()[suffix], **options)
    except (OSError, ValueError, KeyError) as error:
        raise ImageError(f"'{path}' cannot be written: {error}. Choose .png, which can store every image.") from error
    try:
        replace_file(path, [stream.getbuffer()])
    except StorageError as error:
        raise ImageError(str(error)) from error
