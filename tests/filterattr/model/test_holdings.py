"""Weights and tensors that modules keep beside their slots: exchanged with the slots, copied, and given back."""

from __future__ import annotations

import collections
import functools
import random
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from filterattr import ChannelAttributor, FilterAttributor, LossError, swapped
from filterattr.analysis.gradients import taylor
from tests.reliability.fingerprint import unchanged

INPUTS = torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
State = dict[str, Tensor]


def squared(model: nn.Module) -> Tensor:
    return model(INPUTS).square().sum()


def two_states(model: nn.Module) -> tuple[State, State]:
    base = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return base, {name: value + 0.5 * torch.randn_like(value) for name, value in base.items()}


def by_loading(model: nn.Module, base: State, target: State, loss: Callable[[nn.Module], Tensor]) -> dict[str, Any]:
    """What loading each point into the model itself gives: losses at both ends, and the attribution of each weight."""
    own = {name: value.clone() for name, value in model.state_dict().items()}
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.requires_grad_(True)
    sums = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    nodes, coefficients = np.polynomial.legendre.leggauss(8)
    losses = []
    for t, coefficient in [(-1.0, 0.0), (1.0, 0.0), *zip(nodes, coefficients, strict=True)]:
        place = (t + 1) / 2
        model.load_state_dict({name: base[name] + place * (target[name] - base[name]) for name in base})
        model.zero_grad()
        value = loss(model)
        value.backward()
        losses.append(float(value.detach()))
        for name, parameter in model.named_parameters():
            sums[name] += coefficient / 2 * parameter.grad
    model.load_state_dict(own)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(flags[name])
        parameter.grad = None
    values = {name: total * (target[name] - base[name]) for name, total in sums.items()}
    return {"losses": losses[:2], "values": values}


class Helper:
    def __init__(self, kept: Any) -> None:
        self.kept = kept


class Slotted:
    __slots__ = ("kept",)

    def __init__(self, kept: Any) -> None:
        self.kept = kept


class Pair(NamedTuple):
    kept: Any
    other: int = 0


@dataclass(frozen=True)
class Frozen:
    kept: Any


class Holder(nn.Module):
    def __init__(self, kept: nn.Parameter) -> None:
        super().__init__()
        self.kept = kept


class Matrix(nn.Module):
    def __init__(self, multiply: Any) -> None:
        super().__init__()
        self.multiply = multiply


def in_a_circle(weight: nn.Parameter) -> tuple[Any, Callable[[Any], Any]]:
    ring: list[Any] = [weight]
    ring.append(ring)
    return ring, lambda kept: kept[1][1][0]


def in_a_function(weight: nn.Parameter) -> tuple[Any, Callable[[Any], Any]]:
    return (lambda: weight), lambda kept: kept()


def in_a_closed_list(weight: nn.Parameter) -> tuple[Any, Callable[[Any], Any]]:
    weights = {"deep": [weight]}
    return (lambda: weights["deep"][0]), lambda kept: kept()


def as_a_default(weight: nn.Parameter) -> tuple[Any, Callable[[Any], Any]]:
    def function(kept=weight):
        return kept

    return function, lambda kept: kept()


def in_an_unregistered_module(weight: nn.Parameter) -> tuple[Any, Callable[[Any], Any]]:
    return [Holder(weight)], lambda kept: kept[0].kept


KEPT: dict[str, Callable[[nn.Parameter], tuple[Any, Callable[[Any], Any]]]] = {
    "list": lambda weight: ([weight], lambda kept: kept[0]),
    "dict": lambda weight: ({"w": weight}, lambda kept: kept["w"]),
    "ordered dict": lambda weight: (collections.OrderedDict(w=weight), lambda kept: kept["w"]),
    "user dict": lambda weight: (collections.UserDict({"w": weight}), lambda kept: kept["w"]),
    "deque": lambda weight: (collections.deque([0, weight]), lambda kept: kept[1]),
    "set": lambda weight: ({weight}, lambda kept: next(iter(kept))),
    "tuple": lambda weight: ((1, weight), lambda kept: kept[1]),
    "named tuple": lambda weight: (Pair(weight), lambda kept: kept.kept),
    "nested": lambda weight: ({"a": [(1, {"b": (weight, 2)})]}, lambda kept: kept["a"][0][1]["b"][0]),
    "object": lambda weight: (Helper(weight), lambda kept: kept.kept),
    "object in a list": lambda weight: ([Helper([weight])], lambda kept: kept[0].kept[0]),
    "object with slots": lambda weight: (Slotted((weight,)), lambda kept: kept.kept[0]),
    "frozen dataclass": lambda weight: (Frozen(weight), lambda kept: kept.kept),
    "namespace": lambda weight: (types.SimpleNamespace(kept=weight), lambda kept: kept.kept),
    "module that is not registered": in_an_unregistered_module,
    "circle": in_a_circle,
    "closure": in_a_function,
    "list in a closure": in_a_closed_list,
    "default argument": as_a_default,
    "partial": lambda weight: (functools.partial(torch.clone, weight), lambda kept: kept()),
    "partial by keyword": lambda weight: (functools.partial(torch.clone, input=weight), lambda kept: kept()),
    "bound method": lambda weight: (weight.clone, lambda kept: kept()),
    "view": lambda weight: (weight.view(4, 4), lambda kept: kept),
    "part": lambda weight: ([weight[:2]], lambda kept: torch.cat([kept[0], kept[0]])),
}


