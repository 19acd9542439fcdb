"""The weights at places of a path, in memory that is the same for all of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from filterattr.engine.path import Path
from filterattr.engine.pieces import Scratch, flat_pieces, wide_type


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
        scratches = Scratch(), Scratch()
        self._segments = {id(segment): _Segment(segment, self._tensors, scratches) for segment in path.segments}

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
            for write in self._segments[id(segment)].writers:
                write(place)
        return dict(self._tensors)


class _Segment:
    """What has to be written for a point on one straight part."""

    def __init__(self, path: Path, tensors: dict[str, Tensor], scratches: tuple[Scratch, Scratch]) -> None:
        self._path = path
        self._tensors = tensors
        self._scratches = scratches

    @cached_property
    def writers(self) -> list[Callable[[float], object]]:
        """For every piece of every tensor, what writes it; found out once, as that is as slow as the writing."""
        moved = set(self._path.moved())
        writers: list[Callable[[float], object]] = []
        for name, tensor in self._tensors.items():
            base, target = self._path.base[name], self._path.target[name]
            if name not in moved:
                writers.append(_copying(tensor, base))
                continue
            for point, first, second in zip(*map(flat_pieces, (tensor, base, target)), strict=True):
                if first.dtype == wide_type(first):
                    writers.append(_mixing(point, first, second))
                else:
                    writers.append(_mixing_wide(point, first, second, *(one.like(first) for one in self._scratches)))
        return writers


def _copying(point: Tensor, value: Tensor) -> Callable[[float], object]:
    return lambda _t: point.copy_(value)


def _mixing(point: Tensor, first: Tensor, second: Tensor) -> Callable[[float], object]:
    return lambda t: torch.lerp(first, second, t, out=point)


def _mixing_wide(
    point: Tensor, first: Tensor, second: Tensor, wide_first: Tensor, wide_second: Tensor
) -> Callable[[float], object]:
    def mix(t: float) -> None:
        wide_second.copy_(second)
        point.copy_(wide_first.copy_(first).lerp_(wide_second, t))

    return mix
