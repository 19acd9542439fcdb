"""The weights at places of a path, in memory that is the same for all of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from filterattr.engine.path import Path
from filterattr.pieces import Scratch, flat_pieces, wide_type

Writer: TypeAlias = Callable[[float, Scratch, Scratch], object]


class Points:
    """Write the points of a path, one over the other.

    Fresh memory for every place has to be asked for, which costs more than to fill it; and between two passes of a
    network its weights have left the processor's cache, so that every detour through other memory counts.

    Args:
        path: The path.

    Example:
        >>> path = Path({"weight": torch.zeros(2)}, {"weight": torch.ones(2)}, {})
        >>> Points(path).at(0.25)
        {'weight': tensor([0.2500, 0.2500])}
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tensors = {name: torch.empty_like(value) for name, value in path.base.items()}
        self._segments = {id(segment): _Segment(segment, self._tensors) for segment in path.segments}

    def at(self, t: float) -> dict[str, Tensor]:
        """Write the point at a place: exact copies of the end points at 0 and 1, float64 in between.

        Args:
            t: Place on the path, 0 base, 1 target.

        Returns:
            Parameter name to a tensor in the model's type and layout; the next call writes to it.
        """
        segment, place = self._path.segment_at(t)
        if place in (0.0, 1.0):
            end = segment.base if place == 0.0 else segment.target
            for name, tensor in self._tensors.items():
                tensor.copy_(end[name])
        else:
            scratches = Scratch(), Scratch()  # not held while the loss runs
            for write in self._segments[id(segment)].writers:
                write(place, *scratches)
        return dict(self._tensors)


class _Segment:
    """What has to be written for a point on one straight part."""

    def __init__(self, path: Path, tensors: dict[str, Tensor]) -> None:
        self._path = path
        self._tensors = tensors

    @cached_property
    def writers(self) -> list[Writer]:
        """For every piece of every tensor, what writes it; found out once, as that is as slow as the writing."""
        moved = set(self._path.moved())
        writers: list[Writer] = []
        for name, tensor in self._tensors.items():
            base, target = self._path.base[name], self._path.target[name]
            if name not in moved:
                writers.append(_copying(tensor, base))
                continue
            for point, first, second in zip(*map(flat_pieces, (tensor, base, target)), strict=True):
                if first.dtype == wide_type(first):
                    writers.append(_mixing(point, first, second))
                else:
                    writers.append(_mixing_wide(point, first, second))
        return writers


def _copying(point: Tensor, value: Tensor) -> Writer:
    return lambda _t, _first, _second: point.copy_(value)


def _mixing(point: Tensor, first: Tensor, second: Tensor) -> Writer:
    return lambda t, _first, _second: torch.lerp(first, second, t, out=point)


def _mixing_wide(point: Tensor, first: Tensor, second: Tensor) -> Writer:
    def mix(t: float, of_first: Scratch, of_second: Scratch) -> None:
        wide = of_second.like(second).copy_(second)
        point.copy_(of_first.like(first).copy_(first).lerp_(wide, t))

    return mix
