"""How deep do the kernels of a function sit? With intervals over the photographs that they were found with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from filterattr import FilterSelection
from filterattr.analysis import Estimate, Record, Row, SampleScores, interval, spread
from sr_zoo.study.archive import Results
from sr_zoo.study.settings import Settings
from sr_zoo.study.stage import Context, Cost, Stage
from sr_zoo.study.stages.search import strict_scores
from sr_zoo.study.subject import Subject


@dataclass(frozen=True)
class Depth(Record):
    """Where the kernels of one function sit.

    Attributes:
        function: The function.
        layers: Parameters in the order of the network.
        sizes: Their numbers of kernels.
        counts: How many of them are in the set.
        mean: Mean depth of the set: 0 is the first layer, 1 the last.
        uniform: Mean depth of all kernels.
        minus: Other function to the difference of mean depths.
    """

    function: str
    layers: tuple[str, ...]
    sizes: tuple[int, ...]
    counts: tuple[Estimate, ...]
    mean: Estimate
    uniform: float
    minus: Mapping[str, Estimate]

    def rows(self) -> list[Row]:
        """One row per layer."""
        return [
            {"function": self.function, "layer": layer, "kernels": size, **spread("chosen", count)}
            for layer, size, count in zip(self.layers, self.sizes, self.counts, strict=True)
        ]


def mean_depth(selection: FilterSelection) -> float:
    """Mean depth of a selection, from 0 in the first layer to 1 in the last.

    Args:
        selection: The kernels; their parameters are in the order of the network.

    Returns:
        The depth; not a number of an empty selection, or in a network of one layer.

    Example:
        >>> import torch
        >>> from filterattr import ScoredParameter, Unit
        >>> like = {name: ScoredParameter(Unit("... -> ..."), (2,)) for name in ("a", "b", "c")}
        >>> chosen = {"a": [True, False], "b": [False, False], "c": [True, True]}
        >>> mean_depth(FilterSelection({name: torch.tensor(one) for name, one in chosen.items()}, like)).__round__(3)
        0.667
    """
    counts = np.array([int(tensor.sum()) for tensor in selection.values()], dtype=np.float64)
    if counts.sum() == 0 or len(counts) < 2:
        return float("nan")
    return float((counts * np.linspace(0, 1, len(counts))).sum() / counts.sum())


def depths(
    samples: Mapping[str, SampleScores], fraction: float, *, draws: int, seed: int, confidence: float = 0.95
) -> dict[str, Depth]:
    """Count the kernels of every function layer by layer, and draw the photographs again and again.

    Args:
        samples: Function to scores of every sample; sample i of all functions belongs together.
        fraction: Size of the sets.
        draws: Bootstrap draws over the samples.
        seed: Seed of the draws.
        confidence: Of the intervals.

    Returns:
        Function to where its kernels sit.
    """
    n = len(next(iter(samples.values())))
    generator = np.random.default_rng(seed)

    def found(places: list[int]) -> dict[str, FilterSelection]:
        scores = {name: one.scores(places) for name, one in samples.items()}
        return {name: strict_scores(scores, name).top(fraction) for name in samples}

    whole = found(list(range(n)))
    drawn = [found(generator.integers(n, size=n).tolist()) for _ in range(draws)]
    means = {name: np.array([mean_depth(sets[name]) for sets in drawn]) for name in samples}
    results = {}
    for name, chosen in whole.items():
        counts = np.array([list(sets[name].per_layer().values()) for sets in drawn], dtype=np.float64)
        own = mean_depth(chosen)
        results[name] = Depth(
            function=name,
            layers=tuple(chosen),
            sizes=tuple(tensor.numel() for tensor in chosen.values()),
            counts=tuple(
                interval(float(count), counts[:, layer], confidence)
                for layer, count in enumerate(chosen.per_layer().values())
            ),
            mean=interval(own, means[name], confidence),
            uniform=mean_depth(~(chosen & ~chosen)),
            minus={
                other: interval(own - mean_depth(whole[other]), means[name] - means[other], confidence)
                for other in samples
                if other != name
            },
        )
    return results


def _depth(context: Context) -> Results:
    samples = {name: context.found[f"samples_{name}"] for name in context.subject.functions}
    found = depths(
        samples, context.settings.fraction, draws=context.settings.bootstrap_draws, seed=context.settings.seed
    )
    return {f"depth_{name}": one for name, one in found.items()}


def _cost(subject: Subject, settings: Settings) -> Cost:  # noqa: ARG001 - no pass
    return Cost()


DEPTH = Stage(
    "depth",
    "Where do the kernels sit?",
    ("search",),
    ("fraction", "bootstrap_draws", "seed"),
    _cost,
    _depth,
)
