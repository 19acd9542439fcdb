"""A model computes with other weights for a while and gets its own back, bit for bit.

A slot is an entry of a module's ``_parameters`` or ``_buffers``. Other tensors are put into the slots; the user's own
objects are never written to, and go back in by identity. That keeps their values, layout, flags, hooks, ``.grad`` and
version counters without copying any of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from filterattr.errors import ModelChangedError, UnsupportedModelError, name_some

_SHARDED = ("FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine")


@dataclass(frozen=True)
class Owner:
    """Where a parameter lives: the module, the module's name, and the parameter's name inside it."""

    module: nn.Module
    path: str
    local: str


class Slots:
    """The parameter and buffer slots of one model.

    One object that sits in several slots (tied weights, a module under two names) counts once, under its first name;
    `aliases` leads from every name to that first one.

    Attributes:
        parameters: First name to the model's own parameter, in the order of ``named_parameters()``.
        buffers: First name to the model's own buffer.
        owners: First name to where the parameter lives.
        aliases: Every name of a parameter or buffer to its first name.

    Args:
        model: The model, not wrapped.

    Raises:
        UnsupportedModelError: A parameter is lazy, on the meta device or distributed, or a module is scripted, sharded
            or quantized; every one of them is named.
    """

    def __init__(self, model: nn.Module) -> None:
        _refuse_unsupported(model)
        self.parameters: dict[str, nn.Parameter] = {}
        self.buffers: dict[str, Tensor] = {}
        self.owners: dict[str, Owner] = {}
        self.aliases: dict[str, str] = {}
        self._saved: dict[int, _Saved] = {}
        self._places: dict[str, list[tuple[dict[str, Any], str]]] = {}
        self._held: dict[str, tuple[Tensor, torch.dtype]] = {}
        first_names: dict[int, str] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            seen = id(module) in self._saved
            if not seen:
                self._saved[id(module)] = _Saved(module)
            for local, tensor, is_parameter in _entries(module):
                name = f"{path}.{local}" if path else local
                first = first_names.setdefault(id(tensor), name)
                self.aliases[name] = first
                if first == name:
                    known: dict[str, Any] = self.parameters if is_parameter else self.buffers
                    known[name] = tensor
                    self.owners[name] = Owner(module, path, local)
                if not seen:
                    slots = module._parameters if is_parameter else module._buffers
                    self._places.setdefault(first, []).append((slots, local))

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Put tensors into the slots; call it inside two nested ``try``, each with `restore` in its ``finally``.

        Args:
            tensors: First name to tensor; for a parameter, an `torch.nn.Parameter`.
        """
        self._held = {name: (tensor, tensor.dtype) for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            for slots, local in self._places[name]:
                slots[local] = tensor

    def check(self) -> None:
        """Make sure that every slot still holds what was put there.

        Raises:
            ModelChangedError: The loss, or another thread, replaced or converted parameters; they are named.
        """
        replaced = [
            name
            for name, (tensor, dtype) in self._held.items()
            if name in self.parameters
            and (tensor.dtype != dtype or any(slots.get(local) is not tensor for slots, local in self._places[name]))
        ]
        if replaced:
            raise ModelChangedError(
                f"a parameter was replaced while the loss ran: {name_some(replaced)}. The loss must not assign, "
                "convert (.half(), .to()) or load weights, and one model must not be used by two calls at once."
            )

    def restore(self) -> None:
        """Give the model its own objects back; doing it twice does no harm."""
        for saved in self._saved.values():
            saved.restore()
        self._held = {}


class _Saved:
    """What one module holds by identity: slots, tensors among its attributes, and its train flag."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.training = module.training
        self.slots: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (slots, dict(slots)) for slots in (module._parameters, module._buffers)
        ]
        # old weight_norm, prune and recurrent layers keep computed tensors as plain attributes
        self.tensors = {name: value for name, value in module.__dict__.items() if isinstance(value, Tensor)}
        self.lists = [
            (value, list(value))
            for value in module.__dict__.values()
            if isinstance(value, list) and any(isinstance(item, Tensor) for item in value)
        ]

    def restore(self) -> None:
        """Write back only what differs, so that nothing but identities ever changes."""
        for slots, own in self.slots:
            if len(slots) != len(own) or any(slots.get(name, self) is not value for name, value in own.items()):
                slots.update(own)
                for name in [name for name in slots if name not in own]:
                    del slots[name]
        self._restore_attributes()
        for items, own_items in self.lists:
            if len(items) != len(own_items) or any(a is not b for a, b in zip(items, own_items, strict=True)):
                items[:] = own_items
        if self.module.training != self.training:
            self.module.training = self.training

    def _restore_attributes(self) -> None:
        attributes = self.module.__dict__
        for name, value in self.tensors.items():
            if attributes.get(name) is not value:
                attributes[name] = value
        for name in [name for name, value in attributes.items() if isinstance(value, Tensor)]:
            if name not in self.tensors:
                del attributes[name]


def _entries(module: nn.Module) -> Iterator[tuple[str, Any, bool]]:
    """Yield local name, tensor and whether it is a parameter, for everything a module itself holds."""
    for local, parameter in module._parameters.items():
        if parameter is not None:
            yield local, parameter, True
    for local, buffer in module._buffers.items():
        if buffer is not None:
            yield local, buffer, False


def _refuse_unsupported(model: nn.Module) -> None:
    """Gather everything that cannot be swapped into one error."""
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"model must be a torch.nn.Module; got {type(model).__name__}.")
    findings = []
    for path, module in model.named_modules():
        problem = _module_problem(module)
        if problem:
            findings.append((f"module '{path}' " if path else "the model ") + problem)
        for local, tensor, _ in _entries(module):
            problem = _tensor_problem(module, local, tensor)
            if problem:
                findings.append(f"'{path}.{local}' {problem}" if path else f"'{local}' {problem}")
    if findings:
        more = f"; and {len(findings) - 5} more" if len(findings) > 5 else ""
        raise UnsupportedModelError(
            "the weights of the model must be exchangeable: " + "; ".join(findings[:5]) + more + "."
        )


def _module_problem(module: nn.Module) -> str | None:
    """Say why the weights of a kind of module cannot be exchanged."""
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return f"is scripted or traced ({kind.__name__}): pass the eager module"
    if any(base.__name__ in _SHARDED for base in kind.__mro__):
        return f"is sharded ({kind.__name__}): gather its full weights first"
    if ".quantized" in kind.__module__:
        return f"is quantized ({kind.__name__}): use the floating model"
    return None


def _tensor_problem(module: nn.Module, local: str, tensor: Tensor) -> str | None:
    """Say why one parameter or buffer cannot be exchanged."""
    if is_lazy(tensor):
        return "has no shape yet: run one forward pass first"
    if tensor.device.type == "meta":
        return "is on the meta device: load its weights first"
    if hasattr(tensor, "placements"):
        return "is a distributed tensor: gather it first"
    if local in module.__dict__:
        return "is shadowed by an attribute of the same name: delete the attribute"
    return None
