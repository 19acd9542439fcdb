"""State dicts checked against a model, in its types and layouts; everything wrong is in one message."""

from __future__ import annotations

import cmath
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from filterattr.errors import StateMismatchError, listed, name_some

Side = Literal["base", "target"]

_CURE = " Load both from the same architecture."
_ROUNDED_LIMIT = 0.1  # of the changes of a parameter


class Rounded(NamedTuple):
    """What the model's type does to the change of one parameter.

    Attributes:
        n_moved: Number of its entries that differ between the states.
        n_lost: How many of these are equal in the model's type.
    """

    n_moved: int
    n_lost: int


class FittedStates(NamedTuple):
    """State dicts in the model's types, devices and layouts.

    Attributes:
        corners: What moves: base, the waypoints, target; each first name to value.
        fixed: What stays the same: buffers, and parameters that are neither floating nor complex.
        rounded: What the model's types do to the changes, where the states are finer.
        end_buffers: Place of an end, 0 or 1, to those buffers of it that are others in `fixed`.
    """

    corners: list[dict[str, Tensor]]
    fixed: dict[str, Tensor]
    rounded: dict[str, Rounded]
    end_buffers: dict[float, dict[str, Tensor]]


def fit_states(
    base: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    *,
    parameters: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    aliases: Mapping[str, str],
    keep_buffers: Side | None = None,
    waypoints: Sequence[Mapping[str, Tensor]] = (),
    names_first: bool = False,
) -> FittedStates:
    """Check state dicts against a model; what is of another type, device or layout than the model's is copied.

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
        names_first: Whether wrong names and shapes are told without a look at the values, which are in files.

    Returns:
        What fits.

    Raises:
        StateMismatchError: Names are missing or unknown, shapes differ, values are not finite in the model's type,
            tied names hold different values, or floating buffers differ and ``keep_buffers`` is not given. All
            findings are in one message.
    """
    findings: list[str] = []
    loaded: dict[str, dict[str, Tensor]] = {}
    corners = {f"waypoint {index}": state for index, state in enumerate(waypoints)}
    for role, state in {"base": base, **corners, "target": target}.items():
        loaded[role], wrong = by_first_name(role, state, parameters, buffers, aliases)
        findings += wrong
    if names_first and findings:
        raise StateMismatchError(f"base and target must both fit the model: {'; '.join(findings)}.{_CURE}")
    moving = {name: parameter for name, parameter in parameters.items() if is_number(parameter)}
    ends: dict[str, dict[str, Tensor]] = {}
    for role, values in loaded.items():
        ends[role] = {name: _fitted(values[name], parameter) for name, parameter in moving.items() if name in values}
        findings += _find_unusable(role, values, ends[role])
    cure = _CURE if findings else ""
    fixed, wrong = _fixed(loaded["base"], loaded["target"], parameters, buffers, keep_buffers)
    findings += wrong
    if findings:
        raise StateMismatchError(f"base and target must both fit the model: {'; '.join(findings)}.{cure}")
    rounded = _rounded(list(loaded.values()), list(ends.values()))
    end_buffers = {
        place: _other_buffers(loaded[role], buffers, fixed) for place, role in ((0.0, "base"), (1.0, "target"))
    }
    others = {place: values for place, values in end_buffers.items() if values}
    return FittedStates(list(ends.values()), fixed, rounded, others)


