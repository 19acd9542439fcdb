"""Masking: what is lost when chosen units go back to base."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from filterattr import FilterAttributor, FilterScores, FilterSelection, LossError, SettingError
from filterattr.analysis import (
    Estimate,
    Intervention,
    Masking,
    compare_rankings,
    mask_curve,
    modulation,
    null_curve,
    p_value,
    specificity,
    weight_change,
)
from tests.networks import image, relu_network, squared_sum
from tests.reference.slow_analysis import mean_loss, with_kernels


@pytest.fixture
def masking() -> Masking:
    torch.manual_seed(1)
    base, target = relu_network(), relu_network()
    return Masking(base, base, target, squared_sum, {"one": [image(1)], "two": [image(2), image(3)]})


def test_masking_nothing_and_everything(masking: Masking) -> None:
    model = relu_network()
    scores = (
        FilterAttributor(model, select="*")
        .attribute(masking.base, masking.target, squared_sum, [image()], n_steps=64)
        .scores()
    )
    assert masking.removed(scores.top(0.0)) == {"one": 0.0, "two": 0.0}
    assert masking.removed(scores.top(1.0)) == pytest.approx({"one": 1.0, "two": 1.0}, abs=1e-12)
    assert masking.removed(scores.top(1.0), strength=1.0) == {"one": 0.0, "two": 0.0}


def test_share_equals_its_formula(masking: Masking) -> None:
    model = relu_network()
    scores = (
        FilterAttributor(model).attribute(masking.base, masking.target, squared_sum, [image()], n_steps=64).scores()
    )
    selection = scores.top(0.2)
    masked = relu_network()
    masked.load_state_dict(masking.masked(selection))
    base, target = relu_network(), relu_network()
    base.load_state_dict(masking.base)
    target.load_state_dict(masking.target)

    def loss(network: nn.Module) -> float:
        return sum(squared_sum(network, image(seed)).item() for seed in (2, 3)) / 2

    expected = (loss(masked) - loss(target)) / (loss(base) - loss(target))
    assert masking.removed(selection)["two"] == pytest.approx(expected, rel=1e-12)


def test_the_model_is_untouched(masking: Masking) -> None:
    before = {name: value.clone() for name, value in masking.model.state_dict().items()}
    masking.losses_of(masking.target)
    for name, value in masking.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_functions_without_samples_are_refused_by_name() -> None:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return model(x).sum()

    with pytest.raises(SettingError, match="'noise' holds none"):
        Masking(nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1), loss, {"blur": [torch.ones(1)], "noise": []})


def test_equal_losses_have_no_share() -> None:
    base = relu_network()
    masking = Masking(base, base, base, squared_sum, {"one": [image()]})
    assert masking.share_removed("one", 1.0) != masking.share_removed("one", 1.0)


def test_p_value_counts_draws_that_do_as_well() -> None:
    assert p_value(1.0, [0.0] * 29) == pytest.approx(1 / 30)
    assert p_value(0.5, [0.5, 0.6, 0.1]) == pytest.approx(3 / 4)


@pytest.fixture
def ends() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(4)
    return relu_network(), relu_network()


def towards(model: nn.Module, sample: tuple[Tensor, Tensor]) -> Tensor:
    """Distance to what target puts out, but for a little noise: target is better than base on it."""
    return (model(sample[0]) - sample[1]).square().sum()


@pytest.fixture
def held_out(ends) -> Masking:
    base, target = ends
    generator = torch.Generator().manual_seed(9)

    def sample(seed: int, scale: float) -> tuple[Tensor, Tensor]:
        shown = scale * image(seed)
        with torch.no_grad():
            answer = target(shown)
        return shown, answer + 0.01 * torch.randn(answer.shape, dtype=answer.dtype, generator=generator)

    data = {"one": [sample(seed, 1.0) for seed in range(6)], "two": [sample(seed, -2.0) for seed in range(6)]}
    return Masking(base, base, target, towards, data)


@pytest.fixture
def scores(ends) -> FilterScores:
    return weight_change(FilterAttributor(ends[0]), *ends)


def chosen_kernels(selection: FilterSelection) -> list[tuple[str, int, int]]:
    return [(name, o, i) for name, marked in selection.items() for o, i in marked.nonzero().tolist()]


@pytest.mark.parametrize("intervention", ["mask", "graft"])
@pytest.mark.parametrize("order", ["most", "least"])
def test_curves_equal_copies_of_networks(held_out, ends, scores, intervention, order) -> None:
    base, target = ends
    curve = mask_curve(
        held_out, scores, ranking="change", intervention=intervention, order=order, fractions=(0, 0.1, 0.4, 1)
    )
    start, other = (target, base) if intervention == "mask" else (base, target)
    losses = [mean_loss(end, towards, held_out.data["two"]) for end in (start, other)]
    ordered = scores if order == "most" else -scores
    for place, fraction in enumerate(curve.fractions):
        network = with_kernels(start, other, chosen_kernels(ordered.top(fraction)))
        loss = mean_loss(network, towards, held_out.data["two"])
        assert curve.losses["two"][place].value == pytest.approx(loss, rel=1e-9)
        share = (loss - losses[0]) / (losses[1] - losses[0])
        assert curve.shares["two"][place].value == pytest.approx(share, rel=1e-9, abs=1e-12)
        assert curve.shares["two"][place].low <= curve.shares["two"][place].value <= curve.shares["two"][place].high
    assert curve.counts == tuple(scores.top(fraction).count for fraction in curve.fractions)
    assert type(curve).from_json(curve.to_json()) == curve
    assert len(curve.to_frame()) == 8


def test_the_interval_of_a_share_equals_a_loop_over_draws(held_out, scores) -> None:
    bootstrap = held_out.bootstrap(draws=40, confidence=0.9)
    curve = mask_curve(held_out, scores, ranking="change", fractions=(0.2,), bootstrap=bootstrap)
    masked = held_out.sample_losses(held_out.masked(scores.top(0.2)))["one"]
    base, target = held_out.samples_base["one"], held_out.samples_target["one"]
    drawn = []
    for draw in range(40):
        one_hot = [bootstrap.means("one", np.eye(6)[k])[draw] * 6 for k in range(6)]
        picks = [k for k in range(6) for _ in range(round(one_hot[k]))]
        assert len(picks) == 6
        means = [sum(losses[k] for k in picks) / 6 for losses in (masked, base, target)]
        drawn.append((means[0] - means[2]) / (means[1] - means[2]))
    assert curve.shares["one"][0].low == pytest.approx(float(np.quantile(drawn, 0.05)), rel=1e-9)
    assert curve.shares["one"][0].high == pytest.approx(float(np.quantile(drawn, 0.95)), rel=1e-9)


@pytest.mark.parametrize("null", ["random", "layer-matched"])
def test_nulls_draw_as_many_units_and_count_those_that_do_as_well(held_out, scores, null, generator) -> None:
    found = null_curve(
        held_out, scores, generator, ranking="change", null=null, fractions=(0.1, 0.5), draws=5, progress=False
    )
    assert found.n_draws == 5
    assert found.counts == (scores.top(0.1).count, scores.top(0.5).count)
    again = torch.Generator().manual_seed(0)
    drawn = scores.top(0.1).random(again, layer_matched=null == "layer-matched")
    assert found.shares["one"][0][0] == pytest.approx(held_out.removed(drawn)["one"], rel=1e-12)
    curve = mask_curve(held_out, scores, ranking="change", fractions=(0.1, 0.5))
    for fraction, p in enumerate(found.p_values(curve, "one")):
        better = sum(value >= curve.shares["one"][fraction].value for value in found.shares["one"][fraction])
        assert p == pytest.approx((1 + better) / 6)
    (band, _) = found.bands("one", 0.5)
    values = found.shares["one"][0]
    assert band.mean == pytest.approx(sum(values) / 5)
    assert band.sd == pytest.approx(math.sqrt(sum((value - band.mean) ** 2 for value in values) / 4))
    assert sorted(values)[1] == pytest.approx(band.low)
    assert type(found).from_json(found.to_json()) == found


def test_a_graft_null_is_of_grafts(held_out, scores, generator) -> None:
    found = null_curve(held_out, scores, generator, ranking="x", intervention="graft", fractions=(0.5,), draws=2)
    drawn = scores.top(0.5).random(torch.Generator().manual_seed(0))
    brought = 1 - held_out.share_removed("one", held_out.losses_of(held_out.grafted(drawn))["one"])
    assert found.shares["one"][0][0] == pytest.approx(brought, rel=1e-12)
    with pytest.raises(SettingError, match="it is a mask and lacks none"):
        found.p_values(mask_curve(held_out, scores, ranking="x", fractions=(0.5,)), "one")


def two_branches() -> tuple[nn.Module, nn.Module, dict[str, list[Tensor]]]:
    """Two outputs, each computed by its own weight: functions that are known by construction."""
    base, target = nn.Linear(2, 2, bias=False).double(), nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        base.weight.zero_()
        target.weight.copy_(torch.eye(2))
    generator = torch.Generator().manual_seed(0)
    sizes = 1 + torch.rand(8, dtype=torch.float64, generator=generator)
    return base, target, {
        "first": [torch.tensor([[float(s), 0.1]], dtype=torch.float64) for s in sizes],
        "second": [torch.tensor([[0.1, float(s)]], dtype=torch.float64) for s in sizes],
    }  # fmt: skip


def copying(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) - x).square().sum()


def one_weight(place: int, like: FilterScores) -> FilterSelection:
    flat = torch.zeros(4, dtype=torch.bool)
    flat[place] = True
    return FilterSelection({"weight": flat.reshape(2, 2)}, like.parameters)


def test_known_functions_are_diagonal_dominant_and_swapped_sets_are_not() -> None:
    base, target, data = two_branches()
    like = weight_change(FilterAttributor(base), base, target)
    masking = Masking(base, base, target, copying, {**data, "rest": [torch.ones(1, 2, dtype=torch.float64)] * 3})
    sets = {"first": one_weight(0, like), "second": one_weight(3, like)}
    matrix = specificity(masking, sets)
    assert matrix.is_diagonal_dominant
    energy = sum(float(x[0, 0]) ** 2 for x in data["first"]), sum(float(x.square().sum()) for x in data["first"])
    assert matrix.shares["first"]["first"].value == pytest.approx(energy[0] / energy[1])
    assert matrix.shares["first"]["rest"].value == pytest.approx(0.5)
    margin = matrix.shares["first"]["first"].value - matrix.shares["first"]["second"].value
    assert matrix.row_margins["first"]["second"].value == pytest.approx(margin)
    column = matrix.shares["first"]["first"].value - matrix.shares["second"]["first"].value
    assert matrix.column_margins["first"]["second"].value == pytest.approx(column)
    assert type(matrix).from_json(matrix.to_json()) == matrix
    assert len(matrix.to_frame()) == 6
    swapped_sets = specificity(masking, {"first": sets["second"], "second": sets["first"]})
    assert not swapped_sets.is_row_dominant
    assert not swapped_sets.is_column_dominant


def test_modulation_follows_its_closed_form() -> None:
    base, target, data = two_branches()
    like = weight_change(FilterAttributor(base), base, target)
    dial = modulation(Masking(base, base, target, copying, data), one_weight(0, like), function="first")
    whole = dial.shares["first"][0].value
    assert [share.value for share in dial.shares["first"]] == pytest.approx(
        [whole * (1 - s) ** 2 for s in dial.strengths]
    )
    assert dial.is_monotone()
    assert dial.is_monotone("second")
    worse = Masking(base, target, base, copying, data)  # its "target" is the one that cannot copy
    assert not modulation(worse, one_weight(0, like), function="first").is_monotone()
    assert 0 < dial.flatness("second") < 0.02 < dial.flatness("first")
    assert dial.steps["first"][0].value == pytest.approx(dial.shares["first"][1].value - whole)
    assert type(dial).from_json(dial.to_json()) == dial
    assert len(dial.to_frame()) == 14


def test_rankings_are_held_against_the_reference() -> None:
    base, target, data = two_branches()
    attributor = FilterAttributor(base)
    good = {name: attributor.attribute(base, target, copying, data[name]).scores() for name in data}
    bad = {name: -scores for name, scores in good.items()}
    table = compare_rankings(
        Masking(base, base, target, copying, data),
        {"bad": bad, "good": good},
        reference="good",
        fractions=(0.25,),
        n_passes={"good": 128},
    )
    assert [(row.ranking, row.function) for row in table.entries] == [
        ("good", "first"), ("bad", "first"), ("good", "second"), ("bad", "second"),
    ]  # fmt: skip
    first, worse = table.entries[:2]
    assert (first.n_passes, worse.n_passes) == (128, 0)
    assert first.advantage == Estimate(0.0, 0.0, 0.0)
    assert worse.advantage.value == pytest.approx(worse.shares["first"].value - first.shares["first"].value)
    assert worse.advantage.is_negative
    assert first.specificity.value == pytest.approx(first.shares["first"].value - first.shares["second"].value)
    assert table.not_beaten() == ()
    assert type(table).from_json(table.to_json()) == table
    assert len(table.to_frame()) == 4
    reverse = compare_rankings(
        Masking(base, base, target, copying, data), {"bad": bad, "good": good}, reference="bad", fractions=(0.25,)
    )
    assert len(reverse.not_beaten()) == 2


def test_impossible_settings_are_refused(held_out, scores, generator) -> None:
    with pytest.raises(SettingError, match="fractions must ascend"):
        mask_curve(held_out, scores, ranking="x", fractions=(0.5, 0.1))
    with pytest.raises(SettingError, match="at least 2 draws"):
        null_curve(held_out, scores, generator, ranking="x", draws=1)
    with pytest.raises(SettingError, match="at least two sets"):
        specificity(held_out, {"one": scores.top(1)})
    with pytest.raises(SettingError, match="two ascending strengths"):
        modulation(held_out, scores.top(1), function="three")
    with pytest.raises(SettingError, match="'b' lacks 'one'"):
        compare_rankings(held_out, {"a": {"one": scores}, "b": {}}, reference="a")


def test_randomness_in_the_loss_is_the_same_for_all_networks_and_not_the_callers(ends) -> None:
    def noisy(model: nn.Module, x: Tensor) -> Tensor:
        return (model(x) + torch.randn(1)).square().sum()

    state = torch.get_rng_state()
    masking = Masking(ends[0], *ends, noisy, {"one": [image(1), image(2)]})
    assert masking.losses_of(masking.target) == masking.loss_target
    assert torch.equal(torch.get_rng_state(), state)


def test_losses_per_row_of_a_batch_are_samples_of_their_own(held_out, ends, scores) -> None:
    def by_row(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (model(batch[0]) - batch[1]).square().sum((1, 2, 3))

    data = held_out.data
    batches = {name: [tuple(map(torch.cat, zip(*data[name], strict=True)))] for name in data}
    batched = Masking(ends[0], *ends, by_row, batches)
    assert batched.n_samples == {"one": 6, "two": 6}
    alone, together = (mask_curve(one, scores, ranking="x", fractions=(0.2,)) for one in (held_out, batched))
    for name in data:
        first, second = alone.shares[name][0], together.shares[name][0]
        assert (first.value, first.low, first.high) == pytest.approx((second.value, second.low, second.high), rel=1e-9)
    with pytest.raises(LossError, match=r"one number per row of a batch; got shape \(6, 1"):
        Masking(ends[0], *ends, lambda model, batch: model(batch[0]), batches)


class Stateful(nn.Module):
    """Layouts, a transposed unit, a norm in train mode, a tied pair and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.tied = self.second
        self.double().to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(torch.tanh(nn.functional.dropout(self.second(self.norm(self.first(x))), 0.2)))


