"""Which parameters of a model are scored, and by which units."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

from torch import nn

from filterattr.errors import UnitError, name_some
from filterattr.model.swap import ParameterSwap
from filterattr.names import Names
from filterattr.units.groups import UnitLike, assigned, has_only_groups
from filterattr.units.layouts import is_guess, unit_of
from filterattr.units.unit import ScoredParameter, units_of

Select: TypeAlias = str | Sequence[str] | Callable[[str, nn.Module, nn.Parameter], bool]


_MANY_UNITS = 10_000_000


_NUMBERS_OF_A_UNIT = 6, 4  # float64 numbers that a run holds, and for a single weight


def scored_parameters(
    model: nn.Module, swap: ParameterSwap, unit: UnitLike, select: Select | None, guesses: list[str] | None = None
) -> dict[str, ScoredParameter]:
    """Find the parameters that are scored, and their units.

    Args:
        model: The model, not wrapped.
        swap: Knows its parameters.
        unit: As in `filterattr.FilterAttributor`.
        select: As in `filterattr.FilterAttributor`.
        guesses: Gets the parameters whose outputs and inputs are guessed, in words.

    Returns:
        First name to how the parameter is scored, in the order of the network.

    Raises:
        UnitError: Units do not fit (all misfits are gathered), a name means nothing, or no parameter is selected.
    """
    scored: dict[str, ScoredParameter] = {}
    findings = []
    units = assigned(unit, swap.parameters, swap.aliases)
    named = _named(swap, select)
    only_groups = has_only_groups(unit)
    keys = list(unit) if isinstance(unit, Mapping) else []
    for name, parameter in swap.parameters.items():
        owner = swap.owners[name]
        module = _computing_module(model, owner.path, owner.module)
        member = units.members.get(name)
        is_default = member is not None or (parameter.ndim >= 2 and not only_groups)
        if not _is_selected(select, name, module, parameter, named, is_default=is_default):
            continue
        if member is not None:
            scored[name] = ScoredParameter(member.unit, tuple(parameter.shape), member.group)
            continue
        try:
            if name not in units.choices:
                raise UnitError(
                    f"every scored parameter needs a unit; no glob of {name_some(keys)} matches '{name}'. "
                    "Add '*' as the last key, or leave the parameter out with select=."
                )
            choice = units.choices[name]
            scored[name] = ScoredParameter(unit_of(name, parameter, module, choice), tuple(parameter.shape))
            if guesses is not None and is_guess(name, parameter, module, choice):
                guesses.append(f"{name} {tuple(parameter.shape)} of {type(module).__name__}")
        except UnitError as error:
            findings.append(str(error))
    if findings:
        findings = list(dict.fromkeys(findings))  # an unknown name is found once for every parameter
        more = f" (and {len(findings) - 5} more)" if len(findings) > 5 else ""
        raise UnitError(" ".join(findings[:5]) + more)
    if not scored:
        raise UnitError(
            f"at least one parameter must be scored; select={select!r} leaves none of "
            f"{name_some(swap.parameters) or 'no parameters'}."
        )
    return scored


def _named(swap: ParameterSwap, select: Select | None) -> frozenset[str]:
    """First names of the parameters that ``select`` names."""
    if select is None or callable(select):
        return frozenset()
    texts = (select,) if isinstance(select, str) else tuple(select)
    unknown = _names(swap).unknown(texts)
    if unknown:
        raise UnitError(
            f"select={repr(select)[:200]} must name parameters of the model; nothing is like "
            f"{_names(swap).describe_some(unknown)}. Names are those of model.named_parameters()."
        )
    return first_names(swap, texts)


def _is_selected(
    select: Select | None,
    name: str,
    module: nn.Module,
    parameter: nn.Parameter,
    named: frozenset[str],
    *,
    is_default: bool,
) -> bool:
    is_packed = hasattr(parameter, "quant_state")  # bitsandbytes keeps packed bits, also in floating types
    if is_packed or not (parameter.is_floating_point() or parameter.is_complex()):
        return False
    if select is None:
        return is_default
    if callable(select):
        return bool(select(name, module, parameter))
    return name in named


def single_weights(scored: Mapping[str, ScoredParameter]) -> list[str]:
    """Parameters whose kernels are single weights, where these are too many to be scored each by default."""
    single = {
        name: parameter
        for name, parameter in scored.items()
        if len(parameter.shape) > 1 and parameter.is_weight_by_weight
    }
    return list(single) if sum(math.prod(parameter.shape) for parameter in single.values()) > _MANY_UNITS else []


def doubts_of_units(
    scored: Mapping[str, ScoredParameter], single: Sequence[str], guesses: Sequence[str]
) -> Iterator[str]:
    """Yield what must be known about the units before any work."""
    if single:
        count = sum(math.prod(scored[name].shape) for name in single)
        yield (
            f"unit= was not given, and the kernels of {name_some(single)} are single weights, {count:,} in all: these "
            'are scored by filter (output neuron). Say unit="filter", or unit="kernel" for single weights.'
        )
    if guesses:
        yield (
            f"nothing tells which axes are outputs and inputs of {name_some(guesses)}; experts are taken as (expert, "
            "output, input), others as (output, input, window). Say it with filterattr.register_layout, or give them "
            "a pattern with unit={...}."
        )
    sizes = {name: shape.numel() for name, shape in units_of(scored).items()}
    units = sum(sizes.values())
    weights = sum(math.prod(parameter.shape) for parameter in scored.values())
    if units > _MANY_UNITS and units > weights / 4:
        alone = sum(sizes.get(name, 0) for name, parameter in scored.items() if parameter.is_weight_by_weight)
        size = 8 * (_NUMBERS_OF_A_UNIT[1] * alone + _NUMBERS_OF_A_UNIT[0] * (units - alone))
        yield (
            f"{units:,} units for {weights:,} weights: their scores take {size / 2**30:.1f} GiB, "
            f'{size / (4 * weights):.1f} times the weights in float32. unit="filter" has one score an output, and '
            "select= scores less."
        )


def _names(swap: ParameterSwap) -> Names:
    """All names of all parameters."""
    return Names(name for name, first in swap.aliases.items() if first in swap.parameters)


def first_names(swap: ParameterSwap, texts: Sequence[str]) -> frozenset[str]:
    """First names of the parameters that names and globs mean, whichever of its names a tied one is given."""
    return frozenset(swap.aliases[name] for name in _names(swap).first_of(texts))


def _computing_module(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """The module that computes with a parameter: not the list that holds a parametrized weight."""
    parent, is_parametrized, _ = path.partition(".parametrizations.")
    if path.startswith("parametrizations."):
        return model
    return model.get_submodule(parent) if is_parametrized else module
