"""One thread at a time computes with other weights in a model, and no optimizer moves its own ones meanwhile."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from filterattr.errors import ModelChangedError, name_some

_HOLDERS: dict[int, ModelLock] = {}


class ModelLock:
    """The right of one thread to exchange the weights of a model; it is taken before the slots are looked at.

    Calls of one thread may lie inside each other, because the inner one ends first. Calls of two threads may not: each
    would take the other's weights for the model's own. No lock is held, as an interrupt could leave one locked.

    Args:
        model: The model, not wrapped.

    Example:
        >>> lock = ModelLock(nn.Linear(1, 1))
        >>> try:
        ...     lock.take()
        ... finally:
        ...     lock.release()
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = list(model.modules())
        self._thread = threading.get_ident()
        self._parameters = {
            id(parameter): f"{path}.{local}" if path else local
            for path, module in model.named_modules()
            for local, parameter in module._parameters.items()
        }
        self._active = False
        self._handles: list[RemovableHandle] = []

    def take(self) -> None:
        """Take the model; call it inside two nested ``try``, each with `release` in its ``finally``.

        Raises:
            ModelChangedError: Another thread holds a part of the model.
        """
        for module in self._modules:
            # one step of the interpreter, so that of two threads one sees the other
            holder = _HOLDERS.setdefault(id(module), self)
            if holder._thread != self._thread:
                raise ModelChangedError(
                    "one thread at a time can compute with other weights in a model; another one is doing so in "
                    f"{type(module).__name__}. Give every thread a copy.deepcopy of the model."
                )
        self._active = True
        # no instruction, and so no interrupt, lies between the registration and the list
        self._handles.extend(map(register_optimizer_step_pre_hook, [_step_guard(weakref.ref(self))]))

    def release(self) -> None:
        """Give the model free; doing it twice, or without having taken it, does no harm."""
        self._active = False
        for module in self._modules:
            if _HOLDERS.get(id(module)) is self:
                _HOLDERS.pop(id(module), None)
        for handle in self._handles:
            handle.remove()

    def refuse(self, optimizer: Optimizer) -> None:
        """Stop an optimizer before it moves the model's own weights.

        Args:
            optimizer: The optimizer that is about to step.

        Raises:
            ModelChangedError: It holds parameters of the model; they are named.
        """
        if not self._active or threading.get_ident() != self._thread:
            return
        held = (id(parameter) for group in optimizer.param_groups for parameter in group["params"])
        names = [self._parameters[key] for key in held if key in self._parameters]
        if names:
            raise ModelChangedError(
                f"a parameter was about to be trained while the loss ran: {type(optimizer).__name__} holds "
                f"{name_some(names)}. The loss must only compute; take the optimizer step outside of it."
            )


def _step_guard(lock: weakref.ref[ModelLock]) -> Callable[[Optimizer, Any, Any], None]:
    """A hook that keeps nothing alive, should an interrupt leave it behind."""

    def guard(optimizer: Optimizer, _arguments: Any, _keywords: Any) -> None:
        holder = lock()
        if holder is not None:
            holder.refuse(optimizer)

    return guard
