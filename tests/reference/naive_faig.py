"""The published algorithm as its scripts do it, written again from its description, one obvious step after the other.

For every place on the path a new network is built and loaded, both losses are differentiated with plain ``backward()``,
gradients are read from ``.grad`` and added in the type of the weights; nothing of the library is used.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn


def gradient_sums(
    build: Callable[[], nn.Module],
    base: dict[str, Tensor],
    target: dict[str, Tensor],
    degraded: Tensor,
    reference: Tensor,
    steps: int,
) -> dict[str, Tensor]:
    """Sum of the gradients of the summed squared error at ``target``, ..., one step short of ``base``."""
    sums = {name: torch.zeros_like(value) for name, value in target.items()}
    for step in range(steps):
        alpha = step / steps  # 0 is the target network; base itself is never visited
        state = {name: alpha * base[name] + (1 - alpha) * target[name] for name in base}
        network = build()
        network.load_state_dict(state)
        network.eval()
        restored = network(degraded)
        torch.nn.functional.mse_loss(restored, reference, reduction="sum").backward()
        for name, parameter in network.named_parameters():
            sums[name] += parameter.grad
    return sums


def kernel_scores(
    build: Callable[[], nn.Module],
    base: dict[str, Tensor],
    target: dict[str, Tensor],
    degraded: Tensor,
    reference: Tensor,
    steps: int = 100,
) -> np.ndarray:
    """Score of every 2-D kernel for one image: layers in state-dict order, then output, then input channel."""
    sums = gradient_sums(build, base, target, degraded, reference, steps)
    scores = []
    for name, value in target.items():
        if "weight" not in name:
            continue
        attribution = sums[name] * (base[name] - value) / steps
        for out in range(value.shape[0]):
            for into in range(value.shape[1]):
                scores.append(float(attribution[out, into].abs().sum()))
    return np.array(scores)


def discriminative_scores(
    build: Callable[[], nn.Module],
    base: dict[str, Tensor],
    target: dict[str, Tensor],
    images: list[Tensor],
    other_images: list[Tensor],
    references: list[Tensor],
    steps: int = 100,
) -> np.ndarray:
    """Equation 7: difference of the scores on two degradations, added up over the images."""
    total: np.ndarray | float = 0.0
    for image, other, reference in zip(images, other_images, references, strict=True):
        first = kernel_scores(build, base, target, image, reference, steps)
        second = kernel_scores(build, base, target, other, reference, steps)
        total = total + (first - second)
    return np.asarray(total)
