r"""Scores that keep their sign: which units carry one function and no other, and what a set of them would remove.

The signed attributions of a function add up to ``loss_target - loss_base``. A unit that carries it has a negative one,
and the part of the function that it carries is its own part of the *gain*, :math:`g_D = L_D(base) - L_D(target)`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from filterattr.errors import SettingError, gathered, name_some
from filterattr.results.attribution import FilterAttribution
from filterattr.results.scores import FilterScores, FilterSelection

COLLATERAL = 2.0  # 1 took other functions along on photographs; 4 costs carriers on planted truth


def signed_contrast(
    attributions: Mapping[str, FilterAttribution], of: str, *, collateral: float | Mapping[str, float] = COLLATERAL
) -> FilterScores:
    r"""Score of a unit for one function: the part of it that the unit carries, less a price for all it does elsewhere.

    .. math:: S_u = -\frac{A_u(D)}{g_D} - \sum_{D' \ne D} \lambda_{D'} \frac{|A_u(D')|}{s_{D'}}

    with :math:`A_u` the signed attribution of the unit, ``scores("sum")``. Everything else that was attributed guards
    the set: functions that have to stay, and inputs that need none of them (clean images, general text).

    The scale :math:`s_{D'}` of a guard is its gain, but at least half of its absolute attributions. Where target is
    hardly better than base, or worse, as on clean inputs, the gain is no scale; half of the absolute attributions is
    then what the units do for it, and as much do others against it.

    Args:
        attributions: Name of a function to the attribution found with its samples; all of the same units.
        of: The function in question; target must be better at it than base.
        collateral: The price :math:`\lambda`, one for all guards or one for each by name. 0 looks at the function
            alone; a guard that is not named costs nothing. `filterattr.analysis.choose` measures which price serves.

    Returns:
        Parts of the function, without a unit: 0.01 is one per cent of it. They may be negative; `FilterScores.top`
        should not go beyond the positive ones.

    Raises:
        SettingError: A name is unknown, a price is negative, the units differ, or target is no better than base.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from filterattr import FilterAttributor
        >>> base, target = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        >>> with torch.no_grad():
        ...     _ = base.weight.zero_(), target.weight.copy_(torch.eye(2))
        >>> loss = lambda model, x: (model(x) - x).square().sum()
        >>> attributor = FilterAttributor(target, unit="filter")
        >>> found = {
        ...     name: attributor.attribute(base, target, loss, [torch.tensor(x)])
        ...     for name, x in {"first": [1.0, 0.0], "both": [1.0, 1.0]}.items()
        ... }
        >>> signed_contrast(found, "both", collateral=1.0)["weight"].round(decimals=6)
        tensor([-0.5000,  0.5000], dtype=torch.float64)
    """
    prices = prices_of(attributions, of, collateral)
    gain = gain_of(attributions[of])
    if not gain > 0:
        raise SettingError(
            f"target must be better than base at {of!r} for a part of it to be found; its loss falls by {gain:.6g}. "
            "Give it to signed_contrast as a guard only, or exchange base and target."
        )
    score = attributions[of].scores("sum") * (-1 / gain)
    for name, price in prices.items():
        scores = attributions[name].scores("sum")
        scale = _scale(scores, gain_of(attributions[name]))
        if price and scale:
            sizes = FilterScores({key: tensor.abs() for key, tensor in scores.kept.items()}, scores.parameters)
            score = score - sizes * (price / scale)
    return score


def expected_removed(attributions: Mapping[str, FilterAttribution], selection: FilterSelection) -> dict[str, float]:
    r"""What masking a set would remove of every function if its units did not depend on each other: no pass is taken.

    .. math:: \mathrm{expected}_D(S) = -\frac{1}{g_D} \sum_{u \in S} A_u(D)

    It is exact for all weights together (but for the remainder and the error of completeness), and for a set whose
    weights the loss does not mix with those outside: a sum of a term of the one and a term of the other. For other sets
    it is what the units remove while all units move together. Units that can stand in for each other then remove less
    than expected, as long as some are left. Where a unit undoes part of what another one did, the other removes more
    than expected if it is masked alone: the set *overshoots*. Choose a size with it, and measure what was chosen.

    Args:
        attributions: Name of a function to the attribution found with its samples.
        selection: The units to put back to base, of the same kind.

    Returns:
        Function to the expected share; not a number where base and target have the same loss.

    Raises:
        SettingError: The units differ.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from filterattr import FilterAttributor
        >>> base, target = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        >>> with torch.no_grad():
        ...     _ = base.weight.zero_(), target.weight.copy_(torch.eye(2))
        >>> loss = lambda model, x: (model(x) - x).square().sum()
        >>> copying = FilterAttributor(target, unit="filter").attribute(base, target, loss, [torch.tensor([1.0, 3.0])])
        >>> first = copying.scores().select({"weight": [0]})
        >>> round(expected_removed({"copying": copying}, first)["copying"], 6)
        0.1
    """
    expected = {}
    for name, attribution in attributions.items():
        scores, gain = attribution.scores("sum"), gain_of(attribution)
        scores.check_same_units(selection)
        part = float(scores.flat()[selection.flat()].sum())
        expected[name] = -part / gain if gain else math.nan
    return expected


def gain_of(attribution: FilterAttribution) -> float:
    """How much better target is than base: its loss is lower by this.

    Args:
        attribution: Of one function.

    Returns:
        The difference of the losses; the sum of all attributions where the ends were not seen (``"pooled"``).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from filterattr import FilterAttributor
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> ends = {"weight": torch.ones(1, 1)}, {"weight": torch.zeros(1, 1)}
        >>> gain_of(FilterAttributor(layer).attribute(*ends, lambda model: model(torch.ones(1)).square().sum()))
        1.0
    """
    difference = attribution.loss_base - attribution.loss_target
    return -attribution.total if math.isnan(difference) else difference


def _scale(scores: FilterScores, gain: float) -> float:
    """What the attributions of a guard are parts of."""
    return max(gain, float(scores.flat().abs().sum()) / 2)


def prices_of(
    names: Iterable[str], of: str, collateral: float | Mapping[str, float], what: str = "signed_contrast"
) -> dict[str, float]:
    """The price of every guard, checked.

    Args:
        names: All functions, that in question among them.
        of: The function in question.
        collateral: One price for all others, or one for each by name; 0 for those that are not named.
        what: What is asked for, for messages.

    Returns:
        Name of every other function to its price.

    Raises:
        SettingError: A name is unknown, or a price is negative or not finite.

    Example:
        >>> prices_of(["blur", "noise", "clean"], "blur", {"noise": 2})
        {'noise': 2.0, 'clean': 0.0}
    """
    names = list(names)
    guards = [name for name in names if name != of]
    findings = [] if of in names else [f"there is no function {of!r}"]
    if isinstance(collateral, Mapping):
        findings += [f"{name!r} guards nothing" for name in collateral if name not in guards]
        prices = {name: float(collateral.get(name, 0.0)) for name in guards}
    else:
        prices = dict.fromkeys(guards, float(collateral))
    findings += [f"the price of {name!r} is {price}" for name, price in prices.items() if not 0 <= price < math.inf]
    if findings:
        raise SettingError(
            f"{what} needs one of the functions {name_some(names)}, and a price of at least 0 for the others; "
            f"{gathered(findings)}."
        )
    return prices
