r"""Put chosen units back to base, dial them, :math:`W = s\,\theta + (1 - s)\,\bar\theta`, or train them alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from filterattr.errors import SettingError, StateMismatchError, gathered, name_some
from filterattr.model.context import ModelLock
from filterattr.model.fitting import by_first_name, lost_values
from filterattr.model.random_state import CallersRandomness, Turn, seed_all
from filterattr.model.state_dict import StateLike, copied, plain_state, shared_names, unwrap_model
from filterattr.model.swap import ParameterSwap
from filterattr.results.scores import FilterSelection


def blend(target: StateLike, base: StateLike, selection: FilterSelection, strength: float = 0.0) -> dict[str, Tensor]:
    """Mix base into target on the selected units only.

    Args:
        target: The weights to change; a module or a state dict.
        base: The weights to mix in.
        selection: The units; everything else stays as in target, bit for bit.
        strength: 0 puts the units to base (masking), 1 leaves them at target, 1.5 goes beyond; both ends are exact.

    Returns:
        A new state dict; nothing in it shares memory with ``target`` or ``base``. Names that share memory in target
        (tied weights) share it here.

    Raises:
        StateMismatchError: A selected parameter is missing or has another shape; all of them are named.
        SettingError: The strength is not finite.

    Example:
        >>> import torch
        >>> from filterattr import ScoredParameter, Unit
        >>> chosen = FilterSelection(
        ...     {"w": torch.tensor([True, False])}, {"w": ScoredParameter(Unit("... -> ..."), (2,))}
        ... )
        >>> blend({"w": torch.ones(2)}, {"w": torch.zeros(2)}, chosen, strength=0.25)
        {'w': tensor([0.2500, 1.0000])}
    """
    if not math.isfinite(strength):
        raise SettingError(f"strength must be finite; got {strength}.")
    names = selection.parameters
    ends = {"target": plain_state(target, "target", names), "base": plain_state(base, "base", names)}
    check_selection(selection, ends)
    with torch.no_grad():
        result = copied(ends["target"])
        shared = shared_names(result)
        for name, marked in selection.weights().items():
            mixed = _mix(ends["target"][name], ends["base"][name], strength)
            blended = torch.where(marked.to(mixed.device), mixed, result[name])
            result |= dict.fromkeys(shared[name], blended)
    return result


class Shaped(Protocol):
    """A tensor, or what is known of one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""


def check_selection(selection: FilterSelection, states: Mapping[str, Mapping[str, Shaped]]) -> None:
    """Make sure that state dicts hold the parameters of a selection, in their shapes.

    Args:
        selection: The selection.
        states: What a state dict is called in messages to the state dict.

    Raises:
        StateMismatchError: A selected parameter is missing or has another shape; all of them are named.
    """
    findings = [
        f"{role} has {'no ' + repr(name) if name not in state else f'{name!r} of shape {tuple(state[name].shape)}'}"
        f", the selection expects shape {scored.shape}"
        for role, state in states.items()
        for name, scored in selection.parameters.items()
        if name not in state or tuple(state[name].shape) != scored.shape
    ]
    if findings:
        raise StateMismatchError(f"the selection must fit both end points: {gathered(findings)}.")


@contextmanager
def swapped(model: nn.Module, state: StateLike | EditableState, *, seed: int | None = None) -> Iterator[nn.Module]:
    """Let a model compute with other weights inside a ``with`` block; nothing of it is written to.

    Args:
        model: The model; wrappers are unwrapped.
        state: Weights for all or some of its parameters and buffers, or an `EditableState` of them.
        seed: Seeds all random numbers of the block; the caller's random state is given back after it, and other threads
            that draw wait. ``None`` leaves random numbers alone.

    Yields:
        The model itself.

    Raises:
        StateMismatchError: A name is unknown, a shape differs, tied names hold different values, or a value does not
            fit into the model's type; all of them are named.
        ModelChangedError: Another thread computes with other weights in the model.

    Example:
        >>> import torch
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> with swapped(layer, {"weight": torch.zeros(1, 2)}):
        ...     layer(torch.ones(2)).item()
        0.0
    """
    inner = unwrap_model(model)
    lock, caller, turn = ModelLock(inner), CallersRandomness(), Turn()
    swap: ParameterSwap | None = None
    try:
        try:  # no `restoring`, as the block lies in between; for the same reason everything is given back twice
            lock.take()
            swap = ParameterSwap(inner)
            swap.put(state.tensors() if isinstance(state, EditableState) else _fitting(state, swap))
            if seed is not None:
                caller.enter()
                turn.take()
                seed_all(seed)
            yield inner
        finally:
            _give_back(swap, turn, caller, lock)
    finally:
        _give_back(swap, turn, caller, lock)


