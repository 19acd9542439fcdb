"""What users pass as a model or as weights, made plain: wrappers and prefixes are unwrapped."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from filterattr.errors import StateMismatchError, UnsupportedModelError, name_some

StateLike: TypeAlias = nn.Module | Mapping[str, Tensor]

_COMPILED = "_orig_mod"  # the name that `torch.compile` gives to the module that it wraps
_NESTED = ("params_ema", "params", "state_dict")
_PREFIX = "module."
_SHARDED = ("FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine")
_COUNTER = "n_averaged"  # what an averaged model holds beside the module


def unwrap_model(model: nn.Module) -> nn.Module:
    """Look through data-parallel wrappers, `torch.optim.swa_utils.AveragedModel` and `torch.compile`.

    Args:
        model: A module, perhaps wrapped, also more than once.

    Returns:
        The module that holds the parameters under their own names.

    Raises:
        UnsupportedModelError: It is no module.

    Example:
        >>> inner = nn.Linear(2, 2)
        >>> unwrap_model(nn.DataParallel(inner)) is inner
        True
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"model must be a torch.nn.Module; got {type(model).__name__}.")
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel | AveragedModel):
            model = model.module
        elif isinstance(getattr(model, _COMPILED, None), nn.Module):
            model = getattr(model, _COMPILED)
        else:
            return model


def plain_state(state: StateLike, role: str, names: Collection[str] = ()) -> dict[str, Tensor]:
    """Turn a module or a checkpoint's content into a dictionary of tensors.

    A module is read slot by slot: its parameters, and the buffers that belong to its state, whatever its own
    ``state_dict()`` adds or leaves out.

    Args:
        state: A module, a state dict, or a dictionary that holds one under ``"params_ema"``, ``"params"`` or
            ``"state_dict"``. ``_orig_mod``, the level that `torch.compile` adds, is left out wherever it stands.
        role: What it is called in messages: ``"base"`` or ``"target"``.
        names: The names of the model that it is meant for. The prefix ``module.`` is taken off, or put on, as they
            need it. Without them it is taken off if every name of a state dict has it.

    Returns:
        Name to tensor. The tensors are not copied; names of one tensor share it.

    Raises:
        StateMismatchError: It is neither, or an entry is no plain tensor that holds values.

    Example:
        >>> import torch
        >>> list(plain_state({"params": {"module.conv.weight": torch.zeros(1)}}, "base"))
        ['conv.weight']
        >>> list(plain_state({"module.weight": torch.zeros(1)}, "base", ["module.weight", "module.bias"]))
        ['module.weight']
    """
    is_module = isinstance(state, nn.Module)
    entries = _values_of(unwrap_model(state), role) if isinstance(state, nn.Module) else _content(state, role)
    foreign = [name for name, value in entries.items() if not isinstance(value, Tensor)]
    if foreign:
        kinds = sorted({type(entries[name]).__name__ for name in foreign})
        raise StateMismatchError(
            f"{role} must map names to tensors; {name_some(foreign)} hold {', '.join(kinds)}. Pass the part of the "
            "checkpoint that holds the weights, such as checkpoint['model'], or load_state(path, key='model')."
        )
    _refuse_special(entries, role)
    entries = _without_compiled_level(entries, role)
    if names:
        return _named_as(entries, names)
    return entries if is_module else _without_prefix(entries)


def inner_key(content: object, key: str | None, role: str) -> list[str]:
    """Find where in a checkpoint's content the weights are.

    Args:
        content: What it holds.
        key: Where they are, with dots for nested ones; by default they are looked for where trainers put them.
        role: What it is called in messages.

    Returns:
        The keys to follow, one after the other; none if the content is the weights.

    Raises:
        StateMismatchError: There is nothing under the key.

    Example:
        >>> inner_key({"epoch": 3, "params_ema": {}}, None, "base"), inner_key({"a": {"b": {}}}, "a.b", "base")
        (['params_ema'], ['a', 'b'])
    """
    keys = key.split(".") if key else []
    for part in keys:
        if not isinstance(content, Mapping) or part not in content:
            got = name_some(content) if isinstance(content, Mapping) else type(content).__name__
            raise StateMismatchError(f"{role} holds nothing under '{key}': '{part}' is missing beside {got}.")
        content = content[part]
    nested = [name for name in _NESTED if isinstance(content, Mapping) and isinstance(content.get(name), Mapping)]
    return keys + nested[:1]


