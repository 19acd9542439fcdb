"""Arguments of PEFT: ranks of low-rank adapters and masks of sparse adapters, by contribution."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Any

from torch import Tensor, nn

from filterattr.analysis.budget import Budget
from filterattr.errors import SettingError, gathered, name_some
from filterattr.model.state_dict import unwrap_model
from filterattr.results.scores import FilterScores, mark_top

_WEIGHT = ".weight"


def lora_arguments(budget: Budget, model: nn.Module | None = None, *, scaling: float = 1.0) -> dict[str, Any]:
    """Make arguments for ``peft.LoraConfig`` that give every layer the rank of a budget.

    Layers of rank 0 get no adapter. The keys follow the rules of PEFT: names of modules, or a regular expression if a
    name is also the end of another name.

    Args:
        budget: The budget that `filterattr.analysis.lora_ranks` returned.
        model: The model to adapt. If it is given, names are also compared with modules without scores, and PEFT is told
            which layers are stored transposed (``Conv1D`` of transformers).
        scaling: Alpha over rank, the same in all layers: a larger scaling moves the weights further in each step.

    Returns:
        ``target_modules``, ``r``, ``lora_alpha``, ``rank_pattern`` and ``alpha_pattern``, for
        ``LoraConfig(**lora_arguments(budget))``. You can add further arguments.

    Raises:
        SettingError: The budget holds no ranks, all ranks are 0, a name is no weight of a module, or the model lacks a
            module.

    Example:
        >>> import torch
        >>> from filterattr import ScoredParameter, Unit
        >>> from filterattr.analysis import lora_ranks
        >>> like = {name: ScoredParameter(Unit("o i -> o i"), (8, 8)) for name in ("first.weight", "second.weight")}
        >>> scores = FilterScores({"first.weight": torch.ones(8, 8), "second.weight": 3 * torch.ones(8, 8)}, like)
        >>> arguments = lora_arguments(lora_ranks(scores, 4))
        >>> arguments["target_modules"], arguments["rank_pattern"]
        (['first', 'second'], {'first': 2, 'second': 6})

    References:
        Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022.
    """
    if budget.what != "rank":
        raise SettingError(f"the budget must be of ranks, as lora_ranks makes it; it is of {budget.what}.")
    modules = _module_names(budget.amounts(), model)
    ranks = {modules[name]: rank for name, rank in budget.amounts().items() if rank}
    if not ranks:
        raise SettingError("the budget gives no layer a rank; raise uniform_rank.")
    known = {*modules.values(), *(_paths(model) if model is not None else ())}
    keys = _keys(ranks, known)
    usual = Counter(ranks.values()).most_common(1)[0][0]
    arguments: dict[str, Any] = {
        "target_modules": _targets(ranks, known),
        "r": usual,
        "lora_alpha": _plain(scaling * usual),
        "rank_pattern": {keys[name]: rank for name, rank in ranks.items()},
        "alpha_pattern": {keys[name]: _plain(scaling * rank) for name, rank in ranks.items()},
    }
    if model is not None and all(_is_reversed(unwrap_model(model).get_submodule(name)) for name in ranks):
        arguments["fan_in_fan_out"] = True
    return arguments


def shira_masks(scores: FilterScores, model: nn.Module) -> Callable[..., Tensor]:
    """Make a mask function for ``peft.ShiraConfig``: every layer trains the weights with the highest scores.

    Write ``config = ShiraConfig(r=4, target_modules=...)`` and ``config.mask_fn = shira_masks(scores, model)`` before
    ``get_peft_model(model, config)``. A layer of shape ``(out, in)`` trains ``r * (out + in)`` weights, the number of a
    low-rank adapter. The weights of one unit have equal scores; the first ones are taken.

    Args:
        scores: Scores of the weights of the model. Small units give fine masks.
        model: The model to adapt.

    Returns:
        A function of a layer and a rank that returns zeros and ones in the shape of the weight of the layer. It raises
        `SettingError` for layers without scores.

    Raises:
        SettingError: A score belongs to no weight of a module, or the model lacks the module.

    Example:
        >>> import torch
        >>> from filterattr import FilterAttributor
        >>> from filterattr.analysis import magnitude
        >>> model = nn.Sequential(nn.Linear(4, 3, bias=False))
        >>> _ = model[0].weight.data.copy_(torch.arange(12.0).reshape(3, 4))
        >>> scores = magnitude(FilterAttributor(model, unit="weight"), model)
        >>> shira_masks(scores, model)(model[0], 1)
        tensor([[0., 0., 0., 0.],
                [0., 1., 1., 1.],
                [1., 1., 1., 1.]])

    References:
        Bhardwaj et al., "Sparse High Rank Adapters", NeurIPS 2024.
    """
    inner = unwrap_model(model)
    modules = {inner.get_submodule(path): name for name, path in _module_names(scores.parameters, model).items()}

    def mask(base_layer: nn.Module, r: int, **_: object) -> Tensor:
        name = modules.get(base_layer)
        if name is None:
            raise SettingError(
                f"every adapted layer needs scores; {base_layer} has none, only {name_some(modules.values())}. Set "
                "target_modules= to these, and adapt the model that was given here."
            )
        scored = scores.parameters[name]
        values = scored.unit.spread(scores.kept[scored.key(name)].cpu().double(), scored.shape)
        chosen = mark_top(values.reshape(-1), r * (scored.shape[0] + scored.shape[1])).reshape(scored.shape)
        return chosen.to(base_layer.weight)  # type: ignore[arg-type]

    return mask


def _module_names(parameters: Iterable[str], model: nn.Module | None) -> dict[str, str]:
    """Parameter name to the name of its module."""
    parameters = list(parameters)
    held = None if model is None else set(_paths(model))
    findings = [f"'{name}' is no weight of a module" for name in parameters if not name.endswith(_WEIGHT)]
    modules = {name: name.removesuffix(_WEIGHT) for name in parameters if name.endswith(_WEIGHT)}
    if held is not None:
        findings += [f"the model has no module '{path}'" for path in modules.values() if path not in held]
    if findings:
        raise SettingError(
            f"adapters belong to modules with a weight: {gathered(findings)}. Take scores of these alone, with "
            "scores.only(...) or select=, and the model that they are of."
        )
    return modules


def _paths(model: nn.Module) -> list[str]:
    return [path for path, _ in unwrap_model(model).named_modules() if path]


def _keys(names: Iterable[str], known: Collection[str]) -> dict[str, str]:
    """Names as PEFT looks for them: at the end of a module's name, and as regular expressions."""
    return {
        name: f"^{re.escape(name)}" if any(re.fullmatch(rf"(.*\.)?{name}", other) for other in known if other != name)
        else name
        for name in names
    }  # fmt: skip


def _targets(names: Collection[str], known: Collection[str]) -> list[str] | str:
    """The names, or one expression that matches them alone."""
    others = [name for name in known if name not in names]
    if any(other.endswith(f".{name}") for other in others for name in names):
        return "|".join(re.escape(name) for name in names)
    return list(names)


def _is_reversed(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"


def _plain(number: float) -> float:
    return int(number) if float(number).is_integer() else number
