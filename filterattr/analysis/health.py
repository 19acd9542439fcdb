"""Checks of an attribution: the health of its path, and properties that every attribution must have."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from filterattr.analysis.record import Record, Row
from filterattr.analysis.resampling import Array, p_value
from filterattr.analysis.stability import SampleScores
from filterattr.attribution import FilterAttributor
from filterattr.errors import FilterAttrWarning, SettingError
from filterattr.loss.checks import Loss
from filterattr.model.state_dict import StateLike, shared_names, state_for
from filterattr.model.swap import ParameterSwap
from filterattr.results.attribution import FilterAttribution, without_doubts
from filterattr.results.scores import FilterScores


@dataclass(frozen=True)
class PathHealth(Record):
    """The path of an attribution, in numbers and in words.

    Attributes:
        loss_base: Mean loss at base.
        loss_target: Mean loss at target.
        places: Places on the path where the loss was computed; 0 is base, 1 is target.
        losses: The losses at these places.
        barrier: Height of the loss above its higher end, as a share of the difference of the ends; 0 without a barrier.
        monotony: Change of the loss from end to end divided by the sum of all its changes, in [0, 1]; 1 for a loss that
            only falls, or only rises.
        cosine: Cosine of the angle between all weights of base and target.
        completeness_error: As in `FilterAttribution`.
        remainder_share: Share of the absolute attributions that belongs to parameters without scores, such as biases.
        concerns: Reasons to doubt the attribution, in words; empty if there are none.
        true_loss_base: Loss of base with its own buffers, if the path uses others; else ``None``.
        true_loss_target: The same for target.
    """

    loss_base: float
    loss_target: float
    places: tuple[float, ...]
    losses: tuple[float, ...]
    barrier: float
    monotony: float
    cosine: float
    completeness_error: float
    remainder_share: float
    concerns: tuple[str, ...]
    true_loss_base: float | None = None
    true_loss_target: float | None = None

    @property
    def is_seen(self) -> bool:
        """Whether the losses along the path are known; a pooled attribution does not compute them."""
        return not math.isnan(self.loss_base)

    @property
    def is_healthy(self) -> bool:
        """Whether there are no concerns."""
        return not self.concerns

    def __str__(self) -> str:
        if not self.is_seen:
            unknown = "A pooled attribution sees no sample at both ends: whether there is a barrier is not known."
            return " ".join((unknown, *self.concerns))
        return " ".join(self.concerns) or (
            "The loss has no barrier between base and target, their weights are close to each other, and the "
            "attributions sum to the change of the loss."
        )

    def rows(self) -> list[Row]:
        """One row per place on the path."""
        return [{"t": t, "loss": loss} for t, loss in zip(self.places, self.losses, strict=True)]


def path_health(attribution: FilterAttribution) -> PathHealth:
    """Check the path of an attribution.

    Concerns begin at a barrier of 5% of the difference of the ends, a monotony below 0.9, a completeness error of 1%,
    and 20% of the attributions without scores. The bound of the cosine is 0.9: below it, masking tends to damage
    networks rather than to remove functions.

    Args:
        attribution: The attribution.

    Returns:
        The numbers, and the concerns that follow from them.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> base, target = nn.Linear(2, 1), nn.Linear(2, 1)
        >>> loss = lambda model: (model(torch.ones(2)) - target(torch.ones(2))).square().sum()
        >>> health = path_health(FilterAttributor(base).attribute(base, target, loss))
        >>> health.barrier, round(health.monotony, 6)
        (0.0, 1.0)
    """
    path = attribution.path_numbers()
    return PathHealth(
        loss_base=attribution.loss_base,
        loss_target=attribution.loss_target,
        places=attribution.path_places,
        losses=attribution.path_losses,
        barrier=path.barrier,
        monotony=path.monotony,
        cosine=path.cosine,
        completeness_error=path.completeness_error,
        remainder_share=path.remainder_share,
        concerns=attribution.concerns,
        true_loss_base=attribution.true_loss_base,
        true_loss_target=attribution.true_loss_target,
    )


@dataclass(frozen=True)
class SanityRow:
    """One check.

    Attributes:
        check: The change that was made.
        expected: The expected result, in words.
        measured: The result, as one number.
        bound: The largest result that passes.
    """

    check: str
    expected: str
    measured: float
    bound: float

    @property
    def holds(self) -> bool:
        """Whether the result is within its bound; NaN is not."""
        return self.measured <= self.bound


@dataclass(frozen=True)
class SanityTable(Record):
    """Checks of properties that every attribution must have, for one model, base, target and loss.

    Attributes:
        entries: One row per check.
    """

    entries: tuple[SanityRow, ...]

    @property
    def holds(self) -> bool:
        """Whether all checks hold."""
        return all(row.holds for row in self.entries)

    def rows(self) -> list[Row]:
        """One row per check."""
        return [{**vars(row), "holds": row.holds} for row in self.entries]


def sanity_checks(
    attributor: FilterAttributor,
    base: StateLike,
    target: StateLike,
    loss: Loss,
    data: Sequence[Any],
    *,
    amount: float = 0.01,
    labelled: Mapping[str, SampleScores] | None = None,
    tolerance: float = 1e-3,
    seed: int = 0,
    **options: Any,
) -> SanityTable:
    """Check properties that every attribution must have, with your own model and loss.

    It computes six attributions. The first is the given one. The others swap base and target, set base equal to target,
    take three times the loss, rescale both networks, and shuffle the weights of target inside every scored parameter.
    A rescaled network stores every parameter multiplied by a power of two, and the loss divides by it. The quadrature
    must be symmetric, as the default is.

    Args:
        attributor: Defines the units.
        base: Weights that lack the function.
        target: Weights that have it.
        loss: ``loss(model, sample)``.
        data: A few samples.
        amount: Size of the set that must change when target is shuffled.
        labelled: Scores per sample of two functions. If given, one more check shuffles the labels of the samples; the
            contrast must then vanish.
        tolerance: Largest relative rounding error, for single precision.
        seed: Seed of the shuffling.
        **options: Further arguments of `FilterAttributor.attribute`.

    Returns:
        The table.

    Raises:
        SettingError: ``labelled`` does not hold two functions of the same number of samples.

    Example:
        >>> base, target = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()
        >>> samples = list(torch.rand(2, 8, 4, dtype=torch.float64))
        >>> table = sanity_checks(FilterAttributor(base), base, target,
        ...                       lambda model, x: (model(x) - x).square().sum(), samples, amount=2)
        >>> [row.holds for row in table.entries[:4]]
        [True, True, True, True]
    """
    swap = ParameterSwap(attributor.model)
    ends = {role: state_for(attributor.model, end, role) for role, end in (("base", base), ("target", target))}
    moving = [name for name, value in swap.parameters.items() if value.is_floating_point()]
    generator = torch.Generator().manual_seed(seed)

    attribution = attributor.attribute(base, target, loss, data, progress=False, **options)

    def signed(first: StateLike, second: StateLike, one_loss: Loss = loss) -> FilterAttribution:
        with without_doubts():  # what is to be said of the pair has been said
            return attributor.attribute(first, second, one_loss, data, progress=False, **options)

    reference = attribution.scores("sum")

    def gap(scores: FilterScores) -> float:
        size = float(reference.flat().abs().max())
        return float((scores - reference).flat().abs().max()) / size if size else math.nan

    factors = {name: 2.0 ** int(torch.randint(-2, 3, (), generator=generator, device="cpu")) for name in moving}
    scaled = {
        role: {
            name: value * factors[first] if (first := swap.aliases.get(name)) in factors else value
            for name, value in state.items()
        }
        for role, state in ends.items()
    }
    shuffled, shared = dict(ends["target"]), shared_names(ends["target"])
    for name in attribution.parameters:
        flat = shuffled[name].reshape(-1)
        mixed = flat[torch.randperm(len(flat), generator=generator, device="cpu")].reshape(shuffled[name].shape)
        shuffled |= dict.fromkeys(shared[name], mixed)
    with without_doubts():  # the path to a shuffled network has no meaning
        randomised = attributor.attribute(base, shuffled, loss, data, progress=False, **{"n_steps": 1, **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FilterAttrWarning)  # that everything is 0 is what is asked for
        same = signed(target, target).scores("sum_of_abs")
    entries = [
        SanityRow(
            "base and target swapped",
            "every sign flips: largest deviation, relative to the largest score",
            gap(-signed(target, base).scores("sum")),
            tolerance,
        ),
        SanityRow("base equal to target", "all scores are exactly 0: the largest", float(same.flat().abs().max()), 0.0),
        SanityRow(
            "three times the loss",
            "three times the scores: largest deviation, relative",
            gap(signed(base, target, _times(loss, 3.0)).scores("sum") * (1 / 3)),
            tolerance,
        ),
        SanityRow(
            "both networks rescaled",
            "nothing changes: largest deviation, relative",
            gap(signed(scaled["base"], scaled["target"], _Rescaled(loss, factors)).scores("sum")),
            tolerance,
        ),
        SanityRow(
            "weights of target shuffled inside every layer",
            "other units come out: overlap of the top sets",
            randomised.scores().top(amount).overlap(attribution.scores().top(amount)),
            0.5,
        ),
    ]
    if labelled is not None:
        entries.append(_shuffled_labels(labelled, seed))
    return SanityTable(tuple(entries))


def _times(loss: Loss, factor: float) -> Loss:
    def scaled(model: nn.Module, sample: Any) -> Tensor:
        return loss(model, sample) * factor

    return scaled


class _Rescaled:
    """A loss that divides the parameters of the model by factors before it computes."""

    def __init__(self, loss: Loss, factors: Mapping[str, float]) -> None:
        self.loss = loss
        self.factors = factors

    def __call__(self, model: nn.Module, sample: Any) -> Tensor:
        held = _Held(model, self.loss)
        named = dict(model.named_parameters())
        divided = {f"model.{name}": named[name] / factor for name, factor in self.factors.items()}
        value: Tensor = torch.func.functional_call(held, divided, (sample,))
        return value


class _Held(nn.Module):
    """A loss as the forward pass of a module, so that PyTorch can call it with other parameters."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss: Callable[..., Tensor] = loss

    def forward(self, sample: Any) -> Tensor:
        return self.loss(self.model, sample)


def _shuffled_labels(labelled: Mapping[str, SampleScores], seed: int, draws: int = 199) -> SanityRow:
    """How often random labels separate the samples as well as the true ones."""
    if len(labelled) != 2 or len({len(labels) for labels in labelled.values()}) != 1:
        sizes = {name: len(labels) for name, labels in labelled.items()}
        raise SettingError(f"labelled must hold two functions with the same number of samples; got {sizes}.")
    first, second = (labels.values.double().numpy() for labels in labelled.values())
    gaps: Array = first - second
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(draws, len(gaps)))
    null = np.abs(signs @ gaps).sum(1).tolist()
    observed = float(np.abs(gaps.sum(0)).sum())
    return SanityRow(
        "labels of the samples shuffled",
        "a smaller contrast than with the true ones: p-value of its size",
        p_value(observed, null),
        0.05,
    )
