"""Choosing parameters and units: seconds for a thousand names, and sets against the floor that PyTorch has for them.

Run with ``make bench``.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from filterattr import FilterAttributor, FilterScores, Group, Unit, output_channels
from filterattr.units.unit import ScoredParameter
from tests.benchmarks.interleaved import compare, record

NAMES = "a thousand names: seconds"
SETS = "times the time of torch.topk for the same amount"
MODEL = nn.Sequential(*[nn.Conv2d(1, 2, 3) for _ in range(1000)])
EVERY = [f"{number}.weight" for number in range(1000)]
GROUP = Group({"weight": "o i ... -> o", "bias": "o -> o"})

WORK: dict[str, Callable[[], object]] = {
    "unit= of names": lambda: FilterAttributor(MODEL, unit=dict.fromkeys(EVERY, "kernel")),
    "unit= of globs": lambda: FilterAttributor(MODEL, unit={f"{number}.w*": "kernel" for number in range(1000)}),
    "unit= of groups": lambda: FilterAttributor(MODEL, unit={str(number): GROUP for number in range(1000)}),
    "unit=output_channels(model)": lambda: FilterAttributor(MODEL, unit=output_channels(MODEL)),
    "select= of names": lambda: FilterAttributor(MODEL, select=EVERY),
}


@pytest.mark.parametrize("case", WORK)
def test_a_thousand_names_take_less_than_a_second(benchmark: Any, case: str) -> None:
    benchmark.pedantic(WORK[case], rounds=3, iterations=1)
    seconds = min(benchmark.stats.stats.data)
    record(benchmark, NAMES, case, seconds)
    assert seconds < 1


def test_scores_are_narrowed_to_a_thousand_names_in_less_than_a_second(benchmark: Any) -> None:
    parameters = FilterAttributor(MODEL).scored_parameters()
    scores = FilterScores({name: torch.zeros(one.units_shape) for name, one in parameters.items()}, parameters)
    benchmark.pedantic(lambda: scores.only(*EVERY), rounds=3, iterations=1)
    seconds = min(benchmark.stats.stats.data)
    record(benchmark, NAMES, "only()", seconds)
    assert seconds < 1


def test_the_first_attributor_is_there_in_a_tenth_of_a_second(benchmark: Any) -> None:
    code = (
        "import time; from torch import nn; from filterattr import FilterAttributor; layer = nn.Conv2d(1, 2, 3); "
        "started = time.perf_counter(); FilterAttributor(layer); print(time.perf_counter() - started)"
    )
    found = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    benchmark.pedantic(lambda: None, rounds=1)
    record(benchmark, "the first attributor of a process: seconds", "one layer", min(found))
    assert min(found) < 0.1


@pytest.mark.parametrize("n_units", [4_000_000, 10_000_000])
@pytest.mark.parametrize("share", [0.01, 0.1])
def test_the_highest_are_found_as_fast_as_by_topk(benchmark: Any, n_units: int, share: float) -> None:
    values = torch.rand(n_units, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores = FilterScores({"w": values}, {"w": ScoredParameter(Unit("... -> ..."), (n_units,))})
    ratio = compare(
        benchmark,
        lambda: scores.top(share),
        lambda: torch.topk(values, int(share * n_units)),
        question=SETS,
        case=f"top({share}) of {n_units:.0e} units",
        rounds=3,
        ours_over_theirs=True,
    )
    assert ratio < 2


def test_random_sets_take_a_fraction_of_a_permutation(benchmark: Any) -> None:
    n_units = 10_000_000
    chosen = torch.zeros(n_units, dtype=torch.bool)
    chosen[: n_units // 100] = True
    scores = FilterScores({"w": chosen.double()}, {"w": ScoredParameter(Unit("... -> ..."), (n_units,))})
    selection = scores.top(n_units // 100)
    generator = torch.Generator().manual_seed(0)
    ratio = compare(
        benchmark,
        lambda: selection.random(generator),
        lambda: torch.randperm(n_units, generator=generator),
        question="random sets: times the time of a permutation of all",
        case="1 % of 1e7 units",
        rounds=3,
        ours_over_theirs=True,
    )
    assert ratio < 0.5
