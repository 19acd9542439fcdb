"""Masking: what is lost when chosen units go back to base."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from filterattr import FilterAttributor, SettingError
from filterattr.analysis.evaluation import Masking, p_value
from tests.networks import image, relu_network, squared_sum


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
