r"""A path around a barrier: one point between base and target is trained so that the loss stays low on both segments.

Where the loss rises between two checkpoints, attributions along the straight line mix what target has learnt with the
way over the barrier. Two networks that were trained are often joined by a bent path without one (Garipov et al., "Loss
Surfaces, Mode Connectivity, and Fast Ensembling of DNNs", NeurIPS 2018, equation 1 with a polygonal chain).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from filterattr.analysis.gradients import sample_gradient
from filterattr.errors import NonFiniteError, SettingError, StateMismatchError, gathered, name_some
from filterattr.intervention import swapped
from filterattr.jobs.progress import Progress, counted
from filterattr.loss.checks import Loss
from filterattr.model.state_dict import StateLike, completed, state_for, unwrap_model


def bend(
    model: nn.Module,
    base: StateLike,
    target: StateLike,
    loss: Loss,
    data: Mapping[str, Sequence[Any]],
    *,
    steps: int = 150,
    batch: int = 3,
    rate: float = 1e-3,
    seed: int = 0,
    progress: Progress = None,
) -> dict[str, Tensor]:
    r"""Train one point of the path, for ``attribute(..., waypoints=[point])``.

    Each step draws a place on the path :math:`\bar\theta \to \phi \to \theta`, evenly from both segments, and moves
    :math:`\phi` by Adam against the gradient of the mean loss there, every function as a part of its loss at base.
    The rate falls to 0 on a cosine.

    Args:
        model: The network that both end points fit. It is not changed.
        base: Weights at the beginning of the path.
        target: Weights at its end.
        loss: ``loss(model, sample)``.
        data: Name of a function to its samples. Give it samples that nothing is reported on, and inputs that need no
            function as well, so that the path is a good network throughout.
        steps: Steps of training; each takes ``batch`` forward-backward passes for every function.
        batch: Samples of every function in a step.
        rate: Learning rate at the start, for all weights.
        seed: Of places and samples, and of randomness inside the loss.
        progress: As in `filterattr.FilterAttributor.attribute`, counted in steps.

    Returns:
        A state dict; what is equal in base and target, and all buffers, are those of target.

    Raises:
        SettingError: A number makes no sense, or a function has no samples.
        StateMismatchError: Base and target differ in nothing that can be trained.
        NonFiniteError: The training leaves the finite numbers; a lower rate helps.

    Example:
        >>> from filterattr import FilterAttributor
        >>> class Product(nn.Module):
        ...     def __init__(self, a, b):
        ...         super().__init__()
        ...         self.a, self.b = nn.Parameter(torch.tensor([a])), nn.Parameter(torch.tensor([b]))
        >>> base, target = Product(4.0, 0.25), Product(0.25, 4.0)  # both copy; half of the way is 4.5 times the input
        >>> loss = lambda model, x: (model.a * model.b * x - x).square().sum()
        >>> data = {"copying": [torch.ones(1)]}
        >>> attributor = FilterAttributor(base, unit="... -> ...", select="*")
        >>> point = bend(base, base, target, loss, data, steps=100, rate=0.1)
        >>> for waypoints in ([], [point]):
        ...     found = attributor.attribute(base, target, loss, data["copying"], waypoints=waypoints, n_steps=32)
        ...     print(found.barrier > 10, found.barrier < 1)
        True False
        False True
    """
    network = unwrap_model(model)
    ends = [completed(state_for(network, state, role), network) for role, state in (("base", base), ("target", target))]
    names = _trainable(network, *ends)
    _check(data, steps, batch, rate)
    scales = {name: _mean(network, ends[0], loss, samples, seed) for name, samples in data.items()}
    point = {name: ((ends[0][name] + ends[1][name]) / 2).detach().clone() for name in names}
    optimizer = torch.optim.Adam(point.values(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    with counted(progress, steps, "step") as step:
        for number in range(steps):
            place = float(torch.rand((), generator=generator))
            end, part = (ends[0], 2 * place) if place < 0.5 else (ends[1], 2 - 2 * place)
            state = dict(ends[1]) | {name: end[name] + part * (point[name] - end[name]) for name in names}
            totals = {name: torch.zeros_like(point[name]) for name in names}
            for function, samples in data.items():
                for index in torch.randint(len(samples), (batch,), generator=generator).tolist():
                    gradients = sample_gradient(network, state, loss, (samples[index],), names, seed + number)
                    for name, gradient in gradients.items():
                        totals[name] += gradient.to(totals[name].dtype) * (part / scales[function] / batch)
            for name in names:
                point[name].grad = totals[name]
            optimizer.step()
            schedule.step()
            if not all(bool(torch.isfinite(value).all()) for value in point.values()):
                raise NonFiniteError(
                    f"the point of the path must stay finite; it did not in step {number}: take a lower rate."
                )
            step()
    return {name: value.clone() for name, value in ends[1].items()} | {name: point[name].detach() for name in names}


def _trainable(network: nn.Module, base: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> list[str]:
    """Parameters that differ, once each."""
    names = [name for name, _ in network.named_parameters() if not torch.equal(base[name], target[name])]
    if not names:
        raise StateMismatchError("base and target must differ in a parameter for a path between them to be bent.")
    return names


def _mean(network: nn.Module, state: Mapping[str, Tensor], loss: Loss, samples: Sequence[Any], seed: int) -> float:
    """Mean loss, as the scale of a function."""
    with torch.no_grad(), swapped(network, state, seed=seed) as model:
        value = sum(float(loss(model, sample)) for sample in samples) / len(samples)
    return value if value > 0 and math.isfinite(value) else 1.0


def _check(data: Mapping[str, Sequence[Any]], steps: int, batch: int, rate: float) -> None:
    """Find everything wrong before the first pass."""
    findings = [f"{name} is {value}" for name, value in (("steps", steps), ("batch", batch)) if value < 1]
    if not 0 < rate < math.inf:
        findings.append(f"rate is {rate}")
    empty = [name for name, samples in data.items() if not len(samples)]
    if empty or not data:
        findings.append(f"{name_some(empty)} have no samples" if empty else "data is empty")
    if findings:
        raise SettingError(
            f"a path needs samples, steps and a batch of 1 or more, and a rate above 0; {gathered(findings)}."
        )
