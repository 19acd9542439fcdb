"""What a call takes around the loss and gives back: the model for one thread, gradients, autocast; and train flags.

While a thread computes with other weights in a model, no other thread does, and no optimizer moves the weights of it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from filterattr.errors import ModelChangedError, name_some

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
_HOLDERS: dict[int, ModelLock] = {}

_LARGEST_BLOCK = 30 * 2**20  # glibc looks no further than 32 MiB


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


class GradientMode:
    """The caller's gradient modes; `enter` makes derivatives possible, `restore` brings the caller's modes back.

    ``enable_grad()`` alone does nothing inside ``inference_mode``. Both methods are plain calls and no ``with`` block,
    because an interrupt between a block's ``__enter__`` and its body would skip its ``__exit__``.

    Example:
        >>> with torch.no_grad():
        ...     mode = GradientMode()
        ...     mode.enter()
        ...     inside = torch.is_grad_enabled()
        ...     mode.restore()
        ...     inside, torch.is_grad_enabled()
        (True, False)
    """

    def __init__(self) -> None:
        self._enabled = torch.is_grad_enabled()
        self._normal = torch.inference_mode(False) if torch.is_inference_mode_enabled() else None

    def enter(self) -> None:
        """Leave inference mode and switch gradients on."""
        if self._normal is not None:
            self._normal.__enter__()
        torch.set_grad_enabled(True)

    def restore(self) -> None:
        """Bring the caller's modes back; doing it twice, or without having entered, does no harm."""
        if self._normal is not None and not torch.is_inference_mode_enabled():
            self._normal.__exit__(None, None, None)
        torch.set_grad_enabled(self._enabled)


class Autocast:
    """Autocast to one type on some kinds of devices; `restore` brings back what the caller had.

    Plain calls for the same reason as in `GradientMode`.

    Args:
        devices: Kinds of devices, such as ``"cpu"``; none leaves everything as it is.
        dtype: What to compute in.

    Example:
        >>> mode = Autocast(["cpu"], torch.bfloat16)
        >>> mode.enter()
        >>> inside = torch.mm(torch.ones(1, 1), torch.ones(1, 1)).dtype
        >>> mode.restore()
        >>> inside, torch.mm(torch.ones(1, 1), torch.ones(1, 1)).dtype
        (torch.bfloat16, torch.float32)
    """

    def __init__(self, devices: Iterable[str] = (), dtype: torch.dtype = torch.bfloat16) -> None:
        self._devices = tuple(devices)
        self._dtype = dtype
        self._before: list[tuple[str, bool, torch.dtype]] = []

    @property
    def is_used(self) -> bool:
        """Whether anything is switched on at all."""
        return bool(self._devices)

    def enter(self) -> None:
        """Switch autocast on."""
        self._before = [
            (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in self._devices
        ]
        for device in self._devices:
            torch.set_autocast_dtype(device, self._dtype)
            torch.set_autocast_enabled(device, True)

    def restore(self) -> None:
        """Bring the caller's settings back; doing it twice, or without having entered, does no harm."""
        for device, enabled, dtype in self._before:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        self._before = []


def modules_in_training(model: nn.Module) -> dict[str, str]:
    """Find the modules in train mode whose output depends on it: dropout, and norms with running statistics.

    Args:
        model: The model.

    Returns:
        Name of the module to its kind.

    Example:
        >>> modules_in_training(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1), nn.Dropout(0)))
        {'1': 'Dropout'}
        >>> modules_in_training(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)).eval())
        {}
    """
    return {path: type(module).__name__ for path, module in model.named_modules() if _is_in_training(module)}


def _is_in_training(module: nn.Module) -> bool:
    if not module.training:
        return False
    if isinstance(module, _NORMS):
        return module.running_mean is not None
    if isinstance(module, nn.RReLU):
        return True
    rate = getattr(module, "p", 0) if isinstance(module, nn.modules.dropout._DropoutNd) else _dropout_of(module)
    return isinstance(rate, float) and rate > 0


def _dropout_of(module: nn.Module) -> object:
    """The rate of layers that drop inside."""
    return module.dropout if isinstance(module, nn.RNNBase | nn.MultiheadAttention) else 0


def training_warning(model: nn.Module) -> str | None:
    """Say which modules compute as in training.

    Args:
        model: The model.

    Returns:
        The text of a warning, or ``None`` if there are none.
    """
    modules = modules_in_training(model)
    if not modules:
        return None
    kinds = ", ".join(dict.fromkeys(modules.values()))
    return (
        f"{name_some(modules)} ({kinds}) are in train mode: the loss that is attributed is that of a network in "
        "training, with units dropped at random or statistics of the sample alone. Call model.eval() unless that is "
        "meant."
    )


@cache
def keep_freed_memory() -> None:
    """Have glibc keep what a pass frees for the next pass, instead of giving it back and asking for it again.

    Its allocator gives the top of the heap back once that is twice as large as the largest block that was ever freed;
    with the activations of every pass that cost 3 to 6% of the time. The block is never touched, and so costs nothing;
    glibc remembers it, so that once is enough.
    """
    torch.empty(_LARGEST_BLOCK, dtype=torch.uint8, device="cpu")
