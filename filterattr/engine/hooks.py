"""Observing hooks with a lifetime: gradients are added up while backward runs, and dropped at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


class GradientSums:
    r"""Add up :math:`\sum_j c_j\, \partial L / \partial \gamma_j` in float64, one tensor per parameter.

    A hook on each leaf adds the gradient as soon as it is complete and drops it, so that at most one gradient is alive,
    and a parameter that is used several times counts with its full sum. The hooks belong to our own leaves and die with
    them.

    Args:
        parameters: Name to a tensor whose shape, device and layout the sums take.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.sums = {
            name: torch.zeros_like(
                tensor,
                dtype=torch.complex128 if tensor.is_complex() else torch.float64,
                requires_grad=False,
            )
            for name, tensor in parameters.items()
        }
        self.reached: set[str] = set()
        self._probe: Tensor | None = None

    def watch(self, leaves: Mapping[str, nn.Parameter], coefficient: float) -> None:
        """Observe the next backward pass.

        Args:
            leaves: Name to leaf parameter; each is a fresh object.
            coefficient: What the gradients are multiplied with.
        """
        self._probe = None
        for name, leaf in leaves.items():
            leaf.register_post_accumulate_grad_hook(self._adder(name, coefficient))  # type: ignore[no-untyped-call]

    def take_probe(self) -> Tensor | None:
        """Return the sum of all entries of the gradients just seen; finite exactly if all of them are.

        It stays on its device, so that nobody waits for it inside the loop. ``None`` means that no gradient arrived.
        """
        return self._probe

    def reset(self) -> None:
        """Start the next integral from zero."""
        for total in self.sums.values():
            total.zero_()
        self.reached = set()

    def _adder(self, name: str, coefficient: float) -> Callable[[Tensor], None]:
        def add(leaf: Tensor) -> None:
            gradient = leaf.grad
            leaf.grad = None
            if gradient is None:
                return
            with torch.no_grad():
                if gradient.is_sparse:
                    gradient = gradient.to_dense()
                self.sums[name].add_(gradient, alpha=coefficient)
                part = torch.view_as_real(gradient) if gradient.is_complex() else gradient
                probe = part.sum(dtype=torch.float64)
                self._probe = probe if self._probe is None else self._probe + probe.to(self._probe.device)
                self.reached.add(name)

        return add
