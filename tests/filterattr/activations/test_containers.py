"""Layers that put out several things, as blocks of transformers do: the first floating tensor counts."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from filterattr import ChannelAttributor
from filterattr.activations.parts import activations_in, with_activations


class Named(NamedTuple):
    hidden: Tensor
    weights: Tensor | None


@dataclasses.dataclass(frozen=True)
class Record:
    places: Tensor
    hidden: Tensor


WRAPPERS = {
    "a tensor": lambda x: x,
    "a tuple": lambda x: (x, None),
    "a list": lambda x: [x, 3],
    "a named tuple": lambda x: Named(x, None),
    "a mapping": lambda x: OrderedDict(name="block", hidden=x),
    "a dataclass": lambda x: Record(torch.arange(3), x),
    "one inside of another": lambda x: (torch.arange(2), {"states": [x]}),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_activations_are_found_and_replaced(wrap: Any) -> None:
    hidden, other = torch.rand(2, 3), torch.rand(2, 3)
    returned = wrap(hidden)
    assert activations_in(returned) is hidden
    replaced = with_activations(returned, other)
    assert type(replaced) is type(returned)
    assert activations_in(replaced) is other
    assert activations_in(returned) is hidden


@pytest.mark.parametrize("nothing", [None, 3, "text", torch.arange(3), torch.tensor(1.0), (), {}, (None, 1)], ids=repr)
def test_nothing_is_found_where_no_floating_tensor_is(nothing: object) -> None:
    assert activations_in(nothing) is None


class Block(nn.Module):
    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.inner, self.wrap = nn.Linear(4, 4), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(torch.tanh(self.inner(x)))


class Network(nn.Module):
    def __init__(self, wrap: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = Block(wrap), Block(wrap), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in (self.first, self.second):
            x = activations_in(block(x))  # type: ignore[assignment]
        return self.head(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("attribution", ["conductance", "internal_influence", "gradient_x_activation"])
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_attributions_are_those_of_blocks_that_put_out_the_tensor_alone(wrap: Any, attribution: str) -> None:
    inputs = torch.rand(3, 4)
    baselines = None if attribution == "gradient_x_activation" else torch.zeros(3, 4)
    settings = {} if baselines is None else {"n_steps": 6}
    found, expected = (
        ChannelAttributor(Network(one).double(), ["first", "second"]).attribute(
            inputs.double(),
            None if baselines is None else baselines.double(),
            lambda y: y[:, 0],
            attribution=attribution,
            **settings,
        )
        for one in (wrap, WRAPPERS["a tensor"])
    )
    for name in ("first", "second"):
        torch.testing.assert_close(found[name], expected[name])


def test_integrated_gradients_put_the_line_between_activations_into_the_container() -> None:
    inputs = torch.rand(2, 4)
    found, expected = (
        ChannelAttributor(Network(wrap), ["first"]).attribute(
            inputs, torch.zeros(2, 4), lambda y: y[:, 0], attribution="integrated_gradients", n_steps=4
        )
        for wrap in (WRAPPERS["a tuple"], WRAPPERS["a tensor"])
    )
    torch.testing.assert_close(found["first"], expected["first"])


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0])[:, 0, 0]  # type: ignore[no-any-return]


def test_attention_is_one_of_the_default_layers_and_its_parts_are_not() -> None:
    attributor = ChannelAttributor(Attending().double())
    assert list(attributor.layers) == ["attention", "head"]
    inputs = torch.rand(2, 5, 4, dtype=torch.float64)
    found = attributor.attribute(inputs, torch.zeros_like(inputs), lambda y: y, n_steps=400)
    model = attributor.model
    change = model(inputs) - model(torch.zeros_like(inputs))
    assert found["attention"].shape == (2, 5, 4)
    torch.testing.assert_close(found["attention"].sum((1, 2)), change.detach(), rtol=1e-2, atol=1e-4)


def test_blocks_of_a_language_model() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=2, n_embd=16, n_head=2, vocab_size=20, n_positions=8, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config).eval().double()
    tokens = torch.randint(0, 20, (2, 6))
    embedded = model.transformer.wte(tokens).detach()
    run = lambda of, inputs: of(inputs_embeds=inputs).logits  # noqa: E731
    output = lambda logits: logits[:, -1, 3]  # noqa: E731
    blocks = ["transformer.h.0", "transformer.h.1", "transformer.h.0.attn", "transformer.h.0.mlp"]
    attributor = ChannelAttributor(model, blocks)
    found = attributor.attribute(embedded, torch.zeros_like(embedded), output, n_steps=200, forward=run)
    assert found["transformer.h.1"].shape == (2, 6, 16)
    with torch.no_grad():
        change = output(run(model, embedded)) - output(run(model, torch.zeros_like(embedded)))
    for name in ("transformer.h.0", "transformer.h.1"):  # everything passes through a block
        torch.testing.assert_close(found[name].sum((1, 2)), change, rtol=2e-2, atol=1e-3)
    assert "transformer.h.0.attn.c_attn" in ChannelAttributor(model).layers  # the Conv1D of the library
