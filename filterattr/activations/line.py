"""The straight line of inputs whose points the passes run at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from filterattr.activations.conductance import single
from filterattr.errors import SettingError

Tensors: TypeAlias = Tensor | Sequence[Tensor]
Baselines: TypeAlias = Tensor | float | Sequence[Tensor | float | None] | None


class Line:
    """The straight line of inputs from the baselines to the inputs; arguments that stay the same are only copied.

    Args:
        inputs: Where it ends.
        baselines: Where it starts. A number stands for a tensor full of it, a first axis of length 1 for all samples,
            and ``None`` for the input itself.
        only_ends: Nothing between the ends is ever asked for; so whole numbers may move, too.
    """

    def __init__(self, inputs: Tensors, baselines: Baselines, *, only_ends: bool = False) -> None:
        self.inputs: tuple[Tensor, ...] = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
        given: Sequence[object] = [None] * len(self.inputs) if baselines is None else _listed(baselines)
        starts = [_full(*pair) for pair in zip(self.inputs, given, strict=False)] + list(given[len(self.inputs) :])
        findings = list(_line_problems(self.inputs, starts, only_ends))
        if findings:
            stuck = any("would have to move" in finding for finding in findings)
            raise SettingError(
                "inputs and baselines must be the same number of tensors, of equal shapes: "
                + "; ".join(findings)
                + ". Use expand_as, or give an argument that stays the same twice."
                + (_INTEGERS if stuck else "")
            )
        self.baselines = tuple(start for start in starts if isinstance(start, Tensor))
        self.moves = tuple(not _equal(*pair) for pair in zip(self.inputs, self.baselines, strict=True))
        self.n_samples = len(self.inputs[0])

    def points(self, places: Sequence[float]) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        """Return what the model is given at some places, one after the other along the first axis, and the leaves."""
        arguments, leaves = [], []
        for start, end, moves in zip(self.baselines, self.inputs, self.moves, strict=True):
            rows = [between(start, end, t) for t in places]
            argument = torch.cat(rows) if len(rows) > 1 else rows[0]
            if moves and argument.is_floating_point():
                leaves.append(argument.requires_grad_())
                argument = argument.clone()  # models may work in place on what they are given
            arguments.append(argument)
        return tuple(arguments), leaves


_INTEGERS = (
    " There is nothing between two token ids. Choose attribution='integrated_gradients' for the layer that embeds them "
    "(layers='name'): its line is drawn between its outputs. Or pass the embeddings as inputs, with "
    "forward=lambda model, embeddings: model(inputs_embeds=embeddings)."
)


def _listed(baselines: Tensor | float | Sequence[object]) -> Sequence[object]:
    return (baselines,) if isinstance(baselines, Tensor | int | float) else tuple(baselines)


def _full(end: object, start: object) -> object:
    """What one baseline stands for, in the shape of its input."""
    if not isinstance(end, Tensor):
        return start
    if start is None:
        return end
    if isinstance(start, int | float) and not isinstance(start, bool):
        fits = end.is_floating_point() or start == int(start)
        return torch.full_like(end, start, requires_grad=False) if fits else start
    if isinstance(start, Tensor) and start.ndim and start.shape == (1, *end.shape[1:]):
        return start.expand_as(end)
    return start


def _line_problems(inputs: Sequence[object], baselines: Sequence[object], only_ends: bool) -> Iterator[str]:
    """Find everything that is wrong with the ends of the path."""
    if len(inputs) != len(baselines) or not inputs:
        yield f"there are {len(inputs)} inputs and {len(baselines)} baselines"
        return
    for place, (end, start) in enumerate(zip(inputs, baselines, strict=True)):
        if not isinstance(end, Tensor) or not isinstance(start, Tensor):
            yield f"number {place} is {type(end).__name__} and {type(start).__name__}"
        elif end.shape != start.shape or end.dtype != start.dtype or end.device != start.device:
            yield (
                f"number {place} has shape {tuple(end.shape)} ({end.dtype}, {end.device}) and "
                f"{tuple(start.shape)} ({start.dtype}, {start.device})"
            )
        elif not only_ends and not end.is_floating_point() and not torch.equal(end, start):
            yield f"number {place} is {end.dtype} and would have to move"
        elif place == 0 and (end.ndim == 0 or len(end) == 0):
            yield f"number 0 has shape {tuple(end.shape)}, without samples"


def between(start: Tensor, end: Tensor, t: float) -> Tensor:
    """A new tensor on the line: exact copies at 0 and 1, and at least single precision in between.

    In single and double precision it is rounded as in Captum. Where an activation has a kink, the last bit decides on
    which side of it a node lies, and single numbers could not be compared otherwise.
    """
    if t in (0.0, 1.0) or not end.is_floating_point():
        return (start if t == 0.0 else end).detach().clone()
    near, far = single(start.detach()), single(end.detach())
    return (near + t * (far - near)).to(end.dtype)


def _equal(first: Tensor, second: Tensor) -> bool:
    return first is second or torch.equal(first, second)
