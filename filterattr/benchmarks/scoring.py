"""Rankings of a planted pair, and how near each is to the truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from filterattr.analysis.choice import choose
from filterattr.analysis.gradients import fisher, taylor
from filterattr.analysis.outputs import Outputs
from filterattr.analysis.rankings import magnitude, random_ranking, weight_change
from filterattr.analysis.set_search import search
from filterattr.benchmarks.planting import FUNCTIONS, GENERAL, PlantedPair, loss
from filterattr.intervention import swapped
from filterattr.results.attribution import FilterAttribution
from filterattr.results.scores import FilterScores, FilterSelection, Scale, contrast
from filterattr.results.signed import signed_contrast

N_STEPS = 8
_ROWS = 8
PRICES = (0.0, 0.5, 1.0, 2.0, 4.0)
SEARCHES: Mapping[str, Mapping[str, Any]] = {
    "search, lambda 1": {},
    "search, lambda 4": {"collateral": 4.0},
    "search, lambda 1, continuous greedy alone": {"steps": 0},
}


class Truth(NamedTuple):
    """How near a ranking of one function is to its carriers.

    Attributes:
        auroc: Chance that a carrier has a higher score than a unit that is none; 0.5 for random scores.
        precision: Share of carriers among as many of the highest units as there are carriers.
        reverted: What masking these units reverts of the function (`filterattr.analysis.outputs`).
        moved: The most that it moves any other task.
    """

    auroc: float
    precision: float
    reverted: float
    moved: float


@dataclass(frozen=True)
class Judge:
    """Holds scores against the truth of a pair.

    Attributes:
        pair: The pair.
        outputs: Its outputs on the samples that were held out.

    Example:
        >>> from filterattr.analysis import magnitude
        >>> from filterattr.benchmarks import families
        >>> from filterattr.benchmarks import plant
        >>> pair = plant(families()["LoRA"], 0)
        >>> judge = Judge.of(pair)
        >>> truth = FilterScores({key: marked.double() for key, marked in pair.carriers["A"].items()},
        ...                      pair.carriers["A"].parameters)
        >>> judge("A", truth)[:2]
        (1.0, 1.0)
    """

    pair: PlantedPair
    outputs: Outputs

    @classmethod
    def of(cls, pair: PlantedPair) -> Judge:
        """Make the judge of a pair.

        Args:
            pair: The pair.

        Returns:
            The judge; distances are Jensen-Shannon divergences of the classes.
        """
        return cls(pair, _outputs(pair, pair.held_out))

    def __call__(self, function: str, scores: FilterScores) -> Truth:
        """Hold scores against the carriers of a function.

        Args:
            function: ``"A"`` or ``"B"``.
            scores: Of all units of the pair.

        Returns:
            How near they are to the truth.
        """
        carriers = self.pair.carriers[function]
        chosen = scores.top(carriers.count)
        reverted, moved = self.outputs.shares(chosen)
        return Truth(
            auroc(scores, carriers),
            (chosen & carriers).count / carriers.count,
            reverted[function],
            max(value for name, value in moved.items() if name != function),
        )


def auroc(scores: FilterScores, truth: FilterSelection) -> float:
    """Chance that a unit of the truth has a higher score than another one; equal scores count one half.

    Args:
        scores: The scores.
        truth: The units that should be on top; not none, and not all.

    Returns:
        The area under the curve of the receiver operating characteristic, in [0, 1].

    Example:
        >>> from filterattr import ScoredParameter
        >>> from filterattr import Unit
        >>> like = {"w": ScoredParameter(Unit("... -> ..."), (4,))}
        >>> scores = FilterScores({"w": torch.tensor([3.0, 1.0, 2.0, 1.0])}, like)
        >>> auroc(scores, FilterSelection({"w": torch.tensor([True, True, False, False])}, like))
        0.625
    """
    scores.check_same_units(truth)
    values, inside = scores.flat().numpy(), truth.flat().numpy()
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    n, rest = int(inside.sum()), int((~inside).sum())
    return float((ranks[inside].sum() - n * (n + 1) / 2) / (n * rest))


class Ranked(NamedTuple):
    """Scores of one function by one ranking.

    Attributes:
        ranking: Its name.
        function: The function.
        scores: The scores.
        n_passes: Forward-backward passes that the scores of all functions took.
    """

    ranking: str
    function: str
    scores: FilterScores
    n_passes: int


def rankings(pair: PlantedPair, seed: int = 0) -> Iterator[Ranked]:
    """Score both functions of a pair by every ranking of the library.

    Args:
        pair: The pair.
        seed: Of the random ranking.

    Yields:
        The scores, ranking by ranking.

    Example:
        >>> from filterattr.benchmarks import families
        >>> from filterattr.benchmarks import plant
        >>> found = list(rankings(plant(families()["LoRA"], 0, n_search=2)))
        >>> found[0].ranking, found[0].function, found[0].n_passes
        ('signed, lambda 0', 'A', 32)
    """
    ends = pair.attributor, pair.base, pair.target
    search = {name: pair.search[name] for name in FUNCTIONS}
    n = sum(map(len, search.values()))
    path = {name: _attributed(pair, samples) for name, samples in search.items()}
    single = {name: _attributed(pair, some, method="riemann_right", n_steps=1) for name, some in search.items()}
    for price in PRICES:
        yield from _by_function(f"signed, lambda {price:g}", n * N_STEPS, _signed(path, price))
    guarded = {**path, GENERAL: _attributed(pair, pair.search[GENERAL])}
    n_guarded = n + len(pair.search[GENERAL])
    yield from _by_function("signed, lambda 1, general guarded", n_guarded * N_STEPS, _signed(guarded, 1.0))
    yield from _by_function("signed, lambda 1, 1 node at target", n, _signed(single, 1.0))
    yield from _chosen(pair, path, n * N_STEPS)
    for name, settings in SEARCHES.items():
        yield from _searched(pair, name, _signed(path, 1.0), n * N_STEPS, settings)
    plain = {
        "attribution": (n * N_STEPS, {name: attribution.scores() for name, attribution in path.items()}),
        "gradient x change": (n, {name: attribution.scores() for name, attribution in single.items()}),
        "Taylor": (n, {name: taylor(ends[0], ends[2], loss, some) for name, some in search.items()}),
        "Fisher": (n, {name: fisher(ends[0], ends[2], loss, some) for name, some in search.items()}),
    }
    for name, (n_passes, scores) in plain.items():
        yield from _by_function(f"{name}, strict", n_passes, _contrasted(scores, "strict"))
        yield from _by_function(f"{name}, equation 7", n_passes, _contrasted(scores, "loss"))
        yield from _by_function(name, n_passes, scores.__getitem__)
    if has_channels(pair):
        captum = {name: conductance(pair, samples) for name, samples in search.items()}
        yield from _by_function("Captum, conductance of channels", n * N_STEPS, captum.__getitem__)
    generator = torch.Generator().manual_seed(seed)
    change, size = weight_change(*ends), magnitude(ends[0], ends[2])
    yield from _by_function("weight change", 0, lambda _: change)
    yield from _by_function("magnitude", 0, lambda _: size)
    yield from _by_function("random", 0, lambda _: random_ranking(change, generator))


def has_channels(pair: PlantedPair) -> bool:
    """Whether the units of a pair are output channels of convolutions, which Captum's layer methods score, too.

    Args:
        pair: The pair.

    Example:
        >>> from filterattr.benchmarks import families, plant
        >>> has_channels(plant(families()["LoRA"], 0, n_search=1, n_held_out=1))
        False
    """
    names = (name.rpartition(".")[0] for name in pair.attributor.scored_parameters())
    layers = [pair.attributor.model.get_submodule(name) for name in names]
    return pair.attributor.unit == "filter" and all(isinstance(layer, nn.Conv2d) for layer in layers)


def conductance(pair: PlantedPair, samples: list[tuple[Tensor, Tensor]]) -> FilterScores:
    """Captum's layer conductance of the loss of target, from zero inputs: absolute sums over places and samples.

    Args:
        pair: The pair, whose units are output channels.
        samples: Of one function.

    Returns:
        One score a channel. It knows nothing of base.
    """
    from captum.attr import LayerConductance  # noqa: PLC0415 - takes a second to import

    parameters = pair.attributor.scored_parameters()
    x, y = (torch.cat(parts) for parts in zip(*samples, strict=True))
    tensors = {}
    with swapped(pair.attributor.model, pair.target) as model:
        for name in parameters:
            layer = model.get_submodule(name.rpartition(".")[0])
            method = LayerConductance(
                lambda inputs, classes: nn.functional.cross_entropy(model(inputs), classes, reduction="none"), layer
            )
            parts = method.attribute(x, torch.zeros_like(x), additional_forward_args=(y,), n_steps=N_STEPS)
            tensors[name] = parts.detach().sum((0, 2, 3)).abs().double()
    return FilterScores(tensors, parameters)


def _attributed(pair: PlantedPair, samples: list[tuple[Tensor, Tensor]], **rule: Any) -> FilterAttribution:
    rule = rule or {"n_steps": N_STEPS}
    return pair.attributor.attribute(pair.base, pair.target, loss, samples, progress=False, **rule)


def _by_function(ranking: str, n_passes: int, score: Callable[[str], FilterScores]) -> Iterator[Ranked]:
    for function in FUNCTIONS:
        yield Ranked(ranking, function, score(function), n_passes)


def _chosen(pair: PlantedPair, path: Mapping[str, FilterAttribution], n_passes: int) -> Iterator[Ranked]:
    """Signed scores at the price that is best on the samples of the search, measured with sets of the true size."""
    outputs = _outputs(pair, {name: _joined(pair.search[name]) for name in FUNCTIONS})
    scores = {
        name: choose(outputs, path, name, amount=pair.carriers[name].count, prices=PRICES, progress=False).scores
        for name in FUNCTIONS
    }
    yield from _by_function("signed, price chosen", n_passes, scores.__getitem__)


def _searched(
    pair: PlantedPair, ranking: str, start: Callable[[str], FilterScores], n_passes: int, settings: Mapping[str, Any]
) -> Iterator[Ranked]:
    """The numbers behind the sets that a search finds; its passes are added to those of the scores."""
    outputs = _outputs(pair, {name: _joined(samples) for name, samples in pair.search.items()})
    searches = {
        name: search(outputs, start(name), name, amount=pair.carriers[name].count, batch=1, progress=False, **settings)
        for name in FUNCTIONS
    }
    n_passes += _ROWS * sum(result.n_passes for result in searches.values())
    yield from _by_function(ranking, n_passes, lambda name: searches[name].scores)


def _joined(samples: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Samples in batches: a step of a search takes one."""
    groups = [samples[first : first + _ROWS] for first in range(0, len(samples), _ROWS)]
    return [(torch.cat([x for x, _ in group]), torch.cat([y for _, y in group])) for group in groups]


def _outputs(pair: PlantedPair, samples: Mapping[str, list[tuple[Tensor, Tensor]]]) -> Outputs:
    ends = pair.attributor.model, pair.base, pair.target
    return Outputs(*ends, lambda model, x: model(x[0]), samples, distance="js", per_row=True)


def _signed(attributions: Mapping[str, FilterAttribution], price: float) -> Callable[[str], FilterScores]:
    return lambda function: signed_contrast(attributions, function, collateral=price)


def _contrasted(scores: Mapping[str, FilterScores], scale: Scale) -> Callable[[str], FilterScores]:
    return lambda function: contrast(scores, function, scale=scale)
