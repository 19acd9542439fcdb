"""Colour profiles (ICC) of pictures: which of them belong to the values that are restored, and what print becomes."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from PIL import Image

from filterattr import FilterAttrWarning

# what a profile says in its bytes 16 to 19 of the values that it is for
_SPACE = slice(16, 20)
_GRAY, _RGB, _CMYK, _LAB = b"GRAY", b"RGB ", b"CMYK", b"Lab "
_SPACES = {"1": _GRAY, "L": _GRAY, "LA": _GRAY, "CMYK": _CMYK, "LAB": _LAB}


def profile_for(mode: str, profile: bytes | None) -> bytes | None:
    """Keep a profile that is for the values of a picture.

    Args:
        mode: Mode of the picture, as Pillow calls it.
        profile: Its profile.

    Returns:
        The profile, or ``None`` if it is for other values.

    Example:
        >>> profile_for("L", bytes(16) + b"RGB " + bytes(108)) is None
        True
    """
    return profile if profile and profile[_SPACE] == _SPACES.get(mode, _RGB) else None


def coloured(image: Image.Image, profile: bytes | None, path: str | Path) -> tuple[Image.Image, bytes | None]:
    """Bring a picture to gray or RGB values, with the profile that describes them.

    Args:
        image: The picture.
        profile: The profile of its file.
        path: The file, for the warning.

    Returns:
        The picture, which is of another mode only if it was CMYK, and its profile; ``None`` means sRGB, or no profile.
    """
    if not profile or image.mode == "LAB":  # it becomes sRGB without
        return image, None
    fitting = profile_for(image.mode, profile)
    if fitting is None:
        _say_left_out(path, f"it is for {_name(profile[_SPACE])} values, the picture holds {image.mode}")
    elif image.mode == "CMYK":
        return _from_print(image, fitting, path), None
    return image, fitting


def _from_print(image: Image.Image, profile: bytes, path: str | Path) -> Image.Image:
    """Turn CMYK into sRGB by its profile or, if that is damaged, by the plain formula."""
    from PIL import ImageCms  # noqa: PLC0415 - an optional part of Pillow

    try:
        converted = ImageCms.profileToProfile(
            image, io.BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, ImportError, OSError) as error:
        _say_left_out(path, f"it cannot be used ({error})")
        return image
    return image if converted is None else converted


def _say_left_out(path: str | Path, reason: str) -> None:
    warnings.warn(
        f"the colour profile of '{path}' is left out: {reason}. Colours may shift.", FilterAttrWarning, stacklevel=4
    )


def _name(space: bytes) -> str:
    return space.decode("latin-1").strip() or "unknown"
