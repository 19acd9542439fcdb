"""Where outputs go, the obvious way: copies of networks, one sample after the other, formulas written out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

Numbers = list[float]


def squared(said: Numbers, end: Numbers) -> float:
    return math.fsum((a - b) ** 2 for a, b in zip(said, end, strict=True))


def kullback_leibler(said: Numbers, end: Numbers) -> float:
    """Of the output from the end, both logits."""
    p, q = softmax(end), softmax(said)
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def jensen_shannon(said: Numbers, end: Numbers) -> float:
    p, q = softmax(said), softmax(end)
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return math.fsum((a * math.log(a / m) + b * math.log(b / m)) / 2 for a, b, m in zip(p, q, middle, strict=True))


def softmax(logits: Numbers) -> Numbers:
    sizes = [math.exp(value) for value in logits]
    return [size / math.fsum(sizes) for size in sizes]


def reverted(
    masked: nn.Module, base: nn.Module, target: nn.Module, samples: Sequence[Tensor], distance: Callable[..., float]
) -> float:
    return 1 - _sum(masked, base, samples, distance) / _sum(target, base, samples, distance)


def moved(
    masked: nn.Module, base: nn.Module, target: nn.Module, samples: Sequence[Tensor], distance: Callable[..., float]
) -> float:
    return _sum(masked, target, samples, distance) / _sum(base, target, samples, distance)


def _sum(network: nn.Module, end: nn.Module, samples: Sequence[Tensor], distance: Callable[..., float]) -> float:
    return math.fsum(distance(network(x).reshape(-1).tolist(), end(x).reshape(-1).tolist()) for x in samples)
