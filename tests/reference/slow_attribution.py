"""Attribution by a new copy of the network for every node and a Python loop over every weight: slow and obvious.

It shares no code with the library: copies instead of slots, ``load_state_dict`` instead of leaves, Newton's method
instead of a table of nodes, and index arithmetic on every single weight instead of patterns.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Tensor, nn

UnitIndex = Callable[[tuple[int, ...]], tuple[int, ...]]
Scores = dict[str, dict[tuple[int, ...], float]]


@dataclass
class SlowResult:
    """Scores by reduction, parameter and place of the unit; means over the samples."""

    scores: dict[str, Scores] = field(default_factory=dict)
    loss_base: float = 0.0
    loss_target: float = 0.0
    total: float = 0.0
    remainder: float = 0.0


def slow_attribution(
    base: nn.Module,
    target: nn.Module,
    loss: Callable[[nn.Module, Tensor], Tensor],
    samples: Sequence[Tensor],
    *,
    method: str,
    n_steps: int,
    units: dict[str, UnitIndex],
) -> SlowResult:
    """Integrate every sample by itself, sum over the weights of each unit, and average over the samples."""
    result = SlowResult({reduction: {name: {} for name in units} for reduction in ("sum_of_abs", "abs_of_sum", "sum")})
    share = 1 / len(samples)
    for sample in samples:
        result.loss_base += share * loss(_at(base, target, 0.0), sample).item()
        result.loss_target += share * loss(_at(base, target, 1.0), sample).item()
        for name, weights in _every_weight(base, target, loss, sample, rule(method, n_steps)).items():
            result.total += share * math.fsum(weights.values())
            if name not in units:
                result.remainder += share * math.fsum(weights.values())
                continue
            members: dict[tuple[int, ...], list[float]] = {}
            for place, value in weights.items():
                members.setdefault(units[name](place), []).append(value)
            for unit, values in members.items():
                numbers = {
                    "sum_of_abs": math.fsum(abs(value) for value in values),
                    "abs_of_sum": abs(math.fsum(values)),
                    "sum": math.fsum(values),
                }
                for reduction, number in numbers.items():
                    known = result.scores[reduction][name]
                    known[unit] = known.get(unit, 0.0) + share * number
    return result


def _every_weight(base, target, loss, sample, nodes) -> dict[str, dict[tuple[int, ...], float]]:
    """Signed attribution of every single weight: parameter to place to number."""
    integrals: dict[str, dict[tuple[int, ...], complex]] = {}
    for t, coefficient in nodes:
        network = _at(base, target, t)
        loss(network, sample).backward()
        for name, parameter in network.named_parameters():
            sums = integrals.setdefault(name, {})
            for place in product(*map(range, parameter.shape)):
                sums[place] = sums.get(place, 0) + coefficient * parameter.grad[place].item()
    ends = dict(base.named_parameters()), dict(target.named_parameters())
    return {
        name: {
            place: (integral.conjugate() * (ends[1][name][place].item() - ends[0][name][place].item())).real
            for place, integral in sums.items()
        }
        for name, sums in integrals.items()
    }


def _at(base: nn.Module, target: nn.Module, t: float) -> nn.Module:
    """A new network between the ends."""
    wide = {torch.float32: torch.float64, torch.complex64: torch.complex128}
    state, other = base.state_dict(), target.state_dict()
    for name, value in state.items():
        kind = wide.get(value.dtype, value.dtype)
        mixed = (
            value.to(kind) + t * (other[name].to(kind) - value.to(kind)) if 0 < t < 1 else (value, other[name])[int(t)]
        )
        state[name] = mixed.to(value.dtype)
    network = copy.deepcopy(base)
    network.load_state_dict(state)
    network.zero_grad()
    return network


def rule(method: str, count: int) -> list[tuple[float, float]]:
    """Nodes with their coefficients."""
    if method == "gausslegendre":
        return [_gauss_node(count, index) for index in range(1, count + 1)]
    if method == "riemann_trapezoid":
        ends = (0, count - 1)
        return [(j / (count - 1), (0.5 if j in ends else 1.0) / (count - 1)) for j in range(count)]
    offset = {"riemann_left": 0.0, "riemann_middle": 0.5, "riemann_right": 1.0}[method]
    return [((j + offset) / count, 1 / count) for j in range(count)]


def _gauss_node(count: int, index: int) -> tuple[float, float]:
    """Find a root of the Legendre polynomial by Newton's method, and its coefficient on [0, 1]."""
    x = math.cos(math.pi * (index - 0.25) / (count + 0.5))
    for _ in range(100):
        previous, value = 1.0, x
        for order in range(2, count + 1):
            previous, value = value, ((2 * order - 1) * x * value - (order - 1) * previous) / order
        slope = count * (x * value - previous) / (x * x - 1)
        x -= value / slope
    return (1 - x) / 2, 1 / ((1 - x * x) * slope * slope)


def unit_index(module: nn.Module, unit: str) -> UnitIndex:
    """Where a single weight of a module belongs: its place in the parameter to the place of its unit."""
    groups = getattr(module, "groups", 1)
    transposed = isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    rows = module.weight.shape[0]

    def channels(place: tuple[int, ...]) -> tuple[int, int, int]:
        """Output channel, input channel inside the group, input channel."""
        group = place[0] // (rows // groups)
        if transposed:
            per_group = module.weight.shape[1]
            return group * per_group + place[1], place[0] - group * (rows // groups), place[0]
        return place[0], place[1], group * module.weight.shape[1] + place[1]

    return {
        "weight": lambda place: place,
        "kernel": lambda place: channels(place)[:2],
        "filter": lambda place: channels(place)[:1],
        "input": lambda place: channels(place)[2:],
        "layer": lambda place: (),
    }[unit]
