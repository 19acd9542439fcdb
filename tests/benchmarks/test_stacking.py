"""Several samples in one pass against single passes. Run with ``make bench``."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.benchmarks.interleaved import compare
from tests.benchmarks.stacking import CASES, call

pytestmark = pytest.mark.filterwarnings("ignore:the attributions should sum:filterattr.FilterAttrWarning")

QUESTION = "one pass for each sample over several samples in one pass, times faster"


# the measured ratios are 8.7, 2.9 and 1.7
@pytest.mark.parametrize(("case", "at_least"), [*zip(CASES, (5, 1.8, 1.2), strict=False)], ids=["mlp", "cnn", "crops"])
def test_small_samples_share_passes(benchmark: Callable[..., object], case, at_least: float) -> None:
    number = case.numbers[-1]
    ratio = compare(
        benchmark,
        call(case, number),
        call(case, 1),
        question=QUESTION,
        case=f"{case.name}, internal_batch_size={number}",
        rounds=3,
    )
    assert ratio >= at_least
