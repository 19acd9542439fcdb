"""One drawn node a sample against the published 400 passes: time, and what masking the sets takes away."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from filterattr import FilterAttributor, FilterSelection, contrast
from filterattr.analysis.masking import Masking
from sr_zoo.degradations import evaluation_inputs
from sr_zoo.demo import bundled_photographs
from sr_zoo.pretrained import find_weights, load_network
from sr_zoo.samples import draw_pairs, squared_error
from tests.benchmarks.interleaved import compare, record
from tests.benchmarks.problems import RestorationPair
from tests.reference.naive_faig import discriminative_scores, gradient_sums

pytestmark = pytest.mark.filterwarnings("ignore::filterattr.FilterAttrWarning")

PAIR = "srresnet_x2_f32b8"
FUNCTIONS = ("blur", "noise")
FRACTION = 0.01
N_PAIRS = 32
PUBLISHED_PASSES = 400  # an image pair: two degradations, 100 steps, for each of the two scores
FASTER = "time of the published algorithm over the pooled estimate, both scores"
MASKED = f"function removed by masking {FRACTION:.0%} / the other function, on {N_PAIRS} other crops, shipped pair"


def test_pooling_is_faster_than_the_published_algorithm(benchmark: Callable[..., object]) -> None:
    pair, n_pairs, steps = RestorationPair(64), 8, 4
    attributor = FilterAttributor(pair.model)
    data = [(torch.rand_like(pair.degraded), pair.reference) for _ in range(n_pairs)]

    def pooled() -> None:
        scores = {
            name: attributor.attribute(
                pair.base, pair.target, pair.loss, data, aggregate="pooled", progress=False
            ).scores()
            for name in FUNCTIONS
        }
        for name in FUNCTIONS:
            contrast(scores, name)

    def published() -> None:
        gradient_sums(pair.build, pair.base, pair.target, pair.degraded, pair.reference, steps)

    ratio = compare(
        benchmark,
        pooled,
        published,
        question=FASTER,
        case=f"{n_pairs} image pairs, 64x64, fp32",
        rounds=3,
        times_theirs=n_pairs * PUBLISHED_PASSES / steps,
    )
    assert ratio >= 150


class Shipped:
    """The shipped pair with crops to search on and others to test on."""

    def __init__(self) -> None:
        self.base, self.target = (load_network(find_weights(f"{PAIR}_{end}")) for end in ("base", "target"))
        inputs = {name: evaluation_inputs(2)[name] for name in FUNCTIONS}
        search, test = bundled_photographs()
        self.search = draw_pairs(search, inputs, count=N_PAIRS, size=64, scale=2, seed=1)
        held_out = draw_pairs(test, inputs, count=N_PAIRS, size=64, scale=2, seed=2)
        self.masking = Masking(self.target, self.base, self.target, squared_error, held_out)
        self.attributor = FilterAttributor(self.target)

    def ours(self, **settings: object) -> dict[str, FilterSelection]:
        """Sets of both functions by equation 7."""
        scores = {
            name: self.attributor.attribute(
                self.base, self.target, squared_error, self.search[name], progress=False, **settings
            ).scores()
            for name in FUNCTIONS
        }
        return {name: contrast(scores, name, scale="loss").top(FRACTION) for name in FUNCTIONS}

    def published(self) -> dict[str, FilterSelection]:
        """The same by the published algorithm."""
        base, target = (dict(network.state_dict()) for network in (self.base, self.target))
        blurred, noisy = ([degraded for degraded, _ in self.search[name]] for name in FUNCTIONS)
        references = [reference for _, reference in self.search["blur"]]
        flat = discriminative_scores(self._build, base, target, blurred, noisy, references)
        sets = self.ours(n_steps=1)  # for the layout of the units
        return {name: self._top(sets[name], sign * flat) for name, sign in (("blur", 1), ("noise", -1))}

    def _build(self) -> torch.nn.Module:
        return load_network(find_weights(f"{PAIR}_target"))

    def _top(self, like: FilterSelection, flat: np.ndarray) -> FilterSelection:
        names = [name for name in self.base.state_dict() if name in like]
        chosen = torch.zeros(flat.size, dtype=torch.bool)
        chosen[torch.from_numpy(np.argsort(-flat, kind="stable")[: like.count].copy())] = True
        parts = chosen.split([like[name].numel() for name in names])
        masks: dict[str, Tensor] = {
            name: part.reshape(like[name].shape) for name, part in zip(names, parts, strict=True)
        }
        return FilterSelection({name: masks[name] for name in like}, like.parameters)

    def removed(self, sets: dict[str, FilterSelection]) -> dict[str, tuple[float, float]]:
        """Function to what its set removes of it and of the other one."""
        found = {name: self.masking.removed(sets[name]) for name in FUNCTIONS}
        return {name: (found[name][name], found[name][other]) for name, other in (FUNCTIONS, FUNCTIONS[::-1])}


PUBLISHED = f"published algorithm, {N_PAIRS * PUBLISHED_PASSES} passes"
PER_SAMPLE = f"8 Gauss nodes, {N_PAIRS * 2 * 8} passes"
POOLED = f"pooled, {N_PAIRS * 2} passes, mean (sd) of 3 seeds"


@pytest.fixture(scope="module")
def removed() -> dict[str, list[dict[str, tuple[float, float]]]]:
    shipped = Shipped()
    pooled = []
    for seed in range(3):
        torch.manual_seed(seed)
        pooled.append(shipped.removed(shipped.ours(aggregate="pooled")))
    return {
        PUBLISHED: [shipped.removed(shipped.published())],
        PER_SAMPLE: [shipped.removed(shipped.ours(n_steps=8))],
        POOLED: pooled,
    }


@pytest.mark.parametrize("case", [PUBLISHED, PER_SAMPLE, POOLED])
def test_cheaper_sets_remove_what_the_published_ones_remove(
    benchmark: Callable[..., object], removed: dict[str, list[dict[str, tuple[float, float]]]], case: str
) -> None:
    benchmark.pedantic(lambda: None, rounds=1)
    cells = []
    for name in FUNCTIONS:
        own, other = zip(*(row[name] for row in removed[case]), strict=True)
        spread = f" ({statistics.stdev(own):.2f})" if len(own) > 1 else ""
        cells.append(f"{name} {statistics.mean(own):.2f}{spread} / {statistics.mean(other):.2f}")
        assert statistics.mean(own) >= 0.8 * removed[PUBLISHED][0][name][0]
    record(benchmark, MASKED, case, "; ".join(cells))