class EditableState:
    """Weights for `swapped` that change in a few places from one use to the next.

    They are copied once, in the model's types and layouts. What `write` changes stays changed; buffers start from the
    given values at every use.

    Args:
        model: The model that will compute with them; wrappers are unwrapped.
        state: Weights for all or some of the model's parameters and buffers.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> state = EditableState(layer, {"weight": torch.zeros(1, 2)})
        >>> with swapped(layer, state):
        ...     layer(torch.ones(2)).item()
        0.0
        >>> state.write("weight", torch.tensor([[True, False]]), torch.full((1, 2), 3.0))
        >>> with swapped(layer, state):
        ...     layer(torch.ones(2)).item()
        3.0
    """

    def __init__(self, model: nn.Module, state: StateLike) -> None:
        swap = ParameterSwap(unwrap_model(model))
        self._aliases = swap.aliases
        self._tensors = _fitting(state, swap)

    def tensors(self) -> dict[str, Tensor]:
        """First name to tensor: the parameters themselves, and copies of the buffers."""
        return {
            name: value if isinstance(value, nn.Parameter) else value.clone() for name, value in self._tensors.items()
        }

    def write(self, name: str, places: Tensor, values: Tensor) -> None:
        """Change some weights of one parameter.

        Args:
            name: A name of the parameter.
            places: Flat places, ascending, of shape ``(n,)``, or booleans of the parameter's shape.
            values: Tensor of the parameter's shape, whose entries are taken at these places.
        """
        weights = self._tensors[self._aliases[name]].detach()
        values = values.detach()
        if places.dtype == torch.bool:
            weights.copy_(torch.where(places.to(weights.device), values.to(weights), weights))
        elif weights.is_contiguous():
            weights.view(-1)[places] = values.reshape(-1)[places.to(values.device)].to(weights)
        else:
            self.write(name, _marked(places, weights), values)


def _marked(places: Tensor, like: Tensor) -> Tensor:
    marked = torch.zeros(like.numel(), dtype=torch.bool, device="cpu")
    marked[places] = True
    return marked.reshape(like.shape)


def _give_back(swap: ParameterSwap | None, turn: Turn, caller: CallersRandomness, lock: ModelLock) -> None:
    if swap is not None:
        swap.restore()
    turn.release()
    caller.leave()
    lock.release()


def _fitting(state: StateLike, swap: ParameterSwap) -> dict[str, Tensor]:
    """Copy the weights of a state in the model's types and layouts."""
    entries = plain_state(state, "state", swap.aliases)
    values, findings = by_first_name("state", entries, swap.parameters, swap.buffers, swap.aliases, is_partial=True)
    held = {**swap.parameters, **swap.buffers}
    copies = {name: _copy_like(value, held[name]) for name, value in values.items()}
    findings += lost_values("state", values, copies)
    if findings:
        raise StateMismatchError("the state must fit the model: " + "; ".join(findings) + ".")
    parameters = swap.parameters
    return {
        name: nn.Parameter(copy, parameters[name].requires_grad) if name in parameters else copy
        for name, copy in copies.items()
    }


def _copy_like(value: Tensor, like: Tensor) -> Tensor:
    if value.is_complex() and not like.is_complex():
        value = value.real  # refused afterwards, together with everything else
    return torch.empty_like(like, requires_grad=False).copy_(value.detach())


@contextmanager
def train_only(model: nn.Module, selection: FilterSelection, optimizer: Optimizer) -> Iterator[nn.Module]:
    """Let an optimizer train the selected units inside a ``with`` block; every other weight stays bit-identical.

    A zero gradient freezes nothing: weight decay moves the weight at once, and momentum, Adam and RMSprop move it by
    what they remember. So the gradients of the other weights become zero (also where they are infinite) as soon as
    they are computed, and after every step of the optimizer the other weights are put back. Parameters that the
    selection does not name, such as biases, are frozen as a whole. Flags, ``.grad`` of the past and the optimizer's
    state stay as they are; buffers, such as running statistics, go on as in every training (use ``eval()`` against
    that). Everything is removed when the block is left, whatever happens in it.

    The selected weights train as if they were the only ones: norms for gradient clipping and the search for infinite
    gradients of a gradient scaler see zeros elsewhere. Optimizers that look at a whole parameter to move one weight
    (LARS, Adafactor, Muon) see the frozen weights too. Costs one copy of the frozen parameters.

    Args:
        model: The model; wrappers are unwrapped.
        selection: The units to train.
        optimizer: Any optimizer of `torch.optim` or derived from it, also inside one of accelerate. Other changes
            of weights inside the block (a second optimizer, assignments) are undone at its next step and at the end.

    Yields:
        The model as it was given.

    Raises:
        StateMismatchError: A selected parameter is missing in the model or has another shape.
        SettingError: The optimizer runs no hooks after its steps, or does not hold a selected parameter, or a selected
            parameter does not require gradients.

    Example:
        >>> import torch
        >>> from filterattr import ScoredParameter, Unit
        >>> layer = nn.Linear(2, 2)
        >>> before = layer.weight.detach().clone()
        >>> chosen = FilterSelection(
        ...     {"weight": torch.tensor([True, False])}, {"weight": ScoredParameter(Unit("o i -> o"), (2, 2))}
        ... )
        >>> optimizer = torch.optim.AdamW(layer.parameters(), weight_decay=0.1)
        >>> with train_only(layer, chosen, optimizer):
        ...     layer(torch.ones(2)).sum().backward()
        ...     optimizer.step()
        >>> (layer.weight == before).all(1)
        tensor([False,  True])
    """
    optimizer = _unwrapped(optimizer)
    swap = ParameterSwap(unwrap_model(model))
    freezer = _Freezer(_frozen_weights(swap, selection, optimizer))
    try:
        try:
            freezer.attach(optimizer)
            yield model
        finally:
            freezer.release()
    finally:
        freezer.release()


