"""Networks of which only the weights are known and that are none of ours: sane names, and the collection spandrel."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sr_zoo.building import ARCHITECTURES, WeightsError, check_values
from sr_zoo.models.blocks import brief

# beside the weights a network has masks and tables of its own
_ROOM = 2**30
_MAKERS = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)


def check_names(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Refuse names that number more layers than the file can hold: whoever counts them builds without end.

    Args:
        state: Parameter name to tensor.
        path: Where the weights came from.

    Raises:
        WeightsError: A name holds such a number; it is named.

    Example:
        >>> check_names({"body.999999999.conv1.weight": torch.zeros(1)}, "a.pth")
        Traceback (most recent call last):
        ...
        sr_zoo.building.WeightsError: 'a.pth' must number its layers from 0; 'body.999999999.conv1.weight' of 1 ...
    """
    # not every layer has weights, so that numbers may be larger than the count of tensors
    limit = 100 + 16 * len(state)
    for name in state:
        if any(len(digits) > 9 or int(digits) > limit for digits in re.findall(r"\d+", name)):
            raise WeightsError(
                f"'{path}' must number its layers from 0; {brief(name)} of {len(state)} tensors names no layer."
            )


def open_with_spandrel(state: dict[str, Tensor], path: str | Path) -> nn.Module:
    """Ask the collection that knows nearly all published architectures.

    Args:
        state: Parameter name to tensor.
        path: Where the weights came from.

    Returns:
        The network in evaluation mode, with ``upscale``, ``num_in_ch`` and ``num_out_ch``.

    Raises:
        WeightsError: spandrel is missing or does not know the network either, the network needs far more memory than
            its weights, or they are not finite.

    Example:
        >>> open_with_spandrel({"weight": torch.ones(1)}, "a.pth")
        Traceback (most recent call last):
        ...
        sr_zoo.building.WeightsError: 'a.pth' holds ...
    """
    try:
        import spandrel  # noqa: PLC0415 - optional
    except (ImportError, RuntimeError) as error:  # its torchvision raises a RuntimeError beside another torch
        raise WeightsError(
            f"'{path}' holds none of {', '.join(ARCHITECTURES)}, and the collection that knows other architectures "
            f"cannot be imported ({error}): pip install spandrel."
        ) from error
    check_values(state, path)
    size = sum(value.nbytes for value in state.values())
    try:
        with _LimitedMemory(4 * size + _ROOM):
            described = spandrel.ModelLoader().load_from_state_dict(state)
    except (spandrel.UnsupportedModelError, RuntimeError, KeyError, ValueError, MemoryError) as error:  # or no fit
        raise WeightsError(f"'{path}' holds no network that this package or spandrel knows.") from error
    network: nn.Module = described.model.eval()
    # no parameters, whatever mypy takes them for
    for name, value in (("upscale", "scale"), ("num_in_ch", "input_channels"), ("num_out_ch", "output_channels")):
        setattr(network, name, int(getattr(described, value)))
    return network


class _LimitedMemory(TorchFunctionMode):
    """Refuse tensors that no network with such weights needs, before they are made.

    Args:
        limit: Bytes in all.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._left = limit

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _MAKERS:
            self._left -= 4 * math.prod(_shape(args, kwargs or {}))
            if self._left < 0:
                raise MemoryError("a network far larger than its weights")
        return func(*args, **(kwargs or {}))


def _shape(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape that one of `_MAKERS` was asked for, in any of the ways to ask."""
    size = kwargs.get("size", args)
    listed = size[0] if len(size) and isinstance(size[0], list | tuple) else size
    return tuple(int(length) for length in listed)
