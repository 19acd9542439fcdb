"""Ranks of adapters by six criteria, at the same number of parameters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from filterattr.analysis import Budget, fisher, lora_ranks, weight_change
from filterattr.attribution import FilterAttributor
from filterattr.benchmarks.adapting import Batch, Domains, Task
from filterattr.model.state_dict import StateLike
from filterattr.results.scores import FilterScores

N_STEPS = 8
UNIFORM, EVA = "uniform", "EVA"
_ROWS = 256  # samples whose inputs of layers are decomposed
_SAMPLES = 32  # for scores
_WEIGHT = ".weight"
_MOST = 2  # EVA gives a layer at most so many times the uniform rank, as PEFT does


class Components(NamedTuple):
    """Principal components of the inputs of a layer, from the first to the last.

    Attributes:
        shares: Share of the variance that each explains.
        directions: One a row.
    """

    shares: Tensor
    directions: Tensor


@dataclasses.dataclass(frozen=True)
class Allocations:
    """Ranks for one network.

    Attributes:
        budgets: Criterion to budget, the uniform one first.
        components: Layer to the components of its inputs, in which adapters of EVA begin.
    """

    budgets: Mapping[str, Budget]
    components: Mapping[str, Components]


def allocations(
    task: Task, model: nn.Module, base: StateLike, short: StateLike, domains: Domains, seed: int
) -> Allocations:
    """Divide the parameters of uniform ranks by every criterion.

    Args:
        task: The task.
        model: Its network, with the weights of base.
        base: Weights that learned the old domain.
        short: Base after a short fine-tuning of all weights to the new one.
        domains: The data.
        seed: Of the random ranks.

    Returns:
        The ranks.
    """
    attributor = FilterAttributor(model, unit="filter", select=task.layers)
    samples = [tuple(value[row : row + 1] for value in domains.search) for row in range(_SAMPLES)]
    attribution = attributor.attribute(base, short, task.loss, samples, n_steps=N_STEPS, progress=False)
    change = weight_change(attributor, base, short)
    contributions = {
        "attribution": attribution.scores("sum_of_abs"),
        "attribution, signed": -attribution.scores("sum"),
        "weight change": change,
        "Fisher": fisher(attributor, base, task.loss, samples),
        "random": _drawn(change, torch.Generator().manual_seed(seed)),
    }
    budgets = {name: lora_ranks(scores, task.uniform_rank) for name, scores in contributions.items()}
    uniform = _with(budgets["random"], {entry.name: entry.uniform for entry in budgets["random"].entries})
    inputs = tuple(value[:_ROWS] for value in domains.new)
    components = input_components(model, [name.removesuffix(_WEIGHT) for name in change], task.loss, inputs)
    ranks = eva_ranks(uniform, {f"{name}{_WEIGHT}": held.shares for name, held in components.items()})
    return Allocations({UNIFORM: uniform, **budgets, EVA: ranks}, components)


def input_components(
    model: nn.Module, layers: Iterable[str], loss: Callable[[nn.Module, Batch], Tensor], batch: Batch
) -> dict[str, Components]:
    """Find the principal components of the inputs of layers, as EVA does.

    Args:
        model: The network.
        layers: Names of linear layers and convolutions; the inputs of a convolution are the patches that it sees.
        loss: Calls the network.
        batch: Samples.

    Returns:
        Layer to components.
    """
    components = {}

    def look(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], object], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], _: object) -> None:
            values, directions = torch.linalg.eigh(torch.cov(_rows(module, inputs[0]).double().T))
            values = values.flip(0).clamp_min(0)
            components[name] = Components(values / values.sum(), directions.T.flip(0))

        return hook

    handles = [model.get_submodule(name).register_forward_hook(look(name)) for name in layers]
    try:
        with torch.no_grad():
            loss(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return components


def eva_ranks(uniform: Budget, shares: Mapping[str, Tensor]) -> Budget:
    """Give out ranks as EVA does: to the components that explain most of the variance of their layer's inputs.

    Unlike in PEFT, the number of parameters is limited, and not the sum of the ranks; a component that does not fit any
    more is left out.

    Args:
        uniform: The uniform budget.
        shares: Parameter to shares of the components of its layer's inputs.

    Returns:
        The budget; a layer has at most twice its uniform rank, as is PEFT's default.

    Example:
        >>> from filterattr.analysis import LayerBudget
        >>> layers = tuple(LayerBudget(name, 0.5, 16, 2, 2) for name in ("a", "b"))
        >>> shares = {"a": torch.tensor([0.9, 0.1, 0.0]), "b": torch.tensor([0.4, 0.3, 0.2])}
        >>> eva_ranks(Budget("rank", layers), shares).amounts()
        {'a': 1, 'b': 3}

    References:
        Paischer et al., "Parameter Efficient Fine-tuning via Explained Variance Adaptation", NeurIPS 2025.
    """
    steps = {entry.name: entry.step for entry in uniform.entries}
    most = {entry.name: _MOST * entry.uniform for entry in uniform.entries}
    components = [(float(value), name) for name in steps for value in shares[name][: most[name]]]
    amounts, spent = dict.fromkeys(steps, 0), 0
    for _, name in sorted(components, key=lambda component: -component[0]):
        if spent + steps[name] <= uniform.total:
            amounts[name] += 1
            spent += steps[name]
    return _with(uniform, amounts)


def _drawn(like: FilterScores, generator: torch.Generator) -> FilterScores:
    """A random contribution of every layer."""
    layers = {name: float(torch.rand((), generator=generator)) / tensor.numel() for name, tensor in like.items()}
    return FilterScores({name: torch.full_like(like[name], value) for name, value in layers.items()}, like.parameters)


def _rows(module: nn.Module, inputs: Tensor) -> Tensor:
    """What a layer multiplies with its weights, a row each."""
    if isinstance(module, nn.Conv2d):
        padding: Any = module.padding
        patches = nn.functional.unfold(inputs, module.kernel_size, padding=padding, stride=module.stride)
        return patches.transpose(1, 2).flatten(0, 1)
    return inputs.reshape(math.prod(inputs.shape[:-1]), inputs.shape[-1])


def _with(budget: Budget, amounts: Mapping[str, int]) -> Budget:
    return Budget("rank", tuple(dataclasses.replace(entry, amount=amounts[entry.name]) for entry in budget.entries))
