"""Outputs, inputs and pairs of every layer whose layout is known, checked by what its forward pass does.

Without the weights of output k, output k alone changes; without those of input k, nothing depends on input k any more;
a pair is what an output and an input have in common.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from filterattr import FilterAttributor, FilterAttrWarning, Unit, UnitError, output_channels, register_layout
from filterattr.units.layouts import NAMED_UNITS, REGISTERED, is_guess, is_linear_map, layout_of, unit_of

Run = Callable[[nn.Module, Tensor], Tensor]


class FanIn(nn.Linear):
    """A linear layer that stores its weight the other way round, as some adapters do for GPT-2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.fan_in_fan_out = True
        self.weight = nn.Parameter(self.weight.detach().T.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Foreign(nn.Module):
    """A layer of another library: nothing but its sizes tells how it stores its weight."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.weight = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class InGroups(nn.Module):
    """Blocks of a block-diagonal matrix, each with inputs first."""

    def __init__(self, groups: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.groups = groups
        self.blocks = nn.Parameter(torch.randn(groups, inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bgi,gio->bgo", x, self.blocks)


def of_features(module: nn.Module, x: Tensor) -> Tensor:
    return module(x)


def of_channels(module: nn.Module, x: Tensor) -> Tensor:
    """The channels stand first behind the batch; they are put last."""
    return module(x.movedim(-1, 1)).movedim(1, -1)


def conv1d(inputs: int, outputs: int) -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="pip install transformers")
    layer = transformers.pytorch_utils.Conv1D(outputs, inputs)
    nn.init.normal_(layer.weight)
    return layer


CASES: dict[str, tuple[Callable[[], nn.Module], str, tuple[int, ...], Run]] = {
    "Conv1d": (lambda: nn.Conv1d(3, 4, 2), "weight", (2, 5, 3), of_channels),
    "Conv2d": (lambda: nn.Conv2d(3, 4, 2), "weight", (2, 4, 4, 3), of_channels),
    "Conv3d": (lambda: nn.Conv3d(2, 3, 2), "weight", (1, 3, 3, 3, 2), of_channels),
    "Conv2d, grouped": (lambda: nn.Conv2d(4, 6, 2, groups=2), "weight", (1, 3, 3, 4), of_channels),
    "Conv2d, depthwise": (lambda: nn.Conv2d(4, 4, 2, groups=4), "weight", (1, 3, 3, 4), of_channels),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(3, 4, 2), "weight", (1, 4, 3), of_channels),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(3, 4, 2), "weight", (1, 3, 3, 3), of_channels),
    "ConvTranspose2d, grouped": (lambda: nn.ConvTranspose2d(4, 6, 2, groups=2), "weight", (1, 3, 3, 4), of_channels),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(2, 3, 2), "weight", (1, 2, 2, 2, 2), of_channels),
    "Linear": (lambda: nn.Linear(3, 4), "weight", (5, 3), of_features),
    "Linear, square": (lambda: nn.Linear(4, 4), "weight", (5, 4), of_features),
    "Bilinear": (
        lambda: nn.Bilinear(3, 2, 4), "weight", (5, 3),
        lambda module, x: module(x, torch.linspace(1, 2, 10, dtype=x.dtype).reshape(5, 2)),
    ),
    "RNN": (lambda: nn.RNN(3, 4), "weight_ih_l0", (1, 3), lambda module, x: module(x[None])[0]),
    "LoRA: A and B": (lambda: nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 4)), "1.weight", (5, 2),
                      lambda module, x: module[1](x)),
    "fan in, fan out": (lambda: FanIn(3, 4), "weight", (5, 3), of_features),
    "fan in, fan out, square": (lambda: FanIn(4, 4), "weight", (5, 4), of_features),
    "sizes that tell": (lambda: Foreign(3, 4), "weight", (5, 3), of_features),
    "GPT-2's Conv1D": (lambda: conv1d(3, 4), "weight", (5, 3), of_features),
    "GPT-2's Conv1D, square": (lambda: conv1d(4, 4), "weight", (5, 4), of_features),
}  # fmt: skip


def marked(unit_name: str, name: str, module: nn.Module) -> list[Tensor]:
    """The weights of every unit."""
    parameter = module.get_parameter(name)
    owner = module.get_submodule(name.rpartition(".")[0])
    unit = unit_of(name, parameter, owner, unit_name)
    shape = unit.units_shape(parameter.shape)
    places = torch.arange(shape.numel()).reshape(shape)
    return [unit.expand(places == place, parameter.shape) for place in range(shape.numel())]


def outputs_and_inputs(module: nn.Module, x: Tensor, run: Run, channels: int = 1) -> tuple[Tensor, Tensor]:
    """The outputs, and which input channels they depend on; channels stand on the last axes."""
    x = x.clone().requires_grad_()
    out = run(module, x)
    out.mul(torch.linspace(1, 2, out.numel(), dtype=out.dtype).reshape(out.shape)).sum().backward()
    return out.detach().flatten(-channels), x.grad.flatten(-channels).flatten(0, -2).ne(0).any(0)


def check(module: nn.Module, name: str, x: Tensor, run: Run, channels: int = 1, outputs: bool = True) -> None:
    """Take the weights of every output and of every input away, and look at what changes."""
    parameter = module.get_parameter(name)
    own = parameter.detach().clone()
    filters, inputs, kernels = (marked(unit, name, module) for unit in ("filter", "input", "kernel"))
    whole, reached = outputs_and_inputs(module, x, run, channels)
    assert reached.all()
    assert len(inputs) == len(reached)
    for number, weights in enumerate(filters) if outputs else ():
        parameter.data = own.masked_fill(weights, 0)
        changed = (outputs_and_inputs(module, x, run, channels)[0] != whole).flatten(0, -2).any(0)
        assert len(changed) == len(filters)
        assert changed.nonzero().flatten().tolist() == [number]
    for number, weights in enumerate(inputs):
        parameter.data = own.masked_fill(weights, 0)
        reached = outputs_and_inputs(module, x, run, channels)[1]
        assert (~reached).nonzero().flatten().tolist() == [number]
    parameter.data = own
    for units in (filters, inputs, kernels):  # every weight belongs to one unit
        assert torch.stack(units).sum(0).eq(1).all()
    pairs = {tuple((one & two).flatten().tolist()) for one in filters for two in inputs if (one & two).any()}
    assert pairs == {tuple(kernel.flatten().tolist()) for kernel in kernels}


@pytest.mark.parametrize("case", CASES)
def test_outputs_inputs_and_pairs_are_those_of_the_forward_pass(case: str) -> None:
    torch.manual_seed(0)
    build, name, shape, run = CASES[case]
    check(build().double(), name, torch.rand(shape, dtype=torch.float64) + 0.5, run)


def test_every_input_of_the_projections_of_attention() -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(4, 2, batch_first=True).double()
    x = torch.rand(1, 3, 4, dtype=torch.float64)
    check(module, "in_proj_weight", x, lambda module, x: module(x, x, x)[0], outputs=False)


EXPERTS, TOKENS, WIDTH, INNER = 3, 12, 4, 6


def experts(kind: str) -> tuple[nn.Module, Run, tuple[str, ...]]:
    """Experts of transformers; token t goes to expert t % 3. Axes of inputs and outputs: token, expert, feature."""
    transformers = pytest.importorskip("transformers", reason="pip install transformers")
    sizes = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_local_experts": EXPERTS}
    chosen = (torch.arange(TOKENS) % EXPERTS)[:, None]
    names = "gate_up_proj", "down_proj"

    def routed(module: nn.Module, x: Tensor) -> Tensor:
        weights = torch.ones(TOKENS, 1, dtype=x.dtype)
        return module(x.reshape(TOKENS, WIDTH), chosen, weights).reshape(-1, EXPERTS, WIDTH)

    def in_order(module: nn.Module, x: Tensor) -> Tensor:
        return module(x.transpose(0, 1).reshape(TOKENS, WIDTH)).reshape(EXPERTS, -1, WIDTH).transpose(0, 1)

    if kind == "Mixtral":
        from transformers.models.mixtral.modeling_mixtral import MixtralExperts

        return MixtralExperts(transformers.MixtralConfig(**sizes)), routed, names
    if kind == "gpt-oss":
        from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

        return GptOssExperts(transformers.GptOssConfig(**sizes)), routed, names
    if kind == "Llama 4":
        from transformers.models.llama4.modeling_llama4 import Llama4TextExperts

        return Llama4TextExperts(transformers.Llama4TextConfig(**sizes)), in_order, names
    from transformers.models.dbrx.modeling_dbrx import DbrxExperts

    config = transformers.models.dbrx.configuration_dbrx.DbrxFFNConfig(
        hidden_size=WIDTH, ffn_hidden_size=INNER, moe_num_experts=EXPERTS
    )
    return DbrxExperts(config), routed, ("mlp.w1", "mlp.v1", "mlp.w2")


@pytest.mark.parametrize("kind", ["Mixtral", "gpt-oss", "Llama 4", "DBRX"])
def test_experts_in_one_tensor(kind: str) -> None:
    torch.manual_seed(0)
    module, run, (*ways_in, out_of) = experts(kind)
    module.double()
    for name, parameter in module.named_parameters():  # an inner neuron without its weights is silent
        parameter.data = torch.rand_like(parameter) * 0.5 + 0.1 if "bias" not in name else torch.zeros_like(parameter)
    x = torch.rand(TOKENS // EXPERTS, EXPERTS, WIDTH, dtype=torch.float64) + 0.5
    into = ways_in[0]
    down, up = module.get_parameter(out_of), module.get_parameter(into)
    owns = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    own_down, own_up = owns[out_of], owns[into]
    whole = run(module, x).detach()
    filters = marked("filter", out_of, module)
    for number, weights in enumerate(filters):  # an output of an expert
        down.data = own_down.masked_fill(weights, 0)
        changed = (run(module, x).detach() != whole).any(0).flatten()
        assert changed.nonzero().flatten().tolist() == [number]
    down.data = own_down
    for number in range(EXPERTS * WIDTH):  # an input of an expert: no way in is left
        for name in ways_in:
            module.get_parameter(name).data = owns[name].masked_fill(marked("input", name, module)[number], 0)
        reached = outputs_and_inputs(module, x, run, 2)[1]
        assert (~reached).nonzero().flatten().tolist() == [number]
    for name in ways_in:
        module.get_parameter(name).data = owns[name]
    rows = marked("filter", into, module)  # an inner neuron: its row on the way in, its column on the way out
    columns = marked("input", out_of, module)
    per_expert = len(rows) // EXPERTS
    step = 2 if kind == "gpt-oss" else 1  # gates and values take turns
    for expert in range(EXPERTS):
        for neuron in range(INNER):
            up.data, down.data = own_up.masked_fill(rows[expert * per_expert + step * neuron], 0), own_down
            without_row = run(module, x).detach()
            up.data, down.data = own_up, own_down.masked_fill(columns[expert * INNER + neuron], 0)
            torch.testing.assert_close(without_row, run(module, x).detach(), rtol=0, atol=1e-12)
            assert not torch.equal(without_row, whole)


@pytest.mark.parametrize("layer", ["GPT-2's Conv1D", "sizes that tell", "Linear"])
def test_channels_of_layers_of_other_libraries_have_their_weights_and_biases(layer: str) -> None:
    model = nn.Sequential(CASES[layer][0](), nn.LayerNorm(4)).double()
    units = output_channels(model, lambda net: net(torch.ones(5, 3, dtype=torch.float64)))
    scored = FilterAttributor(model, unit=units).scored_parameters()
    assert set(scored) == {name for name, _ in model.named_parameters()}
    assert {(one.group, tuple(one.units_shape)) for one in scored.values()} == {("0", (4,))}
    chosen = torch.arange(4) == 2
    weight = scored["0.weight"]
    assert torch.equal(weight.unit.expand(chosen, weight.shape), marked("filter", "0.weight", model)[2])


class Linear4bit(nn.Linear):
    """Keeps its weight packed, as bitsandbytes does, in a type that floats or does not."""

    def __init__(self, inputs: int, outputs: int, kind: torch.dtype) -> None:
        super().__init__(inputs, outputs, bias=False)
        packed = torch.zeros(inputs * outputs // 2, 1, dtype=kind)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.weight.quant_state = "what unpacks it"


@pytest.mark.parametrize("kind", [torch.uint8, torch.bfloat16])
def test_packed_weights_have_no_units_and_their_adapters_do(kind: torch.dtype) -> None:
    model = nn.ModuleDict({"base": Linear4bit(4, 6, kind), "A": nn.Linear(4, 2, bias=False), "B": nn.Linear(2, 6)})
    scored = FilterAttributor(model, unit="filter").scored_parameters()
    assert {name: tuple(one.units_shape) for name, one in scored.items()} == {"A.weight": (2,), "B.weight": (6,)}
    assert set(FilterAttributor(model, select="*", unit="layer").scored_parameters()) == {
        "A.weight",
        "B.weight",
        "B.bias",
    }


def test_biases_of_experts_have_outputs_and_no_inputs() -> None:
    module, _, _ = experts("gpt-oss")
    bias = module.down_proj_bias
    assert unit_of("down_proj_bias", bias, module, "filter").units_shape(bias.shape) == (EXPERTS, WIDTH)
    with pytest.raises(UnitError, match=r"'down_proj_bias' of GptOssExperts has no input axis"):
        unit_of("down_proj_bias", bias, module, "input")


@pytest.fixture
def registry() -> Any:
    """What a test registers is forgotten afterwards."""
    before = list(REGISTERED)
    yield
    REGISTERED[:] = before


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("layer", [InGroups, "InGroups", lambda module: hasattr(module, "blocks")])
def test_users_register_layers_of_their_own(layer: Any) -> None:
    module = InGroups(2, 3, 4).double()
    with pytest.warns(FilterAttrWarning, match=r"axes are outputs and inputs of 'blocks \(2, 3, 4\) of InGroups'"):
        FilterAttributor(module)
    register_layout(layer, {"blocks": "g i o"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scored = FilterAttributor(module, unit="filter").scored_parameters()["blocks"]
    assert scored.units_shape == (2, 4)
    check(module, "blocks", torch.rand(5, 2, 3, dtype=torch.float64), of_features, channels=2)


@pytest.mark.usefixtures("registry")
def test_what_is_registered_last_counts_first_and_sizes_are_asked_of_the_layer() -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.count, self.weight = 2, nn.Parameter(torch.ones(6, 5))

    register_layout(Fused, {"weight": "i o"})
    assert layout_of(Fused(), "weight", Fused().weight).filter == ("i o -> o", {})
    register_layout(Fused, {"weight": "(g o) i"}, g="count")
    assert layout_of(Fused(), "weight", Fused().weight).input == ("(g o) i -> (g i)", {"g": 2})


@pytest.mark.parametrize(("axes", "sizes"), [({}, {}), ({"w": "i j"}, {}), ({"w": "o i"}, {"g": 2})])
def test_layouts_without_outputs_or_with_sizes_of_nothing_are_refused(axes: dict[str, str], sizes: Any) -> None:
    with pytest.raises(UnitError, match="a layout needs axes for each parameter"):
        register_layout(InGroups, axes, **sizes)


def test_experts_that_are_not_known_are_guessed_with_a_warning() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_experts, self.up = 3, nn.Parameter(torch.ones(3, 4, 5))

    with pytest.warns(FilterAttrWarning, match=r"'up \(3, 4, 5\) of Experts'; experts are taken as \(expert, output"):
        assert FilterAttributor(Experts(), unit="kernel").scored_parameters()["up"].units_shape == (3, 4, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FilterAttributor(Experts(), unit={"up": "e i o -> e o"})
        FilterAttributor(Experts(), unit="layer")


def test_patterns_of_common_layers_are_those_that_files_of_all_versions_hold() -> None:
    """They are part of what a checkpoint knows its job by."""

    def spelled(module: nn.Module, unit: str) -> tuple[str, dict[str, int]]:
        found = unit_of("weight", module.weight, module, unit)
        return found.pattern, dict(found.sizes)

    for layer in (nn.Linear(3, 4), nn.Conv2d(3, 4, 2), nn.Embedding(3, 4)):
        assert spelled(layer, "kernel") == ("o i ... -> o i", {})
        assert spelled(layer, "filter") == ("o ... -> o", {})
        assert spelled(layer, "input") == ("(g o) i ... -> (g i)", {"g": 1})
    transposed = nn.ConvTranspose2d(4, 6, 3, groups=2)
    assert spelled(transposed, "kernel") == ("(g i) o ... -> (g o) i", {"g": 2})
    assert spelled(transposed, "filter") == ("(g i) o ... -> (g o)", {"g": 2})
    assert spelled(transposed, "input") == ("i o ... -> i", {})


class NoInputs(nn.Module):
    """Two axes, both of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(2, 3))


