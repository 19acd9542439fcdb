"""Weights, locations or connections: what of a discovered set does the work?

Either the selected kernels keep their places and get other weights (permuted among them, signs flipped). Or the set
keeps its numbers and gets other places (edges shuffled with degrees kept, other kernels of the same layers).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from filterattr import FilterSelection
from filterattr.analysis import Masking, Record, Row, scrambled, shuffled_edges
from sr_zoo.study.archive import Results
from sr_zoo.study.settings import Settings
from sr_zoo.study.stage import Context, Cost, Stage
from sr_zoo.study.subject import Subject

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class PlacesRow:
    """What one way of changing a set removes.

    Attributes:
        function: The function that the set was found for.
        what: What was done.
        removed: Function to what is removed, mean over the draws.
        sd: Function to standard deviation over the draws; not a number of a single one.
        draws: Number of draws.
        moved: Share of the set's kernels that are at other places than the discovered ones.
    """

    function: str
    what: str
    removed: Mapping[str, float]
    sd: Mapping[str, float]
    draws: int
    moved: float


@dataclass(frozen=True)
class Places(Record):
    """Weights against locations against connections.

    Attributes:
        entries: One per function and change.
    """

    entries: tuple[PlacesRow, ...]

    def rows(self) -> list[Row]:
        """One row per entry."""
        return [
            {
                "set": row.function,
                "what": row.what,
                **{f"removed_{name}": value for name, value in row.removed.items()},
                **{f"sd_{name}": value for name, value in row.sd.items()},
                "draws": row.draws,
                "moved": row.moved,
            }
            for row in self.entries
        ]


def places_rows(
    masking: Masking, function: str, selection: FilterSelection, *, draws: int, seed: int
) -> list[PlacesRow]:
    """Change a discovered set in every way, and see what is removed.

    Args:
        masking: Networks and test samples.
        function: The function of the set.
        selection: The set.
        draws: Draws of what is random.
        seed: Their seed.

    Returns:
        One row per way.
    """
    generator = torch.Generator().manual_seed(seed)
    target = masking.target

    def elsewhere(draw: Callable[[], FilterSelection]) -> list[tuple[State, float]]:
        drawn = [draw() for _ in range(draws)]
        return [(masking.masked(one), 1 - (one & selection).count / max(one.count, 1)) for one in drawn]

    ways: dict[str, list[tuple[State, float]]] = {
        "back to base": [(masking.masked(selection), 0.0)],
        "weights permuted inside layers": [
            (scrambled(target, selection, "permute", generator), 0.0) for _ in range(draws)
        ],
        "signs flipped at random": [(scrambled(target, selection, "flip", generator), 0.0) for _ in range(draws)],
        "edges shuffled, back to base": elsewhere(lambda: shuffled_edges(selection, generator)),
        "same layers, back to base": elsewhere(lambda: selection.random(generator, layer_matched=True)),
    }
    return [_row(masking, function, what, states) for what, states in ways.items()]


def _row(masking: Masking, function: str, what: str, states: Sequence[tuple[State, float]]) -> PlacesRow:
    removed = []
    for state, _ in states:
        losses = masking.losses_of(state)
        removed.append({name: masking.share_removed(name, loss) for name, loss in losses.items()})
    values = {name: [one[name] for one in removed] for name in removed[0]}
    return PlacesRow(
        function=function,
        what=what,
        removed={name: statistics.fmean(some) for name, some in values.items()},
        sd={name: statistics.stdev(some) if len(some) > 1 else math.nan for name, some in values.items()},
        draws=len(states),
        moved=statistics.fmean(moved for _, moved in states),
    )


def _places(context: Context) -> Results:
    masking = context.masking()
    entries = [
        row
        for name, chosen in context.sets.items()
        for row in places_rows(masking, name, chosen, draws=context.settings.place_draws, seed=context.settings.seed)
    ]
    return {"places": Places(tuple(entries))}


def _cost(subject: Subject, settings: Settings) -> Cost:
    count = len(subject.functions)
    return Cost(forwards=settings.test_crops * count * (2 + count * (1 + 4 * settings.place_draws)))


PLACES = Stage(
    "places",
    "Weights, locations or connections?",
    ("search",),
    ("place_draws", "test_crops", "seed"),
    _cost,
    _places,
)
