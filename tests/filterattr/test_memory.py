"""Memory above the bare passes: some copies of the parameters, however many nodes and samples."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from filterattr import FilterAttributor
from tests.reliability.test_jobs import allocated, needs_glibc

pytestmark = [needs_glibc, pytest.mark.filterwarnings("ignore::filterattr.FilterAttrWarning")]

LAYERS, WIDTH = 12, 256
COPY = LAYERS * WIDTH * WIDTH * 4


def network() -> nn.Module:
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))


def loss(model: nn.Module, inputs: Tensor) -> Tensor:
    return model(inputs).square().sum()


def copies(samples: int = 1, **options: object) -> float:
    """Peak of a call above what was held before, in copies of the parameters."""
    model, base, target = network(), network().state_dict(), network().state_dict()
    attributor = FilterAttributor(model, unit="filter")
    data = [torch.rand(1, WIDTH) for _ in range(samples)]
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(3e-4):
            peak[0] = max(peak[0], allocated())

    watcher = threading.Thread(target=watch)
    before = allocated()
    watcher.start()
    try:
        attributor.attribute(base, target, loss, data, **options)
    finally:
        done.set()
        watcher.join()
    return (peak[0] - before) / COPY


# one copy for the gradients of a bare pass, and the float64 pieces of one layer of twelve
@pytest.mark.parametrize(
    "options",
    [{"n_steps": 8}, {"method": "adaptive", "tolerance": 1e-9, "n_steps": 31}, {"aggregate": "pooled", "samples": 8}],
    ids=["fixed", "adaptive", "pooled"],
)
def test_at_most_six_copies_above_the_bare_passes(options: dict[str, object]) -> None:
    assert 4 < copies(**options) <= 6 + 1


def test_eight_hundred_nodes_need_no_more_than_eight() -> None:
    assert abs(copies(n_steps=800) - copies(n_steps=8)) < 0.3


def test_many_samples_need_no_more_than_few() -> None:
    assert abs(copies(aggregate="pooled", samples=200) - copies(aggregate="pooled", samples=8)) < 0.3
