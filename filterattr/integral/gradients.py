r"""From gradients to scores: :math:`A_k = \Delta_k \sum_j c_j g_{jk}`, reduced over the weights of every unit.

Gradients are added up while backward runs, by hooks with a lifetime, and dropped at once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import vmap

from filterattr.errors import LossError, name_some
from filterattr.integral.path import SMALL, sum_type
from filterattr.units.unit import REDUCTIONS, Reduction, ScoredParameter, Unit


class GradientAccumulator(ABC):
    """Take every gradient of a backward pass as soon as it is complete, and drop it.

    A hook on each leaf does so, so that at most one gradient is alive, and a parameter that is used several times
    counts with its full sum. The hooks belong to our own leaves and die with them.

    Attributes:
        reached: The parameters that got a gradient since the last `reset`.
        small: The parameters whose gradients are left to `collect`.
    """

    def __init__(self) -> None:
        self.reached: set[str] = set()
        self.small: set[str] = set()

    def take_all(self, value: Tensor, leaves: Mapping[str, nn.Parameter], coefficient: float) -> None:
        """Run the backward pass of a loss, and take its gradients.

        Args:
            value: The loss, with its graph.
            leaves: Name to leaf parameter; each is a fresh object.
            coefficient: What the gradients are multiplied with.

        Raises:
            LossError: Some hold gradients already, so that the loss has run a backward pass of its own; or reentrant
                checkpointing keeps the gradient from some.
        """
        used = [name for name, leaf in leaves.items() if leaf.grad is not None]
        if used:
            raise LossError(
                f"the loss must not call backward(); it left gradients in {name_some(used)}. Return the scalar, or use "
                "torch.autograd.grad inside."
            )
        for name, leaf in leaves.items():
            if name not in self.small:
                leaf.register_post_accumulate_grad_hook(self._taker(name, coefficient))  # type: ignore[no-untyped-call]

        try:
            value.backward(inputs=list(leaves.values()))  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            if "use_reentrant" not in str(error):
                raise
            silent = [name for name in leaves if name not in self.reached and leaves[name].grad is None]
            raise LossError(
                "the gradient must reach every parameter, but reentrant activation checkpointing cuts it off from some "
                f"of {name_some(silent)}. Call torch.utils.checkpoint.checkpoint(..., use_reentrant=False)."
            ) from error
        self.collect(leaves, coefficient)

    def collect(self, leaves: Mapping[str, nn.Parameter], coefficient: float) -> None:  # noqa: B027 - none are small
        """Take the gradients that were too small to be taken one by one; call it after the backward pass.

        Args:
            leaves: As for `take_all`.
            coefficient: As for `take_all`.
        """

    @abstractmethod
    def take(self, name: str, gradient: Tensor, coefficient: float) -> None:
        """Take one gradient.

        Args:
            name: Name of its parameter.
            gradient: Dense, of the parameter's shape, in any layout; it is dropped afterwards.
            coefficient: What it is to be multiplied with.
        """

    @abstractmethod
    def find_nonfinite(self) -> dict[str, float]:
        """Name the parameters that got an infinite gradient, or one that is not a number, with a sum over it."""

    def reset(self) -> None:
        """Start with the next sample."""
        self.reached = set()

    def _taker(self, name: str, coefficient: float) -> Callable[[Tensor], None]:
        def take(leaf: Tensor) -> None:
            gradient = leaf.grad
            leaf.grad = None
            if gradient is None:
                return
            gradient = gradient.detach()
            self.take(name, gradient.to_dense() if gradient.is_sparse else gradient, coefficient)
            self.reached.add(name)

        return take


class GradientSums(GradientAccumulator):
    r"""Add up :math:`\sum_j c_j\, \partial L / \partial \gamma_j`, one tensor per parameter.

    A float32 gradient has a relative error of about 1e-6 already. Adding n of them in float32 adds at most n times
    6e-8 of the largest, so finer sums would cost memory and time for digits that are not there.

    Args:
        parameters: Name to a tensor whose shape and device the sums take; their type is its `sum_type`.

    Attributes:
        sums: Name to sum.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.sums: dict[str, Tensor] = {}
        self._bundles: list[tuple[list[str], Tensor]] = []
        for name, tensor in parameters.items():
            if tensor.numel() > SMALL:
                self.sums[name] = torch.zeros(tensor.shape, dtype=sum_type(tensor), device=tensor.device)
        for names in _bundles(parameters):
            first = parameters[names[0]]
            sizes = [parameters[name].numel() for name in names]
            total = torch.zeros(sum(sizes), dtype=sum_type(first), device=first.device)
            parts = torch.split(total, sizes)
            self.sums |= {name: part.view(parameters[name].shape) for name, part in zip(names, parts, strict=True)}
            self._bundles.append((names, total))
        self.small = {name for names, _ in self._bundles for name in names}
        self.sums = {name: self.sums[name] for name in parameters}

    def take(self, name: str, gradient: Tensor, coefficient: float) -> None:
        """See `GradientAccumulator.take`."""
        self.sums[name].add_(gradient, alpha=coefficient)

    def collect(self, leaves: Mapping[str, nn.Parameter], coefficient: float) -> None:
        """See `GradientAccumulator.collect`; the gradients of a bundle are added at once."""
        for names, total in self._bundles:
            gradients = (leaves[name].grad for name in names)
            flat = [grad.reshape(-1) for grad in gradients if grad is not None and not grad.is_sparse]
            if len(flat) < len(names):
                for name in names:
                    self._taker(name, coefficient)(leaves[name])
                continue
            total.add_(torch.cat(flat), alpha=coefficient)
            self.reached.update(names)

    def find_nonfinite(self) -> dict[str, float]:
        """See `GradientAccumulator.find_nonfinite`."""
        parts = {name: torch.view_as_real(total) if total.is_complex() else total for name, total in self.sums.items()}
        totals = {name: float(part.sum()) for name, part in parts.items()}
        return {name: value for name, value in totals.items() if not math.isfinite(value)}

    def reset(self) -> None:
        """Start the next integral from zero."""
        super().reset()
        self.zero()

    def zero(self) -> None:
        """Set all sums to zero."""
        for _, total in self._bundles:
            total.zero_()
        for name, total in self.sums.items():
            if name not in self.small:
                total.zero_()