UNITS = {
    "weights": "... -> ...",
    "kernels": "kernel",
    "filters": "filter",
    "transposed": {"first.weight": "o i h w -> i o w h", "second.weight": "o i h w -> i o h w", "*": "... -> ..."},
    "layers": "layer",
}


@pytest.mark.parametrize("intervention", ["mask", "graft"])
@pytest.mark.parametrize("unit", UNITS)
def test_a_changing_network_is_the_network_with_the_selected_units_of_the_other_end(
    unit: str, intervention: Intervention
) -> None:
    torch.manual_seed(0)
    model, base, target = Stateful(), Stateful(), Stateful()
    data = {"one": [torch.rand(2, 1, 6, 6).double() for _ in range(2)]}
    masking = Masking(model, base, target, squared_sum, data)
    like = FilterAttributor(model, unit=UNITS[unit], select="*").scored_parameters()
    shapes = {name: scored.units_shape for name, scored in like.items()}
    network = masking.changing(intervention)
    generator = torch.Generator().manual_seed(0)
    outside, inside = (target, base) if intervention == "mask" else (base, target)
    for _ in range(4):
        chosen = FilterSelection(
            {name: torch.rand(shape, generator=generator) < 0.4 for name, shape in shapes.items()}, like
        )
        expected = copy.deepcopy(outside)
        with torch.no_grad():
            for name, weights in expected.named_parameters():
                marked = chosen.weights()[name]
                weights.copy_(torch.where(marked, dict(inside.named_parameters())[name], weights))
        losses = []
        for seed, sample in enumerate(data["one"]):
            torch.manual_seed(seed)
            losses.append(squared_sum(expected, sample).item())
        assert network.sample_losses(chosen)["one"].tolist() == losses


def test_a_changing_network_leaves_the_model_alone_between_selections(masking: Masking) -> None:
    before = {name: value.clone() for name, value in masking.model.state_dict().items()}
    scores = weight_change(FilterAttributor(masking.model), masking.base, masking.target)
    network = masking.changing()
    for amount in (0.1, 0.5):
        network.sample_losses(scores.top(amount))
        assert all(torch.equal(before[name], value) for name, value in masking.model.state_dict().items())


def test_a_changing_network_refuses_units_of_another_kind(masking: Masking) -> None:
    network = masking.changing()
    for unit in ("kernel", "filter"):
        scores = weight_change(FilterAttributor(masking.model, unit=unit), masking.base, masking.target)
        if unit == "kernel":
            network.sample_losses(scores.top(0.1))
    with pytest.raises(SettingError, match="same units"):
        network.sample_losses(scores.top(0.1))
