"""Part B: hooks, gradients and memory."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from filterattr import FilterAttributor, LossError
from tests.reliability.fingerprint import Fingerprint
from tests.reliability.networks import assert_values, by_hand, convolutions, ends, picture, squared


def doubles():
    return convolutions(torch.float64)


def test_case_16_no_hook_of_the_user_fires_and_no_gradient_is_touched(attribute):
    model, base, target = ends(doubles)
    loss = squared(picture(torch.float64))
    expected = by_hand(model, base, target, loss)
    loss(model).backward()  # gradients that the user is accumulating
    fired = []

    def step(leaf):  # the optimizer runs inside backward
        fired.append("step")
        leaf.data.sub_(leaf.grad)

    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: fired.append("hook") or gradient * 2)
        parameter.register_post_accumulate_grad_hook(step)
    with attribute.leaves(model):
        outcome = attribute(model, base, target, loss)
    assert fired == []
    assert_values(outcome, expected)


def test_case_17_another_network_in_the_loss_gets_no_gradients(attribute):
    model, base, target = ends(doubles)
    judge = nn.Conv2d(2, 1, 2).double()
    inputs = picture(torch.float64)
    with attribute.leaves(model, judge):
        attribute(model, base, target, lambda model: judge(model(inputs)).square().sum())
    assert judge.weight.grad is None


class Recursive(nn.Module):
    """One convolution, three times; with or without activation checkpointing."""

    def __init__(self, reentrant=None):
        super().__init__()
        self.head = nn.Conv2d(1, 2, 3, padding=1)
        self.body = nn.Conv2d(2, 2, 3, padding=1)
        self.reentrant = reentrant

    def forward(self, inputs):
        features = self.head(inputs)
        for _ in range(3):
            if self.reentrant is None:
                features = torch.tanh(self.body(features))
            else:
                features = checkpoint(lambda x: torch.tanh(self.body(x)), features, use_reentrant=self.reentrant)
        return features


def test_case_18_a_convolution_used_three_times_counts_with_its_whole_gradient(attribute):
    model, base, target = ends(lambda: Recursive().double())
    loss = squared(picture(torch.float64))
    with attribute.leaves(model):
        outcome = attribute(model, base, target, loss)
    assert_values(outcome, by_hand(model, base, target, loss))


def test_case_19_activation_checkpointing_gives_the_same_numbers(attribute):
    model, base, target = ends(lambda: Recursive(reentrant=False).double())
    loss = squared(picture(torch.float64))
    with attribute.leaves(model):
        outcome = attribute(model, base, target, loss)
    assert_values(outcome, by_hand(Recursive().double(), base, target, loss))


def test_case_20_reentrant_checkpointing_is_right_or_refused_by_name(attribute):
    model, base, target = ends(lambda: Recursive(reentrant=True).double())
    loss = squared(picture(torch.float64))
    with attribute.leaves(model):
        outcome = attribute.tried(model, base, target, loss)
    if isinstance(outcome, str):
        assert "body.weight" in outcome
        assert "reentrant" in outcome
    else:
        assert_values(outcome, by_hand(Recursive().double(), base, target, loss))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_case_20_reentrant_checkpointing_of_the_whole_network_too(attribute):
    model, base, target = ends(doubles)
    inputs = picture(torch.float64)
    with attribute.leaves(model):
        message = attribute.refuses(
            model, base, target, lambda model: checkpoint(model, inputs, use_reentrant=True).sum()
        )
    assert "0.weight" in message
    assert "reentrant" in message


def test_case_21_an_in_place_activation_behind_a_convolution_works(attribute):
    model, base, target = ends(
        lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.ELU(inplace=True), nn.Conv2d(3, 1, 3)).double()
    )
    loss = squared(picture(torch.float64))
    expected = by_hand(model, base, target, loss)
    with attribute.leaves(model):
        outcome = attribute(model, base, target, loss)
    assert_values(outcome, expected)


def test_case_22_a_parameter_that_changed_but_is_not_used_is_named(attribute):
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, inputs):
            return self.used(inputs)

    model, base, target = ends(Unused)
    loss = squared(torch.rand(2, 3))
    with attribute.leaves(model):
        message = attribute.refuses(model, base, target, loss)
    assert "spare.weight" in message
    assert "spare.bias" in message
    outcome = attribute(model, base, target, loss, allow_unused="spare.*")
    assert not outcome.values["spare.weight"].any()
    same = {name: base[name] if name.startswith("spare") else value for name, value in target.items()}
    assert not attribute(model, base, same, loss).values["spare.weight"].any()


KEPT: list[nn.Parameter] = []


class Cut(nn.Module):
    """The first layer gets no gradient, in one of the ways that people write by mistake."""

    def __init__(self, way):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.way = way
        KEPT[:] = self.first.weight, self.first.bias

    def forward(self, inputs):
        if self.way == "no_grad":
            with torch.no_grad():
                inputs = self.first(inputs)
        elif self.way == "detach":
            inputs = self.first(inputs).detach()
        elif self.way == "global":
            inputs = functional.linear(inputs, *KEPT)
        elif self.way == "copy":
            inputs = copy.deepcopy(self.first)(inputs)
        else:
            inputs = functional.linear(inputs, self.first.weight.data, self.first.bias.data)
        return self.second(inputs)


@pytest.mark.parametrize("way", ["no_grad", "detach", "global", "copy", "data"])
def test_case_23_a_cut_gradient_is_named(attribute, way):
    model, base, target = ends(lambda: Cut(way))
    with attribute.leaves(model):
        message = attribute.refuses(model, base, target, squared(torch.ones(2, 3)))
    assert "first.weight" in message


@pytest.mark.filterwarnings("ignore:every attribution is 0:filterattr.FilterAttrWarning")
@pytest.mark.parametrize("which", ["one", "all"])
def test_case_24_no_change_is_exactly_zero(attribute, which):
    model, base, target = ends(convolutions)
    target = {name: base[name] if which == "all" or name == "0.weight" else value for name, value in target.items()}
    outcome = attribute(model, base, target, squared(picture()))
    assert torch.equal(outcome.values["0.weight"].double(), torch.zeros(3, 1, 3, 3, dtype=torch.float64))
    assert outcome.error < 1e-4
    assert all(bool(torch.isfinite(value).all()) for value in outcome.values.values())


def test_case_25_a_frozen_model_gives_the_same_numbers(attribute):
    model, base, target = ends(convolutions)
    expected = attribute(copy.deepcopy(model), base, target, squared(picture()))
    model.requires_grad_(False)
    with attribute.leaves(model):
        outcome = attribute(model, base, target, squared(picture()))
    assert all(torch.equal(outcome.values[name], value) for name, value in expected.values.items())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_case_26_inside_no_grad_and_inference_mode_the_bits_are_the_same(attribute, mode):
    model, base, target = ends(convolutions)
    inputs = picture()
    expected = attribute(model, base, target, squared(inputs))
    with mode(), attribute.leaves(model):
        outcome = attribute(model, base, target, squared(inputs))
    assert all(torch.equal(outcome.values[name], value) for name, value in expected.values.items())
    assert outcome.error == expected.error


def test_case_27_a_model_that_was_built_inside_inference_mode_works(attribute):
    torch.manual_seed(1)
    expected = attribute(*ends(convolutions), squared(picture()))
    torch.manual_seed(1)
    with torch.inference_mode():
        model, base, target = ends(convolutions)
    with attribute.leaves(model):
        outcome = attribute(model, base, target, squared(picture()))
    assert all(torch.equal(outcome.values[name], value) for name, value in expected.values.items())


def test_case_28_calls_in_a_row_and_two_attributors_do_not_disturb_each_other(attribute):
    model, base, target = ends(convolutions)
    with attribute.leaves(model):
        outcomes = [attribute(model, base, target, squared(picture())) for _ in range(3)]
        first, second = (FilterAttributor(model) for _ in range(2)) if attribute.is_ours else (None, None)
        if first is not None:
            scores = [one.attribute(base, target, squared(picture())).scores() for one in (first, second, first)]
            assert all(torch.equal(scores[0]["0.weight"], one["0.weight"]) for one in scores)
    for outcome in outcomes[1:]:
        assert all(torch.equal(outcomes[0].values[name], value) for name, value in outcome.values.items())


def test_case_29_a_copy_taken_inside_the_loss_is_independent(attribute):
    model, base, target = ends(convolutions)
    expected = attribute(model, base, target, squared(picture()))
    copies = []

    def loss(at):
        copies.append(copy.deepcopy(getattr(at, "model", at)))
        squared(picture())(copies[-1]).backward()
        return squared(picture())(at)

    with attribute.leaves(model):
        outcome = attribute(model, base, target, loss)
    assert all(torch.equal(outcome.values[name], value) for name, value in expected.values.items())
    for one in copies:
        gradient = one[0].weight.grad.clone()
        squared(picture())(one).backward()
        torch.testing.assert_close(one[0].weight.grad, 2 * gradient)
        assert not one[0].weight._post_accumulate_grad_hooks
    assert not torch.equal(copies[0][0].weight, model[0].weight)  # it was the copy of a point on the path


def test_case_30_model_and_attributor_are_freed_without_the_garbage_collector(attribute):
    gc.collect()
    gc.disable()
    try:
        model, base, target = ends(convolutions)
        watched = [weakref.ref(model), weakref.ref(model[0].weight)]
        if attribute.is_ours:
            attributor = FilterAttributor(model)
            attributor.attribute(base, target, squared(picture()))
            watched.append(weakref.ref(attributor))
            del attributor
        attribute(model, base, target, squared(picture()))
        with pytest.raises(ZeroDivisionError, match="division"):
            attribute(model, base, target, lambda model: model(picture()).sum() * (1 // 0))
        del model
        assert [one() for one in watched] == [None] * len(watched)
    finally:
        gc.enable()


def test_case_31_at_most_one_gradient_is_alive(attribute):
    alive, most = [], [0]

    class Watched(nn.Conv2d):
        def __init__(self):
            super().__init__(1, 1, 3, padding=1, bias=False)
            with torch.no_grad():
                nn.init.dirac_(self.weight).add_(torch.randn(1, 1, 3, 3), alpha=1e-3)

        def forward(self, inputs):
            if self.weight.requires_grad:
                self.weight.register_hook(self.see)
            return super().forward(inputs)

        def see(self, gradient):
            alive[:] = [one for one in alive if one() is not None] + [weakref.ref(gradient)]
            most[0] = max(most[0], len(alive))

    def build():
        return nn.Sequential(*(Watched() for _ in range(60)))

    model, base, target = ends(build)
    attribute(model, base, target, squared(picture()), n_steps=2)
    assert 1 <= most[0] <= 2  # the one that arrives, while the one before it is let go


class Odd(nn.Module):
    """Sparse gradients, no weights at all, and a single number."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(7, 3, sparse=True)
        self.nothing = nn.Parameter(torch.zeros(0, 3))
        self.scale = nn.Parameter(torch.rand(()))

    def forward(self, inputs):
        return torch.tanh(self.words(inputs) * self.scale).sum(1) + self.nothing.sum()


