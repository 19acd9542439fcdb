"""Budgets spend no more than a uniform one, in proportion to contributions; masks run in PyTorch's pruning."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from filterattr import FilterAttributor, FilterScores, ScoredParameter, SettingError, Unit, blend
from filterattr.analysis import (
    Budget,
    layer_shares,
    lora_ranks,
    pruning_masks,
    select_units,
    units_to_train,
    weight_change,
)
from tests.networks import image, relu_network, smooth_network, squared_sum


def scores_of(contributions: dict[str, float], shapes: dict[str, tuple[int, ...]]) -> FilterScores:
    like = {name: ScoredParameter(Unit("o i -> o"), shape) for name, shape in shapes.items()}
    return FilterScores(
        {name: torch.full((shapes[name][0],), value / shapes[name][0]) for name, value in contributions.items()}, like
    )


SHAPES = {"a": (4, 6), "b": (8, 8), "c": (3, 5)}


def test_ranks_spend_at_most_the_uniform_budget_and_waste_less_than_a_step() -> None:
    for first, second in product((0.1, 1.0, 5.0), repeat=2):
        budget = lora_ranks(scores_of({"a": first, "b": second, "c": 1.0}, SHAPES), 2)
        assert budget.uniform_total == 2 * (10 + 16 + 8)
        assert budget.total <= budget.uniform_total
        open_steps = [
            entry.step for entry in budget.entries if entry.amount < min(SHAPES[entry.name])
        ]  # fmt: skip
        assert budget.uniform_total - budget.total < min(open_steps)


def test_ranks_follow_dhondts_rule_written_as_a_sorted_list() -> None:
    scores = scores_of({"a": 3.0, "b": 5.0, "c": 0.5}, dict.fromkeys("abc", (8, 8)))
    budget = lora_ranks(scores, 3)
    claims = sorted(
        ((share / seat, name) for name, share in layer_shares(scores).items() for seat in range(1, 9)), reverse=True
    )
    won = [name for _, name in claims[:9]]
    assert budget.amounts() == {name: won.count(name) for name in "abc"}
    assert Budget.from_json(budget.to_json()) == budget
    assert budget.to_frame()["parameters"].sum() == budget.total


def test_limits_are_kept_and_nothing_is_spent_on_layers_that_do_nothing() -> None:
    scores = scores_of({"a": 100.0, "b": 1.0, "c": 0.0}, SHAPES)
    assert lora_ranks(scores, 2).amounts()["a"] == 4  # its full rank
    assert lora_ranks(scores, 2).amounts()["c"] == 0
    limited = lora_ranks(scores, 2, least=1, most=3).amounts()
    assert limited["a"] == 3
    assert limited["c"] == 1
    with pytest.raises(SettingError, match="smallest amount"):
        lora_ranks(scores, 1, least=2)
    with pytest.raises(SettingError, match="'a', 'b', 'c' have fewer"):
        lora_ranks(
            FilterScores({n: torch.ones(2) for n in "abc"}, {n: ScoredParameter(Unit("o -> o"), (2,)) for n in "abc"}),
            1,
        )


def test_equal_contributions_give_the_uniform_budget() -> None:
    shapes = dict.fromkeys("abc", (8, 8))
    budget = lora_ranks(scores_of(dict.fromkeys("abc", 1.0), shapes), 3)
    assert budget.amounts() == dict.fromkeys("abc", 3)
    assert layer_shares(scores_of(dict.fromkeys("abc", 0.0), shapes)) == pytest.approx(dict.fromkeys("abc", 1 / 3))


def test_units_are_spent_by_an_attribution_and_selected_inside_each_layer() -> None:
    base, target = smooth_network(), smooth_network()
    attribution = FilterAttributor(base).attribute(base, target, squared_sum, [image()])
    budget = units_to_train(attribution, 0.3)
    assert budget.total <= budget.uniform_total
    selection = select_units(attribution.scores(), budget)
    assert selection.per_layer() == budget.amounts()
    chosen, scores = selection["2.weight"], attribution.scores()["2.weight"]
    if 0 < chosen.sum() < chosen.numel():
        assert float(scores[chosen].min()) >= float(scores[~chosen].max())
    marked = sum(int(tensor.sum()) for tensor in selection.weights().values())
    assert marked == budget.total
    with pytest.raises(SettingError, match="it is of rank"):
        select_units(attribution.scores(), lora_ranks(attribution, 1))
    with pytest.raises(SettingError, match="fraction must lie"):
        units_to_train(attribution, 1.5)


def test_pruning_with_the_masks_equals_putting_the_units_to_zero() -> None:
    base, target = relu_network(), relu_network()
    selection = weight_change(FilterAttributor(base), base, target).top(0.3)
    zeros = {name: torch.zeros_like(value) for name, value in target.state_dict().items()}
    expected = relu_network()
    expected.load_state_dict(blend(target, zeros, selection))
    for name, mask in pruning_masks(selection).items():
        module, _, local = name.rpartition(".")
        prune.custom_from_mask(target.get_submodule(module), local, mask)
    torch.testing.assert_close(target(image()), expected(image()), rtol=0, atol=0)
    assert all(
        torch.equal(mask, ~other)
        for mask, other in zip(
            pruning_masks(selection).values(), pruning_masks(selection, keep=True).values(), strict=True
        )
    )
    assert isinstance(target[0], nn.Conv2d)
    assert prune.is_pruned(target)
