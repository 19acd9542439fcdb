"""What `attribute` costs beyond its passes: time, memory, and how both grow. Run with ``make bench``."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from filterattr import FilterAttributor
from tests.benchmarks.interleaved import compare, record
from tests.benchmarks.problems import RestorationPair
from tests.memory import needs_glibc, peak_of

# the weights are random, and few nodes are enough to see what they cost
pytestmark = pytest.mark.filterwarnings("ignore:the attributions should sum:filterattr.FilterAttrWarning")

NODES = 8
OVERHEAD = "time of one call over the same passes by hand"
MEMORY = "peak memory in use above that of bare passes, in copies of the parameters"
GROWTH = "time of the larger job over the smaller one, per unit of work"


# forward passes by hand, and what a call may cost over all; it repeats the first, to see that the loss is the same
PASSES = {"both ends": (2, 1.09), "both ends, and one of them again": (3, 1.05)}


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize(("size", "rounds"), [(64, 25), (128, 7)])
def test_a_call_costs_what_its_passes_cost(
    benchmark: Callable[..., object], size: int, rounds: int, passes: str
) -> None:
    pair = RestorationPair(size)
    attributor = FilterAttributor(pair.model)
    forward, at_most = PASSES[passes]
    ratio = compare(
        benchmark,
        lambda: attributor.attribute(pair.base, pair.target, pair.loss, n_steps=NODES, progress=False),
        lambda: pair.bare_passes(NODES, forward),
        question=OVERHEAD,
        case=f"{NODES} nodes, {passes}, {size}x{size}",
        rounds=rounds,
        ours_over_theirs=True,
    )
    assert ratio <= at_most


@needs_glibc
@pytest.mark.parametrize(("unit", "at_most"), [("filter", 6), ("kernel", 7)])
@pytest.mark.parametrize("n_steps", [8, 200])
def test_memory_is_a_few_copies_of_the_parameters(
    benchmark: Callable[..., object], unit: str, at_most: float, n_steps: int
) -> None:
    """Scores come on top: six float64 numbers for every unit, 1.3 copies for the 151,936 kernels of this network."""
    pair = RestorationPair(16)  # small, so that activations do not hide the copies
    attributor = FilterAttributor(pair.model, unit=unit)
    bare = peak_of(lambda: pair.bare_passes(n_steps, 3))
    peak = peak_of(lambda: attributor.attribute(pair.base, pair.target, pair.loss, n_steps=n_steps, progress=False))
    size = sum(value.numel() * value.element_size() for value in pair.base.values())
    benchmark.pedantic(lambda: None, rounds=1)
    record(benchmark, MEMORY, f"{n_steps} nodes, unit={unit!r}", (peak - bare) / size)
    assert peak - bare <= at_most * size


def _seconds_of(pair: RestorationPair, nodes: int, samples: int = 1) -> Callable[[], object]:
    attributor = FilterAttributor(pair.model)
    data = [(pair.degraded, pair.reference)] * samples
    return lambda: attributor.attribute(pair.base, pair.target, pair.loss, data, n_steps=nodes, progress=False)


LARGER = {
    "16 nodes instead of 4, 32x32": (lambda: RestorationPair(32), (4, 1), lambda: RestorationPair(32), (16, 1), 4),
    "8 samples instead of 2, 32x32": (lambda: RestorationPair(32), (4, 2), lambda: RestorationPair(32), (4, 8), 4),
    "96x96 instead of 48x48": (lambda: RestorationPair(48), (4, 1), lambda: RestorationPair(96), (4, 1), 4),
    "16 blocks instead of 4, 48x48": (
        lambda: RestorationPair(48, blocks=4),
        (4, 1),
        lambda: RestorationPair(48, blocks=16),
        (4, 1),
        39 / 15,  # convolutions of 64 features, and the upsampling
    ),
}


@pytest.mark.parametrize("case", LARGER)
def test_time_grows_no_faster_than_the_work(benchmark: Callable[..., object], case: str) -> None:
    smaller, of_smaller, larger, of_larger, work = LARGER[case]
    ratio = compare(
        benchmark,
        _seconds_of(larger(), *of_larger),
        _seconds_of(smaller(), *of_smaller),
        question=GROWTH,
        case=case,
        rounds=5,
        times_theirs=work,
        ours_over_theirs=True,
    )
    assert ratio < 1.25
