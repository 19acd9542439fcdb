"""Rankings to compare with, against literal loops."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from filterattr import FilterAttributor, SettingError, StateMismatchError
from filterattr.analysis.rankings import gradient_times_change, random_ranking, weight_change
from tests.networks import image, smooth_network, squared_sum


def test_weight_change_equals_a_loop_over_kernels() -> None:
    base, target = smooth_network(), smooth_network()
    scores = weight_change(FilterAttributor(base), base, target)
    relative = weight_change(FilterAttributor(base), base, target, relative=True)
    for out in range(4):
        before, after = base[2].weight[out, 1], target[2].weight[out, 1]
        change = (after - before).abs().sum().item()
        assert float(scores["2.weight"][out, 1]) == pytest.approx(change, rel=1e-12)
        assert float(relative["2.weight"][out, 1]) == pytest.approx(change / before.abs().sum().item(), rel=1e-12)


def test_relative_change_of_dead_kernels() -> None:
    base, target = nn.Conv2d(1, 2, 3).double(), nn.Conv2d(1, 2, 3).double()
    with torch.no_grad():
        base.weight.zero_()
        target.weight[0].zero_()
    scores = weight_change(FilterAttributor(base), base, target, relative=True)["weight"]
    assert scores.tolist() == [[0.0], [float("inf")]]


def test_weight_change_of_other_networks_is_refused_by_name() -> None:
    base = smooth_network()
    with pytest.raises(StateMismatchError, match=r"'0\.weight'.* do not"):
        weight_change(FilterAttributor(base), base, nn.Linear(2, 2))


@pytest.mark.parametrize("at", ["base", "target"])
def test_gradient_times_change_equals_plain_autograd(at: str) -> None:
    ends = {"base": smooth_network(), "target": smooth_network()}
    squared_sum(ends[at], image()).backward()
    scores = gradient_times_change(
        FilterAttributor(ends["base"]), ends["base"], ends["target"], squared_sum, [image()], at=at
    )
    change = ends["target"][0].weight - ends["base"][0].weight
    expected = (ends[at][0].weight.grad * change).abs().sum((2, 3))
    torch.testing.assert_close(scores["0.weight"], expected.detach(), rtol=1e-12, atol=1e-15)


def test_gradient_times_change_refuses_other_places() -> None:
    base = smooth_network()
    with pytest.raises(SettingError, match='at must be "target" or "base"'):
        gradient_times_change(FilterAttributor(base), base, base, squared_sum, [image()], at="middle")


def test_random_ranking_repeats_with_its_seed_and_shuffles_everything() -> None:
    base, target = smooth_network(), smooth_network()
    like = weight_change(FilterAttributor(base), base, target)
    first, again, other = (random_ranking(like, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.top(5) == again.top(5)
    assert first.to_index().tolist() != other.to_index().tolist()
