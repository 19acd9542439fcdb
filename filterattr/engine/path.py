r"""The straight line in weight space :math:`\gamma(t) = \bar\theta + t\,(\theta - \bar\theta)`, from base to target."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from filterattr.errors import StateMismatchError, name_some

Side = Literal["base", "target"]


class Path:
    """Both end points, checked against the model and cloned, and the points between them.

    Attributes:
        base: First name of each moving parameter to its value at t = 0, in the model's type, device and layout.
        target: The same at t = 1.
        buffers: First name to the value that a buffer keeps along the whole path.
    """

    def __init__(self, base: dict[str, Tensor], target: dict[str, Tensor], buffers: dict[str, Tensor]) -> None:
        self.base = base
        self.target = target
        self.buffers = buffers

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
    ) -> Path:
        """Check two state dicts against a model and clone them.

        Args:
            base: State dict at t = 0.
            target: State dict at t = 1.
            parameters: First name to parameter of the model; only floating and complex ones move.
            buffers: First name to buffer of the model.
            aliases: Every name of the model to its first name.
            keep_buffers: Which end's floating buffers to use where they differ: derivatives with respect to running
                statistics do not exist, so that they cannot be part of the path.

        Returns:
            The path.

        Raises:
            StateMismatchError: Names are missing or unknown, shapes differ, values are not finite, tied names hold
                different values, or floating buffers differ and ``keep_buffers`` is not given. All findings are in
                one message.
        """
        ends: dict[str, dict[str, Tensor]] = {}
        findings: list[str] = []
        for role, state in (("base", base), ("target", target)):
            ends[role], found = _by_first_name(role, state, parameters, buffers, aliases)
            findings += found
        moving = {
            name: tensor for name, tensor in parameters.items() if tensor.is_floating_point() or tensor.is_complex()
        }
        for name, tensor in parameters.items():
            values = [ends[role].get(name) for role in ends]
            if (
                name not in moving
                and values[0] is not None
                and values[1] is not None
                and not torch.equal(values[0], values[1])
            ):
                findings.append(f"'{name}' is {tensor.dtype} and differs, but cannot move along a path")
        kept: dict[str, Tensor] = {}
        differing = []
        for name, buffer in buffers.items():
            values = [ends[role].get(name) for role in ends]
            if not buffer.is_floating_point() or values[0] is None or values[1] is None:
                kept[name] = buffer
                continue
            if values[0].shape == values[1].shape and not torch.equal(values[0].cpu(), values[1].cpu()):
                differing.append(name)
            kept[name] = ends[keep_buffers or "base"][name]
        if differing and keep_buffers is None:
            findings.append(
                f"the buffers {name_some(differing)} differ between base and target and cannot be integrated over: "
                'choose buffers="base" or buffers="target"'
            )
        if findings:
            raise StateMismatchError(
                "base and target must both fit the model: "
                + "; ".join(findings)
                + ". Load both from the same architecture."
            )
        return cls(
            {name: _clone_like(ends["base"][name], tensor) for name, tensor in moving.items()},
            {name: _clone_like(ends["target"][name], tensor) for name, tensor in moving.items()},
            {name: _clone_like(value, buffers[name]) for name, value in kept.items()},
        )

    def point(self, t: float) -> dict[str, Tensor]:
        """Return fresh tensors at place ``t``: exact copies of the end points at 0 and 1, float64 in between.

        Args:
            t: Place on the path, 0 base, 1 target.

        Returns:
            Parameter name to a new tensor in the model's type and layout.
        """
        if t in (0.0, 1.0):
            end = self.base if t == 0.0 else self.target
            return {name: value.clone() for name, value in end.items()}
        return {name: self._between(name, t) for name in self.base}

    def fresh_buffers(self) -> dict[str, Tensor]:
        """Return clones of the buffers, so that no point sees what another wrote."""
        return {name: value.clone() for name, value in self.buffers.items()}

    def change(self, name: str) -> Tensor:
        """Return ``target - base`` of a parameter, in float64 (complex128)."""
        return _wide(self.target[name]) - _wide(self.base[name])

    def moved(self) -> list[str]:
        """List the parameters that differ between the end points."""
        return [name for name in self.base if not torch.equal(self.base[name], self.target[name])]

    def cosine(self) -> float:
        """Cosine of the angle between all weights of base and of target; 1 if both are equal."""
        dot = norm_base = norm_target = 0.0
        for name in self.base:
            first, second = (_flat(end[name]) for end in (self.base, self.target))
            dot += float(first @ second)
            norm_base += float(first @ first)
            norm_target += float(second @ second)
        product = math.sqrt(norm_base * norm_target)
        return dot / product if product else float(norm_base == norm_target)

    def _between(self, name: str, t: float) -> Tensor:
        base, target = self.base[name], self.target[name]
        return torch.lerp(_wide(base), _wide(target), t).to(base.dtype)


def _by_first_name(
    role: str,
    state: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    aliases: Mapping[str, str],
) -> tuple[dict[str, Tensor], list[str]]:
    """Sort the entries of one end point by first name, and find everything wrong with it."""
    values: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    findings, unknown, misshapen, infinite = [], [], [], []
    for name, value in state.items():
        first = aliases.get(name)
        if first is None:
            unknown.append(name)
            continue
        own = parameters[first] if first in parameters else buffers[first]
        if value.shape != own.shape:
            misshapen.append(f"'{name}' has shape {tuple(value.shape)}, not {tuple(own.shape)}")
            continue
        if value.is_floating_point() and not bool(torch.isfinite(value.detach()).all()):
            infinite.append(name)
        if first in values and not torch.equal(values[first].cpu(), value.detach().cpu()):
            findings.append(f"{role} holds different values for '{names[first]}' and '{name}', which are one parameter")
            continue
        values[first], names[first] = value.detach(), name
    shaped = {text.split("'")[1] for text in misshapen}
    missing = [
        name for name in parameters if name not in values and not any(aliases.get(other) == name for other in shaped)
    ]
    if missing:
        findings.append(f"{role} lacks {len(missing)} of {len(parameters)}: {name_some(missing)}")
    if unknown:
        findings.append(f"{role} has {len(unknown)} that the model lacks: {name_some(unknown)}")
    if misshapen:
        more = f" and {len(misshapen) - 5} more" if len(misshapen) > 5 else ""
        findings.append(f"in {role} {', '.join(misshapen[:5])}{more}")
    if infinite:
        findings.append(f"{role} holds infinite values or NaN in {name_some(infinite)}")
    return values, findings


def _clone_like(value: Tensor, own: Tensor) -> Tensor:
    """Copy a value into a new tensor of the model's type, device and layout."""
    with torch.no_grad():
        return torch.empty_like(own, requires_grad=False).copy_(value)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _flat(tensor: Tensor) -> Tensor:
    wide = _wide(tensor)
    return (torch.view_as_real(wide) if wide.is_complex() else wide).reshape(-1)
