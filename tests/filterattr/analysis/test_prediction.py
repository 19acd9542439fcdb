"""Which function an input calls on, in a network whose functions are known by construction."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from filterattr import FilterAttributor, FilterAttrWarning, FilterSelection, SettingError, contrast
from filterattr.analysis import (
    UNSURE,
    Calibration,
    Confusion,
    FunctionPredictor,
    Signals,
    confusion,
    largest_wins,
    wilson,
)
from tests.reference.slow_analysis import wilson_ends

SIZE = 6


class Branches(nn.Module):
    """Cleans the first half of its input by its first layer's even rows, the second half by the odd ones."""

    def __init__(self) -> None:
        super().__init__()
        self.clean = nn.Linear(2, SIZE, bias=False)
        self.merge = nn.Linear(SIZE, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.merge(self.clean(x).tanh())


def networks() -> tuple[nn.Module, nn.Module]:
    base, target = Branches().double(), Branches().double()
    with torch.no_grad():
        for network, gain in ((base, 0.1), (target, 1.0)):
            network.clean.weight.zero_()
            network.merge.weight.zero_()
            for row in range(SIZE):
                network.clean.weight[row, row % 2] = gain * (1 + row / SIZE)
                network.merge.weight[row % 2, row] = 1.0
    return base, target


def inputs(which: str, count: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    strong, weak = (
        0.5 + torch.rand(count, 1, 1, generator=generator),
        0.05 * torch.randn(count, 1, 1, generator=generator),
    )
    parts = {"first": (strong, weak), "second": (weak, strong), "both": (strong, strong)}[which]
    return list(torch.cat(parts, 2).double())


def found_sets(base: nn.Module, target: nn.Module, attributor: FilterAttributor) -> dict[str, FilterSelection]:
    with torch.no_grad():
        pairs = {name: [(x, target(x)) for x in inputs(name, 4, 0)] for name in ("first", "second")}
    scores = {
        name: attributor.attribute(
            base, target, lambda m, pair: (m(pair[0]) - pair[1]).square().sum(), pairs[name]
        ).scores()
        for name in pairs
    }
    return {name: contrast(scores, name).top(3) for name in scores}


@pytest.fixture(scope="module")
def predictor() -> FunctionPredictor:
    base, target = networks()
    attributor = FilterAttributor(target, unit="filter", select="clean.*")
    return FunctionPredictor(attributor, base, target, found_sets(base, target, attributor))


def test_the_known_units_are_discovered(predictor) -> None:
    assert predictor.sets["first"]["clean.weight"].tolist() == [True, False] * 3
    assert predictor.sets["second"]["clean.weight"].tolist() == [False, True] * 3


@pytest.mark.parametrize("read_out", ["overlap", "mass", "response"])
def test_every_read_out_names_the_function_without_labels(predictor, read_out: str) -> None:
    signals = predictor.signals_of({name: inputs(name, 6, 1) for name in ("first", "second")}, progress=False)
    found = confusion(signals, lambda one: largest_wins(one, read_out), method=read_out)
    assert found.accuracy.value == 1.0
    assert found.counts == {
        "first": {"first": 6, "second": 0, UNSURE: 0},
        "second": {"first": 0, "second": 6, UNSURE: 0},
    }


def test_read_outs_equal_their_formulas(predictor) -> None:
    base, target = networks()
    (x,) = inputs("first", 1, 2)
    signals = predictor.signals(x)
    with torch.no_grad():
        wanted = target(x)
        masked = networks()[1]
        masked.clean.weight[0::2] = base.clean.weight[0::2]
        apart = float((base(x) - wanted).square().sum())
        assert signals.response["first"] == pytest.approx(float((masked(x) - wanted).square().sum()) / apart)
    scores = FilterAttributor(target, unit="filter", select="clean.*").attribute(
        base, target, lambda model: (model(x) - wanted).square().sum(), n_steps=8
    ).scores()["clean.weight"]  # fmt: skip
    assert signals.mass["first"] == pytest.approx(float(scores[0::2].sum() / scores.sum()))
    assert signals.overlap["first"] == len(set(scores.argsort(descending=True)[:3].tolist()) & {0, 2, 4}) / 3
    assert Signals.from_json(signals.to_json()) == signals
    assert signals.to_frame()["function"].tolist() == ["first", "second"]


def test_other_answers_and_distances_can_be_given(predictor) -> None:
    base, target = networks()
    own = FunctionPredictor(
        predictor.attributor, base, target, predictor.sets,
        respond=lambda model, sample: {"out": model(sample["x"])},
        distance=lambda answer, reference: 3 * (answer["out"] - reference["out"]).square().sum(),
    )  # fmt: skip
    (x,) = inputs("second", 1, 3)
    first, second = own.signals({"x": x}), predictor.signals(x)
    assert first.overlap == second.overlap
    assert first.mass == pytest.approx(second.mass)
    assert first.response == pytest.approx(second.response)


def test_calibration_learns_a_class_without_a_set_and_says_unsure_in_between(predictor) -> None:
    names = ("first", "second", "both")
    learnt = predictor.signals_of({name: inputs(name, 10, 4) for name in names})
    calibration = Calibration.fit(learnt, penalty=0.01, unsure_below=0.6)
    tested = predictor.signals_of({name: inputs(name, 10, 5) for name in names})
    found = confusion(tested, calibration.predict, method="calibrated")
    assert found.accuracy.value >= 0.9
    assert Calibration.from_json(calibration.to_json()) == calibration
    assert Confusion.from_json(found.to_json()) == found
    assert len(found.to_frame()) == 12
    assert len(calibration.to_frame()) == 18
    strict = replace(calibration, unsure_below=0.9999)
    cautious = confusion(tested, strict.predict, method="strict")
    assert cautious.unsure_share.value > 0.5
    assert cautious.accuracy.value < 0.5


def test_the_logistic_regression_is_at_its_minimum() -> None:
    generator = torch.Generator().manual_seed(6)

    def one(k: int) -> Signals:
        values = {name: float(v) for name, v in zip("ab", torch.randn(2, generator=generator) + k, strict=True)}
        return Signals(values, values, values)

    labelled = {label: [one(k) for _ in range(8)] for k, label in enumerate(("a", "b", "c"))}
    fitted = Calibration.fit(labelled, read_outs=("overlap",), penalty=0.2)
    rows = [([s.overlap["a"], s.overlap["b"]], k) for k, signals in enumerate(labelled.values()) for s in signals]
    features = (torch.tensor([row for row, _ in rows]).double() - torch.tensor(fitted.means)) / torch.tensor(
        fitted.scales
    )
    torch.testing.assert_close(features.mean(0), torch.zeros(2).double(), atol=1e-6, rtol=0)
    weights = torch.tensor([fitted.weights[k] for k in "abc"], dtype=torch.float64, requires_grad=True)
    biases = torch.tensor([fitted.biases[k] for k in "abc"], dtype=torch.float64, requires_grad=True)
    loss = 0.2 * weights.square().sum() / 2
    for x, (_, label) in zip(features, rows, strict=True):
        logits = weights @ x.double() + biases
        loss = loss + (torch.logsumexp(logits, 0) - logits[label]) / len(rows)
    loss.backward()
    assert float(weights.grad.abs().max()) < 1e-6
    assert float(biases.grad.abs().max()) < 1e-6


def test_ties_and_silence_are_unsure() -> None:
    same, nothing = {"a": 0.4, "b": 0.4}, {"a": 0.0, "b": 0.0}
    assert largest_wins(Signals(same, same, same)).answer == UNSURE
    assert largest_wins(Signals(nothing, nothing, nothing)).answer == UNSURE
    near = {"a": 0.5, "b": 0.4}
    assert largest_wins(Signals(near, near, near)).answer == "a"
    assert largest_wins(Signals(near, near, near), unsure_below=0.6).answer == UNSURE


def test_an_input_that_changes_nothing_has_no_signals(predictor) -> None:
    with pytest.warns(FilterAttrWarning, match="every attribution is 0"):
        signals = predictor.signals(torch.zeros(1, 2, dtype=torch.float64))
    assert set(signals.mass.values()) == {0.0}
    assert set(signals.response.values()) == {0.0}


@pytest.mark.parametrize(("count", "total"), [(0, 10), (10, 10), (7, 10), (99, 100)])
def test_wilsons_interval_inverts_the_score_test(count: int, total: int) -> None:
    estimate = wilson(count, total)
    low, high = wilson_ends(count, total, 1.959963984540054)
    assert (estimate.low, estimate.high) == (pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))
    assert math.isnan(wilson(0, 0).value)


def test_impossible_settings_are_refused(predictor) -> None:
    base, target = networks()
    one = predictor.sets["first"]
    with pytest.raises(SettingError, match="at least two sets"):
        FunctionPredictor(predictor.attributor, base, target, {"first": one})
    with pytest.raises(SettingError, match="empty: 'none'"):
        FunctionPredictor(predictor.attributor, base, target, {"first": one, "none": one - one})
    values = {"a": 1.0, "b": 0.0}
    with pytest.raises(SettingError, match="without samples 'b'"):
        Calibration.fit({"a": [Signals(values, values, values)], "b": []})
    with pytest.raises(SettingError, match="read_out must be one of"):
        largest_wins(Signals(values, values, values), "size")


def test_the_model_is_untouched(predictor) -> None:
    model = predictor.attributor.model
    before = {name: (value, value.clone()) for name, value in model.named_parameters()}
    predictor.signals(inputs("first", 1, 7)[0])
    for name, value in model.named_parameters():
        assert value is before[name][0]
        assert torch.equal(value, before[name][1])
        assert value.grad is None


def test_labels_without_a_set_are_never_right_without_calibration() -> None:
    values = {"a": 0.9, "b": 0.1}
    found = confusion({"clean": [Signals(values, values, values)]}, largest_wins, method="overlap")
    assert found.counts == {"clean": {"clean": 0, "a": 1, UNSURE: 0}}
    assert found.accuracy.value == 0.0