def without_compiled(name: str) -> str:
    """Leave out the level that `torch.compile` puts between a module and what it holds.

    Args:
        name: Name of a module, parameter or buffer.

    Example:
        >>> without_compiled("body._orig_mod.0.weight")
        'body.0.weight'
    """
    return ".".join(part for part in name.split(".") if part != _COMPILED) if _COMPILED in name else name


def copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Clone a state; names that share memory (tied weights) share it in the copy, too.

    Args:
        state: Name to tensor.

    Returns:
        Name to clone.

    Example:
        >>> import torch
        >>> weight = torch.ones(2)
        >>> copy = copied({"embed.weight": weight, "head.weight": weight})
        >>> copy["embed.weight"] is copy["head.weight"], copy["embed.weight"] is weight
        (True, False)
    """
    copies: dict[tuple[object, ...], Tensor] = {}
    return {name: copies.setdefault(_memory(name, value), value.detach().clone()) for name, value in state.items()}


def shared_names(state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Find the names that hold the same memory: tied weights, which must stay equal.

    Args:
        state: Name to tensor.

    Returns:
        Every name to all names of its tensor, itself among them.
    """
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, value in state.items():
        groups.setdefault(_memory(name, value), []).append(name)
    return {name: names for names in groups.values() for name in names}


def state_for(model: nn.Module, state: StateLike, role: str) -> dict[str, Tensor]:
    """Turn a module or a checkpoint's content into a dictionary of tensors with the names of a model.

    Files often keep equal copies of tied weights, or one name of them only. The model knows which names are one tensor,
    so that a change of one of them changes all.

    Args:
        model: The model, not wrapped.
        state: As in `plain_state`, for all or some of the model's names.
        role: What it is called in messages.

    Returns:
        The entries, and those of their other names; equal values of one tensor are one object.

    Raises:
        StateMismatchError: As in `plain_state`, or tied names hold different values.
    """
    present = _slots_of(model)
    entries = plain_state(state, role, present)
    for group in shared_names(present).values():
        given = [name for name in group if name in entries]
        if not given:
            continue
        different = [name for name in given[1:] if not _same_values(entries[given[0]], entries[name])]
        if different:
            raise StateMismatchError(
                f"{role} holds different values for '{given[0]}' and {name_some(different)}, which are one parameter."
            )
        entries |= dict.fromkeys(group, entries[given[0]])
    return entries


