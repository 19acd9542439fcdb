"""Run a model once with copies of its weights, to see how it computes; everything stays as it is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from filterattr.model.context import ModelLock
from filterattr.model.random_state import RandomState
from filterattr.model.swap import ParameterSwap, restoring


def rehearse(
    model: nn.Module, run: Callable[[nn.Module], object], watch: Callable[[], None], *, gradients: bool = False
) -> None:
    """Run a model once with copies.

    Args:
        model: The model, not wrapped.
        run: Runs it.
        watch: Called before, to register hooks; these are taken away afterwards.
        gradients: Whether a gradient reaches every floating parameter; the model is in evaluation mode then.
    """
    lock, entered = ModelLock(model), RandomState()
    taken: list[ParameterSwap] = []

    def observe() -> None:
        lock.take()
        taken.append(ParameterSwap(model))
        taken[0].put(_copies(taken[0], gradients=gradients))
        if gradients:
            model.eval()  # the flags are given back, too
        watch()
        with torch.set_grad_enabled(gradients):
            run(model)

    restoring(observe, lambda: _restore(taken), entered.restore, lock.release)


def _restore(taken: list[ParameterSwap]) -> None:
    for swap in taken:
        swap.restore()  # takes the hooks away, too


def _copies(swap: ParameterSwap, *, gradients: bool) -> dict[str, Tensor]:
    """What a model computes with instead of its own tensors, so that nothing is written to these."""
    copies: dict[str, Tensor] = {name: tensor.detach().clone() for name, tensor in swap.buffers.items()}
    for name, tensor in swap.parameters.items():
        moves = gradients and (tensor.is_floating_point() or tensor.is_complex())
        copies[name] = nn.Parameter(tensor.detach().clone(), tensor.requires_grad or moves)
    return copies
