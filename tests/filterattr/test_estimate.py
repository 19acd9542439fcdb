"""What a call will cost, told beforehand, and what it does cost."""

from __future__ import annotations

import copy
import time

import pytest
import torch
from torch import Tensor, nn

from filterattr import CostEstimate, FilterAttributor, SettingError
from tests.memory import allocated, needs_glibc, peak_of

pytestmark = pytest.mark.filterwarnings("ignore::filterattr.FilterAttrWarning")

WIDTH = 400


def network() -> nn.Module:
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(6)))


def squared_sum(model: nn.Module, sample: Tensor) -> Tensor:
    return model(sample).square().sum()


@pytest.mark.parametrize("keep", ["all", "signed"])
def test_counts_passes_units_and_bytes(keep: str) -> None:
    base, target = network(), network()
    state = copy.deepcopy(base.state_dict())
    attributor = FilterAttributor(base, unit="filter")
    cost = attributor.estimate(base, target, squared_sum, torch.rand(5, WIDTH), n_steps=7, keep=keep)
    weights = 6 * WIDTH * WIDTH * 4
    assert (cost.n_samples, cost.n_passes, cost.n_units, cost.weight_bytes) == (5, 35, 6 * WIDTH, weights)
    assert cost.engine_bytes == weights + (weights if keep == "all" else 0) + weights // 6
    assert cost.score_bytes == (5 if keep == "all" else 3 + 8) * 8 * cost.n_units
    assert cost.seconds == cost.n_passes * cost.seconds_per_pass > 0
    assert all(torch.equal(value, state[name]) for name, value in base.state_dict().items())
    assert all(parameter.grad is None for parameter in base.parameters())
    assert "35 passes (5 samples)" in str(cost)


def test_one_loss_without_data_is_one_sample() -> None:
    base, target = network(), network()
    cost = FilterAttributor(base).estimate(base, target, lambda model: model(torch.ones(WIDTH)).sum())
    assert (cost.n_samples, cost.n_passes) == (1, 16)


@pytest.mark.parametrize("data", [[], iter([torch.rand(WIDTH)])], ids=["empty", "an iterator"])
def test_data_that_cannot_be_counted_are_refused(data: object) -> None:
    base, target = network(), network()
    with pytest.raises(SettingError, match="an estimate needs at least one sample, and their number"):
        FilterAttributor(base).estimate(base, target, squared_sum, data)


def test_says_hours_and_gigabytes() -> None:
    text = str(CostEstimate(10, 1000, 20.0, 5, 4_000_000_000, 8_000_000_000, 40))
    assert "1000 passes (10 samples), 20 s each: 5.6 hours" in text
    assert "8 GB beyond" in text
    assert "40 bytes for scores" in text


@pytest.mark.slow
@needs_glibc
@pytest.mark.parametrize("keep", ["all", "signed"])
def test_bytes_and_seconds_are_about_those_of_the_call(keep: str) -> None:
    base, target = network(), network()
    attributor, data = FilterAttributor(base, unit="filter"), torch.rand(8, 1, WIDTH)
    cost = attributor.estimate(base, target, squared_sum, data, n_steps=32, keep=keep)
    before = allocated()
    begun = time.perf_counter()
    call = lambda: attributor.attribute(base, target, squared_sum, data, n_steps=32, keep=keep)  # noqa: E731
    peak = peak_of(call) - before
    assert 0.05 < (time.perf_counter() - begun) / cost.seconds < 20  # the machine may be busy with something else
    assert peak <= cost.engine_bytes + cost.score_bytes + 0.5 * cost.weight_bytes  # a layer's gradient and product
    assert peak >= 0.8 * cost.engine_bytes
