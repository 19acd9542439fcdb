"""Attribution along a chain of networks: every segment by itself, every weight by itself, then their sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from tests.reference.slow_attribution import UnitIndex, _every_weight, rule

Numbers = dict[str, dict[tuple[int, ...], float]]


def slow_waypoints(
    networks: Sequence[nn.Module],
    loss: Callable[[nn.Module, Tensor], Tensor],
    sample: Tensor,
    *,
    method: str,
    n_steps: int,
    units: dict[str, UnitIndex],
) -> dict[str, Numbers]:
    """Scores of one sample by reduction, parameter and unit: contributions add up before absolute values are taken."""
    whole: dict[str, dict[tuple[int, ...], float]] = {}
    for first, second in pairwise(networks):
        for name, weights in _every_weight(first, second, loss, sample, rule(method, n_steps)).items():
            for place, value in weights.items():
                known = whole.setdefault(name, {})
                known[place] = known.get(place, 0.0) + value
    scores: dict[str, Numbers] = {"sum": {}, "sum_of_abs": {}, "abs_of_sum": {}}
    for name, unit_of in units.items():
        members: dict[tuple[int, ...], list[float]] = {}
        for place, value in whole[name].items():
            members.setdefault(unit_of(place), []).append(value)
        for reduction in scores:
            scores[reduction][name] = {}
        for unit, values in members.items():
            scores["sum"][name][unit] = math.fsum(values)
            scores["sum_of_abs"][name][unit] = math.fsum(map(abs, values))
            scores["abs_of_sum"][name][unit] = abs(math.fsum(values))
    return scores
