"""What people hand in as a model or as weights, made plain: wrappers and prefixes are looked through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from filterattr.errors import StateMismatchError, UnsupportedModelError, name_some

StateLike: TypeAlias = nn.Module | Mapping[str, Tensor]

_NESTED = ("params_ema", "params", "state_dict")
_PREFIX = "module."
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
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def plain_state(state: StateLike, role: str) -> dict[str, Tensor]:
    """Turn a module or a checkpoint's content into a dictionary of tensors.

    Args:
        state: A module, a state dict, or a dictionary that holds one under ``"params_ema"``, ``"params"`` or
            ``"state_dict"``. The prefix ``module.`` is taken off if every name has it, and ``_orig_mod``, the level
            that `torch.compile` adds, wherever it stands.
        role: What it is called in messages: ``"base"`` or ``"target"``.

    Returns:
        Name to tensor. The tensors are not copied.

    Raises:
        StateMismatchError: It is neither, or an entry is no tensor that holds values.

    Example:
        >>> import torch
        >>> list(plain_state({"params": {"module.conv.weight": torch.zeros(1)}}, "base"))
        ['conv.weight']
    """
    if isinstance(state, nn.Module):
        state = unwrap_model(state).state_dict()
    if not isinstance(state, Mapping):
        raise StateMismatchError(
            f"{role} must be a module or a state dict; got {type(state).__name__}. Load the file first, for example "
            "with torch.load(path, weights_only=True)."
        )
    for key in _NESTED:
        if isinstance(state.get(key), Mapping):
            state = state[key]  # type: ignore[assignment]
            break
    entries = {str(name): value for name, value in state.items() if not str(name).endswith("_extra_state")}
    foreign = [name for name, value in entries.items() if not isinstance(value, Tensor)]
    if foreign:
        kinds = sorted({type(entries[name]).__name__ for name in foreign})
        raise StateMismatchError(
            f"{role} must map names to tensors; {name_some(foreign)} hold {', '.join(kinds)}. Pass the part of the "
            "checkpoint that holds the weights, such as checkpoint['model'], or load_state(path, key='model')."
        )
    hollow = [name for name, value in entries.items() if is_lazy(value) or value.is_meta or value.is_quantized]
    if hollow:
        raise StateMismatchError(
            f"{role} must hold floating values; {name_some(hollow)} are lazy, on the meta device or quantized. Run one "
            "forward pass, load the weights, or use the floating model first."
        )
    if any("_orig_mod" in name for name in entries):
        entries = {
            ".".join(part for part in name.split(".") if part != "_orig_mod"): value for name, value in entries.items()
        }
    while len(entries) > (_COUNTER in entries) and all(
        name.startswith(_PREFIX) for name in entries if name != _COUNTER
    ):
        entries = {name.removeprefix(_PREFIX): value for name, value in entries.items() if name != _COUNTER}
    return entries
