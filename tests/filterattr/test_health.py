"""The judgement of a path, and the checks that every attribution must pass; each check is seen to fail, too."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from filterattr import FilterAttributor, FilterAttrWarning, SettingError
from filterattr.analysis.health import PathHealth, SanityTable, path_health, sanity_checks
from filterattr.analysis.stability import per_sample_scores
from tests.networks import image, relu_network, smooth_network, squared_sum


def along(curve, n_steps: int = 16):
    """An attribution of a network of one weight that goes from 1 to 2, with any loss of the place in between."""
    model = nn.Linear(1, 1, bias=False).double()
    ends = ({"weight": torch.full((1, 1), t, dtype=torch.float64)} for t in (1.0, 2.0))
    return FilterAttributor(model).attribute(*ends, lambda network: curve(network.weight.sum() - 1), n_steps=n_steps)


def test_a_straight_fall_is_healthy() -> None:
    health = path_health(along(lambda w: 3 - 2 * w))
    assert health.is_healthy
    assert health.monotony == pytest.approx(1.0)
    assert health.barrier == 0.0
    assert "without a barrier" not in " ".join(health.concerns)
    assert PathHealth.from_json(health.to_json()) == health
    assert health.to_frame()["loss"].iloc[0] == 3.0


def test_a_barrier_is_named_with_its_height() -> None:
    # from 2 over 4 at t = 1/2 to 0: 2 above the higher end, which differs by 2 from the lower one
    health = path_health(along(lambda w: 2 - 2 * w + 12 * w * (1 - w)))
    top = max(2 - 2 * t + 12 * t * (1 - t) for t in health.places)
    assert health.barrier == pytest.approx((top - 2) / 2)
    assert health.monotony == pytest.approx(2 / (top - 2 + top))
    assert any("not in one valley" in concern for concern in health.concerns)
    assert not health.is_healthy


def test_a_dip_below_both_ends_is_no_barrier_but_a_concern() -> None:
    health = path_health(along(lambda w: 2 - w - 12 * w * (1 - w)))
    assert health.barrier == 0.0
    assert any("up and down" in concern for concern in health.concerns)


def test_targets_that_are_no_better_and_far_ends_are_named() -> None:
    assert any("not better than base" in concern for concern in path_health(along(lambda w: w)).concerns)
    base, target = relu_network(), relu_network()
    attribution = FilterAttributor(base, select="0.weight").attribute(base, target, squared_sum, [image()], n_steps=64)
    health = path_health(attribution)
    assert any("cosine" in concern for concern in health.concerns)
    assert any("not scored" in concern for concern in health.concerns)
    assert health.remainder_share == pytest.approx(attribution.remainder / attribution.total)


def test_equal_ends_have_no_barrier_to_speak_of() -> None:
    base = smooth_network()
    with pytest.warns(FilterAttrWarning, match="every attribution is 0"):
        health = path_health(FilterAttributor(base).attribute(base, base, squared_sum, [image()]))
    assert (health.barrier, health.monotony, health.remainder_share) == (0.0, 1.0, 0.0)


def test_every_check_holds_for_a_sound_loss() -> None:
    base, target = smooth_network(), smooth_network()
    attributor, data = FilterAttributor(base), [image(1), image(2)]
    before = [value.clone() for value in base.parameters()]
    functions = {name: [size * image(seed) for seed in range(6)] for name, size in (("small", 0.1), ("large", 3.0))}
    labelled = {
        name: per_sample_scores(attributor, base, target, squared_sum, samples, n_steps=4)
        for name, samples in functions.items()
    }
    table = sanity_checks(attributor, base, target, squared_sum, data, amount=5, labelled=labelled, tolerance=1e-9)
    # with six samples a fourth of a fiftieth of the signs are all equal, so that the p-value can be small
    assert [row.measured <= row.bound for row in table.entries[:4]] == [True] * 4
    assert table.entries[-1].measured < 0.1
    assert table.holds == all(row.holds for row in table.entries)
    assert SanityTable.from_json(table.to_json()) == table
    assert len(table.to_frame()) == 6
    for parameter, value in zip(base.parameters(), before, strict=True):
        assert torch.equal(parameter, value)


def test_one_sided_rules_fail_the_swap() -> None:
    base, target = smooth_network(), smooth_network()
    rows = sanity_checks(
        FilterAttributor(base), base, target, squared_sum, [image()], amount=5, method="riemann_left", n_steps=1
    ).entries
    assert not rows[0].holds
    assert rows[1].holds
    assert rows[2].holds
    assert rows[3].holds


def test_labels_that_mean_nothing_fail_and_three_functions_are_refused() -> None:
    base, target = smooth_network(), smooth_network()
    attributor = FilterAttributor(base)
    samples = per_sample_scores(attributor, base, target, squared_sum, [image(seed) for seed in range(6)], n_steps=4)
    other = per_sample_scores(attributor, base, target, squared_sum, [image(seed) for seed in range(6, 12)], n_steps=4)
    arguments = (attributor, base, target, squared_sum, [image()])
    row = sanity_checks(*arguments, amount=5, labelled={"a": samples, "b": other}).entries[-1]
    assert not row.holds
    with pytest.raises(SettingError, match="two functions"):
        sanity_checks(*arguments, amount=5, labelled={"a": samples})


def test_a_number_that_is_none_is_not_inside_its_bound() -> None:
    base = nn.Linear(1, 1)
    with pytest.warns(FilterAttrWarning, match="every attribution is 0"):
        table = sanity_checks(
            FilterAttributor(base), base, base, lambda model, x: model(x).sum(), [torch.ones(1)], amount=1
        )
    assert math.isnan(table.entries[0].measured)
    assert not table.holds