def completed(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Add the values of a model for everything that a state does not hold under any of its names.

    Args:
        state: Name to tensor, for some of the model's names.
        model: The model, not wrapped.

    Returns:
        Name to tensor, for all of the model's tensors.
    """
    present = _slots_of(model)
    known = {other for name, names in shared_names(present).items() if name in state for other in names}
    return {**{name: value for name, value in present.items() if name not in known}, **state}


def _values_of(model: nn.Module, role: str) -> dict[str, Tensor]:
    """The tensors of a module that keeps its weights as plain parameters."""
    packed = [path for path, module in model.named_modules() if _packs_weights(type(module))]
    if packed:
        raise StateMismatchError(
            f"{role} must hold its weights as parameters; its modules {name_some(packed)} are quantized or sharded. "
            "Pass the floating model, or a state dict of its full weights."
        )
    return _slots_of(model)


def _packs_weights(kind: type[nn.Module]) -> bool:
    return ".quantized" in kind.__module__ or any(base.__name__ in _SHARDED for base in kind.__mro__)


def _slots_of(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and persistent buffers of a module, detached, in the order of its ``state_dict()``."""
    entries: dict[str, Tensor] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        passing = getattr(module, "_non_persistent_buffers_set", ())  # scripted modules have none
        kept = [(local, value) for local, value in module._buffers.items() if local not in passing]
        for local, value in [*module._parameters.items(), *kept]:
            if value is not None:
                name = without_compiled(f"{path}.{local}" if path else local)
                entries[name] = value if is_lazy(value) else value.detach()
    return entries


def _content(state: object, role: str) -> dict[str, Tensor]:
    """The entries of a state dict, or of the one that a checkpoint holds."""
    if not isinstance(state, Mapping):
        raise StateMismatchError(
            f"{role} must be a module or a state dict; got {type(state).__name__}. Load the file first, for example "
            "with load_state(path)."
        )
    content: Mapping[Any, Any] = state
    for key in inner_key(state, None, role):
        content = content[key]
    return {str(name): value for name, value in content.items() if not str(name).endswith("_extra_state")}


def _refuse_special(entries: Mapping[str, Tensor], role: str) -> None:
    """Refuse tensors that hold no values, or not as plain numbers in memory."""
    hollow = [name for name, value in entries.items() if is_lazy(value) or value.is_meta or value.is_quantized]
    if hollow:
        raise StateMismatchError(
            f"{role} must hold floating values; {name_some(hollow)} are lazy, on the meta device or quantized. Run one "
            "forward pass, load the weights, or use the floating model first."
        )
    special = [name for name, value in entries.items() if not _is_plain(value)]
    if special:
        kinds = ", ".join(sorted({f"{type(entries[name]).__name__} ({entries[name].layout})" for name in special}))
        raise StateMismatchError(
            f"{role} must hold plain dense tensors; {name_some(special)} are not: {kinds}. Convert them first: "
            ".to_dense() for sparse ones, .full_tensor() for distributed ones, .dequantize() for packed ones."
        )


def _is_plain(value: Tensor) -> bool:
    return (
        value.layout is torch.strided
        and type(value).__torch_dispatch__ is Tensor.__torch_dispatch__
        and not value.is_nested
    )


def _without_compiled_level(entries: dict[str, Tensor], role: str) -> dict[str, Tensor]:
    if not any(_COMPILED in name for name in entries):
        return entries
    plain: dict[str, Tensor] = {}
    for name, value in entries.items():
        short = without_compiled(name)
        if short in plain and plain[short] is not value:
            raise StateMismatchError(f"{role} holds '{short}' twice, once of them under the compiled name '{name}'.")
        plain[short] = value
    return plain


def _without_prefix(entries: dict[str, Tensor]) -> dict[str, Tensor]:
    while _has_prefix(entries):
        entries = {name.removeprefix(_PREFIX): value for name, value in entries.items() if name != _COUNTER}
    return entries


def _has_prefix(names: Collection[str]) -> bool:
    return len(names) > (_COUNTER in names) and all(name.startswith(_PREFIX) for name in names if name != _COUNTER)


def _named_as(entries: dict[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """Choose the number of prefixes with which most names are the model's; as they are, if nothing is better."""
    known = set(names)
    if known.issuperset(entries):
        return entries
    candidates = [entries]
    while _has_prefix(entries):
        entries = {name.removeprefix(_PREFIX): value for name, value in entries.items() if name != _COUNTER}
        candidates.append(entries)
    added = ""
    while all(name.startswith(added + _PREFIX) for name in names):
        added += _PREFIX
        candidates.append({added + name: value for name, value in entries.items()})
    return max(candidates, key=lambda candidate: sum(name in known for name in candidate))


def _memory(name: str, value: Tensor) -> tuple[object, ...]:
    """What two tensors have in common if they are one."""
    return (value.data_ptr(), value.shape, value.stride(), value.dtype) if value.numel() else (name,)


def _same_values(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are equal; NaN equals NaN."""
    if first is second:
        return True
    first, second = first.cpu(), second.cpu()
    return first.shape == second.shape and bool(((first == second) | ((first != first) & (second != second))).all())
