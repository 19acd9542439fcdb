"""Part A: whatever happens, the model is afterwards what it was before (cases 3 to 5 are in test_interrupts)."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from filterattr import FilterAttributor
from tests.reliability.fingerprint import Fingerprint, unchanged
from tests.reliability.networks import assert_values, by_hand, convolutions, dropping, ends, picture, squared

# what dropout and running statistics do in training is asked for here
pytestmark = pytest.mark.filterwarnings("ignore:.* in train mode:filterattr.errors.FilterAttrWarning")

EXCEPTIONS = (ValueError, MemoryError, torch.OutOfMemoryError, SystemExit, KeyboardInterrupt, GeneratorExit)


def test_case_01_every_bit_of_an_odd_model_survives(attribute):
    model, base, target = ends(convolutions)
    model = model.to(memory_format=torch.channels_last)
    first, second = model[0], model[2]
    with torch.no_grad():
        first.weight.view(-1)[:2] = torch.tensor([-0.0, float("inf")])
        first.bias.view(torch.int32)[:2] = torch.tensor([0x7FC0_1234, -0x3F_EDCC])  # two NaN with payloads
    second.bias.requires_grad_(False)
    second.weight.grad = torch.full_like(second.weight, -0.0)
    second.weight.mark = "kept"
    with unchanged(model):
        attribute(model, base, target, squared(picture()))
    assert second.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("call", [1, 2, 3, 6])
def test_case_02_an_exception_in_the_loss_leaves_no_trace(attribute, call):
    model, base, target = ends(dropping)
    inputs = torch.rand(5, 3, dtype=torch.float64)
    expected = attribute(model, base, target, squared(inputs), n_steps=4)
    for error in EXCEPTIONS:
        calls = iter(range(1, 100))

        def loss(model, error=error, calls=calls):
            value = model(inputs).square().sum()
            if next(calls) == call:
                raise error("the loss fails")
            return value

        with unchanged(model), pytest.raises(error, match="the loss fails"):
            attribute(model, base, target, loss, n_steps=4)
    again = attribute(model, base, target, squared(inputs), n_steps=4)
    assert all(torch.equal(again.values[name], value) for name, value in expected.values.items())


class Twice(nn.Module):
    """One module under two names, as recursive super-resolution networks have it."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.b = self.a

    def forward(self, inputs):
        return self.b(torch.tanh(self.a(inputs)))


def test_case_06_a_module_under_two_names_is_right_and_kept(attribute):
    model, base, target = ends(lambda: Twice().double())
    loss = squared(torch.rand(4, 3, dtype=torch.float64))
    with unchanged(model):
        outcome = attribute(model, base, target, loss)
    assert isinstance(model.b.weight, nn.Parameter)
    assert_values(outcome, by_hand(model, base, target, loss))


def test_case_07_a_live_graph_and_a_state_dict_stay_right(attribute):
    model, base, target = ends(lambda: convolutions(torch.float64))
    inputs = picture(torch.float64)
    expected = torch.autograd.grad(squared(inputs)(model), list(model.parameters()))
    graph = squared(inputs)(model)
    held = model.state_dict()
    copies = {name: value.clone() for name, value in held.items()}
    seen = []

    def loss(model):
        seen.append(all(torch.equal(held[name], value) for name, value in copies.items()))
        return squared(inputs)(model)

    attribute(model, base, target, loss)
    assert all(seen)
    for ours, right in zip(torch.autograd.grad(graph, list(model.parameters())), expected, strict=True):
        assert torch.equal(ours, right)


@pytest.mark.parametrize("kind", ["state_dict", "model"])
def test_case_08_the_model_itself_can_be_an_end_point(attribute, kind):
    model, _, target = ends(convolutions)
    copied = {name: value.clone() for name, value in model.state_dict().items()}
    expected = attribute(copy.deepcopy(model), copied, target, squared(picture()))
    outcome = attribute(model, model.state_dict() if kind == "state_dict" else model, target, squared(picture()))
    assert outcome.loss_base == expected.loss_base
    assert all(torch.equal(outcome.values[name], value) for name, value in expected.values.items())


