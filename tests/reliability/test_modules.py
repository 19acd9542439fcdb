"""Part D: kinds of modules; each is right, or refused by the name of the key or the module."""

from __future__ import annotations

import copy
import warnings
from collections import Counter

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import distribute_module
from torch.nn import functional
from torch.nn.utils import parametrizations

from filterattr import FilterAttributor, UnsupportedModelError
from tests.reliability.fingerprint import unchanged
from tests.reliability.networks import assert_values, by_hand, convolutions, ends, picture, squared


def doubles():
    return convolutions(torch.float64)


@pytest.mark.filterwarnings("ignore::filterattr.FilterAttrWarning")  # eight nodes are few for them
@pytest.mark.parametrize(
    "wrap", [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal]
)
def test_case_52_parametrized_weights_are_scored_by_their_originals(attribute, wrap):
    def build():
        return nn.Sequential(wrap(nn.Linear(3, 3)), nn.Tanh(), nn.Linear(3, 1)).double().eval()

    model, base, target = ends(build)
    loss = squared(torch.rand(4, 3, dtype=torch.float64))
    for name in base:  # what is no parameter must not differ
        if name.endswith(("_u", "_v", ".base")):
            target[name] = base[name]
            model.get_buffer(name).copy_(base[name])
    expected = by_hand(model, base, target, loss)
    with attribute.leaves(model):
        outcome = attribute(model, base, target, loss)
    assert_values(outcome, expected)
    assert any("original" in name for name in outcome.values)


def test_case_52_the_computed_weight_is_no_parameter_and_told_so(attribute):
    def build():
        return nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3)))

    model, _, target = ends(build)
    plain = {"0.weight": torch.ones(3, 3), "0.bias": torch.ones(3)}
    with attribute.leaves(model):
        message = attribute.refuses(model, plain, target, squared(torch.ones(2, 3)))
    assert "0.weight" in message
    assert "0.parametrizations.weight.original0" in message


def test_case_53_a_shadowed_weight_is_named(attribute):
    model, base, target = ends(convolutions)
    model[0].__dict__["weight"] = model[0].weight.detach().clone()  # how some libraries merge batch normalisation
    with attribute.leaves(model):
        message = attribute.refuses(model, base, target, squared(picture()))
    assert "0.weight" in message


def test_case_54_a_mistyped_key_is_named(attribute):
    model, base, target = ends(convolutions)
    target["0.wieght"] = target.pop("0.weight")
    with attribute.leaves(model):
        message = attribute.refuses(model, base, target, squared(picture()))
    assert "0.wieght" in message
    assert "'0.weight'" in message


def test_case_54_all_that_is_wrong_comes_in_one_message(attribute):
    model, base, target = ends(convolutions)
    target["0.wieght"] = target.pop("0.weight")
    base["2.weight"] = base["2.weight"][:, :2]
    with attribute.leaves(model):
        message = attribute.refuses(model, base, target, squared(picture()))
    assert all(name in message for name in ("0.wieght", "2.weight", "(2, 2, 3, 3)"))


def test_case_54_integers_that_differ_and_complex_values_for_a_real_model_are_named(attribute):
    class Stepped(nn.Linear):
        def __init__(self):
            super().__init__(3, 3)
            self.steps = nn.Parameter(torch.tensor([3]), requires_grad=False)

    model, base, target = ends(Stepped)
    target = {**target, "steps": torch.tensor([4]), "weight": torch.ones(3, 3, dtype=torch.complex64)}
    base = {**base, "bias": torch.full((3,), float("nan"))}
    with attribute.leaves(model):
        message = attribute.refuses(model, base, target, squared(torch.ones(2, 3)))
    assert "'steps' is torch.int64 and differs" in message
    assert "target is complex and the model real in 'weight'" in message
    assert "base holds infinite values or NaN in 'bias'" in message


def test_case_55_a_shape_that_would_broadcast_is_refused(attribute):
    model, base, target = ends(lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)))
    base, target = ({**state, "0.bias": state["0.bias"][:1]} for state in (base, target))
    with attribute.leaves(model):
        message = attribute.refuses(model, base, target, squared(torch.ones(2, 3)))
    assert "'0.bias' has shape (1,), not (4,)" in message