@pytest.mark.usefixtures("registry")
def test_a_layer_without_inputs_has_outputs_alone() -> None:
    register_layout(NoInputs, {"table": "o1 o2"})
    layer = NoInputs()
    assert unit_of("a.table", layer.table, layer, "filter").reduce(layer.table).shape == (2, 3)
    with pytest.raises(
        UnitError, match=r"'a\.table' of NoInputs has no input axis; score it by weight, kernel or filter"
    ):
        unit_of("a.table", layer.table, layer, "input")


@pytest.mark.parametrize(
    "name", ["weight", "body.0.weight", "parametrizations.weight.original", "body.parametrizations.weight.original0"]
)
def test_a_weight_is_known_by_its_name_inside_the_layer(name: str) -> None:
    layer = FanIn(3, 5)
    assert unit_of(name, layer.weight, layer, "filter") == Unit("i o -> o")
    assert unit_of(name.replace("weight", "other"), layer.weight, layer, "filter") == Unit("o ... -> o")


def test_outputs_and_inputs_are_guessed_for_named_units_of_unknown_layers_alone() -> None:
    layer, weight = nn.Module(), torch.ones(3, 4, 5)
    assert [
        unit for unit in (*NAMED_UNITS, Unit("e o i -> o"), "e o i -> o") if is_guess("up", weight, layer, unit)
    ] == [
        "kernel",
        "filter",
        "input",
    ]
    assert not is_guess("up", weight[0], layer, "kernel")
    assert not is_guess("up", weight[0, 0], layer, "kernel")
    assert not is_guess("up", weight, nn.Conv1d(4, 3, 5), "kernel")


class Says(nn.Module):
    """A layer of another library that says how many inputs and outputs it has."""

    def __init__(self, *shape: int, **told: object) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))
        for name, value in told.items():
            setattr(self, name, value)


def test_a_layer_is_a_linear_map_if_it_is_registered_or_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_linear_map(Says(2, 3, in_features=2, out_features=3))
    assert is_linear_map(Says(2, 2, in_features=2, out_features=2, fan_in_fan_out=True))
    others = Says(2, 2, in_features=2, out_features=2), Says(3, 2, in_features=2, out_features=3), Says(3), nn.ReLU()
    assert not [module for module in others if is_linear_map(module) is not False]
    monkeypatch.setattr("filterattr.units.layouts.REGISTERED", list(REGISTERED))
    register_layout("Says", {"weight": "o i"})
    assert all(is_linear_map(module) is True for module in others[:3])


def test_an_ellipsis_stands_for_any_number_of_axes_and_other_layouts_for_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("filterattr.units.layouts.REGISTERED", list(REGISTERED))
    register_layout("Says", {"weight": "i o ..."})
    for shape in ((2, 3), (2, 3, 4), (2, 3, 4, 5)):
        assert layout_of(Says(*shape), "weight", torch.ones(shape)).filter == ("i o ... -> o", {})
    register_layout("Says", {"weight": "i x o", "other": "i o"})
    assert layout_of(Says(2, 3, 4), "weight", torch.ones(2, 3, 4)).filter == ("i x o -> o", {})
    assert layout_of(Says(2, 3), "weight", torch.ones(2, 3)).filter == (
        "i o ... -> o",
        {},
    )  # what was registered before
    assert layout_of(Says(2, 3), "gain", torch.ones(2, 3)).filter == ("o ... -> o", {})