def test_case_32_sparse_empty_and_zero_dimensional(attribute):
    model, base, target = ends(lambda: Odd().double())
    loss = squared(torch.tensor([[1, 2, 2], [5, 1, 0]]))
    expected = by_hand(model, base, target, loss)
    with attribute.leaves(model):
        outcome = attribute(model, base, target, loss)
    assert_values(outcome, expected)
    assert outcome.error < 1e-4


def test_case_33_channels_last_gradients_are_right(attribute):
    model, base, target = ends(doubles)
    expected = by_hand(model, base, target, squared(picture(torch.float64)))
    model = model.to(memory_format=torch.channels_last)
    inputs = picture(torch.float64).to(memory_format=torch.channels_last)
    with attribute.leaves(model):
        outcome = attribute(model, base, target, squared(inputs))
    assert_values(outcome, expected)
    if attribute.is_ours:
        scores = FilterAttributor(model).attribute(base, target, squared(inputs), n_steps=8).scores("sum")
        torch.testing.assert_close(scores["2.weight"], expected["2.weight"].sum((2, 3)))


def test_a_loss_that_runs_backward_itself_is_refused():
    model, base, target = ends(convolutions)

    def loss(model):
        value = squared(picture())(model)
        value.backward(retain_graph=True)
        return value

    before = Fingerprint(model)
    with pytest.raises(LossError, match=r"must not call backward\(\); it left gradients in '0.weight'"):
        FilterAttributor(model).attribute(base, target, loss)
    assert before.changes(model) == []
