"""The modes that a model computes in: gradients and autocast as the work needs them, and training, which is told."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from filterattr.errors import name_some

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


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
        self._own: list[tuple[str, bool, torch.dtype]] = []

    @property
    def is_used(self) -> bool:
        """Whether anything is switched on at all."""
        return bool(self._devices)

    def enter(self) -> None:
        """Switch autocast on."""
        self._own = [
            (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in self._devices
        ]
        for device in self._devices:
            torch.set_autocast_dtype(device, self._dtype)
            torch.set_autocast_enabled(device, True)

    def restore(self) -> None:
        """Bring the caller's settings back; doing it twice, or without having entered, does no harm."""
        for device, enabled, dtype in self._own:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        self._own = []


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
    found = modules_in_training(model)
    if not found:
        return None
    kinds = ", ".join(dict.fromkeys(found.values()))
    return (
        f"{name_some(found)} ({kinds}) are in train mode: the loss that is attributed is that of a network in training,"
        " with units dropped at random or statistics of the sample alone. Call model.eval() unless that is meant."
    )