class Functional(nn.Module):
    """Convolutions without a convolution module."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.randn(4, 1, 3, 3) / 3)
        self.second = nn.Parameter(torch.randn(4, 2, 3, 3) / 4)

    def forward(self, inputs):
        return functional.conv2d(torch.tanh(functional.conv2d(inputs, self.first)), self.second, groups=2)


def test_case_56_functional_convolutions_are_found_by_their_parameters(attribute):
    model, base, target = ends(lambda: Functional().double())
    loss = squared(picture(torch.float64))
    expected = by_hand(model, base, target, loss)
    with attribute.leaves(model):
        outcome = attribute(model, base, target, loss)
    assert_values(outcome, expected)


def test_case_56_transposed_and_grouped_kernels_are_scored_on_the_right_axes():
    layers = (nn.ConvTranspose2d(4, 6, 3, groups=2), nn.Tanh(), nn.Conv2d(6, 4, 3, groups=2))
    model, base, target = ends(lambda: nn.Sequential(*copy.deepcopy(layers)).double())
    generator = torch.Generator().manual_seed(0)
    base, target = (
        {name: torch.randn(value.shape, generator=generator, dtype=value.dtype) * 0.3 for name, value in state.items()}
        for state in (base, target)
    )
    inputs = torch.rand(1, 4, 5, 5, dtype=torch.float64)
    weights = by_hand(model, base, target, squared(inputs))
    scores = FilterAttributor(model).attribute(base, target, squared(inputs), n_steps=8, progress=False).scores("sum")
    stored = weights["0.weight"].sum((2, 3)).reshape(2, 2, 3)  # group, input of the group, output of the group
    torch.testing.assert_close(scores["0.weight"], stored.transpose(1, 2).reshape(6, 2))
    torch.testing.assert_close(scores["2.weight"], weights["2.weight"].sum((2, 3)))


def test_case_57_a_lazy_module_asks_for_a_forward_pass(attribute):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = nn.Sequential(nn.LazyLinear(3))
    state = {"0.weight": torch.ones(3, 2), "0.bias": torch.ones(3)}
    message = attribute.refuses(model, state, state, squared(torch.ones(2, 2)))
    assert "0.weight" in message
    assert "run one forward" in message
    built, base, _ = ends(lambda: nn.Sequential(nn.Linear(2, 3)))
    assert "0.weight" in attribute.refuses(built, base, model, squared(torch.ones(2, 2)))


def test_case_58_a_model_on_the_meta_device_is_named(attribute):
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 3))
    state = {"0.weight": torch.ones(3, 2), "0.bias": torch.ones(3)}
    message = attribute.refuses(model, state, state, squared(torch.ones(2, 2)))
    assert "'0.weight' is on the meta device" in message
    built, base, _ = ends(lambda: nn.Sequential(nn.Linear(2, 3)))
    with attribute.leaves(built):
        assert "0.weight" in attribute.refuses(built, base, model, squared(torch.ones(2, 2)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor")
def test_case_59_a_quantized_module_is_named(attribute):
    model, base, target = ends(lambda: nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(36, 2)))
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    message = attribute.refuses(quantized, base, target, squared(picture()))
    assert "module '2' is quantized" in message
    with attribute.leaves(model):
        assert "2._packed_params" in attribute.refuses(model, base, quantized, squared(picture()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("way", ["script", "trace", "inner"])
def test_case_60_scripted_and_traced_modules_are_named(attribute, way):
    model, base, target = ends(convolutions)
    if way == "inner":
        model[1] = torch.jit.script(model[1])
    else:
        model = torch.jit.script(model) if way == "script" else torch.jit.trace(model, picture())
    message = attribute.refuses(model, base, target, squared(picture()))
    assert "scripted or traced" in message
    assert ("module '1'" if way == "inner" else "the model") in message


@pytest.mark.parametrize("where", ["outside", "inside", "in place"])
def test_case_61_compiled_models_are_looked_through(attribute, where):
    model, base, target = ends(doubles)
    loss = squared(picture(torch.float64))
    expected = by_hand(model, base, target, loss)
    if where == "outside":
        model = torch.compile(model, backend="eager")
    elif where == "in place":
        model.compile(backend="eager")
    else:
        model[0] = torch.compile(model[0], backend="eager")
    loss(model)  # compiles
    with attribute.leaves(model):
        outcome = attribute(model, base, target, loss)
    assert_values(outcome, expected)
    torch._dynamo.reset()


@pytest.mark.parametrize("form", ["module.", "_orig_mod.", "module._orig_mod.", "params_ema", "params", "state_dict"])
def test_case_62_keys_of_wrappers_and_checkpoints_are_understood(attribute, form):
    model, base, target = ends(convolutions)
    expected = attribute(model, base, target, squared(picture()))
    if form.endswith("."):
        target = {form + name: value for name, value in target.items()}
    else:
        target = {form: target, **({"params": base} if form == "params_ema" else {})}
    with attribute.leaves(model):
        outcome = attribute(model, base, target, squared(picture()))
    assert all(torch.equal(outcome.values[name], value) for name, value in expected.values.items())


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_case_63_distributed_data_parallel_is_looked_through(attribute):
    model, base, target = ends(doubles)
    wrapped = nn.parallel.DistributedDataParallel(model)
    loss = squared(picture(torch.float64))
    expected = by_hand(model, base, target, loss)
    with attribute.leaves(wrapped):
        outcome = attribute(wrapped, base, target, loss)
    assert_values(outcome, expected)
    for _ in range(2):  # it trains on
        loss(wrapped).backward()
    assert model[0].weight.grad is not None


@pytest.mark.usefixtures("one_process")
def test_case_64_parameters_that_were_frozen_or_replaced_after_wrapping_do_no_harm(attribute):
    model, base, target = ends(doubles)
    wrapped = nn.parallel.DistributedDataParallel(model)
    model[0].bias.requires_grad_(False)
    model[2].weight = nn.Parameter(model[2].weight.detach().clone())
    inputs = picture(torch.float64)
    expected = by_hand(model, base, target, squared(inputs))
    with attribute.leaves(model):
        outcome = attribute(wrapped, base, target, lambda _model: wrapped(inputs).square().sum())
    assert_values(outcome, expected)


@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["FullyShardedDataParallel", "DeepSpeedEngine", "DTensor"])
def test_case_65_sharded_models_are_refused_by_their_class(attribute, kind):
    inner, base, target = ends(lambda: nn.Sequential(nn.Linear(2, 3)))
    if kind == "FullyShardedDataParallel":
        model = FullyShardedDataParallel(inner, device_id=torch.device("cpu"))
    elif kind == "DeepSpeedEngine":
        model = type(kind, (nn.Module,), {})()
        model.module = inner
    else:
        model = distribute_module(inner, init_device_mesh("cpu", (1,)))
    message = attribute.refuses(model, base, target, squared(torch.ones(2, 2)))
    assert {"DTensor": "distributed tensor"}.get(kind, kind) in message


@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings("ignore")
def test_case_65_a_model_that_fully_shard_has_split_is_attributed(attribute):
    model, base, target = ends(lambda: nn.Sequential(nn.Linear(2, 3)).double())
    loss = squared(torch.ones(2, 2, dtype=torch.float64))
    expected = by_hand(model, base, target, loss)
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    before = [(id(parameter), parameter.detach().to_local().clone()) for parameter in model.parameters()]
    assert_values(attribute(model, base, target, loss), expected)
    for parameter, (identity, value) in zip(model.parameters(), before, strict=True):
        assert id(parameter) == identity
        assert torch.equal(parameter.detach().to_local(), value)


class Containers(nn.Module):
    """Parameters in a list and a dictionary, and a recurrent layer."""

    def __init__(self, recurrent):
        super().__init__()
        self.recurrent = recurrent(3, 4, num_layers=2, bidirectional=True, batch_first=True)
        self.listed = nn.ParameterList([torch.randn(8, 2), torch.randn(2, 2)])
        self.named = nn.ParameterDict({"last": torch.randn(2, 1)})

    def forward(self, inputs):
        output, _ = self.recurrent(inputs)
        for matrix in (*self.listed, self.named["last"]):
            output = torch.tanh(output @ matrix)
        return output


@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU, nn.RNN])
def test_case_66_recurrent_layers_parameter_lists_and_dictionaries(attribute, recurrent):
    model, base, target = ends(lambda: Containers(recurrent).double())
    loss = squared(torch.rand(2, 5, 3, dtype=torch.float64))
    loss(model)  # fills the cache of flat weights
    expected = by_hand(model, base, target, loss)
    with attribute.leaves(model):
        outcome = attribute(model, base, target, loss)
    assert_values(outcome, expected)
    assert all(one is two for one, two in zip(model.recurrent._flat_weights, model.recurrent.parameters(), strict=True))


def attention():
    class Itself(nn.MultiheadAttention):
        def forward(self, inputs):
            return super().forward(inputs, inputs, inputs, need_weights=False)[0]

    return nn.Sequential(nn.Linear(4, 4), Itself(4, 2, batch_first=True))


def projected_recurrence():
    class First(nn.LSTM):
        def forward(self, inputs):
            return super().forward(inputs)[0]

    return First(4, 6, proj_size=2, num_layers=2, batch_first=True)


def once_normalised_recurrence():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(projected_recurrence(), "weight_hh_l0")


def old_spectral_norm():
    model = nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 4)), nn.Tanh()).eval()
    for buffer in (model[0].weight_u, model[0].weight_v):
        buffer.fill_(0.5)  # the same in all of them, as buffers must not differ
    return model


@pytest.mark.filterwarnings("ignore::filterattr.FilterAttrWarning")  # eight nodes are few for some of them
@pytest.mark.parametrize(
    "build",
    [
        attention,
        projected_recurrence,
        once_normalised_recurrence,
        old_spectral_norm,
        lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True),
        lambda: nn.Sequential(nn.InstanceNorm1d(5, affine=True), nn.PReLU(), nn.GroupNorm(5, 5)),
        lambda: nn.Sequential(nn.Conv1d(5, 6, 3, dilation=1, groups=1), nn.ConvTranspose1d(6, 3, 2, groups=3)),
    ],
)
def test_further_kinds_of_modules_are_right_and_left_alone(attribute, build):
    model, base, target = ends(lambda: build().double())
    loss = squared(torch.rand(2, 5, 4, dtype=torch.float64))
    with torch.no_grad():
        loss(model)
    expected = by_hand(model, base, target, loss)
    with attribute.leaves(model):
        outcome = attribute(model, base, target, loss)
    assert_values(outcome, expected, rtol=1e-6)


def test_parameters_that_do_not_change_cost_no_gradient():
    model, base, target = ends(doubles)
    target = {**base, "2.weight": target["2.weight"]}
    computed = set()

    def loss(model):
        for name, parameter in model.named_parameters():
            parameter.register_hook(lambda _, name=name: computed.add(name))
        return squared(picture(torch.float64))(model)

    result = FilterAttributor(model).attribute(base, target, loss, n_steps=8, progress=False)
    assert computed == {"2.weight"}
    assert not result.scores()["0.weight"].any()
    expected = by_hand(model, base, target, squared(picture(torch.float64)))["2.weight"].sum((2, 3))
    torch.testing.assert_close(result.scores("sum")["2.weight"], expected)


def test_containers_among_the_attributes_are_put_back(attribute):
    model, base, target = ends(convolutions)
    model.seen, model.history, model.names = Counter(first=2), [1], {"a", "b"}

    def loss(at):
        inner = getattr(at, "model", at)
        inner.seen.update(first=1, second=1)
        inner.history.append(at(picture()))
        inner.names.discard("a")
        inner._parameters, inner.extra = dict(inner._parameters), nn.Parameter(torch.ones(1))
        return inner.history[-1].square().sum()

    with unchanged(model):
        attribute(model, base, target, loss)


def test_sparse_and_wrapped_tensors_are_refused_by_name():
    model = nn.Linear(2, 2)
    model.weight = nn.Parameter(torch.eye(2).to_sparse(), requires_grad=False)
    with pytest.raises(UnsupportedModelError, match=r"'weight' is no plain dense tensor \(Parameter, torch\.sparse"):
        FilterAttributor(model)


def test_a_thing_that_is_no_module_is_refused():
    with pytest.raises(UnsupportedModelError, match=r"model must be a torch\.nn\.Module; got dict"):
        FilterAttributor({})


def test_marks_on_parameters_are_there_while_the_loss_runs(attribute):
    model, base, target = ends(convolutions)
    model[0].weight.scale = 3.0
    with attribute.leaves(model):
        attribute(model, base, target, lambda model: model(picture()).square().sum() * model[0].weight.scale)
