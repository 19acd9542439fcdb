"""What a command prints: text for people, or one JSON object for programs."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

_BLOCKS = "▏▎▍▌▋▊▉█"


def answer(options: argparse.Namespace, text: str, content: Mapping[str, Any]) -> None:
    """Print the result of a command.

    Args:
        options: The options of the command.
        text: The result for people.
        content: The same result for programs.
    """
    printed = json.dumps(_strict(content), allow_nan=False) if options.json else text
    sys.stdout.write(f"{printed}\n")


def columns(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Set rows of text in columns: the first column is aligned to the left, all others to the right.

    Args:
        headings: One text per column.
        rows: One text per column, for each row.

    Returns:
        Lines of text.

    Example:
        >>> print(columns(["layer", "share"], [["body", "5%"], ["conv_last", "95%"]]))
        layer      share
        body          5%
        conv_last    95%
    """
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    lines = [
        "  ".join(text.ljust(width) if place == 0 else text.rjust(width) for place, (text, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in [headings, *rows])
    ]
    return "\n".join(line.rstrip() for line in lines)


def bar(share: float, width: int = 20) -> str:
    """Draw a bar.

    Args:
        share: Length of the bar as a share of the width, in [0, 1].
        width: Number of characters.

    Returns:
        The bar, in characters that the terminal can show.

    Example:
        >>> len(bar(0.5, 10))
        5
    """
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    drawn = _BLOCKS[-1] * full + (_BLOCKS[rest - 1] if rest else "")
    try:
        drawn.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return "#" * round(eighths / 8)
    return drawn


def size(count: float) -> str:
    """Write a number of bytes or weights for people.

    Args:
        count: The number.

    Example:
        >>> size(950), size(16777216), size(4.3e9)
        ('950', '16.8M', '4.3G')
    """
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:.3g}{letter}"
    return f"{count:.0f}"


def _strict(value: Any) -> Any:
    """The value in types that strict JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): _strict(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value if isinstance(value, int | float | str | type(None)) else str(value)
