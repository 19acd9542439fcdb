"""How results show themselves: as lines in a terminal, and as a small piece of HTML in a notebook.

Colours suit a dark notebook and a light one: text is that of the page, and bars have a tone that stands out on both.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

TOP = 10
_TONE = "#3f8fc4"
_EDGE = "rgba(127,127,127,0.45)"
_WIDTH, _HEIGHT, _MARGIN = 220, 70, 6


def highest(tensors: Mapping[str, Tensor], limit: int = TOP) -> list[tuple[str, tuple[int, ...], float]]:
    """Find the highest entries of several tensors.

    Args:
        tensors: Name to numbers; NaN counts as the lowest.
        limit: How many.

    Returns:
        Name, place and value, from the highest; the earlier one first among equals.

    Example:
        >>> highest({"a": torch.tensor([[1.0, 5.0]]), "b": torch.tensor([3.0])}, 2)
        [('a', (0, 1), 5.0), ('b', (0,), 3.0)]
    """
    cells: list[tuple[str, tuple[int, ...], float]] = []
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().reshape(-1).nan_to_num(nan=-math.inf)
        for place in _highest_places(flat, min(limit, len(flat))):
            inside = np.unravel_index(place, tensor.shape)
            cells += [(name, tuple(map(int, inside)), float(flat[place]))]
    return sorted(cells, key=lambda entry: -entry[2])[:limit]


def _highest_places(flat: Tensor, count: int) -> list[int]:
    """In linear time, as tensors may be long; the earlier one first among equals."""
    if not count:
        return []
    least = flat.topk(count).values[-1]
    above, equal = (flat > least).nonzero().flatten(), (flat == least).nonzero().flatten()
    places: list[int] = torch.cat([above, equal[: count - len(above)]]).tolist()
    return sorted(places, key=lambda place: (-float(flat[place]), place))


def lines(rows: Sequence[Sequence[str]]) -> str:
    """Set rows of text in columns, each row on a line of its own that begins with two spaces.

    Args:
        rows: As many texts in each.

    Example:
        >>> print(lines([["body", "1"], ["conv_last", "12"]]))
          body       1
          conv_last  12
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    texts = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(f"  {text}" for text in texts)


def cell(title: str, *parts: str) -> str:
    """Put parts together for a notebook.

    Args:
        title: What it is.
        *parts: Pieces of HTML.

    Returns:
        One piece of HTML; nothing in it is loaded from anywhere.
    """
    heading = f"<div style='font-weight:600'>{html.escape(title)}</div>"
    return f"<div class='filterattr' style='font-size:90%;max-width:60em'>{heading}{''.join(parts)}</div>"


def facts(pairs: Mapping[str, str]) -> str:
    """Names and values, side by side.

    Args:
        pairs: Name to value.
    """
    shown = [
        f"<span style='display:inline-block;margin-right:1.5em'>"
        f"<span style='opacity:0.7'>{html.escape(name)}</span> {html.escape(value)}</span>"
        for name, value in pairs.items()
    ]
    return f"<div style='margin:0.3em 0'>{''.join(shown)}</div>"


def reasons(texts: Iterable[str], nothing: str) -> str:
    """Reasons to doubt a result.

    Args:
        texts: The reasons.
        nothing: What is said without any.
    """
    entries = [f"<li>{html.escape(text)}</li>" for text in texts]
    if not entries:
        return f"<div style='opacity:0.8'>✓ {html.escape(nothing)}</div>"
    return f"<ul style='margin:0.2em 0;padding-left:1.3em;border-left:3px solid #d08a2e'>{''.join(entries)}</ul>"


def bars(headings: Sequence[str], rows: Sequence[tuple[Sequence[str], float]]) -> str:
    """A table whose rows end in a bar.

    Args:
        headings: One text per column.
        rows: As many texts, and the length of the bar in parts of the longest, in [0, 1].
    """
    head = "".join(f"<th style='text-align:left;padding:0 0.8em 0 0'>{html.escape(text)}</th>" for text in headings)
    body = "".join(f"<tr>{_cells(texts)}<td>{_bar(length)}</td></tr>" for texts, length in rows)
    return f"<table style='border-collapse:collapse;margin:0.3em 0'><tr>{head}<th></th></tr>{body}</table>"


def curve(xs: Sequence[float], ys: Sequence[float], title: str) -> str:
    """A line as a small picture.

    Args:
        xs: Places, ascending.
        ys: Values.
        title: What it shows, in words.
    """
    points = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
    if len(points) < 2:
        return ""
    spans = [(min(values), (max(values) - min(values)) or 1.0) for values in zip(*points, strict=True)]
    drawn = " ".join(
        f"{_MARGIN + (x - spans[0][0]) / spans[0][1] * (_WIDTH - 2 * _MARGIN):.1f},"
        f"{_HEIGHT - _MARGIN - (y - spans[1][0]) / spans[1][1] * (_HEIGHT - 2 * _MARGIN):.1f}"
        for x, y in points
    )
    return (
        f"<svg width='{_WIDTH}' height='{_HEIGHT}' viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img' "
        f"style='border:1px solid {_EDGE};display:block;margin:0.3em 0'><title>{html.escape(title)}</title>"
        f"<polyline points='{drawn}' fill='none' stroke='{_TONE}' stroke-width='2'/></svg>"
    )


def _cells(texts: Sequence[str]) -> str:
    return "".join(f"<td style='text-align:left;padding:0 0.8em 0 0'>{html.escape(text)}</td>" for text in texts)


def _bar(length: float) -> str:
    width = 120 * min(max(length, 0.0), 1.0) if math.isfinite(length) else 0.0
    return (
        f"<svg width='120' height='10' viewBox='0 0 120 10' aria-hidden='true'>"
        f"<rect width='{width:.1f}' height='10' fill='{_TONE}'/></svg>"
    )
