"""Which errors mean that the memory did not suffice, and what would help."""

from __future__ import annotations

import traceback
from typing import Any, TypeAlias

import torch

from filterattr.errors import is_out_of_memory, listed
from filterattr.loss.checks import tensors_in
from filterattr.memory import available_bytes


def may_be_out_of_memory(error: BaseException) -> bool:
    """Whether fewer samples might do: oneDNN names no reason when it gets no memory.

    Args:
        error: What was raised.
    """
    return is_out_of_memory(error) or "could not create a" in str(error)


Sizes: TypeAlias = list[tuple[int, ...]]


def advice(
    error: BaseException, where: str, arguments: tuple[Any, ...], device: torch.device, fitted: Sizes, *, narrow: bool
) -> str:
    """What happened, and what would help.

    Args:
        error: What was raised; the frames below it are cleared, as they hold what did not fit.
        where: Place and sample.
        arguments: What the loss got after the model.
        device: Where the model is.
        fitted: Sizes of the largest sample that fitted before, if any.
        narrow: Whether a lower precision is chosen already.
    """
    traceback.clear_frames(error.__traceback__)
    sizes = sizes_of(arguments)
    cures = ["make the sample smaller (smaller crops, fewer rows)"] if sizes else []
    if fitted:
        cures.append(f"the largest sample that fitted in this call has {_listed(fitted)}")
    if not narrow:
        cures.append('precision="bf16" halves the activations')
    cures.append("activation checkpointing (use_reentrant=False) needs less")
    holds = f", which holds tensors of {_listed(sizes)}" if sizes else ""
    free = available_bytes(device)
    left = "" if free is None else f" About {free / 2**30:.2f} GiB are free now."
    return (
        f"filterattr: the memory did not suffice for one pass at {where}{holds}.{left} More nodes or samples need no "
        f"more memory, so that only a smaller pass helps: {'; '.join(cures)}. The model has got its own weights back."
    )


def sizes_of(arguments: tuple[Any, ...]) -> Sizes:
    """The shapes of all tensors in a sample.

    Args:
        arguments: What the loss gets after the model.

    Example:
        >>> sizes_of(({"image": torch.zeros(2, 3), "name": "a"},))
        [(2, 3)]
    """
    return [tuple(tensor.shape) for tensor in tensors_in(arguments)]


def _listed(sizes: Sizes) -> str:
    return ("shape " if len(sizes) == 1 else "shapes ") + listed(map(str, sizes))
