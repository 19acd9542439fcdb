r"""The straight line in weight space :math:`\gamma(t) = \bar\theta + t\,(\theta - \bar\theta)`, from base to target.

With waypoints it is a chain of K straight segments, each 1/K of [0, 1] long.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from filterattr.model.fitting import FittedStates, Rounded

_ROUNDING = 1e-9  # of a place between two corners
SMALL = 2**13  # entries; an operation on fewer costs more for its call than for its work
_ALIGNMENT = 64  # entries


class Path:
    """Both end points, which fit the model, and the points between them.

    Nothing is ever written to the tensors, which may be the user's.

    Attributes:
        base: First name of each moving parameter to its value at t = 0, in the model's type, device and layout.
        target: The same at t = 1.
        fixed: First name to value of what stays the same along the whole path: buffers, and parameters that are
            neither floating nor complex.
        waypoints: The corners between base and target, in order; tensors that do not move share memory.
        end_buffers: Place of an end, 0 or 1, to those buffers of it that are others on the path: first name to value.
            Empty unless floating ones are.
        rounded: First name to what the model's type does to the change of a parameter, where the states are finer.
    """

    def __init__(
        self,
        base: dict[str, Tensor],
        target: dict[str, Tensor],
        fixed: dict[str, Tensor],
        waypoints: Sequence[dict[str, Tensor]] = (),
        rounded: Mapping[str, Rounded] | None = None,
        end_buffers: Mapping[float, Mapping[str, Tensor]] | None = None,
    ) -> None:
        self.base = base
        self.target = target
        self.fixed = fixed
        self.waypoints = tuple(waypoints)
        self.rounded = dict(rounded or {})
        self.end_buffers = dict(end_buffers or {})
        self._line: Path | None = None

    @classmethod
    def through(cls, states: FittedStates) -> Path:
        """Join states that fit a model.

        Args:
            states: From `filterattr.model.fitting.fit_states`.

        Returns:
            The path from the first to the last; points that are repeated are left out.
        """
        base, *_, target = corners = states.corners
        return cls(base, target, states.fixed, _corners(corners), states.rounded, states.end_buffers)

    @property
    def segments(self) -> tuple[Path, ...]:
        """The straight parts, in order; a path without waypoints is its only one."""
        return self._chain if self.waypoints else (self,)  # not kept: what holds itself is not freed at once

    @cached_property
    def _chain(self) -> tuple[Path, ...]:
        corners = (self.base, *self.waypoints, self.target)
        return tuple(Path(first, second, self.fixed) for first, second in pairwise(corners))

    def write(self, t: float, out: Mapping[str, Tensor], *, only_moved: bool = False) -> None:
        """Write the point at a place: exact copies of the end points at 0 and 1, and one operation for every parameter.

        On accelerators it is one operation for all parameters of a type, as launching one costs more than its work.

        Args:
            t: Place on the path, 0 base, 1 target.
            out: Parameter name to a tensor in the model's type and layout.
            only_moved: Whether what does not change along the path is left alone.

        Example:
            >>> path, point = Path({"w": torch.zeros(2)}, {"w": torch.ones(2)}, {}), {"w": torch.empty(2)}
            >>> path.write(0.25, point)
            >>> point
            {'w': tensor([0.2500, 0.2500])}
        """
        segment, place = self.segment_at(t)
        moved = [] if place in (0.0, 1.0) else [name for name in segment.moved() if name in out]
        end = segment.target if place == 1.0 else segment.base
        for name in () if only_moved and moved else out.keys() - set(moved):
            out[name].copy_(end[name])
        together: list[str] = []
        for name in moved:
            point, first, second = out[name], segment.base[name], segment.target[name]
            if point.dtype.itemsize == 1 or point.dtype == torch.complex32:  # nothing computes in these
                point.copy_(torch.lerp(first.to(sum_type(first)), second.to(sum_type(second)), place))
            elif point.device.type == "cpu":
                torch.lerp(first, second, place, out=point)
            else:
                together.append(name)
        if together:
            points, firsts, seconds = ([of[name] for name in together] for of in (out, segment.base, segment.target))
            torch._foreach_copy_(points, firsts)
            torch._foreach_lerp_(points, seconds, place)

    def side_by_side(self) -> tuple[Path, dict[str, Tensor], dict[str, Tensor]]:
        """Lay small tensors that move side by side, so that one operation writes all of them.

        Returns:
            The path of the longer tensors, of which the tensors of this path are parts from now on; memory for a point
            of it; and parameter name to its part of that memory. With waypoints all is as it is.
        """
        names = [] if self.waypoints else [name for name in self.moved() if self.base[name].numel() <= SMALL]
        small = {name: self.base[name] for name in names}
        buffers, views = side_by_side(small)
        point = {f"buffer {number}": buffer for number, buffer in enumerate(buffers)}
        point |= {name: torch.empty_like(value) for name, value in self.base.items() if name not in small}
        ends = []
        for end in (self.base, self.target):
            longer, parts = side_by_side(small)
            for name, part in parts.items():
                end[name] = part.copy_(end[name])
            rest = [end[name] for name in end if name not in small]
            ends.append(dict(zip(point, [*longer, *rest], strict=True)))
        self._line = Path(ends[0], ends[1], self.fixed) if small else None
        return self._line or self, point, {name: views[name] if name in small else point[name] for name in self.base}

    def displacement(self, name: str, out: Tensor | None = None) -> Tensor:
        """The change of a parameter along a straight path, in its `sum_type`.

        Args:
            name: Name of a parameter.
            out: Where to write it: contiguous, of the parameter's shape and its `sum_type`; ``None`` for new memory.

        Example:
            >>> Path({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([1.5, 4.0])}, {}).displacement("w")
            tensor([0.5000, 2.0000])
        """
        base, target = self.base[name], self.target[name]
        if out is None:
            out = torch.empty_like(base, dtype=sum_type(base))
        return torch.sub(target, base, out=out) if out.dtype == base.dtype else out.copy_(target).sub_(base)

    def times_displacement(self, name: str, values: Tensor, out: Tensor | None = None) -> Tensor:
        r"""Multiply with ``target - base``.

        Args:
            name: Name of a parameter.
            values: Of its `sum_type` and shape, or with samples in front; they are used up, unless ``out`` is given.
                The complex conjugate counts where the parameter is complex.
            out: Where the displacement is written, and the product in its place, as for `displacement`.

        Returns:
            :math:`\Re(\overline{v}\,(\theta - \bar\theta))`, real, in the memory of ``values`` or ``out``.

        Example:
            >>> path = Path({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([1.5, 4.0])}, {})
            >>> path.times_displacement("w", torch.tensor([10.0, 10.0]))
            tensor([ 5., 20.])
        """
        change = self.displacement(name, out)
        first, second = (values, change) if out is None else (change, values)
        return first.conj_physical_().mul_(second).real if first.is_complex() else first.mul_(second)

    def moved(self) -> list[str]:
        """List the parameters that change along the path."""
        return list(self._moved)

    @cached_property
    def _moved(self) -> list[str]:
        if self.waypoints:
            moved = {name for segment in self.segments for name in segment.moved()}
            return [name for name in self.base if name in moved]
        return [name for name in self.base if _differ(self.base[name], self.target[name])]

    def cosine(self) -> float:
        """Cosine of the angle between all weights of base and of target; 1 if both are equal."""
        dot, norm_base, norm_target = self.products()
        product = math.sqrt(norm_base * norm_target)
        return dot / product if product else float(norm_base == norm_target)

    def products(self) -> tuple[float, float, float]:
        """Sum over all weights: base times target, base squared, target squared."""
        line = self if self._line is None else self._line  # few long tensors instead of many small ones
        rows: dict[torch.device, list[Tensor]] = {}
        for name, base in line.base.items():
            first, second = (_real(end).to(sum_type(_real(end))) for end in (base, line.target[name]))
            products = torch.stack([(first * second).sum(), (first * first).sum(), (second * second).sum()])
            rows.setdefault(base.device, []).append(products.double())
        sums = [torch.stack(products).sum(0).tolist() for products in rows.values()]
        mixed, base_squared, target_squared = map(math.fsum, zip(*sums, strict=True)) if sums else (0.0, 0.0, 0.0)
        return mixed, base_squared, target_squared

    def segment_at(self, t: float) -> tuple[Path, float]:
        """Find the straight part of a place; corners are hit exactly, whatever t was rounded to.

        Args:
            t: Place on the path.

        Returns:
            One of `segments`, and the place in it.
        """
        if not self.waypoints:
            return self, t
        place = t * len(self.segments)
        if abs(place - round(place)) < _ROUNDING:
            place = float(round(place))
        index = min(int(place), len(self.segments) - 1)
        return self.segments[index], place - index


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor).reshape(-1) if tensor.is_complex() else tensor


def _differ(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors differ; large ones that do mostly do so in the first entries."""
    if first.numel() > SMALL and not torch.equal(first[0], second[0]):
        return True
    return not torch.equal(first, second)


