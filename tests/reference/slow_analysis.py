"""The analysis done the obvious way: copies of networks, Python loops, and formulas written out; no library code."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, product

import torch
from torch import Tensor, nn

Loss = Callable[[nn.Module, Tensor], Tensor]
Kernel = tuple[str, int, int]


def with_kernels(start: nn.Module, other: nn.Module, kernels: Sequence[Kernel]) -> nn.Module:
    """A copy of ``start`` with some 2-D kernels of plain convolutions taken from ``other``."""
    network = copy.deepcopy(start)
    ends = dict(network.named_parameters()), dict(other.named_parameters())
    with torch.no_grad():
        for name, out, into in kernels:
            ends[0][name][out, into] = ends[1][name][out, into].clone()
    return network


def mean_loss(network: nn.Module, loss: Loss, samples: Sequence[Tensor]) -> float:
    return math.fsum(loss(network, sample).item() for sample in samples) / len(samples)


def knock_outs(base: nn.Module, target: nn.Module, loss: Loss, samples: Sequence[Tensor]) -> dict[Kernel, float]:
    """Loss that every single kernel is worth."""
    intact = mean_loss(target, loss, samples)
    return {
        kernel: mean_loss(with_kernels(target, base, [kernel]), loss, samples) - intact for kernel in kernels_of(target)
    }


def kernels_of(network: nn.Module) -> Iterator[Kernel]:
    for name, value in network.named_parameters():
        if value.ndim > 1:
            for out, into in product(range(value.shape[0]), range(value.shape[1])):
                yield name, out, into


def gradients(network: nn.Module, loss: Loss, sample: Tensor) -> dict[str, Tensor]:
    """Plain ``backward()`` on a copy."""
    network = copy.deepcopy(network)
    network.zero_grad()
    loss(network, sample).backward()
    return {name: parameter.grad for name, parameter in network.named_parameters()}


def kernel_sums(value: Tensor) -> list[list[float]]:
    """Sum over every kernel, weight by weight."""
    return [[math.fsum(value[o, i].reshape(-1).tolist()) for i in range(value.shape[1])] for o in range(len(value))]


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Pearson's correlation of mid-ranks."""
    return _pearson(_midranks(first), _midranks(second))


def _midranks(values: Sequence[float]) -> list[float]:
    ranks = []
    for value in values:
        below, equal = sum(other < value for other in values), sum(other == value for other in values)
        ranks.append(below + (equal + 1) / 2)
    return ranks


def _pearson(first: Sequence[float], second: Sequence[float]) -> float:
    means = sum(first) / len(first), sum(second) / len(second)
    top = sum((a - means[0]) * (b - means[1]) for a, b in zip(first, second, strict=True))
    sizes = [sum((a - mean) ** 2 for a in values) for values, mean in zip((first, second), means, strict=True)]
    return top / math.sqrt(sizes[0] * sizes[1])


def kendall(first: Sequence[float], second: Sequence[float]) -> float:
    """Tau-b: every pair looked at."""
    agree = tied_first = tied_second = 0
    pairs = list(combinations(range(len(first)), 2))
    for i, j in pairs:
        a, b = first[i] - first[j], second[i] - second[j]
        agree += (a * b > 0) - (a * b < 0)
        tied_first += a == 0
        tied_second += b == 0
    return agree / math.sqrt((len(pairs) - tied_first) * (len(pairs) - tied_second))


def t_test(gaps: Sequence[float]) -> float:
    """Two-sided p-value of a paired t-test, Student's density integrated by Simpson's rule."""
    n = len(gaps)
    mean = math.fsum(gaps) / n
    spread = math.sqrt(math.fsum((gap - mean) ** 2 for gap in gaps) / (n - 1))
    if spread == 0:
        return 1.0 if mean == 0 else 0.0
    t = abs(mean) / (spread / math.sqrt(n))
    freedom = n - 1
    constant = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    steps = 2000
    width = t / steps
    total = 0.0
    for step in range(steps + 1):
        factor = 1 if step in (0, steps) else 4 if step % 2 else 2
        total += factor * constant * (1 + (step * width) ** 2 / freedom) ** (-(freedom + 1) / 2)
    return 1 - 2 * total * width / 3


def benjamini_hochberg(p_values: Sequence[float], rate: float, dependent: bool = False) -> set[int]:
    """Step up: the largest k whose k-th smallest p-value is at most ``k rate / m``, and everything before it."""
    m = len(p_values)
    rate = rate / sum(1 / k for k in range(1, m + 1)) if dependent else rate
    order = sorted(range(m), key=lambda place: p_values[place])
    last = max((k for k in range(1, m + 1) if p_values[order[k - 1]] <= k * rate / m), default=0)
    return set(order[:last])


def wilson_ends(count: int, total: int, z: float) -> tuple[float, float]:
    """Shares p that a score test does not reject, found by bisection."""
    share = count / total

    def distance(p: float) -> float:
        return abs(share - p) - z * math.sqrt(p * (1 - p) / total)

    def edge(inside: float, outside: float) -> float:
        for _ in range(200):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if distance(middle) <= 0 else (inside, middle)
        return inside

    return edge(share, 0.0), edge(share, 1.0)
