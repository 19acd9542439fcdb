"""Modules that compute differently in training."""

from __future__ import annotations

from torch import nn

from filterattr.errors import name_some

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


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