def _corners(states: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Leave out the ends and repeated points; what does not move is kept once."""
    corners = [states[0]]
    for state in states[1:-1]:
        last = corners[-1]
        shared = {name: last[name] if torch.equal(value, last[name]) else value for name, value in state.items()}
        if any(shared[name] is not last[name] for name in shared):
            corners.append(shared)
    if len(corners) > 1 and all(torch.equal(value, states[-1][name]) for name, value in corners[-1].items()):
        corners.pop()
    return corners[1:]


def sum_type(tensor: Tensor) -> torch.dtype:
    """The type that gradients of a tensor are added up in: float32, unless the tensor is finer or complex.

    Args:
        tensor: A parameter.

    Example:
        >>> sum_type(torch.zeros(1, dtype=torch.bfloat16)), sum_type(torch.zeros(1, dtype=torch.float64))
        (torch.float32, torch.float64)
    """
    if tensor.is_complex():
        return torch.complex128 if tensor.dtype == torch.complex128 else torch.complex64
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def side_by_side(tensors: Mapping[str, Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Make zeros of the layouts of tensors, in one buffer for each type and device.

    Args:
        tensors: Name to a dense tensor.

    Returns:
        The buffers, and name to view; the views begin where fresh memory could begin, so that nobody computes slower or
        in another way with them.

    Example:
        >>> buffers, views = side_by_side({"a": torch.ones(2, 3), "b": torch.ones(5)})
        >>> buffers[0].add_(1)[:6].eq(1).all(), {name: tuple(view.shape) for name, view in views.items()}
        (tensor(True), {'a': (2, 3), 'b': (5,)})
    """
    groups: dict[tuple[torch.device, torch.dtype], dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        groups.setdefault((tensor.device, tensor.dtype), {})[name] = tensor
    buffers, views = [], {}
    for (device, kind), members in groups.items():
        begins = list(accumulate((_aligned(tensor.numel()) for tensor in members.values()), initial=0))
        buffers.append(torch.zeros(begins.pop(), dtype=kind, device=device))
        for begin, (name, tensor) in zip(begins, members.items(), strict=True):
            views[name] = buffers[-1].as_strided(tensor.shape, tensor.stride(), begin)
    return buffers, views


def _aligned(size: int) -> int:
    """The next place where a tensor may begin: PyTorch's own begin at multiples of 64 bytes."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT
