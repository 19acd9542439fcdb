"""Units that span several parameters: scores against explicit sums, selections against explicit slices."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from filterattr import (
    FilterAttributor,
    FilterScores,
    FilterSelection,
    Group,
    Unit,
    UnitError,
    attention_heads,
    blend,
    output_channels,
    recurrent_gates,
    train_only,
)
from filterattr.results.attribution import FilterAttribution
from filterattr.units.unit import sum_over_units


class Attention(nn.Module):
    """Separate projections under names of its own, as libraries of transformers write them."""

    def __init__(self, heads: int = 2, width: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        return self.out((q @ k.mT).softmax(-1).matmul(v).transpose(1, 2).flatten(2))


HEAD = Group({"[qkv]*": "(heads d) ... -> heads", "out.weight": "o (heads d) -> heads"}, heads=2)


def attention_network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), Attention(), nn.Tanh(), Attention(), nn.Linear(4, 1)).double()


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().sum()


SAMPLES = [torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]


@pytest.fixture
def ends() -> tuple[nn.Module, nn.Module]:
    return attention_network(), attention_network()


def test_members_add_up_before_the_absolute_value_and_before_the_mean(ends: tuple[nn.Module, nn.Module]) -> None:
    base, target = ends
    heads = FilterAttributor(base, unit={"[13]": HEAD}).attribute(base, target, loss, SAMPLES)
    signed = {name: torch.zeros(2, 2, dtype=torch.float64) for name in ("1", "3")}
    absolute = {name: torch.zeros(2, dtype=torch.float64) for name in ("1", "3")}
    for index, sample in enumerate(SAMPLES):
        weights = (
            FilterAttributor(base, unit="weight", select="*").attribute(base, target, loss, [sample]).scores("sum")
        )
        for module in ("1", "3"):
            for name, values in weights.items():
                for head, rows in ((0, slice(0, 2)), (1, slice(2, 4))):
                    if name in (
                        f"{module}.{part}.{kind}" for part in ("query", "key", "value") for kind in ("weight", "bias")
                    ):
                        part = values[rows]
                    elif name == f"{module}.out.weight":
                        part = values[:, rows]
                    else:
                        continue
                    signed[module][index, head] += part.sum()
                    absolute[module][head] += part.abs().sum() / len(SAMPLES)
    assert list(heads.scores()) == ["1", "3"]
    for module in ("1", "3"):
        torch.testing.assert_close(heads.scores("sum")[module], signed[module].mean(0), rtol=0, atol=1e-12)
        torch.testing.assert_close(heads.scores("abs_of_sum")[module], signed[module].abs().mean(0), rtol=0, atol=1e-12)
        torch.testing.assert_close(heads.scores("sum_of_abs")[module], absolute[module], rtol=0, atol=1e-12)
    scored = sum(float(one.sum()) for one in heads.scores("sum").values())
    assert scored + heads.remainder == pytest.approx(heads.total, abs=1e-12)
    assert heads.completeness_error < 1e-6


def test_groups_and_other_units_stand_in_the_order_of_the_network(ends: tuple[nn.Module, nn.Module]) -> None:
    base, target = ends
    scores = FilterAttributor(base, unit={"[13]": HEAD, "*": "filter"}).attribute(base, target, loss, SAMPLES).scores()
    assert list(scores) == ["0.weight", "1", "3", "4.weight"]


def test_selected_head_is_its_slices_in_every_member(ends: tuple[nn.Module, nn.Module]) -> None:
    base, target = ends
    scores = FilterAttributor(base, unit={"[13]": HEAD}).attribute(base, target, loss, SAMPLES).scores()
    chosen = FilterSelection({"1": torch.tensor([False, True]), "3": torch.tensor([False, False])}, scores.parameters)
    masked = blend(target, base, chosen)
    expected = {name: value.clone() for name, value in target.state_dict().items()}
    old = base.state_dict()
    for part in ("query", "key", "value"):
        for kind in ("weight", "bias"):
            expected[f"1.{part}.{kind}"][2:] = old[f"1.{part}.{kind}"][2:]
    expected["1.out.weight"][:, 2:] = old["1.out.weight"][:, 2:]
    for name, value in expected.items():
        torch.testing.assert_close(masked[name], value, rtol=0, atol=0)


def test_only_the_selected_head_trains(ends: tuple[nn.Module, nn.Module]) -> None:
    model, target = ends
    scores = FilterAttributor(model, unit={"[13]": HEAD}).attribute(model, target, loss, SAMPLES).scores()
    chosen = FilterSelection({"1": torch.tensor([True, False]), "3": torch.tensor([False, False])}, scores.parameters)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with train_only(model, chosen, optimizer):
        loss(model, SAMPLES[0]).backward()
        optimizer.step()
    changed = {name: value != before[name] for name, value in model.state_dict().items()}
    marked = chosen.weights()
    for name, places in changed.items():
        assert not (places & ~marked[name] if name in marked else places).any()
    assert changed["1.query.weight"][:2].any()
    assert changed["1.out.weight"][:, :2].any()


def test_grouped_results_survive_a_file_and_a_checkpoint(ends: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    base, target = ends
    attributor = FilterAttributor(base, unit={"[13]": HEAD, "*": "filter"})
    whole = attributor.attribute(base, target, loss, SAMPLES)
    whole.save(tmp_path / "whole")
    again = FilterAttribution.load(tmp_path / "whole")
    assert again.parameters == whole.parameters
    torch.testing.assert_close(again.scores().flat(), whole.scores().flat(), rtol=0, atol=0)
    top = whole.scores().top(0.3)
    top.save(tmp_path / "top")
    assert FilterSelection.load(tmp_path / "top") == top
    attributor.attribute(base, target, loss, SAMPLES[:1], checkpoint=tmp_path / "job")
    resumed = attributor.attribute(base, target, loss, SAMPLES, checkpoint=tmp_path / "job")
    torch.testing.assert_close(resumed.scores().flat(), whole.scores().flat(), rtol=0, atol=0)


def test_sum_over_units_is_what_a_ranking_of_groups_needs(ends: tuple[nn.Module, nn.Module]) -> None:
    base, _ = ends

    parameters = FilterAttributor(base, unit={"[13]": HEAD}).scored_parameters()
    values = {name: torch.ones(scored.shape) for name, scored in parameters.items()}
    scores = FilterScores(sum_over_units(values, parameters), parameters)
    assert scores["3"].tolist() == [3 * (2 * 4 + 2) + 4 * 2] * 2  # rows and biases of q, k, v; columns of out


def test_select_takes_members_away(ends: tuple[nn.Module, nn.Module]) -> None:

    base, _ = ends
    attributor = FilterAttributor(base, unit={"[13]": HEAD}, select="1.*.weight")
    assert list(attributor.scored_parameters()) == [f"1.{part}.weight" for part in ("query", "key", "value", "out")]


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        ({"body*": HEAD}, r"no module with parameters has a name like 'body\*'"),
        ({"[13]": Group({"q.*": "o ... -> o"})}, r"'1' has no parameter like 'q\.\*', only 'query\.weight'"),
        (
            {"[13]": Group({"query.*": "(h d) ... -> h", "rope.*": "h -> h"}, h=2)},
            r"no parameter in '\[13\]' is like 'rope\.\*'",
        ),
        (
            {"[13]": Group({"query.*": "(h d) ... -> h", "out.weight": "o i -> i"}, h=2)},
            r"the members of '1' must come to the same units, not '1\.query\.weight' \(2,\), .*'1\.out\.weight' \(4,\)",
        ),
        ({"[13]": Group({"query.*": "(h d) ... -> h"}, h=3)}, r"'1\.query\.weight': the pattern .* shape \(4, 4\)"),
        (
            {"[13]": HEAD, "1": Group({"out.weight": "o i -> o"})},
            r"'1\.out\.weight' belongs to two groups, '1' and '1'",
        ),
    ],
)
def test_groups_that_do_not_fit_say_which_parameter_has_which_shape(unit: dict, message: str) -> None:
    with pytest.raises(UnitError, match=message):
        FilterAttributor(attention_network(), unit=unit)


def test_sizes_that_no_pattern_names_are_refused() -> None:
    with pytest.raises(UnitError, match="every size an axis in one of their patterns; 'head' in"):
        Group({"q": "(heads d) i -> heads"}, head=2)


def test_heads_of_torch_attention_need_no_counting() -> None:
    torch.manual_seed(0)
    make = lambda: nn.MultiheadAttention(6, 3, add_bias_kv=True, batch_first=True).double()  # noqa: E731
    base, target = make(), make()
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    heads = FilterAttributor(base, unit=attention_heads(base)).attribute(
        base, target, lambda model: model(x, x, x)[0].square().sum()
    )
    weights = FilterAttributor(base, unit="weight", select="*").attribute(
        base, target, lambda model: model(x, x, x)[0].square().sum()
    )
    every = weights.scores("sum")
    expected = (
        every["in_proj_weight"].reshape(3, 3, 2, 6).sum((0, 2, 3))
        + every["in_proj_bias"].reshape(3, 3, 2).sum((0, 2))
        + (every["bias_k"] + every["bias_v"]).reshape(3, 2).sum(1)
        + every["out_proj.weight"].reshape(6, 3, 2).sum((0, 2))
    )
    torch.testing.assert_close(heads.scores("sum")["model"], expected, rtol=0, atol=1e-12)


def test_separate_projections_of_torch_attention_are_found() -> None:
    model = nn.MultiheadAttention(6, 3, kdim=4, vdim=5)
    assert list(attention_heads(model)[""].members) == ["in_proj_*", "[qkv]_proj_weight", "out_proj.weight"]
    assert FilterAttributor(model, unit=attention_heads(model)) is not None
    with pytest.raises(UnitError, match=r"no torch\.nn\.MultiheadAttention, and no projections with the usual names"):
        attention_heads(nn.Linear(2, 2))


def test_heads_of_other_attention_are_found_by_name_and_confirmed_by_a_pass() -> None:
    model = attention_network()
    x = SAMPLES[0]
    before = {name: (id(value), value.clone()) for name, value in model.state_dict(keep_vars=True).items()}
    model.train()
    units = attention_heads(model, lambda net: net(x))
    assert {path: dict(group.members) for path, group in units.items()} == {
        path: {
            **{f"{part}.{kind}": Unit("(heads d) ... -> heads", {"heads": 2})
               for part in ("query", "key", "value") for kind in ("weight", "bias")},
            "out.weight": Unit("o (heads d) -> heads", {"heads": 2}),
        }
        for path in ("1", "3")
    }  # fmt: skip
    for name, value in model.state_dict(keep_vars=True).items():
        assert id(value) == before[name][0]
        torch.testing.assert_close(value, before[name][1], rtol=0, atol=0)
        assert value.grad is None
    assert all(module.training and not module._forward_hooks for module in model.modules())
    with pytest.raises(UnitError, match=r"it cannot be run by itself \(it does not say .*\): pass run=lambda model"):
        attention_heads(model)


def test_heads_that_a_pass_does_not_confirm_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.ModuleDict({"body": attention_network()})
    run = lambda net: net["body"](SAMPLES[0])  # noqa: E731
    assert list(attention_heads(model, run)) == ["body.1", "body.3"]
    with pytest.raises(UnitError, match=r"no pass came through 'body\.1'; no pass came through 'body\.3'"):
        attention_heads(model, lambda net: None)
    monkeypatch.setattr(model["body"][3], "forward", lambda x: mixed(model["body"][3], x))
    cure = r"unit=\{'body\.3': Group\(\{'out\.weight': 'o \(heads d\) -> heads'\}, heads=2\)\}"
    with pytest.raises(UnitError, match=rf"'body\.3' with \[4, 4, 4\] rows in 'query', .* into 2 heads .*{cure}"):
        attention_heads(model, run)
    group = {"body.3": Group({"out.weight": "o (heads d) -> heads"}, heads=2)}
    assert FilterAttributor(model, unit=group).scored_parameters()["body.3.out.weight"].units_shape == (2,)


@pytest.mark.parametrize("told", [1, 4])
def test_another_number_of_heads_than_the_one_that_computes_is_not_confirmed(told: int) -> None:
    model = attention_network()
    model[1].num_heads = told  # the attribute that is looked at first
    run = lambda net: net(SAMPLES[0])  # noqa: E731
    assert attention_heads(model, run)["1"].members["out.weight"].sizes == {"heads": 2}


def mixed(layer: Attention, x: Tensor) -> Tensor:
    """Attention whose queries are mixed over the heads before they are used."""
    q, k, v = (part(x) for part in (layer.query, layer.key, layer.value))
    q = q / q.norm(dim=-1, keepdim=True)
    q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in (q, k, v))
    return layer.out((q @ k.mT).softmax(-1).matmul(v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("module", "shapes"),
    [
        (
            nn.LSTM(2, 3, num_layers=2, bidirectional=True),
            {f"model.l{k}{end}": (4, 3) for k in (0, 1) for end in ("", "_reverse")},
        ),
        (nn.GRU(2, 3, bias=False), {"l0": (3, 3)}),
        (nn.RNN(2, 3), {"l0": (1, 3)}),
        (nn.LSTM(2, 3, proj_size=2), {"l0": (4, 3)}),
        (nn.GRUCell(2, 3), {"model": (3, 3)}),
        (nn.LSTMCell(2, 3), {"model": (4, 3)}),
        (nn.RNNCell(2, 3), {"model": (1, 3)}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_gates_span_both_weights_and_both_biases(module: nn.Module, shapes: dict[str, tuple[int, ...]]) -> None:
    from filterattr.units.unit import units_of

    parameters = FilterAttributor(module, unit=recurrent_gates(module)).scored_parameters()
    found = {name.removeprefix("model."): tuple(shape) for name, shape in units_of(parameters).items()}
    assert found == {name.removeprefix("model."): shape for name, shape in shapes.items()}
    with pytest.raises(UnitError, match="no recurrent layer"):
        recurrent_gates(nn.Linear(2, 2))


def test_names_with_brackets_are_no_globs() -> None:
    model = nn.ModuleDict({
        "att[0]": nn.MultiheadAttention(4, 2), "att0": nn.MultiheadAttention(4, 2),
        "rnn[0]": nn.GRU(2, 3), "rnn0": nn.GRU(2, 3),
        "up[0]": nn.Linear(2, 3), "up0": nn.Linear(2, 3),
    })  # fmt: skip
    assert list(attention_heads(model)) == ["att[[]0]", "att0"]
    assert list(recurrent_gates(model)) == ["rnn[[]0]", "rnn0"]
    names = {group.label: list(group.members) for group in output_channels(model)[""]}
    assert names["up[0]"] == ["up[[]0].weight", "up[[]0].bias"]
    attributor = FilterAttributor(model, unit={**attention_heads(model), **recurrent_gates(model)})
    assert {scored.group for scored in attributor.scored_parameters().values()} == {
        "att[0]", "att0", "rnn[0].l0", "rnn0.l0",
    }  # fmt: skip


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 4, 3))
        self.norm = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 6, 3, groups=2)
        self.last = nn.GroupNorm(2, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.up(self.norm(self.down(x)).tanh()) * 2)


def test_channels_hold_kernels_bias_and_the_norm_that_is_given_their_output() -> None:
    model = Block()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    units = output_channels(model, lambda model: model(torch.rand(1, 2, 6, 6)))
    assert {group.label: list(group.members) for group in units[""]} == {
        "down": [
            "down.bias",
            "down.parametrizations.weight.original0",
            "down.parametrizations.weight.original1",
            "norm.weight",
            "norm.bias",
        ],
        "up": ["up.weight", "up.bias"],  # its output is doubled before the norm
    }
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    base, target = Block().double().eval(), Block().double().eval()
    target.load_state_dict({name: value + 0.1 * base.state_dict()[name] for name, value in base.state_dict().items()})
    image = torch.rand(1, 2, 6, 6, dtype=torch.float64)
    loss_of_image = lambda model: model(image).square().sum()  # noqa: E731
    scores = FilterAttributor(base, unit=units).attribute(base, target, loss_of_image, buffers="base").scores()
    assert {name: tuple(one.shape) for name, one in scores.items()} == {"down": (4,), "up": (6,)}


def channels_of(model: nn.Module) -> dict[str, dict[str, str]]:
    return {
        group.label: {name: unit.pattern for name, unit in group.members.items()}
        for group in output_channels(model)[""]
    }


def test_channels_of_a_module_under_two_names_are_those_of_the_first() -> None:
    layer = nn.Linear(3, 3)
    model = nn.ModuleDict({"first": layer, "embed": nn.Embedding(3, 3), "second": layer})
    assert channels_of(model) == {"first": {"first.weight": "o ... -> o", "first.bias": "o ... -> o"}}
    assert FilterAttributor(model, unit=output_channels(model)).scored_parameters()["first.bias"].group == "first"


class Scaled(nn.Linear):
    """A linear layer with parameters of its own, some of which belong to its outputs."""

    def __init__(self) -> None:
        super().__init__(2, 3, bias=False)
        self.gain, self.mix, self.of_inputs = (nn.Parameter(torch.ones(shape)) for shape in ((3,), (3, 2), (2, 3)))
        self.temperature = nn.Parameter(torch.ones(()))


def test_parameters_whose_first_axis_is_the_outputs_belong_to_the_channels() -> None:
    names = {name.rpartition(".")[2] for name in channels_of(nn.Sequential(Scaled()))["0"]}
    assert names == {"weight", "gain", "mix"}


def test_channels_of_a_transposed_convolution_are_its_outputs_with_and_without_weight_norm() -> None:
    torch.manual_seed(0)
    plain, normed = nn.ConvTranspose2d(3, 3, 2), nn.utils.parametrizations.weight_norm(nn.ConvTranspose2d(3, 3, 2))
    inputs_first = "(g i) o ... -> (g o)"
    assert channels_of(nn.Sequential(plain, normed)) == {
        "0": {"0.weight": inputs_first, "0.bias": "o ... -> o"},
        "1": {
            "1.bias": "o ... -> o",
            "1.parametrizations.weight.original1": inputs_first,
        },  # a size belongs to an input
    }


def test_tied_parameters_are_members_under_either_name() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    model["head"].weight = model["embed"].weight

    parameters = FilterAttributor(model, unit={"head": Group({"weight": "token i -> token"})}).scored_parameters()
    assert [(name, scored.group) for name, scored in parameters.items()] == [("embed.weight", "head")]


class Bare(nn.Module):
    """A layer of another library, whose weight has so many dimensions."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))
        self.out_features = 3


def test_layers_of_other_libraries_have_channels_if_their_weight_has_two_dimensions() -> None:
    model = nn.Sequential(Bare(3), Bare(3, 2), Bare(3, 2, 2), nn.ReLU())
    assert list(channels_of(model)) == ["1", "2"]
    with pytest.raises(UnitError, match="no convolution or linear layer that says how many outputs it has"):
        output_channels(nn.Sequential(Bare(3), nn.Embedding(2, 3)))


def test_parameters_of_a_norm_that_are_not_one_for_each_channel_belong_to_none() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm((2, 3)))
    (group,) = output_channels(model, lambda model: model(torch.rand(1, 2, 4)))[""]
    assert list(group.members) == ["0.weight", "0.bias"]