def test_case_09_an_optimizer_goes_on_as_if_nothing_had_happened(attribute):
    model, base, target = ends(convolutions)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    squared(picture())(model).backward()
    twin = copy.deepcopy(model)
    for own, other in zip(twin.parameters(), model.parameters(), strict=True):
        own.grad = other.grad.clone()
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    attribute(model, base, target, squared(picture()))
    assert held == [id(parameter) for parameter in model.parameters()]
    optimizer.step()
    torch.optim.Adam(twin.parameters(), lr=0.1).step()
    assert all(torch.equal(own, other) for own, other in zip(model.parameters(), twin.parameters(), strict=True))


def old_weight_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(nn.utils.weight_norm(nn.Conv2d(1, 2, 3)), nn.SiLU(), nn.Conv2d(2, 1, 3)).double()


def pruned():
    model = convolutions(torch.float64)
    prune.custom_from_mask(model[0], "weight", torch.eye(3).expand(3, 1, 3, 3))
    return model


@pytest.mark.parametrize("build", [old_weight_norm, pruned])
def test_case_10_weights_that_are_plain_attributes_are_put_back(attribute, build):
    model, base, target = ends(build)
    loss = squared(picture(torch.float64))
    with torch.no_grad():
        loss(model)  # leaves a computed weight without a graph behind
    expected = by_hand(model, base, target, loss)
    with unchanged(model):
        outcome = attribute(model, base, target, loss)
    assert_values(outcome, expected)
    assert torch.equal(loss(copy.deepcopy(model)), loss(model))


@pytest.mark.filterwarnings("ignore::filterattr.FilterAttrWarning")
def test_case_11_looking_at_a_spectral_norm_moves_no_power_iteration(attribute):
    def build():
        return nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 3)), nn.Tanh(), nn.Linear(3, 1)).double()

    model, base, target = ends(build)
    model.train()
    target = {name: base[name] if "_u" in name or "_v" in name else value for name, value in target.items()}
    inputs = torch.rand(2, 3, dtype=torch.float64)
    with unchanged(model):
        attribute(model, base, target, squared(inputs))


@pytest.mark.filterwarnings("ignore::filterattr.FilterAttrWarning")  # clamped weights leave the path
def test_case_12_a_loss_that_writes_into_the_model_writes_into_copies(attribute):
    class Counting(nn.Linear):
        def __init__(self):
            super().__init__(3, 3)
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
            self.seen = torch.zeros(3)

        def forward(self, inputs):
            self.calls += 1
            self.seen += inputs.mean(0)
            return super().forward(inputs)

    model, base, target = ends(Counting)

    def loss(model):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.clamp_(-0.4, 0.4)
        return model(torch.ones(2, 3)).square().sum()

    with unchanged(model):
        attribute(model, base, target, loss)


@pytest.mark.parametrize("act", ["half", "assign", "load", "step", "write"])
def test_case_13_a_loss_that_changes_the_model_is_found_out(attribute, act):
    model, base, target = ends(convolutions)
    squared(picture())(model).backward()
    optimizer = torch.optim.Adam(model.parameters())
    own = list(model.parameters())

    def loss(at):
        inner = getattr(at, "model", at)  # what the functional draft hands out
        if act == "half":
            inner.half()
        elif act == "assign":
            inner[0].weight = nn.Parameter(torch.zeros_like(inner[0].weight))
        elif act == "load":
            inner.load_state_dict(base, assign=True)
        elif act == "step":
            optimizer.step()
        else:
            own[0].detach().mul_(0.5)
        return at(picture()).square().sum()

    before = Fingerprint(model)
    message = attribute.refuses(model, base, target, loss)
    assert "while the loss ran" in message
    assert "0.weight" in message
    if act != "write":  # it went past the model that the loss was given: reported, not undone
        assert before.changes(model) == []
    assert not optimizer.state


