"""What to say when the memory does not suffice for one pass of one sample, in numbers that were tried."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from filterattr.engine.hooks import tensors_in
from filterattr.engine.memory import SavedBytes, available_bytes, may_be_out_of_memory, most_that_fits
from filterattr.engine.stacks import cut_rows

Sizes: TypeAlias = list[tuple[int, ...]]
Attempt: TypeAlias = Callable[[tuple[Any, ...], SavedBytes], None]

_SAFETY = 2.0  # a pass holds more than what it keeps for backward


class Advice:
    """Find out how many rows of a sample would fit, and put that into words.

    A row is a place of the first dimension of the sample's largest tensor; every tensor with as many is cut. One row is
    tried first, then others between it and what has failed, each with one forward and one backward pass. On a
    processor, where the system may end a process that takes more than there is, no number is tried that would need
    more than half of what is free.

    Args:
        arguments: What the loss got after the model.
        device: Where the model is.
        attempt: Runs one pass with other arguments.
    """

    def __init__(self, arguments: tuple[Any, ...], device: torch.device, attempt: Attempt) -> None:
        self._arguments = arguments
        self._device = device
        self._attempt = attempt
        self._sizes = sizes_of(arguments)
        largest = max(self._sizes, key=math.prod, default=())
        self._rows = largest[0] if largest else 1

    def text(self, error: BaseException, where: str, fitted: Sizes, *, can_narrow: bool) -> str:
        """What happened, and what would help.

        Args:
            error: What was raised; the frames below it are cleared, as they hold what did not fit.
            where: Place and sample.
            fitted: Sizes of the largest sample that fitted before, if any.
            can_narrow: Whether a lower precision could still be chosen.
        """
        traceback.clear_frames(error.__traceback__)
        advice = []
        if self._rows > 1:
            advice.append(self._about_rows())
        if fitted:
            advice.append(f"the largest sample that fitted in this call has {_listed(fitted)}")
        if can_narrow:
            advice.append('precision="bf16" halves the activations')
        advice.append("smaller crops or activation checkpointing (use_reentrant=False) need less")
        holds = f", which holds tensors of {_listed(self._sizes)}" if self._sizes else ""
        free = available_bytes(self._device)
        left = "" if free is None else f" About {free / 2**30:.2f} GiB are free now."
        return (
            f"filterattr: the memory did not suffice for one pass at {where}{holds}.{left} More nodes or samples need "
            f"no more memory, so that only a smaller pass helps: {'; '.join(advice)}. The model has got its own "
            "weights back."
        )

    def _about_rows(self) -> str:
        """The number of rows that fits, as far as it can be found."""
        saved, height = SavedBytes(), f"its first dimension is {self._rows}"
        try:
            if not self._fits(1, saved):
                return f"not even the first row of the sample fits by itself ({height})"
            too_many = self._too_many(saved.count)
            most = most_that_fits(lambda rows: self._fits(rows, saved), too_many) if too_many > 1 else 1
        except Exception as error:  # noqa: BLE001 - the lack of memory is what the user must see
            said = " ".join(str(error).split())[:100]
            why = f"how many rows fit cannot be told, because for fewer there is a {type(error).__name__}: {said}"
            return f"make samples with a smaller first dimension ({height}; {why})"
        fitted = "row has" if most == 1 else f"{most} have"
        return f"make samples with a first dimension of at most {most} ({height}; the first {fitted} just fitted)"

    def _too_many(self, bytes_per_row: int) -> int:
        """A number of rows that is known not to fit, or not worth the risk."""
        free = available_bytes(self._device) if self._device.type == "cpu" else None
        if free is None or not bytes_per_row:
            return self._rows
        return min(self._rows, int(free / (_SAFETY * bytes_per_row)) + 1)

    def _fits(self, rows: int, saved: SavedBytes) -> bool:
        try:
            self._attempt(cut_rows(self._arguments, self._rows, rows), saved)
        except (RuntimeError, MemoryError) as error:
            if not may_be_out_of_memory(error):
                raise
            return False
        return True


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
    more = f" and {len(sizes) - 5} more" if len(sizes) > 5 else ""
    return ("shape " if len(sizes) == 1 else "shapes ") + ", ".join(map(str, sizes[:5])) + more
