"""Rules that are refined or drawn, one obvious step after the other: every sum is made anew from all of its terms."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

Loss = Callable[[nn.Module, Tensor], Tensor]


def gradient_at(base: nn.Module, target: nn.Module, loss: Loss, sample: Tensor, t: float) -> dict[str, np.ndarray]:
    """Gradient of the loss at one place, by a new network."""
    network = copy.deepcopy(base)
    ends = dict(base.named_parameters()), dict(target.named_parameters())
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_((1 - t) * ends[0][name] + t * ends[1][name])
    network.zero_grad()
    loss(network, sample).backward()
    return {name: parameter.grad.numpy().copy() for name, parameter in network.named_parameters()}


def changes(base: nn.Module, target: nn.Module) -> dict[str, np.ndarray]:
    """Change of every weight."""
    later = dict(target.named_parameters())
    return {name: (later[name] - value).detach().numpy() for name, value in base.named_parameters()}


def smooth_steps(cells: int) -> list[tuple[float, float]]:
    """Trapezoid rule in s with t = 6 s^5 - 15 s^4 + 10 s^3, its coefficients divided by their sum."""
    places = [j / cells for j in range(cells + 1)]
    weights = [30 * s**4 - 60 * s**3 + 30 * s**2 for s in places]
    return [
        (6 * s**5 - 15 * s**4 + 10 * s**3, w / math.fsum(weights)) for s, w in zip(places, weights, strict=True) if w
    ]


def kernels(attribution: dict[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Sum of absolute values over each 2-D slice."""
    return np.concatenate([np.abs(attribution[name]).sum((2, 3)).reshape(-1) for name in names])


def refined(
    base: nn.Module, target: nn.Module, loss: Loss, sample: Tensor, names: Sequence[str], tolerance: float, limit: int
) -> tuple[dict[str, np.ndarray], int, bool]:
    """Signed attribution of one sample, the number of nodes that it took, and whether that was enough."""
    moved = changes(base, target)
    change = (loss(target, sample) - loss(base, sample)).item()
    cells, best = 4, None
    while True:
        total = {name: np.zeros_like(value) for name, value in moved.items()}
        for t, weight in smooth_steps(cells):
            for name, gradient in gradient_at(base, target, loss, sample, t).items():
                total[name] += weight * gradient * moved[name]
        scores = kernels(total, names)
        count = max(1, round(0.01 * len(scores)))
        chosen = set(np.argsort(-scores, kind="stable")[:count])
        signed = sum(value.sum() for value in total.values())
        size = max(abs(change), 1e-3 * sum(np.abs(value).sum() for value in total.values()))
        if best is not None:
            moved_on = len(best - chosen) / count
            if abs(signed - change) / size <= tolerance and moved_on / 2 <= tolerance:
                return total, cells - 1, True
        if 2 * cells - 1 > limit:
            return total, cells - 1, False
        best, cells = chosen, 2 * cells


def pooled(
    base: nn.Module,
    target: nn.Module,
    loss: Loss,
    samples: Sequence[Tensor],
    places: Sequence[Sequence[float]],
) -> list[dict[str, np.ndarray]]:
    """Signed attribution of every sample by the mean over its own places."""
    moved = changes(base, target)
    rows = []
    for sample, own in zip(samples, places, strict=True):
        gradients = [gradient_at(base, target, loss, sample, t) for t in own]
        rows.append({name: sum(g[name] for g in gradients) / len(own) * value for name, value in moved.items()})
    return rows
