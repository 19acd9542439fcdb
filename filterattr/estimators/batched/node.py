r"""The losses of several samples at one place of the path in one pass, and the gradient of each of them.

.. math:: t \mapsto \bigl(L_1(\gamma(t)), \dots, L_n(\gamma(t))\bigr), \qquad
   \frac{\partial L_1}{\partial\gamma}, \dots, \frac{\partial L_n}{\partial\gamma}

The loss stays that of one sample: `torch.func.vmap` maps it over samples that are alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from filterattr.errors import LossError
from filterattr.estimators.batched.batch import SampleBatch
from filterattr.integral.gradients import GradientSums
from filterattr.integral.node import PathNode
from filterattr.jobs.samples import Sample
from filterattr.model.random_state import RandomState, Turn, seed_all
from filterattr.model.swap import restoring

_CAUSES = {
    "it draws random numbers, as dropout in train mode does": ("random operation",),
    "it reads values of tensors, as .item(), .numpy(), boolean masks and `if` do": (
        ".item()",
        "data-dependent",
        "dynamic shape",
        "data pointer",
    ),
    "it writes in place into something that all samples share, as batch normalisation in train mode does": (
        "in-place",
        "in place",
        "inplace",
        "more elements than `self`",
    ),
    "it uses activation checkpointing, or an autograd.Function that has no setup_context or no rule for vmap": (
        "saved tensor hooks",
        "setup_context",
        "vmap support",  # PyTorch 2.6 checkpoints with such a Function
    ),
    "it takes derivatives of its own with autograd": ("requires_grad_()", "backward() called"),
}


class BatchedPathNode:
    """The user's loss for several samples at once; the model is given back after every place.

    Memory is that of one pass with all the samples together, and three times the bytes of the moving float32
    parameters for every sample: its gradient, and its float64 sums.

    Args:
        alone: The loss of one sample.
    """

    def __init__(self, alone: PathNode[GradientSums]) -> None:
        self._alone = alone
        self._turn = Turn()
        self._losses: dict[float, Tensor] = {}
        self._samples: list[Sample] = []
        self._stack: SampleBatch | None = None
        self._gradients: GradientSums | None = None
        self._width = 0

    def start(self, samples: Sequence[Sample]) -> None:
        """Turn to other samples.

        Args:
            samples: They are alike.
        """
        if self._width != len(samples):
            self.release()
            base = self._alone.path.base
            self._gradients = GradientSums(
                {name: base[name].expand(len(samples), *base[name].shape) for name in self._alone.moved}
            )
            self._width = len(samples)
        elif self._gradients is not None:
            self._gradients.reset()
        self._losses, self._samples, self._stack = {}, list(samples), SampleBatch(samples)

    def release(self) -> None:
        """Give the memory of the samples and their sums back."""
        self._losses, self._samples, self._stack, self._gradients, self._width = {}, [], None, None, 0

    def evaluate(self, t: float, coefficient: float | None = None) -> None:
        """Evaluate the losses at one place, and add their gradients to the sums.

        Args:
            t: Place on the path.
            coefficient: What the gradients are multiplied with; ``None`` leaves them out.

        Raises:
            LossError: The loss draws random numbers.
            RuntimeError: PyTorch cannot map the loss over the samples, or the memory does not suffice.
        """
        if self._stack is None or self._gradients is None:
            raise RuntimeError("start() comes first.")
        stack, moved = self._stack, self._alone.moved
        leaves, held = self._alone.leaves_at(t)
        weights: dict[str, Tensor] = {name: leaf.detach() for name, leaf in leaves.items()}  # no history beside vmap's

        def of_one(moving: Mapping[str, Tensor], tensors: tuple[Tensor, ...]) -> Tensor:
            inside = {**held, **weights, **moving}

            def one_pass() -> Tensor:
                with self._alone.swap.holding(inside):
                    return self._alone.compute(stack.arguments(tensors), differentiable=is_node)

            return restoring(one_pass, *self._alone.give_back, inside.clear)

        is_node = coefficient is not None and bool(moved)
        mapped = vmap(grad_and_value(of_one) if is_node else of_one, in_dims=(None, 0), randomness="error")

        def without_draws() -> Any:
            self._turn.take()
            seed_all(self._samples[0].seed)
            state = RandomState()
            answer = mapped({name: weights[name] for name in moved}, stack.tensors)
            if not state.is_present():
                raise LossError(
                    "the loss draws from Python's or NumPy's random numbers, which would be the same for all samples "
                    "of a pass. Leave internal_batch_size out, or draw them before, as part of the samples."
                )
            return answer

        answer: Any = restoring(without_draws, self._turn.release)
        gradients: dict[str, Tensor] = answer[0] if is_node else {}
        self._losses[t] = (answer[1] if is_node else answer).to(torch.float64)
        del answer
        for name in list(gradients):  # every gradient is dropped as soon as it is added
            self._gradients.take(name, gradients.pop(name), coefficient or 0.0)

    def losses_at(self, places: Sequence[float]) -> list[list[float]]:
        """Fetch the losses; the device is waited for once.

        Args:
            places: Places that were visited.

        Returns:
            For every sample, the losses there.
        """
        losses: list[list[float]] = torch.stack([self._losses[t] for t in places], 1).tolist()
        return losses

    def integrals(self) -> dict[str, Tensor]:
        """Parameter name to what the gradients of every sample add up to, float64; it may be used up."""
        return {} if self._gradients is None else self._gradients.sums

    def is_finite(self) -> bool:
        """Whether all losses and gradients are finite numbers; looking at sums is enough, as they stay infinite."""
        losses = torch.stack(list(self._losses.values())).sum().item()
        return math.isfinite(losses) and not (self._gradients and self._gradients.find_nonfinite())


def refusal(error: Exception) -> LossError:
    """Say why a loss cannot be mapped over samples, and what to do.

    Args:
        error: What PyTorch raised.
    """
    known = [cause for cause, parts in _CAUSES.items() if any(part in str(error) for part in parts)]
    said = " ".join(str(error).split()).rstrip(".")
    cause = known[0] if known else f"PyTorch says: {said[:300]}{'...' if len(said) > 300 else ''}"
    return LossError(
        f"with internal_batch_size the loss must be one that torch.func.vmap can map over samples, but {cause}. Leave "
        "internal_batch_size out: with 1 every sample has its own passes, and the loss need not be one."
    )
