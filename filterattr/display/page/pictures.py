"""Pictures of a report: arrays or finished files, without any image library."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from filterattr.display.page.markup import Markup, element, number

Image: TypeAlias = bytes | NDArray[Any]

_KINDS = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
_COLOUR_TYPES = {1: 0, 3: 2}


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture with its caption.

    Args:
        image: An array of shape ``(H, W)`` or ``(H, W, 3)``, ``uint8`` or floats in [0, 1] (what lies outside is cut),
            or the bytes of a PNG or JPEG file. Arrays are kept without loss.
        caption: What the reader sees below it.
        description: What a reader who does not see the picture is told; the caption by default.

    Example:
        >>> import numpy as np
        >>> Picture(np.zeros((4, 4)), "nothing").caption
        'nothing'
    """

    image: Image
    caption: str
    description: str = ""


@dataclass(frozen=True, eq=False)
class Strip:
    """Pictures side by side, such as input, base, target, masked and their difference.

    Args:
        title: What they show.
        pictures: From left to right.
        note: A sentence for the reader.

    Example:
        >>> import numpy as np
        >>> black, white = np.zeros((4, 4)), np.ones((4, 4))
        >>> strip = Strip("Two grounds", [Picture(black, "black"), Picture(white, "white")])
        >>> [picture.caption for picture in strip.pictures]
        ['black', 'white']
    """

    title: str
    pictures: Sequence[Picture]
    note: str = ""


@dataclass(frozen=True, eq=False)
class Dial:
    """Pictures for several strengths of an intervention; a slider chooses which are seen.

    Without scripts, and on paper, all of them are shown.

    Args:
        title: What is dialled.
        frames: Strength to the pictures at that strength, side by side.
        start: The strength that is seen first; 1 by default if there is such a frame, otherwise the last.
        note: A sentence for the reader.

    Example:
        >>> import numpy as np
        >>> frames = {level: [Picture(np.full((4, 4), level), f"level {level}")] for level in (0.0, 0.5, 1.0)}
        >>> len(Dial("From black to white", frames).frames)
        3
    """

    title: str
    frames: Mapping[float, Sequence[Picture]]
    start: float | None = None
    note: str = ""


def findings(panel: Strip | Dial) -> list[str]:
    """Find everything that keeps a strip or a dial from being shown.

    Args:
        panel: The strip or dial.

    Returns:
        One sentence part per finding.
    """
    if isinstance(panel, Dial):
        named = [(f"strength {strength:g}", list(row)) for strength, row in panel.frames.items()]
        wrong = [] if len(named) >= 2 else [f"{panel.title!r} needs frames for at least two strengths"]
        if panel.start is not None and panel.start not in panel.frames:
            wrong.append(f"{panel.title!r} has no frame for its start {panel.start:g}")
    else:
        named = [("strip", list(panel.pictures))]
        wrong = []
    wrong += [f"{panel.title!r} has no pictures ({place})" for place, row in named if not row]
    for place, row in named:
        for picture in row:
            problem = _problem(picture.image)
            if problem:
                wrong.append(f"{panel.title!r}, {place}, {picture.caption!r}: {problem}")
    return wrong


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Write pixels as a PNG file.

    Every row is stored as its difference to what its neighbours predict, by the filter that leaves the smallest
    numbers, as the PNG specification recommends.

    Args:
        pixels: ``uint8`` of shape ``(H, W)`` or ``(H, W, 3)``.

    Returns:
        The bytes of the file.

    Example:
        >>> encode_png(np.zeros((2, 2), np.uint8))[1:4]
        b'PNG'

    References:
        W3C, "Portable Network Graphics (PNG) Specification", sections 9 (filters) and 12.7 (choosing them).
    """
    height, width = pixels.shape[:2]
    step = 1 if pixels.ndim == 2 else pixels.shape[2]
    here = pixels.reshape(height, -1).astype(np.int16)
    left, above, corner = np.zeros_like(here), np.zeros_like(here), np.zeros_like(here)
    left[:, step:] = here[:, :-step]
    above[1:] = here[:-1]
    corner[1:, step:] = here[:-1, :-step]
    guess = left + above - corner
    distances = np.stack([abs(guess - left), abs(guess - above), abs(guess - corner)])
    paeth = np.choose(distances.argmin(0), [left, above, corner])
    guesses = (np.zeros_like(here), left, above, (left + above) // 2, paeth)
    coded = np.stack([(here - guessed).astype(np.uint8) for guessed in guesses])
    best = abs(coded.astype(np.int8).astype(np.int16)).sum(2).argmin(0)
    rows = np.concatenate([best[:, None].astype(np.uint8), coded[best, np.arange(height)]], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[step], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def strip_of(pictures: Sequence[Picture]) -> Markup:
    """Put pictures side by side.

    Args:
        pictures: From left to right.

    Returns:
        The strip.
    """
    return element("div", [_figure(picture) for picture in pictures], class_="strip")


def panel_of(panel: Strip | Dial) -> Markup:
    """Show a strip, or a dial that the page's script turns into a slider.

    Args:
        panel: The strip or dial.

    Returns:
        The piece of the page.
    """
    heading = (element("h3", panel.title), element("p", panel.note) if panel.note else None)
    if isinstance(panel, Strip):
        return element("div", *heading, strip_of(panel.pictures), class_="panel")
    ordered = sorted(panel.frames.items())
    strengths = [float(strength) for strength, _ in ordered]
    start = panel.start if panel.start is not None else 1.0 if 1.0 in strengths else strengths[-1]
    frames = [
        element(
            "div",
            element("p", f"strength {number(float(strength))}", class_="strength"),
            strip_of(row),
            class_="frame",
            data_strength=number(float(strength)),
            data_start=float(strength) == start,
        )
        for strength, row in ordered
    ]
    return element("div", *heading, element("div", frames, class_="frames"), class_="panel dial", data_dial=True)


def _figure(picture: Picture) -> Markup:
    data, kind, size = _file_of(picture.image)
    source = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    width, height = size or (None, None)
    shown = element("img", src=source, alt=picture.description or picture.caption, width=width, height=height)
    return element("figure", shown, element("figcaption", picture.caption))


def _file_of(image: Image) -> tuple[bytes, str, tuple[int, int] | None]:
    """Bytes, media type, and width and height where they are known."""
    if isinstance(image, bytes):
        return image, next(kind for magic, kind in _KINDS.items() if image.startswith(magic)), None
    if image.dtype != np.uint8:
        image = np.rint(np.clip(image.astype(np.float64), 0, 1) * 255).astype(np.uint8)
    return encode_png(image), "image/png", (image.shape[1], image.shape[0])


def _problem(image: Any) -> str | None:
    if isinstance(image, bytes):
        return None if image.startswith(tuple(_KINDS)) else "the bytes must be those of a PNG or JPEG file"
    if not isinstance(image, np.ndarray):
        return f"the image must be an array or the bytes of a PNG or JPEG file; got {type(image).__name__}"
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3) or 0 in image.shape:
        hint = "; move the channels last" if image.ndim == 3 and image.shape[0] in (1, 3) else ""
        return f"the shape must be (H, W) or (H, W, 3); got {image.shape}{hint}"
    if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
        return f"the type must be uint8 or a float in [0, 1]; got {image.dtype}"
    return None if np.isfinite(image).all() else "it holds values that are not finite"
