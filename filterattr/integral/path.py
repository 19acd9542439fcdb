r"""The straight line in weight space :math:`\gamma(t) = \bar\theta + t\,(\theta - \bar\theta)`, from base to target.

With waypoints it is a chain of K straight segments, each 1/K of [0, 1] long.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from filterattr.errors import StateMismatchError, listed, name_some
from filterattr.integral.pieces import PIECE, SMALL, flat_pieces, side_by_side, wide, wide_type

Side = Literal["base", "target"]

_ROUNDING = 1e-9  # of a place between two corners


class Rounded(NamedTuple):
    """What the model's type does to the change of one parameter.

    Attributes:
        n_moved: Number of its entries that differ between the states.
        n_lost: How many of these are equal in the model's type.
    """

    n_moved: int
    n_lost: int


class Path:
    """Both end points, checked against the model and cloned, and the points between them.

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

    @classmethod
    def between(
        cls,
        base: Mapping[str, Tensor],
        target: Mapping[str, Tensor],
        *,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        aliases: Mapping[str, str],
        keep_buffers: Side | None = None,
        waypoints: Sequence[Mapping[str, Tensor]] = (),
    ) -> Path:
        """Check state dicts against a model and clone them.

        Buffers cannot be part of the path, as derivatives with respect to running statistics do not exist. Where base
        and target agree on one, their value is used. Where they differ, ``keep_buffers`` chooses; without it,
        differing counters and masks (neither floating nor complex) keep the model's own value. So do buffers that
        neither state dict holds. Buffers of waypoints are not used.

        Args:
            base: State dict at t = 0.
            target: State dict at t = 1.
            parameters: First name to parameter of the model; only floating and complex ones move.
            buffers: First name to buffer of the model.
            aliases: Every name of the model to its first name.
            keep_buffers: Which end's buffers to use where they differ.
            waypoints: State dicts that the path passes through; those that repeat the point before them are left out.

        Returns:
            The path.

        Raises:
            StateMismatchError: Names are missing or unknown, shapes differ, values are not finite in the model's type,
                tied names hold different values, or floating buffers differ and ``keep_buffers`` is not given. All
                findings are in one message.
        """
        findings: list[str] = []
        found: dict[str, dict[str, Tensor]] = {}
        corners = {f"waypoint {index}": state for index, state in enumerate(waypoints)}
        for role, state in {"base": base, **corners, "target": target}.items():
            found[role], wrong = by_first_name(role, state, parameters, buffers, aliases)
            findings += wrong
        moving = {name: own for name, own in parameters.items() if _is_number(own)}
        ends: dict[str, dict[str, Tensor]] = {}
        for role, values in found.items():
            ends[role] = {name: _clone_like(values[name], own) for name, own in moving.items() if name in values}
            findings += _find_unusable(role, values, ends[role])
        cure = " Load both from the same architecture." if findings else ""
        fixed, wrong = _fixed(found["base"], found["target"], parameters, buffers, keep_buffers)
        findings += wrong
        if findings:
            raise StateMismatchError(f"base and target must both fit the model: {'; '.join(findings)}.{cure}")
        rounded = _rounded(list(found.values()), list(ends.values()))
        own = {place: _other_buffers(found[role], buffers, fixed) for place, role in ((0.0, "base"), (1.0, "target"))}
        others = {place: values for place, values in own.items() if values}
        return cls(ends["base"], ends["target"], fixed, _corners(list(ends.values())), rounded, others)

    @property
    def segments(self) -> tuple[Path, ...]:
        """The straight parts, in order; a path without waypoints is its only one."""
        return self._chain if self.waypoints else (self,)  # not kept: what holds itself is not freed at once

    @cached_property
    def _chain(self) -> tuple[Path, ...]:
        corners = (self.base, *self.waypoints, self.target)
        return tuple(Path(first, second, self.fixed) for first, second in pairwise(corners))

    def write(self, t: float, out: Mapping[str, Tensor]) -> None:
        """Write the point at a place: exact copies of the end points at 0 and 1, float64 in between.

        Args:
            t: Place on the path, 0 base, 1 target.
            out: Parameter name to a tensor in the model's type and layout.

        Example:
            >>> path, point = Path({"w": torch.zeros(2)}, {"w": torch.ones(2)}, {}), {"w": torch.empty(2)}
            >>> path.write(0.25, point)
            >>> point
            {'w': tensor([0.2500, 0.2500])}
        """
        segment, place = self.segment_at(t)
        moved = set() if place in (0.0, 1.0) else set(segment.moved())
        end = segment.target if place == 1.0 else segment.base
        for name, point in out.items():
            if name not in moved:
                point.copy_(end[name])
                continue
            tensors = point, segment.base[name], segment.target[name]
            for piece, first, second in zip(*map(flat_pieces, tensors), strict=True):
                piece.copy_(torch.lerp(wide(first), wide(second), place))

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
        line = Path(ends[0], ends[1], self.fixed) if small else self
        return line, point, {name: views[name] if name in small else point[name] for name in self.base}

    def fresh_fixed(self) -> dict[str, Tensor]:
        """Return clones of what stays fixed, so that no point sees what another wrote."""
        return {name: value.clone() for name, value in self.fixed.items()}

    def times_change(self, name: str, values: Tensor, factor: float = 1.0, *, keep: bool = False) -> Tensor:
        r"""Multiply with ``target - base``, in float64 and in pieces, so that no whole change is held.

        Args:
            name: Name of a parameter.
            values: Dense, of its shape or with samples in front, in its layout or contiguous; the complex conjugate
                counts where the parameter is complex.
            factor: What ``target - base`` is multiplied with before.
            keep: Whether ``values`` are left alone; otherwise they are float64 (complex128), and used up.

        Returns:
            :math:`\Re(\overline{v}\,(\theta - \bar\theta))`, real, in the memory of ``values`` or of a copy.

        Example:
            >>> path = Path({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([1.5, 4.0])}, {})
            >>> path.times_change("w", torch.tensor([10.0, 10.0], dtype=torch.float64))
            tensor([ 5., 20.], dtype=torch.float64)
        """
        base, target = self.base[name], self.target[name]
        if keep:
            values = torch.empty_like(base, dtype=wide_type(base)).copy_(values)
        if values.stride()[values.ndim - base.ndim :] != base.stride():
            base, target = base.contiguous(), target.contiguous()
        size = base.numel()
        rows = values.as_strided((values.numel() // max(1, size), size), (size, 1))
        pieces = zip(torch.split(rows, PIECE, 1), flat_pieces(base), flat_pieces(target), strict=True)
        for piece, first, second in pieces:
            change = wide(second) - wide(first)
            if factor != 1.0:
                change.mul_(factor)
            if piece.is_complex():
                piece.copy_(piece.conj() * change)
            else:
                piece.mul_(change)
        return values.real if values.is_complex() else values

    def moved(self) -> list[str]:
        """List the parameters that change along the path."""
        return list(self._moved)

    @cached_property
    def _moved(self) -> list[str]:
        if self.waypoints:
            moved = {name for segment in self.segments for name in segment.moved()}
            return [name for name in self.base if name in moved]
        return [name for name in self.base if not torch.equal(self.base[name], self.target[name])]

    def cosine(self) -> float:
        """Cosine of the angle between all weights of base and of target; 1 if both are equal."""
        dot = norm_base = norm_target = 0.0
        for name in self.base:
            for pair in zip(flat_pieces(self.base[name]), flat_pieces(self.target[name]), strict=True):
                first, second = (wide(_real(piece)) for piece in pair)
                dot += float(first @ second)
                norm_base += float(first @ first)
                norm_target += float(second @ second)
        product = math.sqrt(norm_base * norm_target)
        return dot / product if product else float(norm_base == norm_target)

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


def _rounded(states: list[dict[str, Tensor]], clones: list[dict[str, Tensor]]) -> dict[str, Rounded]:
    """Count the changes from state to state that the model's types round away."""
    rounded = {}
    for name, own in clones[0].items():
        n_moved = n_lost = 0
        for (first, second), (kept, other) in zip(pairwise(states), pairwise(clones), strict=True):
            kinds = {first[name].dtype, second[name].dtype} - {own.dtype}
            if all(torch.promote_types(kind, own.dtype) == own.dtype for kind in kinds):
                continue
            moved = first[name] != second[name].to(first[name].device)
            n_moved += int(moved.sum())
            n_lost += int((moved.to(own.device) & (kept[name] == other[name])).sum())
        if n_lost:
            rounded[name] = Rounded(n_moved, n_lost)
    return rounded


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


def by_first_name(
    role: str,
    state: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    aliases: Mapping[str, str],
    *,
    is_partial: bool = False,
) -> tuple[dict[str, Tensor], list[str]]:
    """Sort the entries of a state by first name, and find every name, shape and tie that is wrong with it.

    Args:
        role: What the state is called in messages.
        state: Name to tensor.
        parameters: First name to parameter of the model.
        buffers: First name to buffer of the model.
        aliases: Every name of the model to its first name.
        is_partial: Whether parameters may be missing.

    Returns:
        First name to value, and what is wrong, in words.
    """
    values: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    findings, unknown, misshapen = [], [], {}
    for name, value in state.items():
        first = aliases.get(name)
        if first is None:
            unknown.append(name)
            continue
        own = parameters[first] if first in parameters else buffers[first]
        if value.shape != own.shape:
            misshapen[first] = f"'{name}' has shape {tuple(value.shape)}, not {tuple(own.shape)}"
            continue
        if first in values and not _equal(values[first], value, own):
            findings.append(f"{role} holds different values for '{names[first]}' and '{name}', which are one parameter")
            continue
        values[first], names[first] = value.detach(), name
    missing = [name for name in parameters if name not in values and name not in misshapen and not is_partial]
    if missing:
        findings.append(f"{role} lacks {len(missing)} of {len(parameters)}: {name_some(missing)}")
    if unknown:
        findings.append(f"{role} has {len(unknown)} that the model lacks: {name_some(unknown)}")
    if misshapen:
        findings.append(f"in {role} {listed(misshapen.values())}")
    return values, findings


def _find_unusable(role: str, values: Mapping[str, Tensor], clones: Mapping[str, Tensor]) -> list[str]:
    """Find values that are not finite, or do not survive the model's type."""
    infinite = [
        name for name, clone in clones.items() if not _is_finite(clone) and not bool(torch.isfinite(values[name]).all())
    ]
    findings = [f"{role} holds infinite values or NaN in {name_some(infinite)}"] if infinite else []
    return findings + lost_values(role, values, clones)


def lost_values(role: str, values: Mapping[str, Tensor], clones: Mapping[str, Tensor]) -> list[str]:
    """Find values that the model's type cannot hold at all.

    Args:
        role: What they belong to, for messages.
        values: Name to value.
        clones: The same in the model's types.

    Returns:
        What is wrong, in words.
    """
    findings = []
    overflowing = [
        name
        for name, clone in clones.items()
        if clone.dtype != values[name].dtype and not _is_finite(clone) and bool(torch.isfinite(values[name]).all())
    ]
    if overflowing:
        kinds = ", ".join(sorted({str(clones[name].dtype) for name in overflowing}))
        findings.append(f"{role} holds values too large for {kinds} in {name_some(overflowing)}")
    complex_ones = [name for name, clone in clones.items() if values[name].is_complex() and not clone.is_complex()]
    if complex_ones:
        findings.append(f"{role} is complex and the model real in {name_some(complex_ones)}")
    return findings


def _is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite; where their sum is, nothing else needs to be looked at."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def _fixed(
    base: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    keep_buffers: Side | None,
) -> tuple[dict[str, Tensor], list[str]]:
    """Choose the value of everything that does not move, and find where no choice is possible."""
    fixed: dict[str, Tensor] = {}
    findings: list[str] = []
    undetermined: list[str] = []
    chosen = {"base": base, "target": target, None: {}}[keep_buffers]
    for name, own in {**parameters, **buffers}.items():
        if name in parameters and _is_number(own):
            continue
        values = [end[name] for end in (base, target) if name in end]
        if len(values) == 2 and _equal(values[0], values[1], own):
            value = values[0]
        elif name in parameters:
            value = own
            if len(values) == 2:
                findings.append(f"'{name}' is {own.dtype} and differs, but cannot move along a path")
        else:
            value = chosen.get(name, own)
            if values and name not in chosen and _is_number(own):
                undetermined.append(name)
        fixed[name] = _clone_like(value, own)
    if undetermined and keep_buffers is None:
        findings.append(
            f"the buffers {name_some(undetermined)} differ between base and target and cannot be integrated over: "
            'choose buffers="target" (as in the trained model) or buffers="base"'
        )
    elif undetermined:
        findings.append(f"{keep_buffers} lacks the buffers {name_some(undetermined)}, but is to provide them")
    return fixed, findings


def _other_buffers(
    state: Mapping[str, Tensor], buffers: Mapping[str, Tensor], fixed: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The buffers of an end that are others on the path, if floating ones are among them."""
    others = {
        name: _clone_like(state[name], own)
        for name, own in buffers.items()
        if name in state and not _equal(state[name], fixed[name], own)
    }
    return others if any(_is_number(value) for value in others.values()) else {}


def _is_number(tensor: Tensor) -> bool:
    """Whether a tensor can move along a path: counters and masks cannot."""
    return tensor.is_floating_point() or tensor.is_complex()


def _equal(first: Tensor, second: Tensor, own: Tensor) -> bool:
    """Compare two values as the model would hold them; NaN equals NaN."""
    first, second = (value.detach().to(device=own.device, dtype=own.dtype) for value in (first, second))
    return bool(((first == second) | ((first != first) & (second != second))).all())


def _clone_like(value: Tensor, own: Tensor) -> Tensor:
    """Copy a value into a new tensor of the model's type, device and layout."""
    if value.is_complex() and not own.is_complex():
        value = value.real
    return torch.empty_like(own, requires_grad=False).copy_(value.detach())


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor).reshape(-1) if tensor.is_complex() else tensor