def _rounded(states: list[dict[str, Tensor]], clones: list[dict[str, Tensor]]) -> dict[str, Rounded]:
    """Count the changes from state to state that the model's types round away."""
    rounded = {}
    for name, parameter in clones[0].items():
        n_moved = n_lost = 0
        for (first, second), (kept, other) in zip(pairwise(states), pairwise(clones), strict=True):
            kinds = {first[name].dtype, second[name].dtype} - {parameter.dtype}
            if all(torch.promote_types(kind, parameter.dtype) == parameter.dtype for kind in kinds):
                continue
            moved = first[name] != second[name].to(first[name].device)
            n_moved += int(moved.sum())
            n_lost += int((moved.to(parameter.device) & (kept[name] == other[name])).sum())
        if n_lost:
            rounded[name] = Rounded(n_moved, n_lost)
    return rounded


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
        held = parameters[first] if first in parameters else buffers[first]
        if value.shape != held.shape:
            misshapen[first] = f"'{name}' has shape {tuple(value.shape)}, not {tuple(held.shape)}"
            continue
        if first in values and not _equal(values[first], value, held):
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
    return cmath.isfinite(tensor.sum().item()) or bool(torch.isfinite(tensor).all())


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
    for name, held in {**parameters, **buffers}.items():
        if name in parameters and is_number(held):
            continue
        values = [end[name] for end in (base, target) if name in end]
        if len(values) == 2 and _equal(values[0], values[1], held):
            value = values[0]
        elif name in parameters:
            value = held
            if len(values) == 2:
                findings.append(f"'{name}' is {held.dtype} and differs, but cannot move along a path")
        else:
            value = chosen.get(name, held)
            if values and name not in chosen and is_number(held):
                undetermined.append(name)
        fixed[name] = _clone_like(value, held)
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
        name: _clone_like(state[name], buffer)
        for name, buffer in buffers.items()
        if name in state and not _equal(state[name], fixed[name], buffer)
    }
    return others if any(is_number(value) for value in others.values()) else {}


def is_number(tensor: Tensor) -> bool:
    """Whether a tensor can move along a path: counters and masks cannot."""
    return tensor.is_floating_point() or tensor.is_complex()


def _equal(first: Tensor, second: Tensor, held: Tensor) -> bool:
    """Compare two values as the model would hold them; NaN equals NaN."""
    if first.data_ptr() == second.data_ptr() and first.stride() == second.stride() and first.dtype == second.dtype:
        return True  # one tensor under two names
    first, second = (value.detach().to(device=held.device, dtype=held.dtype) for value in (first, second))
    return bool(((first == second) | ((first != first) & (second != second))).all())


def _fitted(value: Tensor, like: Tensor) -> Tensor:
    """The value itself if it lies as the model's own does, and otherwise a copy that does.

    Tensors made in inference mode are copied: they do not tell when somebody writes to them.
    """
    is_plain = type(value) in (Tensor, nn.Parameter) and not (value.is_inference() or value.is_neg() or value.is_conj())
    dense = like.stride() if like.is_contiguous() else torch.empty_like(like, device="meta").stride()
    if is_plain and (value.dtype, value.device, value.stride()) == (like.dtype, like.device, dense):
        return value.detach()
    return _clone_like(value, like)


def _clone_like(value: Tensor, like: Tensor) -> Tensor:
    """Copy a value into a new tensor of the model's type, device and layout."""
    if value.is_complex() and not like.is_complex():
        value = value.real
    return torch.empty_like(like, requires_grad=False).copy_(value.detach())


def rounding_warning(rounded: Mapping[str, Rounded], moving: Mapping[str, Tensor]) -> str | None:
    """Say what the model's types make of the changes, where they round many of them away.

    Args:
        rounded: First name to what the type does to the change of a parameter.
        moving: First name to a tensor in the model's type.

    Returns:
        The text of a warning, or ``None``.
    """
    hit = {name: count for name, count in rounded.items() if count.n_lost > _ROUNDED_LIMIT * count.n_moved}
    if not hit:
        return None
    n_moved, n_lost = (sum(counts) for counts in zip(*hit.values(), strict=True))
    kinds = ", ".join(sorted({str(moving[name].dtype) for name in hit}))
    return (
        f"{n_lost / n_moved:.0%} of the changes between base and target round away in the model's {kinds} "
        f"({n_lost} of {n_moved} weights, in {name_some(hit)}): these weights count 0, and the others have changed by "
        'other amounts. Load the model in float32, the type of the weights, and use precision="bf16" for speed.'
    )
