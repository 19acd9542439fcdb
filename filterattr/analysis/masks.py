r"""Continuous masks: the weights for a number per unit, and the derivatives of the outputs for these numbers.

A mask :math:`m \in [0, 1]` per unit gives the weights :math:`\theta(m) = \theta + m\,(\bar\theta - \theta)`, from
target to base, and

.. math:: J(m) = \mathrm{reverted}_D(m) - \sum_{D' \ne D} \lambda_{D'}\, \mathrm{moved}_{D'}(m)

is the objective: what the mask reverts, less a price for what it moves. A derivative costs one forward-backward pass
per sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from filterattr.analysis.gradients import direction_of
from filterattr.analysis.outputs import Outputs, SampleDistances
from filterattr.errors import LossError, NonFiniteError, SettingError, StateMismatchError, name_some
from filterattr.intervention import check_selection, swapped
from filterattr.model.context import GradientMode
from filterattr.model.state_dict import copied, shared_names
from filterattr.model.swap import ParameterSwap, refuse_behind, restoring
from filterattr.results.scores import FilterScores
from filterattr.results.signed import prices_of
from filterattr.units.unit import read_only, sum_over_units

Places = Mapping[str, Sequence[int]]


class Worth(NamedTuple):
    """The value of a mask.

    Attributes:
        objective: The reverted share less the prices of the moved shares.
        reverted: The reverted share of the function.
        moved: The moved share of every other function that has a price.
    """

    objective: float
    reverted: float
    moved: Mapping[str, float]


class MaskObjective:
    """The objective of masks of one function, and its derivatives.

    Args:
        outputs: The networks and the samples of the search.
        like: Scores or a selection of the units.
        of: The function to revert.
        collateral: The price of moved outputs: one for all other functions, or a mapping from their names.

    Attributes:
        prices: Other function to its price; functions with a price of 0 are left out.

    Raises:
        SettingError: The function is unknown, a price is negative, or base and target return the same outputs for its
            samples.
        StateMismatchError: The units do not fit base and target.

    Example:
        >>> from filterattr import FilterAttributor
        >>> from filterattr.analysis import Outputs, weight_change
        >>> base, target = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        >>> with torch.no_grad():
        ...     _ = base.weight.zero_(), target.weight.copy_(torch.eye(2))
        >>> inputs = {"first": [torch.tensor([1.0, 0.0])], "second": [torch.tensor([0.0, 1.0])]}
        >>> outputs = Outputs(base, base, target, lambda model, x: model(x), inputs)
        >>> units = weight_change(FilterAttributor(base, unit="filter"), base, target)
        >>> objective = MaskObjective(outputs, units, "first", 1.0)
        >>> worth, gradient = objective.derivatives(torch.zeros(2, dtype=torch.float64), objective.everything)
        >>> worth.objective, gradient
        (0.0, tensor([2., 0.], dtype=torch.float64))
    """

    def __init__(
        self, outputs: Outputs, like: FilterScores, of: str, collateral: float | Mapping[str, float] = 1.0
    ) -> None:
        prices = prices_of(outputs.data, of, collateral, "a search")
        check_selection(like.top(0), {"target": outputs._target, "base": outputs._base})
        self._outputs, self._like, self._of = outputs, like, of
        self._scales = {of: float(outputs.apart_from_base[of].sum())}
        self._scales |= {name: float(outputs.apart_from_target[name].sum()) for name in prices}
        if not self._scales[of] > 0:
            raise SettingError(
                f"base and target return the same outputs for the samples of {of!r}: there is nothing to revert."
            )
        # what says the same at both ends has no scale to be moved on
        counted = {name: price for name, price in prices.items() if price and self._scales[name] > 0}
        self.prices = read_only(counted)
        self._shared = shared_names(outputs._target)

    @property
    def everything(self) -> dict[str, list[int]]:
        """All samples of the function and of those with a price."""
        return {name: list(range(len(self._outputs.data[name]))) for name in (self._of, *self.prices)}

    def worth(self, mask: Tensor) -> Worth:
        """Evaluate a mask on all samples, with one forward pass per sample.

        Args:
            mask: One number per unit, flat.

        Returns:
            The value of the mask.
        """
        distances = self._outputs.sample_distances(self._weights(mask), (self._of, *self.prices))
        return self._worth({name: float(self._away(distances, name).sum()) for name in (self._of, *self.prices)})

    def derivatives(self, mask: Tensor, places: Places) -> tuple[Worth, Tensor]:
        """Evaluate a mask on some samples, with its derivative for every unit; one forward-backward pass per sample.

        Args:
            mask: One number per unit, flat.
            places: Function to the indices of the samples to use.

        Returns:
            The estimated value of the mask, and the derivatives, shape ``(n_units,)``, float64.

        Raises:
            LossError: The output has no derivatives for any scored parameter.
            NonFiniteError: A derivative is infinite or not a number.
        """
        state = self._weights(mask)
        originals = dict(self._outputs.model.named_parameters())
        mode = GradientMode()

        def differentiate() -> tuple[dict[str, float], dict[str, Tensor]]:
            mode.enter()
            with swapped(self._outputs.model, state, seed=0) as model:
                return self._differentiated(model, originals, places)

        distances, gradients = restoring(differentiate, mode.restore)
        unknown = [name for name, gradient in gradients.items() if not bool(torch.isfinite(gradient).all())]
        if unknown:
            raise NonFiniteError(
                f"the derivatives for {name_some(unknown)} must be finite: some mask breaks the network. Try a smaller "
                "amount, or a distance that is bounded."
            )
        along = {name: direction_of(gradient, self._change(name, gradient)) for name, gradient in gradients.items()}
        sums = sum_over_units(along, self._like.parameters)
        flat = torch.cat([sums[key].reshape(-1).cpu() for key in self._like.kept])
        return self._worth(distances), flat

    def weights(self, mask: Tensor) -> dict[str, Tensor]:
        """Return the weights for a mask: exactly target at 0, exactly base at 1.

        Args:
            mask: One number per unit, flat.

        Returns:
            A state dict that shares no memory with target or base.
        """
        return copied(self._weights(mask))

    def _weights(self, mask: Tensor) -> dict[str, Tensor]:
        """The same weights; unchanged tensors are those of target, not copies."""
        state = dict(self._outputs._target)
        with torch.no_grad():
            for key, part in self._like._split(mask).items():
                if not bool(part.any()):
                    continue
                for name in (member for member, scored in self._like.parameters.items() if scored.key(member) == key):
                    state |= dict.fromkeys(self._shared[name], self._mixed(name, part))
        return state

    def _mixed(self, name: str, part: Tensor) -> Tensor:
        scored, target = self._like.parameters[name], self._outputs._target[name]
        marked = scored.unit.spread(part, scored.shape).to(target.device)
        base = self._outputs._base[name].to(target.device)
        if bool(((part == 0) | (part == 1)).all()):
            return torch.where(marked == 1, base.to(target.dtype), target)
        wide = torch.complex128 if target.is_complex() else torch.float64
        mixed = (target.to(wide) + marked * (base.to(wide) - target.to(wide))).to(target.dtype)
        return torch.where(marked == 1, base.to(target.dtype), mixed)

    def _change(self, name: str, like: Tensor) -> Tensor:
        """Base minus target, in double precision."""
        ends = (self._outputs._base[name], self._outputs._target[name])
        wide = torch.complex128 if like.is_complex() else torch.float64
        base, target = (end.to(device=like.device, dtype=wide) for end in ends)
        return base - target

    def _differentiated(
        self, model: nn.Module, originals: Mapping[str, nn.Parameter], places: Places
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Distances of every function, as a part of all samples, and the gradient of the objective."""
        parameters = ParameterSwap(model).parameters
        leaves = {name: parameters[name] for name in self._like.parameters}
        behind = [name for name, leaf in leaves.items() if leaf is originals.get(name)]
        if behind:
            raise StateMismatchError(f"the state dict of the model must hold {name_some(behind)}.")
        for leaf in leaves.values():
            leaf.requires_grad_(True)
        distances: dict[str, float] = dict.fromkeys(places, 0.0)
        gradients: dict[str, Tensor] = {}
        is_checked = False
        for name, numbers in places.items():
            share = len(self._outputs.data[name]) / len(numbers)
            factor = -share * (1.0 if name == self._of else self.prices[name]) / self._scales[name]
            for place in numbers:
                end = self._outputs.ends_at(name, place)[0 if name == self._of else 1]
                end = end.clone() if end.is_inference() else end  # made in the caller's inference mode
                value = self._outputs.distance_from(end, model, name, place)
                if not value.requires_grad:
                    raise LossError(
                        f"the output must depend on the scored parameters and have derivatives ({name!r}, sample "
                        f"{place}); it was detached, or computed without gradients."
                    )
                if not is_checked:
                    refuse_behind(value, originals)
                    is_checked = True
                distances[name] += share * value.item()
                parts = torch.autograd.grad(value * factor, list(leaves.values()), allow_unused=True)
                for key, gradient in zip(leaves, parts, strict=True):
                    if gradient is not None:
                        gradients[key] = gradients[key] + gradient if key in gradients else gradient
        return distances, {
            key: gradients[key].to_dense() if key in gradients else torch.zeros_like(leaf, requires_grad=False)
            for key, leaf in leaves.items()
        }

    def _away(self, distances: SampleDistances, name: str) -> Tensor:
        return torch.from_numpy((distances.to_base if name == self._of else distances.to_target)[name])

    def _worth(self, distances: Mapping[str, float]) -> Worth:
        reverted = 1 - distances[self._of] / self._scales[self._of]
        moved = {name: distances[name] / self._scales[name] for name in self.prices}
        return Worth(reverted - sum(self.prices[name] * share for name, share in moved.items()), reverted, moved)
