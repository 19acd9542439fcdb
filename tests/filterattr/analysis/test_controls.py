"""Controls keep what they promise to keep, and change the rest."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from filterattr import FilterAttributor, FilterSelection, SettingError, StateMismatchError, blend
from filterattr.analysis import magnitude, scrambled, shuffled_edges, with_biases
from tests.networks import smooth_network


@pytest.fixture
def target() -> nn.Module:
    return smooth_network()


@pytest.fixture
def selection(target) -> FilterSelection:
    return magnitude(FilterAttributor(target), target).top(0.6)


def kernels(state, selection: FilterSelection) -> dict[str, list[list[float]]]:
    """Chosen kernels of plain and grouped convolutions, sorted."""
    return {
        name: sorted(state[name][o, i].reshape(-1).tolist() for o, i in selection[name].nonzero().tolist())
        for name in ("0.weight", "2.weight", "6.weight")
    }


def test_permuting_keeps_the_kernels_and_everything_outside(target, selection, generator) -> None:
    before = target.state_dict()
    after = scrambled(target, selection, "permute", generator)
    assert kernels(after, selection) == kernels(before, selection)
    assert not torch.equal(after["2.weight"], before["2.weight"])
    for name, marked in selection.weights().items():
        assert torch.equal(after[name][~marked], before[name][~marked])
    assert torch.equal(after["0.bias"], before["0.bias"])


def test_permuting_respects_the_layout_of_transposed_layers(target, generator) -> None:
    channels = magnitude(FilterAttributor(target, unit="filter"), target).top(1.0)
    after = scrambled(target, channels, "permute", torch.Generator().manual_seed(3))["4.weight"]
    before = target[4].weight.detach()
    assert torch.equal(after, before) or torch.equal(after, before.flip(1))
    swaps = [not torch.equal(scrambled(target, channels, "permute", generator)["4.weight"], before) for _ in range(8)]
    assert any(swaps)


def test_flipping_turns_about_half_of_the_signs_of_whole_units(target, generator) -> None:
    everything = magnitude(FilterAttributor(target), target).top(1.0)
    after, before = scrambled(target, everything, "flip", generator)["2.weight"], target[2].weight.detach()
    ratio = (after / before).flatten(2)
    assert torch.equal(ratio, ratio[:, :, :1].expand_as(ratio))
    assert set(ratio.unique().tolist()) == {-1.0, 1.0}


def test_scrambling_refuses_other_networks_and_ways(target, selection, generator) -> None:
    with pytest.raises(SettingError, match="how must be"):
        scrambled(target, selection, "rotate", generator)
    with pytest.raises(StateMismatchError, match=r"'0\.weight'"):
        scrambled(nn.Linear(1, 1), selection, "flip", generator)


def test_edges_are_shuffled_with_all_degrees_kept(generator) -> None:
    layer = nn.Conv2d(12, 16, 3)
    chosen = magnitude(FilterAttributor(layer), layer).top(0.3)
    shuffled = shuffled_edges(chosen, generator)
    first, second = chosen["weight"], shuffled["weight"]
    assert torch.equal(first.sum(0), second.sum(0))
    assert torch.equal(first.sum(1), second.sum(1))
    assert chosen.jaccard(shuffled) < 0.6
    assert shuffled_edges(chosen, torch.Generator().manual_seed(0)) == shuffled_edges(
        chosen, torch.Generator().manual_seed(0)
    )


def test_edges_reach_every_graph_of_the_same_degrees_about_equally_often(generator) -> None:
    layer = nn.Conv2d(3, 3, 1)
    chosen = FilterSelection(
        {"weight": torch.eye(3, dtype=torch.bool)}, magnitude(FilterAttributor(layer), layer).parameters
    )
    counts: dict[str, int] = {}
    for _ in range(600):
        key = str(shuffled_edges(chosen, generator)["weight"].int().tolist())
        counts[key] = counts.get(key, 0) + 1
    # the six permutation matrices, 100 times each; 5 sd are 46
    assert len(counts) == 6
    assert min(counts.values()) > 54
    assert max(counts.values()) < 146


def test_channels_are_masked_with_their_biases(target) -> None:
    base = smooth_network()
    channels = magnitude(FilterAttributor(target, unit="filter"), target).top(4)
    masked = blend(target, base, with_biases(channels, target))
    for name in ("0", "2", "4", "6"):
        marked = channels[f"{name}.weight"]
        expected = torch.where(marked, base.get_parameter(f"{name}.bias"), target.get_parameter(f"{name}.bias"))
        assert torch.equal(masked[f"{name}.bias"], expected)
    with pytest.raises(SettingError, match="must be of output channels"):
        with_biases(magnitude(FilterAttributor(target), target).top(4), target)


def test_layers_without_a_bias_stay_as_they_are() -> None:
    layer = nn.Linear(2, 3, bias=False)
    channels = magnitude(FilterAttributor(layer, unit="filter"), layer).top(1)
    assert with_biases(channels, layer) == channels