class Twice(nn.Module):
    """Uses its weight once from its slot and once from elsewhere."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 4, bias=False, dtype=torch.float64)
        self.kept, self.__dict__["take"] = KEPT[how](self.embed.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.tanh(self.embed(inputs)) @ self.take(self.kept)


@pytest.mark.parametrize("is_frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("how", KEPT)
def test_a_weight_that_is_also_kept_elsewhere_moves_there_too(how, is_frozen):
    torch.manual_seed(0)
    model = Twice(how)
    base, target = two_states(model)
    expected = by_loading(model, base, target, squared)
    model.embed.weight.requires_grad_(not is_frozen)
    if how in ("view", "part"):  # a view remembers what its base was when it was made
        model.kept, _ = KEPT[how](model.embed.weight)
    kept, own = model.take(model.kept), float(squared(model).detach())
    with unchanged(model):
        found = FilterAttributor(model, unit="weight").attribute(base, target, squared, n_steps=8)
        with swapped(model, target), torch.no_grad():
            inside = float(squared(model))
    assert (found.loss_base, found.loss_target) == pytest.approx(tuple(expected["losses"]), rel=1e-12)
    assert inside == pytest.approx(expected["losses"][1], rel=1e-12)
    torch.testing.assert_close(
        found.scores("sum")["embed.weight"], expected["values"]["embed.weight"], rtol=1e-9, atol=1e-9
    )
    if kept is model.embed.weight:
        assert model.take(model.kept) is kept
    torch.testing.assert_close(float(squared(model).detach()), own)


class ByClass(Twice):
    shared: nn.Parameter | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.tanh(self.embed(inputs)) @ type(self).shared


SOMEWHERE: dict[str, Any] = {}


class Anywhere(Twice):
    def forward(self, inputs: Tensor) -> Tensor:
        return functional.linear(torch.tanh(self.embed(inputs)), SOMEWHERE["weight"])


@pytest.mark.parametrize("kind", [ByClass, Anywhere])
def test_a_weight_that_is_kept_where_nothing_can_be_exchanged_is_refused_by_name(kind):
    model = kind("list").double()
    kind.shared = SOMEWHERE["weight"] = model.embed.weight
    base, target = two_states(model)
    with unchanged(model), pytest.raises(LossError, match=r"own 'embed.weight'.*\.detach\(\)\.clone\(\)"):
        FilterAttributor(model).attribute(base, target, squared)


def test_a_loss_that_uses_a_weight_past_the_model_is_refused_by_name():
    model = nn.Linear(4, 2).double()
    base, target = two_states(model)
    anchor = model.bias
    with pytest.raises(LossError, match="own 'bias'"):
        FilterAttributor(model).attribute(base, target, lambda m: squared(m) + (m.bias - anchor).square().sum())
    constant = anchor.detach().clone()
    loss = lambda m: squared(m) + (m.bias - constant).square().sum()  # noqa: E731
    FilterAttributor(model).attribute(base, target, loss)


def test_gradients_at_one_place_refuse_such_weights_too():
    model = Anywhere("list").double()
    SOMEWHERE["weight"] = model.embed.weight
    with unchanged(model), pytest.raises(LossError, match=r"own 'embed\.weight'"):
        taylor(FilterAttributor(model), model, lambda m, _: squared(m), [0])


class Cache(nn.Module):
    """Counts on what it keeps in every pass, as key-value caches and recurrent states do."""

    def __init__(self, build: Callable[[Any], Any], take: Callable[[Any], Any], content: Any = None) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2).double()
        self.kept = build(torch.ones(2, dtype=torch.float64) if content is None else content)
        self.__dict__["take"] = take

    def forward(self, inputs: Tensor) -> Tensor:
        kept = self.take(self.kept)
        kept *= 1.5
        return self.layer(inputs) * torch.as_tensor(kept)


CACHES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "attribute": (lambda value: value, lambda kept: kept),
    "list": (lambda value: [value], lambda kept: kept[0]),
    "tuple": (lambda value: (value,), lambda kept: kept[0]),
    "dict": (lambda value: {"k": value}, lambda kept: kept["k"]),
    "nested": (lambda value: [({"k": [value]},)], lambda kept: kept[0][0]["k"][0]),
    "deque": (lambda value: collections.deque([value]), lambda kept: kept[0]),
    "object": (Helper, lambda kept: kept.kept),
    "object with slots": (Slotted, lambda kept: kept.kept),
    "named tuple": (Pair, lambda kept: kept.kept),
    "layers of caches": (lambda value: [Helper([(value, value)])], lambda kept: kept[0].kept[0][1]),
}


@pytest.mark.parametrize("how", CACHES)
@pytest.mark.parametrize("content", ["tensor", "array"])
def test_what_a_forward_pass_writes_to_is_the_same_at_every_node_and_given_back(how, content):
    torch.manual_seed(0)
    model = Cache(*CACHES[how], None if content == "tensor" else np.ones(2))
    kept = model.take(model.kept)
    base, target = two_states(model)
    expected = by_loading(model, base, target, lambda m: (m.layer(INPUTS) * 1.5).square().sum())
    with unchanged(model):
        found = FilterAttributor(model, unit="weight", select="*").attribute(base, target, squared, n_steps=8)
    assert model.take(model.kept) is kept
    assert (np.asarray(kept) == 1).all()
    for name, value in expected["values"].items():
        torch.testing.assert_close(found.scores("sum")[name], value, rtol=1e-9, atol=1e-9)


def test_copies_of_tensors_that_share_memory_share_it_too():
    class Window(Cache):
        def forward(self, inputs):
            self.kept["whole"] *= 2.0
            return self.layer(inputs) * self.kept["part"]

    whole = torch.ones(4, dtype=torch.float64)
    model = Window(lambda _: {"whole": whole, "part": whole[1:3]}, lambda kept: kept)
    base, target = two_states(model)
    expected = by_loading(model, base, target, lambda m: (m.layer(INPUTS) * 2).square().sum())
    found = FilterAttributor(model).attribute(base, target, squared, n_steps=8)
    assert (found.loss_base, found.loss_target) == pytest.approx(tuple(expected["losses"]), rel=1e-12)
    assert (whole == 1).all()


class Noisy(nn.Module):
    """Draws from a generator of its own."""

    def __init__(self, generator: Any, draw: Callable[[Any], Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2).double()
        self.tools = {"generator": generator}
        self.__dict__["draw"] = draw

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs) * torch.as_tensor(self.draw(self.tools["generator"]))


@pytest.mark.parametrize(
    ("generator", "draw"),
    [
        (torch.Generator().manual_seed(3), lambda g: torch.rand(2, generator=g, dtype=torch.float64)),
        (random.Random(3), lambda g: [g.random(), g.random()]),
        (np.random.default_rng(3), lambda g: g.random(2)),
        (np.random.RandomState(3), lambda g: g.rand(2)),
    ],
    ids=["torch", "random", "numpy", "old numpy"],
)
def test_a_generator_of_the_model_draws_the_same_at_every_node_and_is_given_back(generator, draw):
    model = Noisy(generator, draw)
    base, target = two_states(model)
    found = FilterAttributor(model).attribute(base, target, squared, n_steps=8)
    assert found.completeness_error < 1e-12
    first = torch.as_tensor(draw(generator))  # what the passes have drawn
    expected = by_loading(model, base, target, lambda m: (m.layer(INPUTS) * first).square().sum())
    assert (found.loss_base, found.loss_target) == pytest.approx(tuple(expected["losses"]), rel=1e-12)


@pytest.mark.parametrize("how", ["nested list", "object", "deque"])
def test_what_a_forward_pass_adds_to_nested_containers_is_taken_back(how):
    class Growing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2).double()
            self.state = {"seen": [] if how == "nested list" else collections.deque()} if how != "object" else Helper(0)

        def forward(self, inputs):
            if how == "object":
                self.state.kept += 1
                return self.layer(inputs) * self.state.kept
            self.state["seen"].append(inputs)
            return self.layer(inputs) * len(self.state["seen"])

    model = Growing()
    base, target = two_states(model)
    found = FilterAttributor(model).attribute(base, target, squared, n_steps=8)
    expected = by_loading(model, base, target, lambda m: m.layer(INPUTS).square().sum())
    assert (found.loss_base, found.loss_target) == pytest.approx(tuple(expected["losses"]), rel=1e-12)
    assert (model.state.kept == 0) if how == "object" else not model.state["seen"]


def test_what_hooks_collect_outside_of_the_model_stays_there():
    model = nn.Linear(4, 2).double()
    base, target = two_states(model)
    seen: list[int] = []
    model.register_forward_hook(lambda *_: seen.append(1))
    FilterAttributor(model).attribute(base, target, squared, n_steps=4)
    assert len(seen) >= 6


def test_channels_get_copies_of_caches_as_well():
    model = Cache(*CACHES["nested"])
    found = ChannelAttributor(model, "layer").attribute(
        INPUTS, torch.zeros_like(INPUTS), lambda out: out.sum(), method="riemann_trapezoid", n_steps=1
    )
    assert (model.take(model.kept) == 1).all()
    total = (model.layer(INPUTS) - model.layer(torch.zeros_like(INPUTS))).sum() * 1.5
    assert float(found["layer"].sum()) == pytest.approx(float(total.detach()), rel=1e-9)


def test_a_large_or_foreign_object_is_left_alone():
    class Config:
        def __init__(self):
            self.words = {str(number): number for number in range(200_000)}
            self.me = self

    model = nn.Linear(4, 2).double()
    model.config = Config()
    model.optimizer = torch.optim.SGD(model.parameters(), 0.1)
    base, target = two_states(model)
    with unchanged(model):
        FilterAttributor(model).attribute(base, target, squared, n_steps=4)
    assert model.optimizer.param_groups[0]["params"][0] is model.weight
