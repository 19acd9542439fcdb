"""Ratios that a noisy machine cannot spoil: both sides run alternately in one process, and medians are compared."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

Work = Callable[[], object]


def compare(
    benchmark: Any,
    ours: Work,
    theirs: Work,
    *,
    question: str,
    case: str,
    rounds: int = 5,
    times_theirs: float = 1.0,
    ours_over_theirs: bool = False,
) -> float:
    """Time both sides alternately.

    Args:
        benchmark: The fixture; it records our side.
        ours: Our side.
        theirs: The other side, run before every round of ours.
        question: What the row of the table answers.
        case: Size of the problem, in words.
        rounds: Number of rounds, after one that does not count.
        times_theirs: What their time is multiplied with, if they ran a known share of their work.
        ours_over_theirs: Compute the ratio the other way round.

    Returns:
        Median over the rounds of their time over ours (above 1, we are faster), or the other way round.
    """
    seconds: list[float] = []

    def run_theirs() -> None:
        started = time.perf_counter()
        theirs()
        seconds.append(time.perf_counter() - started)

    theirs()
    ours()
    benchmark.pedantic(ours, setup=run_theirs, rounds=rounds, iterations=1)
    measured = benchmark.stats.stats.data
    ratios = [times_theirs * other / own for other, own in zip(seconds, measured, strict=True)]
    if ours_over_theirs:
        ratios = [1 / value for value in ratios]
    ratio = statistics.median(ratios)
    record(benchmark, question, case, ratio, spread=(min(ratios), max(ratios)))
    return ratio


def record(
    benchmark: Any,
    question: str,
    case: str,
    value: float | str,
    *,
    spread: tuple[float, float] | None = None,
) -> None:
    """Put a row into the table that `tests.benchmarks.table` prints.

    Args:
        benchmark: The fixture.
        question: What the row answers.
        case: Size of the problem, in words.
        value: The number, or a few words.
        spread: Smallest and largest value over the rounds.
    """
    benchmark.extra_info |= {
        "question": question,
        "case": case,
        "value": value,
        "spread": spread,
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}",
    }
