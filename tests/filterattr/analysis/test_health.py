"""The judgement of a path, and the checks that every attribution must pass; each check is seen to fail, too."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from filterattr import FilterAttribution, FilterAttributor, FilterAttrWarning, SettingError
from filterattr.analysis import Masking, PathHealth, SanityTable, path_health, per_sample_scores, sanity_checks
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
    assert "no barrier" not in " ".join(health.concerns)
    assert PathHealth.from_json(health.to_json()) == health
    assert health.to_frame()["loss"].iloc[0] == 3.0


def test_a_barrier_is_named_with_its_height() -> None:
    # from 2 over 4 at t = 1/2 to 0: 2 above the higher end, which differs by 2 from the lower one
    with pytest.warns(FilterAttrWarning, match=r"reasons to doubt .*: The loss rises on the way") as caught:
        attribution = along(lambda w: 2 - 2 * w + 12 * w * (1 - w))
    assert len(caught) == 1
    assert "The loss rises on the way" in repr(attribution)
    health = path_health(attribution)
    top = max(2 - 2 * t + 12 * t * (1 - t) for t in health.places)
    assert health.barrier == pytest.approx((top - 2) / 2)
    assert health.monotony == pytest.approx(2 / (top - 2 + top))
    assert any("not in one valley" in concern for concern in health.concerns)
    assert not health.is_healthy


def test_a_dip_below_both_ends_is_no_barrier_but_a_concern() -> None:
    health = path_health(along(lambda w: 2 - w - 12 * w * (1 - w)))
    assert health.barrier == 0.0
    assert any("up and down" in concern for concern in health.concerns)


def test_a_barrier_is_not_to_be_cured_by_more_steps() -> None:
    with pytest.warns(FilterAttrWarning, match="should sum to the loss change") as caught:
        attribution = along(lambda w: (2 - 2 * w + 12 * w * (1 - w)) + 0.3 * (40 * w).sin(), n_steps=3)
    said = (str(caught[0].message), str(path_health(attribution)), repr(attribution))
    assert all("rises on the way" in text for text in said)
    assert not any("more steps" in text for text in said)


def test_a_path_that_only_falls_is_not_warned_about() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        along(lambda w: 3 - 2 * w)


def test_a_target_that_is_not_better_is_warned_about() -> None:
    for loss in (lambda w: w, lambda w: 3 + w - w):
        with pytest.warns(FilterAttrWarning, match="reasons to doubt") as caught:
            attribution = along(lambda w, loss=loss: loss(w) + 1e-9 * w)
        assert len(caught) == 1
        assert "Target is not better than base on these samples (loss" in str(caught[0].message)
        assert "exchange base and target" in str(caught[0].message)
        assert "Target is not better than base" in repr(attribution)


def pair_of(turned: float) -> tuple[nn.Module, nn.Module]:
    """Two networks of two weights, the second better, with an angle between them."""
    base, target = (nn.Linear(2, 1, bias=False).double() for _ in range(2))
    with torch.no_grad():
        base.weight.copy_(torch.tensor([[1.0, 0.0]]))
        target.weight.copy_(torch.tensor([[math.cos(turned), math.sin(turned)]]))
    return base, target


@pytest.mark.parametrize(("cosine", "is_told"), [(0.014, True), (0.49, True), (0.51, False), (0.95, False)])
def test_ends_that_are_other_networks_are_warned_about(cosine: float, is_told: bool) -> None:
    base, target = pair_of(math.acos(cosine))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        FilterAttributor(base, unit="weight").attribute(base, target, lambda model: 2 - model.weight[0, 1])
    said = [str(one.message) for one in caught]
    assert [f"cosine {cosine:.2f}" in text for text in said] == [True] * is_told


def test_a_barrier_of_29_per_cent_and_a_cosine_of_a_hundredth_do_not_pass_in_silence() -> None:
    base, target = pair_of(math.acos(0.014))

    def loss(model: nn.Module) -> Tensor:  # from 1 to 0, and 1.29 on the way
        t = model.weight[0, 1] / math.sin(math.acos(0.014))
        return 1 - t + 2.8033 * t * (1 - t)

    with pytest.warns(FilterAttrWarning) as caught:
        attribution = FilterAttributor(base, unit="weight").attribute(base, target, loss, n_steps=64)
    (said,) = (str(one.message) for one in caught)
    for text in (said, repr(attribution), str(path_health(attribution))):
        assert "29%" in text, text
        assert "cosine 0.01" in text, text
    assert "not in one valley" in said
    assert "n_steps" not in said


def test_all_concerns_are_in_one_warning() -> None:
    base, target = pair_of(math.acos(-0.5))
    loss = lambda model: 1 + model.weight[0, 1] + 4 * (model.weight[0, 0] - model.weight[0, 0] ** 3)  # noqa: E731
    with pytest.warns(FilterAttrWarning) as caught:
        FilterAttributor(base, unit="weight").attribute(base, target, loss, n_steps=8)
    assert len(caught) == 1
    said = str(caught[0].message)
    assert all(part in said for part in ("cosine -0.50", "not in one valley")), said


def test_a_gap_does_not_hide_the_other_concerns() -> None:
    with pytest.warns(FilterAttrWarning, match="should sum to the loss change") as caught:
        along(lambda w: w + 0.1 * (40 * w).sin(), n_steps=2)
    assert len(caught) == 1
    assert "Target is not better than base" in str(caught[0].message)


def test_waypoints_may_lead_over_a_hill() -> None:
    model = nn.Linear(1, 1, bias=False).double()
    states = [{"weight": torch.full((1, 1), t, dtype=torch.float64)} for t in (1.0, 5.0, 2.0)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attribution = FilterAttributor(model).attribute(
            states[0],
            states[2],
            lambda network: (network.weight.sum() - 2) ** 2,
            waypoints=[states[1]],
        )
    assert any("rises on the way" in concern for concern in attribution.concerns)


def test_shares_are_of_absolute_values() -> None:
    """Signed attributions that cancel made 229 % of the attribution out of the biases."""
    base, target = nn.Linear(2, 1).double(), nn.Linear(2, 1).double()
    state = {"weight": base.weight.detach() + torch.tensor([[3.0, -1.0]]), "bias": base.bias.detach() - 1.5}
    for options in ({}, {"aggregate": "pooled"}, {"internal_batch_size": 2}, {"method": "adaptive"}):
        attribution = FilterAttributor(base).attribute(
            base, state, lambda model, x: model(x).sum(), [torch.ones(2, dtype=torch.float64)] * 4, **options
        )
        assert attribution.unscored_abs == pytest.approx(1.5)
        assert path_health(attribution).remainder_share == pytest.approx(1.5 / 5.5)
    assert target.weight.shape == base.weight.shape


class TestBuffers:
    def ends(self) -> tuple[nn.Module, nn.Module]:
        """Two networks that compute the same: the statistics and the scale both moved."""
        base = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, eps=0), nn.Conv2d(4, 1, 3)).double().eval()
        target = copy.deepcopy(base)
        with torch.no_grad():
            target[1].running_var.mul_(100)
            target[1].weight.mul_(10)
            target[2].bias.add_(1)
        return base, target

    @pytest.mark.parametrize("side", ["base", "target"])
    @pytest.mark.parametrize("options", [{}, {"internal_batch_size": 2}, {"method": "adaptive"}])
    def test_losses_of_the_true_ends_are_shown(self, side: str, options: dict[str, object]) -> None:
        base, target = self.ends()
        data = list(torch.rand(3, 1, 1, 8, 8, dtype=torch.float64))
        loss = lambda model, x: (model(x) - target(x).detach()).square().sum()  # noqa: E731
        true = [sum(loss(model, x).item() for x in data) / 3 for model in (base, target)]
        with pytest.warns(FilterAttrWarning, match="with their own"):
            attribution = FilterAttributor(copy.deepcopy(base), select="*").attribute(
                base, target, loss, data, buffers=side, **options
            )
        assert [attribution.true_loss_base, attribution.true_loss_target] == pytest.approx(true)
        assert "own buffers" in repr(attribution)
        health = path_health(attribution)
        assert (health.true_loss_base, health.true_loss_target) == (
            attribution.true_loss_base,
            attribution.true_loss_target,
        )
        assert any("buffers" in concern for concern in health.concerns)
        masking = Masking(base, base, target, loss, {"all": data})
        assert [masking.loss_base["all"], masking.loss_target["all"]] == pytest.approx(true)
        masking = Masking(base, base, target, loss, {"all": data}, buffers=side)
        ends = [attribution.loss_base, attribution.loss_target]
        assert [masking.loss_base["all"], masking.loss_target["all"]] == pytest.approx(ends)

    def test_equal_buffers_and_counters_cost_nothing(self) -> None:
        base, target = self.ends()
        target[1].running_var.copy_(base[1].running_var)
        calls: list[int] = []
        loss = lambda model: calls.append(0) or model(torch.ones(1, 1, 8, 8).double()).sum()  # noqa: E731
        counts = []
        for moved in (0, 5):
            target[1].num_batches_tracked.add_(moved)
            attribution = FilterAttributor(base).attribute(base, target, loss, buffers="target")
            assert attribution.true_loss_base is None
            counts.append(len(calls))
            calls.clear()
        assert counts[0] == counts[1]

    def test_a_result_with_true_ends_is_stored(self, tmp_path: Path) -> None:
        base, target = self.ends()
        attribution = FilterAttributor(base).attribute(
            base, target, lambda model: model(torch.ones(1, 1, 8, 8).double()).sum(), buffers="target", n_steps=4
        )
        attribution.save(tmp_path / "file")
        assert repr(FilterAttribution.load(tmp_path / "file")) == repr(attribution)


def test_pooled_results_say_what_they_have_not_seen() -> None:
    base, target = smooth_network(), smooth_network()
    attribution = FilterAttributor(base).attribute(
        base, target, squared_sum, [image(seed) for seed in range(16)], aggregate="pooled"
    )
    assert "nan" not in repr(attribution)
    assert "not seen at both ends" in repr(attribution)
    health = path_health(attribution)
    assert not health.is_seen
    assert str(health).startswith("A pooled attribution sees no sample at both ends")
    assert "no barrier" not in str(health)


def test_targets_that_are_no_better_and_far_ends_are_named() -> None:
    assert any("not better than base" in concern for concern in path_health(along(lambda w: w)).concerns)
    base, target = relu_network(), relu_network()
    attribution = FilterAttributor(base, select="0.weight").attribute(base, target, squared_sum, [image()], n_steps=64)
    health = path_health(attribution)
    assert any("cosine" in concern for concern in health.concerns)
    assert any("not scored" in concern for concern in health.concerns)
    everything = FilterAttributor(base, unit="weight", select="*").attribute(
        base, target, squared_sum, [image()], n_steps=64
    )
    sizes = {name: float(one.sum()) for name, one in everything.scores().items()}
    assert health.remainder_share == pytest.approx(1 - sizes["0.weight"] / sum(sizes.values()))


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


@pytest.mark.parametrize(
    ("layer", "is_named"),
    [
        (nn.Dropout(0.5), True),
        (nn.Dropout(0.0), False),
        (nn.Dropout(0.5).eval(), False),
        (nn.AlphaDropout(0.1), True),
        (nn.BatchNorm1d(3), True),
        (nn.BatchNorm1d(3, track_running_stats=False), False),
        (nn.BatchNorm1d(3).eval(), False),
        (nn.LayerNorm(3), False),
        (nn.RReLU(), True),
    ],
)
def test_modules_that_compute_as_in_training_are_named_once(layer: nn.Module, is_named: bool) -> None:
    base, target = (nn.Sequential(nn.Linear(3, 3), copy.deepcopy(layer)) for _ in range(2))
    data = list(torch.rand(2, 4, 3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        FilterAttributor(base).attribute(base, target, lambda model, x: model(x).square().mean(), data, n_steps=16)
    told = [str(one.message) for one in caught if "train mode" in str(one.message)]
    assert len(told) == is_named
    if told:
        assert f"'1' ({type(layer).__name__})" in told[0]
        assert "model.eval()" in told[0]
        assert caught[0].filename == __file__


def test_errors_that_are_summed_over_samples_are_told_as_such() -> None:
    """The mean of both samples is complete, as their errors cancel; the samples are not."""
    model = nn.Linear(1, 1, bias=False).double()
    ends = ({"weight": torch.full((1, 1), t, dtype=torch.float64)} for t in (0.0, 1.0))

    def loss(network: nn.Module, sign: float) -> torch.Tensor:
        return sign * network.weight.sum() ** 6 - network.weight.sum()

    with pytest.warns(FilterAttrWarning, match="of every sample; the relative error is") as caught:
        attribution = FilterAttributor(model).attribute(*ends, loss, [1.0, -1.0], n_steps=2)
    change = attribution.loss_target - attribution.loss_base
    assert attribution.total == pytest.approx(change)
    assert "over 2 samples, whose errors do not cancel" in str(caught[0].message)
    assert f"should sum to the loss change {change:.4g} but" not in str(caught[0].message)
