"""What the user's loss must be: callable, a real scalar, finite, and the same function at every node."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from types import FunctionType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from filterattr.errors import (
    LossError,
)


class Agreement(Enum):
    """How two evaluations of the same agree."""

    SAME = "except for the order of sums"
    ROUNDED = "except for a rounding that is larger than it should be"
    NONE = "not at all"


def agreement_of(known: list[float], again: float, kinds: set[torch.dtype], *, is_on_processor: bool) -> Agreement:
    """Compare a loss with what it was before at the same place.

    Args:
        known: The losses before, that at the place first.
        again: The loss at the place now.
        kinds: The types that it is computed in.
        is_on_processor: Whether sums have a fixed order, so that two evaluations of the same have the same bits.

    Returns:
        How they agree; what rounding may change is taken as the root of what the types round.

    Example:
        >>> agreement_of([1.0, 2.0], 1.5, {torch.float32}, is_on_processor=True)
        <Agreement.NONE: 'not at all'>
    """
    rounding = math.sqrt(max(torch.finfo(kind).eps for kind in kinds))
    rounding = rounding if is_on_processor else max(rounding, 1e-3)
    gap, size, change = abs(again - known[0]), max(map(abs, known)), max(known) - min(known)
    silence = min(rounding, 4 * rounding**2 + 1e-3 * change / (size or 1.0))
    if is_on_processor:
        silence = min(silence, max(8 * rounding**2, 1e-10))
    if gap <= silence * size:
        return Agreement.SAME
    return Agreement.ROUNDED if gap <= rounding * size else Agreement.NONE


def first_nonfinite_output(model: nn.Module, run: Callable[[], object]) -> str | None:
    """Find the module whose output is the first that is not finite.

    Args:
        model: The network.
        run: Runs it.

    Returns:
        The name of the module (empty for the model itself), or ``None`` if all outputs are finite.

    Example:
        >>> model = nn.Sequential(nn.Identity(), nn.Linear(1, 1))
        >>> first_nonfinite_output(model, lambda: model(torch.tensor([float("nan")])))
        '0'
    """
    paths: list[str] = []

    def watch(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not paths and not all(bool(torch.isfinite(tensor).all()) for tensor in tensors_in(output)):
                paths.append(path)

        return look

    handles = []
    try:
        for path, module in model.named_modules():
            handles.append(module.register_forward_hook(watch(path)))
        run()
    finally:
        for handle in handles:
            handle.remove()
    return paths[0] if paths else None


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Go through what a module returns, or what a sample is made of.

    Args:
        value: Tensors in mappings, lists and tuples; everything else is passed over.

    Yields:
        The tensors, detached.
    """
    if isinstance(value, Tensor):
        yield value.detach()
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)


def check_call(loss: Loss, *, with_data: bool) -> None:
    """Check before any work that the loss can be called.

    Args:
        loss: What the user gave.
        with_data: Whether it gets samples.

    Raises:
        LossError: It is no function, or takes other arguments.
    """
    if not callable(loss):
        raise LossError(f"loss must be a function; got {type(loss).__name__}.")
    if _takes(loss, 2 if with_data else 1):
        return
    expected = "loss(model, sample)" if with_data else "loss(model)"
    try:
        signature = inspect.signature(loss)
    except (TypeError, ValueError):  # builtins have no signature
        return
    try:
        signature.bind(*(("model", "sample") if with_data else ("model",)))
    except TypeError as error:
        hint = "data was given" if with_data else "no data was given"
        raise LossError(
            f"loss must be callable as {expected}, because {hint}; its signature is {signature} ({error})."
        ) from error


def _takes(function: object, count: int) -> bool:
    """Whether a plain function takes so many arguments; `inspect` need not be asked about it, which takes longer."""
    if type(function) is not FunctionType or function.__dict__:  # what is decorated may show another signature
        return False
    code, defaults = function.__code__, function.__defaults__ or ()
    return code.co_argcount - len(defaults) <= count <= code.co_argcount and not code.co_kwonlyargcount


Loss: TypeAlias = Callable[..., Tensor]


def check_scalar(value: object, *, is_lowered: bool) -> None:
    """Refuse everything but one real scalar.

    Args:
        value: What the loss returned.
        is_lowered: Whether the library has the loss computed in a precision below float32.

    Raises:
        LossError: It is something else, or has too few digits.
    """
    if not isinstance(value, Tensor):
        raise LossError(
            f"loss must return one scalar tensor; got {type(value).__name__}. Return the tensor itself, without "
            ".item()."
        )
    if value.ndim != 0:
        raise LossError(f"loss must return one scalar; got shape {tuple(value.shape)}. Sum or average it.")
    if not value.is_floating_point():
        raise LossError(f"loss must be real and floating; got {value.dtype}.")
    if is_lowered and value.dtype.itemsize < torch.float32.itemsize:
        raise LossError(
            f"with a precision below float32 the loss itself must come out in float32; got {value.dtype}, of which "
            "three digits are left. Compute it from the float32 output of the network: model(x).float()."
        )
