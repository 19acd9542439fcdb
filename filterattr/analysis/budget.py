"""Budgets of parameters per layer from an attribution, and masks for pruning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from filterattr.analysis.record import Record, Row
from filterattr.errors import SettingError, name_some
from filterattr.results.attribution import FilterAttribution
from filterattr.results.scores import FilterScores, FilterSelection


@dataclass(frozen=True)
class LayerBudget:
    """The budget of one layer.

    Attributes:
        name: Name of the parameter.
        share: Its share of the contribution of all layers, in [0, 1].
        step: Number of parameters that one more rank, or one more unit, costs.
        amount: The budget: a rank, or a number of units.
        uniform: The budget that all layers would have if they were treated alike.
    """

    name: str
    share: float
    step: int
    amount: int
    uniform: int

    @property
    def parameters(self) -> int:
        """Number of parameters in the budget of this layer."""
        return self.step * self.amount


@dataclass(frozen=True)
class Budget(Record):
    """A budget of parameters for every layer, with no more parameters in total than a uniform budget.

    Attributes:
        what: ``"rank"`` of low-rank adapters, or ``"units"`` to train.
        entries: One row per layer.
    """

    what: Literal["rank", "units"]
    entries: tuple[LayerBudget, ...]

    @property
    def total(self) -> int:
        """Number of parameters of this budget."""
        return sum(entry.parameters for entry in self.entries)

    @property
    def uniform_total(self) -> int:
        """Number of parameters of the uniform budget."""
        return sum(entry.step * entry.uniform for entry in self.entries)

    def amounts(self) -> dict[str, int]:
        """The budget of every layer, for a library of adapters: parameter name to rank or number of units."""
        return {entry.name: entry.amount for entry in self.entries}

    def rows(self) -> list[Row]:
        """One row per layer."""
        return [{**vars(entry), "parameters": entry.parameters} for entry in self.entries]


def layer_shares(contribution: FilterAttribution | FilterScores) -> dict[str, float]:
    """Share of every parameter in the contribution of all parameters.

    Args:
        contribution: An attribution, whose ``sum_of_abs`` scores are used, or any scores, such as a contrast.
            Negative scores count as 0.

    Returns:
        Parameter name to share. The shares sum to 1; they are equal if no parameter contributes.

    Example:
        >>> import torch
        >>> from filterattr import ScoredParameter, Unit
        >>> like = {"a": ScoredParameter(Unit("... -> ..."), (2,)), "b": ScoredParameter(Unit("... -> ..."), (1,))}
        >>> layer_shares(FilterScores({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([1.0])}, like))
        {'a': 0.75, 'b': 0.25}
    """
    scores = contribution.scores() if isinstance(contribution, FilterAttribution) else contribution
    sums = {name: float(tensor.clamp_min(0).sum()) for name, tensor in scores.items()}
    total = math.fsum(sums.values())
    return {name: value / total if total else 1 / len(sums) for name, value in sums.items()}


def lora_ranks(
    contribution: FilterAttribution | FilterScores, uniform_rank: int, *, least: int = 0, most: int | None = None
) -> Budget:
    """Ranks of low-rank adapters by contribution, with at most as many parameters as one rank for all layers.

    A rank of a weight of shape ``(out, in, ...)`` costs ``out + in * ...`` parameters. Ranks are given one by one,
    each to the layer that then has the largest contribution per parameter (d'Hondt's rule). The parameters are
    therefore as nearly proportional to the contributions as integer ranks allow.

    Args:
        contribution: See `layer_shares`.
        uniform_rank: The rank of the uniform budget.
        least: Smallest rank of a layer.
        most: Largest rank of a layer. No layer gets more than its full rank.

    Returns:
        The budget.

    Raises:
        SettingError: A number is out of range, or a parameter has fewer than two dimensions.

    Example:
        >>> import torch
        >>> from filterattr import ScoredParameter, Unit
        >>> like = {name: ScoredParameter(Unit("o i -> o i"), (8, 8)) for name in ("first", "second")}
        >>> scores = FilterScores({"first": torch.ones(8, 8), "second": 3 * torch.ones(8, 8)}, like)
        >>> lora_ranks(scores, 4).amounts()
        {'first': 2, 'second': 6}

    References:
        Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022; "CoLoRA", ECCV 2024, for ranks
        from an attribution.
    """
    shapes = {name: scored.shape for name, scored in contribution.parameters.items()}
    flat = [name for name, shape in shapes.items() if len(shape) < 2]
    if flat:
        raise SettingError(f"a rank needs weights of two or more dimensions; {name_some(flat)} have fewer.")
    steps = {name: shape[0] + math.prod(shape[1:]) for name, shape in shapes.items()}
    full = {name: min(shape[0], math.prod(shape[1:])) for name, shape in shapes.items()}
    limits = full if most is None else {name: min(most, rank) for name, rank in full.items()}
    uniform = {name: min(uniform_rank, rank) for name, rank in full.items()}
    return _budget("rank", layer_shares(contribution), steps, limits, uniform, least)


def units_to_train(contribution: FilterAttribution | FilterScores, fraction: float) -> Budget:
    """Numbers of units to train per layer by contribution, with at most as many weights as a fraction of each.

    Args:
        contribution: See `layer_shares`.
        fraction: The uniform budget is this fraction of the units of every layer, rounded.

    Returns:
        The budget; `select_units` turns it into a selection.

    Raises:
        SettingError: The fraction is outside [0, 1], or the units of a layer have different sizes.

    Example:
        >>> import torch
        >>> from filterattr import ScoredParameter, Unit
        >>> like = {name: ScoredParameter(Unit("... -> ..."), (4,)) for name in ("a", "b")}
        >>> scores = FilterScores({"a": torch.ones(4), "b": torch.full((4,), 3.0)}, like)
        >>> units_to_train(scores, 0.5).amounts()
        {'a': 1, 'b': 3}
    """
    if not 0 <= fraction <= 1:
        raise SettingError(f"fraction must lie in [0, 1] (one per cent is 0.01); got {fraction}.")
    counts = {name: scored.units_shape.numel() for name, scored in contribution.parameters.items()}
    sizes = {name: math.prod(scored.shape) for name, scored in contribution.parameters.items()}
    steps = {name: sizes[name] // counts[name] for name in counts}
    uniform = {name: math.floor(fraction * count + 0.5) for name, count in counts.items()}
    return _budget("units", layer_shares(contribution), steps, counts, uniform, 0)


def select_units(scores: FilterScores, budget: Budget) -> FilterSelection:
    """Take the best units of every layer, as many as a budget says.

    Args:
        scores: The scores.
        budget: The budget that `units_to_train` returned.

    Returns:
        The selection.

    Raises:
        SettingError: The budget holds ranks, or other layers.

    Example:
        >>> import torch
        >>> from filterattr import ScoredParameter, Unit
        >>> like = {name: ScoredParameter(Unit("... -> ..."), (4,)) for name in ("a", "b")}
        >>> scores = FilterScores({"a": torch.ones(4), "b": torch.full((4,), 3.0)}, like)
        >>> select_units(scores, units_to_train(scores, 0.5)).per_layer()
        {'a': 1, 'b': 3}
    """
    amounts = budget.amounts()
    if budget.what != "units" or list(amounts) != list(scores):
        raise SettingError(
            f"the budget must be of units of the scored parameters; it is of {budget.what} of {name_some(amounts)}."
        )
    chosen = {
        name: FilterScores({name: tensor}, {name: scores.parameters[name]}).top(amounts[name])[name]
        for name, tensor in scores.items()
    }
    return FilterSelection(chosen, scores.parameters)


def pruning_masks(selection: FilterSelection, *, keep: bool = False) -> dict[str, Tensor]:
    """Masks for `torch.nn.utils.prune.custom_from_mask` and other pruning libraries: 1 keeps a weight, 0 prunes it.

    Args:
        selection: The units.
        keep: Keep the selected units and prune all others, instead of pruning the selected ones.

    Returns:
        Parameter name to boolean mask of the parameter's shape.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torch.nn.utils import prune
        >>> from filterattr import FilterAttributor
        >>> from filterattr.analysis import magnitude
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False))
        >>> _ = model[0].weight.data.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        >>> for name, mask in pruning_masks(magnitude(FilterAttributor(model), model).top(1)).items():
        ...     module, _, local = name.rpartition(".")
        ...     _ = prune.custom_from_mask(model.get_submodule(module), local, mask)
        >>> model[0].weight.tolist()
        [[1.0, 2.0], [3.0, 0.0]]
    """
    return {name: marked if keep else ~marked for name, marked in selection.weights().items()}


def _budget(
    what: Literal["rank", "units"],
    shares: Mapping[str, float],
    steps: Mapping[str, int],
    limits: Mapping[str, int],
    uniform: Mapping[str, int],
    least: int,
) -> Budget:
    """Give the steps to the layers one by one, until no further step fits."""
    total = sum(steps[name] * count for name, count in uniform.items())
    amounts = {name: min(least, limits[name]) for name in shares}
    spent = sum(steps[name] * count for name, count in amounts.items())
    if least < 0 or spent > total or min(uniform.values()) < 0:
        raise SettingError(
            f"the smallest amount must lie between 0 and the uniform one; got {least}, which needs {spent} of {total} "
            "parameters."
        )
    while True:
        fitting = [
            name
            for name in shares
            if amounts[name] < limits[name] and spent + steps[name] <= total and shares[name] > 0
        ]
        if not fitting:
            break
        best = max(fitting, key=lambda name: shares[name] / (steps[name] * (amounts[name] + 1)))
        amounts[best] += 1
        spent += steps[best]
    return Budget(
        what,
        tuple(LayerBudget(name, shares[name], steps[name], amounts[name], uniform[name]) for name in shares),
    )
