"""The straight line of inputs that a sweep goes along."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from filterattr.engine.pathsums import single
from filterattr.errors import SettingError

Tensors: TypeAlias = Tensor | Sequence[Tensor]


class Line:
    """The straight line of inputs from the baselines to the inputs; arguments that stay the same are only copied."""

    def __init__(self, inputs: Tensors, baselines: Tensors | None) -> None:
        self.inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
        whole = self.inputs if baselines is None else baselines
        self.baselines = (whole,) if isinstance(whole, Tensor) else tuple(whole)
        findings = list(_line_problems(self.inputs, self.baselines))
        if findings:
            raise SettingError(
                "inputs and baselines must be the same number of tensors, of equal shapes: "
                + "; ".join(findings)
                + ". Use expand_as, or give an argument that stays the same twice."
            )
        self.moves = tuple(not _equal(*pair) for pair in zip(self.inputs, self.baselines, strict=True))
        self.n_samples = len(self.inputs[0])

    def points(self, places: Sequence[float]) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        """Return what the model is given at some places, one after the other along the first axis, and the leaves."""
        arguments, leaves = [], []
        for start, end, moves in zip(self.baselines, self.inputs, self.moves, strict=True):
            rows = [between(start, end, t) for t in places]
            argument = torch.cat(rows) if len(rows) > 1 else rows[0]
            if moves:
                leaves.append(argument.requires_grad_())
                argument = argument.clone()  # models may work in place on what they are given
            arguments.append(argument)
        return tuple(arguments), leaves


def _line_problems(inputs: Sequence[object], baselines: Sequence[object]) -> Iterator[str]:
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
        elif not end.is_floating_point() and not torch.equal(end, start):
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
