"""Cheap rankings of the same units, to compare an attribution with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from filterattr.attribution import FilterAttributor
from filterattr.errors import SettingError, StateMismatchError, name_some
from filterattr.loss.checks import Loss
from filterattr.model.state_dict import StateLike, state_for
from filterattr.results.attribution import without_doubts
from filterattr.results.scores import FilterScores
from filterattr.units.unit import ScoredParameter, sum_over_units


def random_ranking(like: FilterScores, generator: torch.Generator) -> FilterScores:
    """Score every unit uniformly at random.

    For random sets with the same number of units in every layer as a selection, use
    ``FilterSelection.random(generator, layer_matched=True)``.

    Args:
        like: Scores that define the units.
        generator: Source of randomness, on the CPU.

    Returns:
        Scores in [0, 1).

    Example:
        >>> from filterattr import ScoredParameter, Unit
        >>> like = FilterScores({"w": torch.zeros(3)}, {"w": ScoredParameter(Unit("... -> ..."), (3,))})
        >>> random_ranking(like, torch.Generator().manual_seed(0)).n_units
        3
    """
    drawn = {
        name: torch.rand(tensor.shape, generator=generator, dtype=torch.float64, device="cpu")
        for name, tensor in like.items()
    }
    return FilterScores(drawn, like.parameters)


def weight_change(
    attributor: FilterAttributor, base: StateLike, target: StateLike, *, relative: bool = False
) -> FilterScores:
    r"""Score a unit by the change of its weights: :math:`\sum_k |\theta_k - \bar\theta_k|`. It takes no pass.

    Args:
        attributor: Defines the units.
        base: Weights before the fine-tuning.
        target: Weights after it.
        relative: Divide by :math:`\sum_k |\bar\theta_k|`, as the published code does. If all weights of a unit are 0 in
            base, its score is 0 if it did not change, and infinite if it did.

    Returns:
        The scores.

    Raises:
        StateMismatchError: Base or target lacks a scored parameter, or has it in another shape.

    Example:
        >>> from torch import nn
        >>> base, target = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3)
        >>> weight_change(FilterAttributor(base), base, target)["weight"].shape
        torch.Size([2, 1])
    """
    first, second = (state_for(attributor.model, end, role) for end, role in ((base, "base"), (target, "target")))
    parameters = attributor.scored_parameters()
    _check_shapes(parameters, first, second)
    before, after = (
        {name: end[name].detach().cpu().to(torch.float64) for name in parameters} for end in (first, second)
    )
    scores = sum_over_units({name: (after[name] - before[name]).abs() for name in parameters}, parameters)
    if relative:
        for name, size in sum_over_units({name: before[name].abs() for name in parameters}, parameters).items():
            still = (scores[name] == 0) & (size == 0)
            scores[name] = torch.where(still, 0.0, scores[name] / size)
    return FilterScores(scores, parameters)


def magnitude(attributor: FilterAttributor, target: StateLike, *, square: bool = False) -> FilterScores:
    r"""Score a unit by the size of its weights: :math:`\sum_k |\theta_k|` or :math:`\sum_k \theta_k^2`.

    It takes no pass.

    Args:
        attributor: Defines the units.
        target: The weights.
        square: Squares instead of absolute values.

    Returns:
        The scores.

    Raises:
        StateMismatchError: A scored parameter is missing or has another shape.

    Example:
        >>> from torch import nn
        >>> layer = nn.Linear(2, 1)
        >>> magnitude(FilterAttributor(layer), {"weight": torch.tensor([[1.0, -3.0]])}, square=True)["weight"]
        tensor([[1., 9.]], dtype=torch.float64)
    """
    weights = state_for(attributor.model, target, "target")
    parameters = attributor.scored_parameters()
    _check_shapes(parameters, weights)
    sizes = {name: weights[name].detach().cpu().to(torch.float64).abs() for name in parameters}
    if square:
        sizes = {name: size.square() for name, size in sizes.items()}
    return FilterScores(sum_over_units(sizes, parameters), parameters)


def gradient_times_change(
    attributor: FilterAttributor,
    base: StateLike,
    target: StateLike,
    loss: Loss,
    data: Iterable[Any] | None = None,
    *,
    at: str = "target",
    **options: Any,
) -> FilterScores:
    r"""Score a unit by the gradient at one end times the change: :math:`\sum_k |g_k\,(\theta_k - \bar\theta_k)|`.

    This is the attribution with a single node, at one end of the path. It costs one forward-backward pass per sample.

    Args:
        attributor: Defines the units.
        base: Weights that lack the function.
        target: Weights that have it.
        loss: As in `FilterAttributor.attribute`.
        data: As there.
        at: ``"target"`` or ``"base"``: where the gradient is taken.
        **options: Further arguments of `FilterAttributor.attribute`.

    Returns:
        The scores, a mean over the samples.

    Raises:
        SettingError: ``at`` is neither ``"target"`` nor ``"base"``.

    Example:
        >>> from torch import nn
        >>> base, target = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3)
        >>> loss = lambda model: model(torch.ones(1, 1, 8, 8)).square().sum()
        >>> gradient_times_change(FilterAttributor(base), base, target, loss)["weight"].shape
        torch.Size([2, 1])
    """
    methods = {"target": "riemann_right", "base": "riemann_left"}
    if at not in methods:
        raise SettingError(f'at must be "target" or "base"; got {at!r}.')
    with without_doubts():  # it looks at one end alone, and goes along no path
        attribution = attributor.attribute(base, target, loss, data, method=methods[at], n_steps=1, **options)
    return attribution.scores()


def _check_shapes(parameters: Mapping[str, ScoredParameter], *ends: Mapping[str, Tensor]) -> None:
    """Check that all weights fit the scored parameters."""
    misfits = [
        name
        for name, scored in parameters.items()
        if any(name not in end or tuple(end[name].shape) != scored.shape for end in ends)
    ]
    if misfits:
        raise StateMismatchError(
            f"all weights must hold the scored parameters in the model's shapes; {name_some(misfits)} do not."
        )