def _bundles(parameters: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Gather the small parameters of every type and device."""
    groups: dict[tuple[torch.device, torch.dtype], list[str]] = {}
    for name, tensor in parameters.items():
        if tensor.numel() <= SMALL:
            groups.setdefault((tensor.device, tensor.dtype), []).append(name)
    yield from groups.values()


class Totals(NamedTuple):
    """Sums over all parameters.

    Attributes:
        signed: Of the attributions.
        remainder: The same of what is not scored.
        absolute: Of their absolute values.
        unscored: The same of what is not scored.
    """

    signed: float
    remainder: float
    absolute: float
    unscored: float = 0.0

    def gap(self, losses: list[float]) -> tuple[float, float]:
        """What completeness lacks, and what that is to be compared with.

        Args:
            losses: Along the path, base first and target last.

        Returns:
            ``|signed - change|`` and ``max(|change|, 1e-3 absolute)``, at least the rounding of the losses.
        """
        change = losses[-1] - losses[0]
        # below the rounding of the losses themselves nothing can be told
        return abs(self.signed - change), max(abs(change), 1e-3 * self.absolute, 1e-12 * max(map(abs, losses)))


class Contributions:
    """The attributions of all weights, one parameter after the other, and what they sum to.

    Nothing waits for the device until `totals` is asked for.

    Args:
        parameters: Parameter name to how it is scored.
    """

    def __init__(self, parameters: Mapping[str, ScoredParameter]) -> None:
        self._parameters = parameters
        self._signed: dict[str, Tensor] = {}
        self._absolute: dict[str, Tensor] = {}

    def per_unit(self, attributions: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, dict[Reduction, Tensor]]]:
        """Yield the scores of every parameter or group.

        Args:
            attributions: Parameter name and the attributions of its weights, which are used up.

        Yields:
            Name, and its scores in all reductions.
        """
        self._signed, self._absolute = {}, {}
        groups: dict[str, dict[Reduction, Tensor]] = {}
        for name, values in attributions:
            self._signed[name] = self._sum(values)
            scored = self._parameters.get(name)
            if scored is None:
                self._absolute[name] = self._sum(values.abs_())
                continue
            signed = self._reduce(scored.unit, values)
            self._absolute[name] = self._sum(values.abs_())
            scores: dict[Reduction, Tensor] = {"sum": signed, "sum_of_abs": self._reduce(scored.unit, values)}
            if scored.group is None:
                yield name, with_all(scores)
            elif scored.group in groups:
                for reduction, score in groups[scored.group].items():
                    score.add_(scores[reduction])
            else:
                groups[scored.group] = scores
        for name, scores in groups.items():
            yield name, with_all(scores)

    def totals(self) -> Totals:
        """The sums over all parameters, after the last `per_unit` has come to its end."""
        return self._totals(1)[0]

    def _totals(self, count: int) -> list[Totals]:
        """The totals of so many samples; the device is waited for once."""
        if not self._signed:
            return count * [Totals(0.0, 0.0, 0.0)]
        # sums of different devices do not meet before they are here
        rows = [torch.stack(list(values.values())) for values in (self._signed, self._absolute)]
        totals = []
        for signed, absolute in torch.stack(rows).reshape(2, len(self._signed), count).permute(2, 0, 1).tolist():
            rest = [place for place, name in enumerate(self._signed) if name not in self._parameters]
            remainder, unscored = (sum(values[place] for place in rest) for values in (signed, absolute))
            totals.append(Totals(sum(signed), remainder, sum(absolute), unscored))
        return totals

    def _sum(self, values: Tensor) -> Tensor:
        return values.sum().double()

    def _reduce(self, unit: Unit, values: Tensor) -> Tensor:
        return _double_copy(unit.reduce(values), values)


class BatchedContributions(Contributions):
    """The attributions of several samples at once; they and the scores have one more dimension in front.

    Args:
        parameters: Parameter name to how it is scored.
    """

    def totals_of_each(self, count: int) -> list[Totals]:
        """The sums over all parameters for each sample, after the last `per_unit` has come to its end.

        Args:
            count: Number of samples.
        """
        return self._totals(count)

    def _sum(self, values: Tensor) -> Tensor:
        return values.flatten(1).sum(1).double()

    def _reduce(self, unit: Unit, values: Tensor) -> Tensor:
        return _double_copy(vmap(unit.reduce)(values), values)


def _double_copy(units: Tensor, weights: Tensor) -> Tensor:
    """Scores of units in float64, in memory of their own: where every weight is a unit, they are the weights'."""
    return units.clone() if units.data_ptr() == weights.data_ptr() and units.dtype == torch.float64 else units.double()


def with_all(scores: dict[Reduction, Tensor]) -> dict[Reduction, Tensor]:
    """Add what follows from the signed scores of units."""
    known: dict[Reduction, Tensor] = {"abs_of_sum": scores["sum"].abs(), **scores}
    return {reduction: known[reduction] for reduction in REDUCTIONS}
