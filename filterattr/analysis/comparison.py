"""All rankings of the same units, each with its cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from filterattr.activations.attributor import ChannelAttributor, chosen_method
from filterattr.activations.result import ChannelMethod
from filterattr.analysis.gradients import Along, fisher, input_path, taylor
from filterattr.analysis.rankings import gradient_times_change, magnitude, random_ranking, weight_change
from filterattr.attribution import FilterAttributor
from filterattr.errors import SettingError, UnitError, name_some
from filterattr.intervention import swapped
from filterattr.jobs.samples import series
from filterattr.loss.checks import Loss
from filterattr.model.state_dict import StateLike, completed, state_for
from filterattr.results.scores import FilterScores

Ends: TypeAlias = Callable[[Any], tuple[Tensor | Sequence[Tensor], Tensor | Sequence[Tensor]]]
Judge: TypeAlias = Callable[[Any, Any], Tensor]


class Ranking(NamedTuple):
    """One ranking and its cost.

    Attributes:
        scores: The scores.
        n_passes: Number of forward-backward passes that the ranking took.
    """

    scores: FilterScores
    n_passes: int


def all_rankings(
    attributor: FilterAttributor,
    base: StateLike,
    target: StateLike,
    loss: Loss,
    data: Iterable[Any],
    generator: torch.Generator,
    *,
    along: Along | None = None,
    output: Loss | None = None,
    n_steps: int = 16,
) -> dict[str, Ranking]:
    """Compute every cheap ranking, and the attribution, on the same samples.

    Two rankings are not included: the knock-out oracle, which costs a pass per unit (`filterattr.analysis.knockout`),
    and the layer methods of Captum, which need a path of tensors (`channel_ranking`).

    Args:
        attributor: Defines the units.
        base: Weights that lack the function.
        target: Weights that have it.
        loss: ``loss(model, sample)``.
        data: Samples.
        generator: Source of the random ranking.
        along: Path of the input, as in `filterattr.analysis.gradients.input_path`. ``None`` omits its rankings.
        output: The sum of the output, for the published form of the input path. ``None`` omits this ranking.
        n_steps: Nodes of the attribution and of the input paths.

    Returns:
        Name to ranking. The attribution comes first, with its three reductions.

    Raises:
        SettingError: There are no samples.

    Example:
        >>> from torch import nn
        >>> base, target = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> found = all_rankings(FilterAttributor(base), base, target, lambda model, x: model(x).square().sum(),
        ...                      list(torch.rand(3, 2)), torch.Generator(), n_steps=4)
        >>> found["attribution"].n_passes, found["Fisher"].n_passes, found["magnitude"].n_passes
        (12, 3, 0)
    """
    samples = list(series(data))
    n = len(samples)
    attribution = attributor.attribute(base, target, loss, samples, n_steps=n_steps, progress=False)
    rankings = {
        "attribution": Ranking(attribution.scores(), attribution.n_passes),
        "attribution, |sum|": Ranking(attribution.scores("abs_of_sum"), attribution.n_passes),
        "attribution, signed": Ranking(-attribution.scores("sum"), attribution.n_passes),
        "random": Ranking(random_ranking(attribution.scores(), generator), 0),
        "weight change": Ranking(weight_change(attributor, base, target), 0),
        "relative change": Ranking(weight_change(attributor, base, target, relative=True), 0),
        "magnitude": Ranking(magnitude(attributor, target), 0),
        "squared magnitude": Ranking(magnitude(attributor, target, square=True), 0),
    }
    for end in ("target", "base"):
        scores = gradient_times_change(attributor, base, target, loss, samples, at=end, progress=False)
        rankings[f"gradient x change at {end}"] = Ranking(scores, n)
    rankings["Taylor at target"] = Ranking(taylor(attributor, target, loss, samples), n)
    rankings["SNIP at base"] = Ranking(taylor(attributor, base, loss, samples), n)
    rankings["Fisher"] = Ranking(fisher(attributor, target, loss, samples), n)
    rankings["Fisher x change"] = Ranking(fisher(attributor, target, loss, samples, base=base), n)
    if along is not None:
        fixed = input_path(attributor, target, loss, samples, along, base=base, n_steps=n_steps)
        rankings["input path x change"] = Ranking(fixed, n * n_steps)
        if output is not None:
            published = input_path(attributor, target, output, samples, along, n_steps=n_steps)
            rankings["input path, published"] = Ranking(published, n * n_steps)
    return rankings


def channel_ranking(
    attributor: FilterAttributor,
    target: StateLike,
    data: Iterable[Any],
    ends: Ends,
    judge: Judge,
    *,
    attribution: ChannelMethod | None = None,
    n_steps: int = 16,
    method: str | None = None,
    quadrature: str | None = None,
) -> Ranking:
    """Score units by Captum's layer methods along a path of the input, with the weights at target.

    For each sample, the attribution of every output channel is summed over its positions, and the absolute value is
    taken. For kernels, the attribution is divided among the input channels first.

    Args:
        attributor: Defines the units: ``unit="filter"`` or ``"kernel"``, of convolutions and linear layers.
        target: The weights.
        data: Samples.
        ends: A function of a sample that returns ``(inputs, baselines)``: the input of the model that needs the
            function, and the input that does not. Batches of one or more rows.
        judge: A function of the output of the model and the sample that returns one number per row of the inputs, such
            as the loss.
        attribution: ``"conductance"`` (the default), ``"integrated_gradients"``, ``"internal_influence"`` (no kernels)
            or ``"gradient_x_activation"``.
        n_steps: Steps on the path.
        method: Rule of the integral, ``"gausslegendre"`` by default.
        quadrature: Old name of ``method``; works until version 0.3, as ``method="conductance"`` does.

    Returns:
        The ranking, a mean over the samples.

    Raises:
        UnitError: The units are neither filters nor kernels of convolutions and linear layers.
        SettingError: There are no samples, or a method is unknown.

    Example:
        >>> from torch import nn
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> found = channel_ranking(FilterAttributor(layer, unit="kernel"), {"weight": torch.tensor([[1.0, -2.0]])},
        ...                         [torch.ones(1, 2)], lambda x: (x, 0 * x), lambda out, x: out.sum(1),
        ...                         method="riemann_trapezoid")
        >>> found.scores["weight"].round(decimals=4)
        tensor([[1., 2.]], dtype=torch.float64)
    """
    chosen, rule = chosen_method(attribution, method, quadrature)
    parameters = attributor.scored_parameters()
    full = completed(state_for(attributor.model, target, "target"), attributor.model)
    total: FilterScores | None = None
    count = n_passes = 0
    with swapped(attributor.model, full) as model:
        named = dict(model.named_modules())
        foreign = [name for name in parameters if not name.endswith("weight") or name.rpartition(".")[0] not in named]
        if foreign:
            raise UnitError(f"only weights of layers have channels; {name_some(foreign)} are none. Use select=.")
        layers = [name.rpartition(".")[0] for name in parameters]
        channels = ChannelAttributor(model, [name for name in layers if name] or None)
        for sample in series(data):
            inputs, baselines = ends(sample)
            result = channels.attribute(
                inputs,
                None if chosen == "gradient_x_activation" else baselines,
                lambda returned, sample=sample: judge(returned, sample),  # type: ignore[misc]
                attribution=chosen,
                n_steps=n_steps,
                method=rule,
                kernels=_are_kernels(attributor),
            )
            scores = result.kernels() if _are_kernels(attributor) else result.filters()
            total = scores if total is None else total + scores
            count, n_passes = count + 1, n_passes + result.n_passes
    if total is None:
        raise SettingError("data must hold at least one sample; it is empty.")
    if total.parameters != parameters:
        wrong = [name for name, scored in parameters.items() if total.parameters.get(name) != scored]
        raise UnitError(
            f"units must be filters or kernels of convolutions and linear layers; {name_some(wrong)} are not."
        )
    return Ranking(total * (1 / count), n_passes)


def _are_kernels(attributor: FilterAttributor) -> bool:
    """Whether the units are kernels."""
    return attributor.unit == "kernel"