def test_case_13_train_flags_hooks_and_attributes_of_the_loss_are_taken_back(attribute):
    model, base, target = ends(convolutions)

    def loss(at):
        inner = getattr(at, "model", at)
        inner.eval()
        inner[0].register_forward_hook(lambda *_: None)
        inner[0].features = at(picture())
        inner[1] = nn.SiLU()
        return inner[0].features.square().sum()

    with unchanged(model):
        attribute(model, base, target, loss)


@pytest.mark.filterwarnings("ignore::filterattr.FilterAttrWarning")  # nearly nothing is left to sum up behind a norm
def test_samples_may_be_made_with_the_model_itself():
    """What a data source does to the model between the samples is the user's own business, and no fault of the loss."""
    model, base, target = ends(lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double())

    def samples():
        for _ in range(3):
            yield torch.rand(4, 3, dtype=torch.float64)
            model(torch.rand(4, 3, dtype=torch.float64))  # counts its running statistics on

    attributor = FilterAttributor(model)
    attributor.attribute(base, target, lambda at, x: at(x).square().sum(), samples(), n_steps=4)
    assert int(model[1].num_batches_tracked) == 3


def test_case_13_a_loss_that_parametrizes_a_layer_is_found_out_and_the_class_put_back(attribute):
    model, base, target = ends(convolutions)

    def loss(at):
        parametrizations.weight_norm(getattr(at, "model", at)[0])
        return at(picture()).square().sum()

    with unchanged(model):
        message = attribute.refuses(model, base, target, loss)
    assert "0.weight" in message
    assert type(model[0]) is nn.Conv2d


def test_case_13_the_order_of_attributes_is_put_back(attribute):
    model, base, target = ends(convolutions)

    names = list(model.__dict__)

    def reordering(at):
        inner = getattr(at, "model", at)
        inner.__dict__["training"] = inner.__dict__.pop("training")
        inner[0]._parameters["weight"] = inner[0]._parameters.pop("weight")
        return at(picture()).square().sum()

    with unchanged(model):
        attribute(model, base, target, reordering)
    assert names == list(model.__dict__)


class Overlapping(nn.Module):
    """Two parameters that share memory, and one without a memory of its own for every entry."""

    def __init__(self):
        super().__init__()
        flat = torch.rand(9, dtype=torch.float64)
        self.first = nn.Parameter(flat[:6].view(2, 3))
        self.second = nn.Parameter(flat[3:].view(2, 3))
        self.scale = nn.Parameter(torch.rand(1, dtype=torch.float64).expand(3))

    def forward(self, inputs):
        return torch.tanh(inputs @ self.first.T) @ self.second * self.scale


def test_case_14_overlapping_and_expanded_parameters(attribute):
    model, base, target = ends(Overlapping)
    base, target = ({name: value.clone() for name, value in state.items()} for state in (base, target))
    loss = squared(torch.rand(4, 3, dtype=torch.float64))
    with unchanged(model):
        outcome = attribute(model, base, target, loss)
    assert_values(outcome, by_hand(model, base, target, loss))


class Sharing(nn.Module):
    """A buffer that is a view of a parameter."""

    def __init__(self, value):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value], dtype=torch.float64))
        self.register_buffer("alias", self.weight.detach(), persistent=False)

    def forward(self, inputs):
        return inputs * (self.weight + self.alias)


def test_case_15_a_buffer_that_shares_memory_with_a_parameter_keeps_its_own_value(attribute):
    model = Sharing(1.0)
    state = {name: torch.tensor([value], dtype=torch.float64) for name, value in (("weight", 2.0),)}
    other = {"weight": torch.tensor([5.0], dtype=torch.float64)}
    with unchanged(model):
        outcome = attribute(model, state, other, lambda model: model(torch.ones(1)).sum())
    assert (outcome.loss_base, outcome.loss_target) == (3.0, 6.0)  # and not 4 and 10
    assert float(outcome.values["weight"]) == pytest.approx(3.0, abs=1e-12)
