r"""Put chosen units back to base, or dial them: :math:`W = s\,\theta + (1 - s)\,\bar\theta` on a selection."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from filterattr.engine.claim import Claim
from filterattr.engine.slots import Slots
from filterattr.engine.states import StateLike, plain_state, unwrap_model
from filterattr.errors import SettingError, StateMismatchError, name_some
from filterattr.result import FilterSelection


def blend(target: StateLike, base: StateLike, selection: FilterSelection, strength: float = 0.0) -> dict[str, Tensor]:
    """Mix base into target on the selected units only.

    Args:
        target: The weights to change; a module or a state dict.
        base: The weights to mix in.
        selection: The units; everything else stays as in target, bit for bit.
        strength: 0 puts the units to base (masking), 1 leaves them at target, 1.5 goes beyond; both ends are exact.

    Returns:
        A new state dict; nothing in it shares memory with ``target`` or ``base``.

    Raises:
        StateMismatchError: A selected parameter is missing or has another shape; all of them are named.
        SettingError: The strength is not finite.

    Example:
        >>> import torch
        >>> from filterattr.engine.units import Unit
        >>> from filterattr.result import ScoredParameter
        >>> chosen = FilterSelection(
        ...     {"w": torch.tensor([True, False])}, {"w": ScoredParameter(Unit("... -> ..."), (2,))}
        ... )
        >>> blend({"w": torch.ones(2)}, {"w": torch.zeros(2)}, chosen, strength=0.25)
        {'w': tensor([0.2500, 1.0000])}
    """
    if not torch.isfinite(torch.tensor(float(strength))):
        raise SettingError(f"strength must be finite; got {strength}.")
    ends = {"target": plain_state(target, "target"), "base": plain_state(base, "base")}
    findings = [
        f"{role} has {'no ' + repr(name) if name not in state else f'{name!r} of shape {tuple(state[name].shape)}'}"
        f", the selection expects shape {scored.shape}"
        for role, state in ends.items()
        for name, scored in selection.parameters.items()
        if name not in state or tuple(state[name].shape) != scored.shape
    ]
    if findings:
        more = f"; and {len(findings) - 5} more" if len(findings) > 5 else ""
        raise StateMismatchError("the selection must fit both end points: " + "; ".join(findings[:5]) + more + ".")
    with torch.no_grad():
        result = {name: value.detach().clone() for name, value in ends["target"].items()}
        shared = _shared_names(ends["target"])
        for name, marked in selection.weights().items():
            mixed = _mix(ends["target"][name], ends["base"][name], strength)
            for alias in shared.get(name, (name,)):
                own = result[alias]
                result[alias] = torch.where(marked.to(own.device), mixed, own)
    return result


@contextmanager
def swapped(model: nn.Module, state: StateLike) -> Iterator[nn.Module]:
    """Let a model compute with other weights inside a ``with`` block; nothing of it is written to.

    Args:
        model: The model; wrappers are looked through.
        state: Weights for all or some of its parameters and buffers.

    Yields:
        The model itself.

    Raises:
        StateMismatchError: A name is unknown or a shape differs; all of them are named.
        ModelChangedError: Another thread computes with other weights in the model.

    Example:
        >>> import torch
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> with swapped(layer, {"weight": torch.zeros(1, 2)}):
        ...     layer(torch.ones(2)).item()
        0.0
    """
    inner = unwrap_model(model)
    claim = Claim(inner)
    slots: Slots | None = None
    try:
        try:
            claim.take()
            slots = Slots(inner)
            slots.put(_fitting(state, slots))
            yield inner
        finally:
            _give_back(slots, claim)
    finally:
        _give_back(slots, claim)


def _give_back(slots: Slots | None, claim: Claim) -> None:
    if slots is not None:
        slots.restore()
    claim.release()


def _fitting(state: StateLike, slots: Slots) -> dict[str, Tensor]:
    """Copy the weights of a state in the model's types and layouts."""
    tensors: dict[str, Tensor] = {}
    unknown, misshapen = [], []
    for name, value in plain_state(state, "state").items():
        first = slots.aliases.get(name)
        if first is None:
            unknown.append(name)
            continue
        own = slots.parameters[first] if first in slots.parameters else slots.buffers[first]
        if own.shape != value.shape:
            misshapen.append(f"'{name}' has shape {tuple(value.shape)}, not {tuple(own.shape)}")
            continue
        with torch.no_grad():
            copy = torch.empty_like(own, requires_grad=False).copy_(value.detach())
        is_parameter = first in slots.parameters
        tensors[first] = nn.Parameter(copy, own.requires_grad) if is_parameter else copy
    if unknown or misshapen:
        findings = ([f"the model lacks {name_some(unknown)}"] if unknown else []) + misshapen[:5]
        raise StateMismatchError("the state must fit the model: " + "; ".join(findings) + ".")
    return tensors


def _mix(target: Tensor, base: Tensor, strength: float) -> Tensor:
    """Interpolate in float64; exact copies at 0 and 1."""
    base = base.detach().to(device=target.device)
    if strength in (0.0, 1.0):
        return (base if strength == 0.0 else target.detach()).to(target.dtype)
    wide = torch.complex128 if target.is_complex() else torch.float64
    return torch.lerp(base.to(wide), target.detach().to(wide), strength).to(target.dtype)


def _shared_names(state: dict[str, Tensor]) -> dict[str, list[str]]:
    """Names that hold the same memory: tied weights, which must stay equal."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, value in state.items():
        key = (value.data_ptr(), value.shape, value.stride()) if value.numel() else (name,)
        groups.setdefault(key, []).append(name)
    return {name: names for names in groups.values() for name in names}
