"""The best set of some size the obvious way: copies of networks for every set there is, formulas written out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from tests.reference.slow_outputs import moved, reverted

Row = tuple[str, int]  # a parameter and an output channel


def with_rows(target: nn.Module, base: nn.Module, rows: Sequence[Row]) -> nn.Module:
    network = copy.deepcopy(target)
    with torch.no_grad():
        for name, row in rows:
            network.get_parameter(name)[row] = base.get_parameter(name)[row]
    return network


def worth(
    masked: nn.Module,
    base: nn.Module,
    target: nn.Module,
    data: Mapping[str, Sequence[Tensor]],
    of: str,
    prices: Mapping[str, float],
    distance: Callable[..., float],
) -> float:
    taken = sum(price * moved(masked, base, target, data[name], distance) for name, price in prices.items())
    return reverted(masked, base, target, data[of], distance) - taken


def best_of_all(
    base: nn.Module,
    target: nn.Module,
    data: Mapping[str, Sequence[Tensor]],
    of: str,
    prices: Mapping[str, float],
    distance: Callable[..., float],
    rows: Sequence[Row],
    count: int,
) -> list[tuple[float, tuple[Row, ...]]]:
    """Every set with what it is worth, the best one first."""
    found = []
    for chosen in combinations(rows, count):
        masked = with_rows(target, base, chosen)
        found.append((worth(masked, base, target, data, of, prices, distance), chosen))
    return sorted(found, reverse=True)