def _unwrapped(optimizer: Optimizer) -> Optimizer:
    """Look through the optimizers of accelerate and others, which leave the steps to one that they hold."""
    inner = getattr(optimizer, "optimizer", None)
    return _unwrapped(inner) if isinstance(inner, Optimizer) else optimizer


class _Frozen(NamedTuple):
    """A parameter that must not train, or not as a whole."""

    parameter: nn.Parameter
    chosen: Tensor
    values: Tensor


def _frozen_weights(swap: ParameterSwap, selection: FilterSelection, optimizer: Optimizer) -> list[_Frozen]:
    """Check that the selection can be trained, and copy what must not be."""
    chosen: dict[str, Tensor] = {}
    findings = []
    for name, marked in selection.weights().items():
        parameter = swap.parameters.get(swap.aliases.get(name, ""))
        if parameter is None:
            findings.append(f"the model has no parameter {name!r}")
        elif parameter.shape != marked.shape:
            findings.append(f"{name!r} has shape {tuple(parameter.shape)}, not {tuple(marked.shape)}")
        else:
            first = swap.aliases[name]
            marked = marked.to(parameter.device)
            chosen[first] = chosen[first] | marked if first in chosen else marked
    if findings:
        raise StateMismatchError(f"the selection must fit the model: {gathered(findings)}.")
    if not isinstance(optimizer, Optimizer):
        raise SettingError(f"optimizer must be a torch.optim.Optimizer; got {type(optimizer).__name__}.")
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    wanted = [name for name, marked in chosen.items() if bool(marked.any())]
    foreign = [name for name in wanted if id(swap.parameters[name]) not in held]
    fixed = [name for name in wanted if not swap.parameters[name].requires_grad]
    if foreign or fixed:
        reasons = [f"it does not hold {name_some(foreign)}"] if foreign else []
        reasons += [f"{name_some(fixed)} require no gradient"] if fixed else []
        raise SettingError(
            f"the optimizer must be able to train all selected parameters: {'; '.join(reasons)}. Make it from "
            "model.parameters(), after the model was moved or loaded."
        )
    nothing = torch.zeros((), dtype=torch.bool, device="cpu")
    frozen = []
    for name, parameter in swap.parameters.items():
        marked = chosen.get(name, nothing.to(parameter.device).expand(parameter.shape))
        if not bool(marked.all()):
            frozen.append(_Frozen(parameter, marked, parameter.detach().clone()))
    return frozen


class _Freezer:
    """Hooks that keep weights from training; once released they do nothing, even if an interrupt left one behind."""

    def __init__(self, frozen: list[_Frozen]) -> None:
        self._frozen = frozen
        self._handles: list[RemovableHandle] = []

    def attach(self, optimizer: Optimizer) -> None:
        """Watch the gradients of the frozen parameters and the steps of the optimizer."""
        try:
            self._handles.append(optimizer.register_step_post_hook(self._restore))
        except AttributeError as error:
            raise SettingError(
                f"the optimizer must run hooks after its steps; {type(optimizer).__name__} does not. Pass the one of "
                "torch.optim that it wraps."
            ) from error
        for parameter, chosen, _ in self._frozen:
            if parameter.requires_grad:
                handle: RemovableHandle = parameter.register_hook(partial(self._keep, chosen))  # type: ignore[no-untyped-call]
                self._handles.append(handle)

    def release(self) -> None:
        """Restore once more, as a step may have been interrupted, and let go; doing it twice does no harm."""
        self._restore()
        self._frozen = []
        for handle in self._handles:
            handle.remove()

    def _keep(self, chosen: Tensor, gradient: Tensor) -> Tensor:
        """Gradient hook; ``where`` and not a product, because infinity times zero is not zero."""
        if not self._frozen:
            return gradient
        if gradient.layout is torch.sparse_coo:
            gradient = gradient.coalesce()
            values = torch.where(chosen[tuple(gradient.indices())], gradient.values(), 0)
            return torch.sparse_coo_tensor(gradient.indices(), values, gradient.shape, check_invariants=False)
        return torch.where(chosen, gradient, 0)

    def _restore(self, *_: object) -> None:
        with torch.no_grad():
            for parameter, chosen, values in self._frozen:
                parameter.copy_(torch.where(chosen, parameter, values))


def _mix(target: Tensor, base: Tensor, strength: float) -> Tensor:
    """Interpolate in float64; exact copies at 0 and 1."""
    base = base.detach().to(device=target.device)
    if strength in (0.0, 1.0):
        return (base if strength == 0.0 else target.detach()).to(target.dtype)
    wide = torch.complex128 if target.is_complex() else torch.float64
    return torch.lerp(base.to(wide), target.detach().to(wide), strength).to(target.dtype)