@pytest.mark.parametrize("wanted", ["weight", "kernel", "filter"])
def test_every_entry_of_a_vector_is_a_unit_and_has_no_input(wanted: str) -> None:
    layer = nn.Linear(2, 3)
    assert unit_of("head.bias", layer.bias, layer, wanted) == Unit("... -> ...")
    with pytest.raises(UnitError, match=r"'head\.bias' has shape \(3,\) and no input axis; score it by weight"):
        unit_of("head.bias", layer.bias, layer, "input")
    with pytest.raises(UnitError, match=r"unit must be one of weight, kernel, filter, input, layer, .* got 'neuron'"):
        unit_of("head.weight", layer.weight, layer, "neuron")
    assert not is_guess("head.bias", layer.bias, layer, wanted)


def test_three_axes_are_a_guess_unless_there_is_one_expert_or_the_layer_is_of_torch() -> None:
    guessed = {shape: layout_of(Says(*shape), "weight", torch.ones(shape)).is_guess for shape in ((2, 3, 4), (1, 3, 4))}
    assert guessed == {(2, 3, 4): True, (1, 3, 4): False}
    assert not layout_of(nn.Bilinear(3, 4, 2), "weight", torch.ones(2, 3, 4)).is_guess
    assert not layout_of(Says(2, 3, num_experts=2), "weight", torch.ones(2, 3)).is_guess
    assert layout_of(Says(2, 3, 4, num_experts=2), "weight", torch.ones(2, 3, 4)).filter == ("g o i -> g o", {})
