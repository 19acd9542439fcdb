"""A contest of rankings of the same units: what each removes of its function and of the others, for how many passes.

The losses of every sample are kept, so that areas under curves, their intervals and the differences between two
rankings all come from the same draws of the samples.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from filterattr import FilterAttrWarning, FilterScores
from filterattr.analysis import (
    Array,
    Curve,
    Estimate,
    Masking,
    Null,
    NullCurve,
    Record,
    Row,
    p_value,
    random_ranking,
    spread,
)
from filterattr.display import Progress, counted


@dataclass(frozen=True)
class Entrant:
    """One ranking that takes part.

    Attributes:
        method: What computed it.
        form: How: with which contrast between functions, or as a library has it.
        steps: Nodes on its path; 0 if it has none.
        n_passes: Forward-backward passes for one sample of one function.
    """

    method: str
    form: str
    steps: int
    n_passes: int

    @property
    def name(self) -> str:
        """What tells it from all others.

        Example:
            >>> Entrant("conductance", "strict contrast", 8, 9).name
            'conductance, strict contrast, 8 steps'
        """
        steps = f", {self.steps} step{'s' if self.steps > 1 else ''}" if self.steps else ""
        return f"{self.method}, {self.form}{steps}"


@dataclass(frozen=True)
class MaskedLosses(Record):
    """Losses of the network with more and more units of a ranking set back to base.

    Attributes:
        counts: Numbers of units.
        losses: Function to size of the set to the loss on every sample.
    """

    counts: tuple[int, ...]
    losses: Mapping[str, tuple[tuple[float, ...], ...]]

    def rows(self) -> list[Row]:
        """One row per function and size, with the mean loss."""
        return [
            {"function": name, "count": count, "loss": float(np.mean(values))}
            for name, sizes in self.losses.items()
            for count, values in zip(self.counts, sizes, strict=True)
        ]


@dataclass(frozen=True)
class ContestRow:
    """How one ranking does for one function.

    An *area* is the mean bounded share over the logarithm of the set's size: see `filterattr.analysis.results`.

    Attributes:
        method: See `Entrant`.
        form: See `Entrant`.
        steps: See `Entrant`.
        n_passes: See `Entrant`.
        function: The function.
        removed: Share removed of it at every size of the set.
        collateral: Largest share removed of another function at every size.
        own: Area under ``removed``.
        other: Area under ``collateral``.
        margin: Their difference: 1 removes the function and nothing else, with the smallest set already.
        advantage: ``margin`` minus that of the reference, on the same draws of the samples.
        p_own: Chance that random units have as large an area ``own``.
        p_margin: Chance that random units have as large a ``margin``.
        p_own_in_layers: The same for units shuffled inside the layers; NaN if that was not drawn.
        p_margin_in_layers: The same of ``margin``.
    """

    method: str
    form: str
    steps: int
    n_passes: int
    function: str
    removed: tuple[float, ...]
    collateral: tuple[float, ...]
    own: Estimate
    other: Estimate
    margin: Estimate
    advantage: Estimate
    p_own: float
    p_margin: float
    p_own_in_layers: float
    p_margin_in_layers: float


@dataclass(frozen=True)
class ContestTable(Record):
    """Rankings side by side, at every number of passes.

    Attributes:
        reference: Name of the `Entrant` that the others are compared with.
        fractions: Sizes of the sets, in parts of all units.
        n_units: Number of all units.
        draws: Random rankings of each null.
        entries: One per ranking and function.
    """

    reference: str
    fractions: tuple[float, ...]
    n_units: int
    draws: int
    entries: tuple[ContestRow, ...]

    def rows(self) -> list[Row]:
        """One row per ranking and function."""
        return [
            {
                "method": row.method,
                "form": row.form,
                "steps": row.steps,
                "n_passes": row.n_passes,
                "function": row.function,
                **{f"removed {p:.3g}": share for p, share in zip(self.fractions, row.removed, strict=True)},
                **{f"other {p:.3g}": share for p, share in zip(self.fractions, row.collateral, strict=True)},
                **spread("own", row.own),
                **spread("other", row.other),
                **spread("margin", row.margin),
                **spread("advantage", row.advantage),
                "p_own": row.p_own,
                "p_margin": row.p_margin,
                "p_own_in_layers": row.p_own_in_layers,
                "p_margin_in_layers": row.p_margin_in_layers,
            }
            for row in self.entries
        ]


def shuffled_inside_layers(scores: FilterScores, generator: torch.Generator) -> FilterScores:
    """Give the units of every layer each other's scores: sets of any size keep their number of units in every layer.

    Args:
        scores: A ranking.
        generator: Source of randomness, on the CPU.

    Returns:
        The shuffled ranking.

    Example:
        >>> from filterattr import ScoredParameter, Unit
        >>> like = {name: ScoredParameter(Unit("... -> ..."), (4,)) for name in ("a", "b")}
        >>> scores = FilterScores({"a": torch.tensor([8.0, 7, 1, 2]), "b": torch.tensor([6.0, 3, 4, 5])}, like)
        >>> shuffled = shuffled_inside_layers(scores, torch.Generator().manual_seed(0))
        >>> shuffled.top(3).per_layer() == scores.top(3).per_layer()
        True
    """
    drawn = {
        name: tensor.reshape(-1)[torch.randperm(tensor.numel(), generator=generator, device="cpu")].reshape(
            tensor.shape
        )
        for name, tensor in scores.items()
    }
    return FilterScores(drawn, scores.parameters)


@dataclass(frozen=True, eq=False)
class Areas:
    """Areas under what a ranking removes of its function and of the others.

    Attributes:
        own: Of its function.
        other: Of the largest other, size by size.
        own_drawn: ``own`` in every draw of the samples.
        other_drawn: ``other`` in every draw.
    """

    own: Array
    other: Array
    own_drawn: Array
    other_drawn: Array


class Contest:
    """Masks the sets of many rankings on the same samples and measures areas under what they remove.

    Args:
        masking: The networks and held-out samples of all functions.
        fractions: Sizes of the sets, ascending, above 0.

    Example:
        >>> from torch import nn
        >>> from filterattr import FilterAttributor
        >>> from filterattr.analysis import weight_change
        >>> _ = torch.manual_seed(0)
        >>> base, target = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        >>> loss = lambda model, x: (model(x) - target(x)).square().sum()
        >>> ends = {"first": list(torch.eye(4)[:2]), "last": list(torch.eye(4)[2:])}
        >>> contest = Contest(Masking(base, base, target, loss, ends), (0.5, 1.0))
        >>> ranking = weight_change(FilterAttributor(base), base, target)
        >>> contest.curve(contest.masked(ranking), "weight change").counts
        (8, 16)
    """

    def __init__(self, masking: Masking, fractions: Sequence[float]) -> None:
        self.masking = masking
        self.fractions = tuple(map(float, fractions))
        self.bootstrap = masking.bootstrap()

    def masked(self, scores: FilterScores) -> MaskedLosses:
        """Mask the sets of a ranking; one forward pass per sample and size.

        Args:
            scores: The ranking.

        Returns:
            Losses of every sample.
        """
        with warnings.catch_warnings():  # sizes are those of the contest, also for a ranking that knows fewer channels
            warnings.filterwarnings("ignore", ".*selected units have score 0", FilterAttrWarning)
            sets = [scores.top(fraction) for fraction in self.fractions]
        found = [self.masking.sample_losses(self.masking.masked(one)) for one in sets]
        losses = {name: tuple(tuple(one[name].tolist()) for one in found) for name in self.masking.data}
        return MaskedLosses(tuple(one.count for one in sets), losses)

    def curve(self, masked: MaskedLosses, ranking: str) -> Curve:
        """Turn losses into a curve of shares.

        Args:
            masked: The losses.
            ranking: What to call the ranking.

        Returns:
            The curve, with intervals over the samples.
        """
        masking, losses, shares = self.masking, {}, {}
        for name, sizes in masked.losses.items():
            drawn = [self.bootstrap.means(name, one) for one in sizes]
            losses[name] = tuple(
                self.bootstrap.estimate(float(np.mean(one)), draws) for one, draws in zip(sizes, drawn, strict=True)
            )
            values, draws = self._shares(masked, name)
            shares[name] = tuple(map(self.bootstrap.estimate, values.tolist(), draws))
        return Curve(
            ranking=ranking,
            intervention="mask",
            order="most",
            fractions=self.fractions,
            counts=masked.counts,
            losses=losses,
            shares=shares,
            loss_base=masking.loss_base,
            loss_target=masking.loss_target,
            n_samples=masking.n_samples,
        )

    def areas(self, masked: MaskedLosses, function: str) -> Areas:
        """Areas under what a ranking removes of its function and of the others.

        Args:
            masked: Its losses.
            function: The function that it was made for.

        Returns:
            The areas, in all draws of the samples, too.
        """
        found = {name: self._shares(masked, name) for name in masked.losses}
        values = {name: value for name, (value, _) in found.items()}
        draws = {name: drawn for name, (_, drawn) in found.items()}
        return Areas(*self._pair(values, function), *self._pair(draws, function))

    def null(
        self,
        scores: FilterScores,
        kind: Null,
        ranking: str,
        generator: torch.Generator,
        draws: int,
        progress: Progress = None,
    ) -> NullCurve:
        """Mask the sets of random rankings: draw i is one ranking at all sizes, so that it has an area.

        Args:
            scores: The ranking whose units, or whose layers, are matched.
            kind: ``"random"``, or ``"layer-matched"``: the ranking, shuffled inside the layers.
            ranking: What to call the ranking.
            generator: Source of randomness, on the CPU.
            draws: How many.
            progress: As in `FilterAttributor.attribute`.

        Returns:
            The draws.
        """
        found: dict[str, list[tuple[float, ...]]] = {name: [] for name in self.masking.data}
        masked = None
        with counted(progress, draws, "draw") as step:
            for _ in range(draws):
                if kind == "random":
                    drawn = random_ranking(scores, generator)
                else:
                    drawn = shuffled_inside_layers(scores, generator)
                masked = self.masked(drawn)
                for name in found:
                    found[name].append(tuple(self._shares(masked, name)[0].tolist()))
                step()
        return NullCurve(
            null=kind,
            ranking=ranking,
            intervention="mask",
            fractions=self.fractions,
            counts=masked.counts if masked is not None else (),
            shares={name: tuple(zip(*some, strict=True)) for name, some in found.items()},
        )

    def p_values(self, areas: Areas, null: NullCurve, function: str) -> tuple[float, float]:
        """Chance that a random ranking has as large areas.

        Args:
            areas: Of the ranking.
            null: The random rankings.
            function: The function.

        Returns:
            Of the area under its own function, and of the margin.
        """
        own, other = self._pair({name: np.array(some) for name, some in null.shares.items()}, function)
        return p_value(float(areas.own), own.tolist()), p_value(float(areas.own - areas.other), (own - other).tolist())

    def estimate(self, value: Array, drawn: Array) -> Estimate:
        """Put an interval around a number, from its draws."""
        return self.bootstrap.estimate(float(value), drawn)

    def _shares(self, masked: MaskedLosses, name: str) -> tuple[Array, Array]:
        """Shares removed, shape ``(sizes,)``, and in every draw, shape ``(sizes, draws)``."""
        base, target = self.masking.samples_base[name], self.masking.samples_target[name]
        sizes = np.array(masked.losses[name])
        value = (sizes.mean(1) - target.mean()) / _nonzero(base.mean() - target.mean())
        low, high = self.bootstrap.means(name, target), self.bootstrap.means(name, base)
        drawn = np.stack([self.bootstrap.means(name, one) for one in sizes])
        return value, (drawn - low) / _nonzero(high - low)

    def _pair(self, shares: Mapping[str, Array], function: str) -> tuple[Array, Array]:
        """Area of the function, and of the largest share of any other one at every size."""
        others = [shares[name] for name in shares if name != function]
        return self._area(shares[function]), self._area(np.max(others, axis=0))

    def _area(self, shares: Array) -> Array:
        """Mean bounded share over the logarithm of the size, along the first axis."""
        places = np.log(self.fractions)
        area: Array = np.trapezoid(np.clip(shares, 0, 1), places, axis=0) / (places[-1] - places[0])
        return area


def _nonzero(value: Array) -> Array:
    return np.where(value == 0, math.nan, value)
