"""Part C: the numbers, and the bounds that the last table of the reliability page promises."""

from __future__ import annotations

import copy
import math
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from filterattr import FilterAttributor, FilterAttrWarning
from filterattr.integral.gradients import GradientSums
from filterattr.integral.quadrature import Quadrature
from tests.reliability.networks import assert_values, by_hand, convolutions, dropping, ends, picture, squared

# what dropout and running statistics do in training is asked for here
pytestmark = pytest.mark.filterwarnings("ignore:.* in train mode:filterattr.errors.FilterAttrWarning")


def layered(activation, dtype=torch.float64):
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), activation(), nn.Conv2d(6, 6, 3, padding=1), activation(), nn.Conv2d(6, 1, 3)
    ).to(dtype)


class TestCompleteness:
    @pytest.mark.parametrize("activation", [nn.Identity, nn.SiLU, nn.GELU, nn.Tanh])
    def test_case_34_smooth_networks_in_float64(self, attribute, activation):
        outcome = attribute(*ends(lambda: layered(activation)), squared(picture(torch.float64)), n_steps=16)
        assert outcome.error <= 1e-9

    @pytest.mark.parametrize("activation", [nn.Identity, nn.SiLU, nn.GELU, nn.Tanh])
    def test_case_34_smooth_networks_in_float32(self, attribute, activation):
        model, base, target = ends(lambda: layered(activation, torch.float32))
        outcome = attribute(model, base, target, lambda at: at(picture()).double().square().sum(), n_steps=16)
        assert outcome.error <= 2e-5

    @pytest.mark.parametrize("method", ["riemann_middle", "gausslegendre"])
    @pytest.mark.parametrize("activation", [nn.ReLU, lambda: nn.LeakyReLU(0.1)])
    def test_case_34_networks_with_kinks(self, attribute, activation, method):
        model, base, target = ends(lambda: layered(activation))
        outcome = attribute(model, base, target, squared(picture(torch.float64)), n_steps=64, method=method)
        assert outcome.error <= 1e-2

    @pytest.mark.filterwarnings("ignore::filterattr.FilterAttrWarning")
    def test_case_34_the_left_rule_converges_slowly_and_says_so(self, attribute):
        ends_of_path = ends(lambda: layered(nn.SiLU))
        errors = [
            attribute(*ends_of_path, squared(picture(torch.float64)), n_steps=n, method="riemann_left").error
            for n in (8, 128)
        ]
        assert errors[0] > 1e-3
        assert errors[0] / errors[1] == pytest.approx(16, rel=0.2)


def test_case_35_losses_at_the_ends_are_those_of_fresh_models_bit_for_bit(attribute):
    model, base, target = ends(convolutions)
    outcome = attribute(model, base, target, squared(picture()))
    for state, loss in ((base, outcome.loss_base), (target, outcome.loss_target)):
        fresh = copy.deepcopy(model)
        fresh.load_state_dict(state)
        assert loss == squared(picture())(fresh).item()


def test_case_36_the_reported_error_is_the_recomputed_one(attribute):
    model, base, target = ends(convolutions)
    outcome = attribute(model, base, target, squared(picture()), n_steps=2)
    values = torch.cat([value.double().reshape(-1) for value in outcome.values.values()]).tolist()
    change = outcome.loss_target - outcome.loss_base
    error = abs(math.fsum(values) - change) / max(abs(change), 1e-3 * math.fsum(map(abs, values)))
    assert outcome.error == pytest.approx(error, abs=1e-6)  # values and sums are float32


@pytest.mark.filterwarnings("ignore::filterattr.FilterAttrWarning")  # gradients in bf16 are as they are
def test_case_37_bfloat16_gradients_are_summed_in_float32(attribute):
    model, base, target = ends(lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)).to(torch.bfloat16))
    loss = squared(torch.rand(3, 4).to(torch.bfloat16))
    outcome = attribute(model, base, target, loss, n_steps=256, method="riemann_middle")
    assert_values(outcome, by_hand(model, base, target, loss, 256, "riemann_middle"), rtol=1e-5)


def test_case_38_half_precision_end_points_far_apart_stay_finite(attribute):
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.float16))

        def forward(self, inputs):
            return inputs * self.weight.float()

    base, target = ({"weight": torch.full((2, 2), value, dtype=torch.float16)} for value in (-60000.0, 60000.0))
    outcome = attribute(Wide(), base, target, lambda model: model(torch.ones(2, 2)).sum() / 60)
    assert outcome.total == pytest.approx(8000, rel=1e-3)
    wider = {"weight": torch.full((2, 2), 1e6)}
    model = Wide()
    with attribute.leaves(model):
        message = attribute.refuses(model, base, wider, lambda model: model(torch.ones(2, 2)).sum())
    assert "target holds values too large for torch.float16 in 'weight'" in message


def test_case_39_complex_parameters_complete(attribute):
    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 3, dtype=torch.complex128))

        def forward(self, inputs):
            return (inputs @ self.weight).abs()

    model, base, target = ends(Complex)
    loss = squared(torch.randn(4, 3, dtype=torch.complex128))
    with attribute.leaves(model):
        outcome = attribute(model, base, target, loss)
    assert_values(outcome, by_hand(model, base, target, loss))
    assert outcome.error < 1e-14


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.decode.weight = self.encode.weight

    def forward(self, inputs):
        return self.decode(torch.tanh(self.encode(inputs)))


def test_case_40_tied_weights_count_once_and_complete(attribute):
    model, base, target = ends(lambda: Tied().double())
    loss = squared(torch.rand(3, 3, dtype=torch.float64))
    with attribute.leaves(model):
        outcome = attribute(model, base, target, loss, n_steps=16)
    assert list(outcome.values) == ["encode.weight"]
    assert outcome.total == pytest.approx(outcome.loss_target - outcome.loss_base, rel=1e-9)


def test_case_41_tied_names_with_two_values_are_refused_by_name(attribute):
    model, base, target = ends(Tied)
    target["decode.weight"] = target["decode.weight"] + 1
    with attribute.leaves(model):
        message = attribute.refuses(model, base, target, squared(torch.ones(3, 3)))
    assert "encode.weight" in message
    assert "decode.weight" in message


def normalised():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.SiLU(), nn.Conv2d(3, 1, 3)).double()
    with torch.no_grad():
        model[1].running_mean.uniform_()
        model[1].running_var.uniform_(0.5, 2.0)
    return model


@pytest.mark.parametrize("training", [False, True])
def test_case_42_differing_running_statistics_need_a_choice(attribute, training):
    model, base, target = ends(normalised)
    model.train(training)
    inputs = picture(torch.float64)
    with attribute.leaves(model):
        message = attribute.refuses(model, base, target, squared(inputs))
    assert "1.running_mean" in message
    assert "buffers=" in message
    for side, state in (("base", base), ("target", target)):
        with attribute.leaves(model):
            outcome = attribute(model, base, target, squared(inputs), buffers=side, n_steps=16)
        fresh = copy.deepcopy(model)
        fresh.load_state_dict(
            {**base, "1.running_mean": state["1.running_mean"], "1.running_var": state["1.running_var"]}
        )
        assert outcome.loss_base == squared(inputs)(fresh).item()
        assert outcome.error < 1e-4


def test_case_42_a_buffer_that_one_end_lacks_cannot_come_from_it(attribute):
    model, base, target = ends(normalised)
    del base["1.running_var"]
    loss = squared(picture(torch.float64))
    for options, told in (({}, "buffers="), ({"buffers": "base"}, "base lacks the buffers '1.running_var'")):
        with attribute.leaves(model):
            message = attribute.refuses(model, base, target, loss, **options)
        assert told in message
    attribute(model, base, target, loss, buffers="target", n_steps=32)
    del target["1.running_var"]  # then it is the model's own
    target["1.running_mean"] = base["1.running_mean"]
    attribute(model, base, target, loss, n_steps=32)


def test_case_43_counters_and_masks_are_left_alone(attribute):
    class Masked(nn.Linear):
        def __init__(self):
            super().__init__(3, 3)
            self.register_buffer("calls", torch.tensor(5))
            self.register_buffer("mask", torch.tensor([True, False, True]))
            self.register_buffer("floor", torch.tensor([0.0, -math.inf]))
            self.steps = nn.Parameter(torch.tensor([3]), requires_grad=False)

        def forward(self, inputs):
            self.calls += 1
            return super().forward(inputs) * self.mask * self.steps

    model, base, target = ends(Masked)
    base["calls"], target["calls"] = torch.tensor(1000), torch.tensor(2001)
    seen = []

    def loss(at):
        seen.append(int(getattr(at, "model", at).calls))
        return squared(torch.ones(2, 3))(at)

    with attribute.leaves(model):
        attribute(model, base, target, loss)
    assert set(seen) == {5}
    both = {"mask": torch.tensor([False, True, True]), "steps": torch.tensor([2])}
    with attribute.leaves(model):
        outcome = attribute(model, {**base, **both}, {**target, **both}, squared(torch.ones(2, 3)))
    fresh = copy.deepcopy(model)
    fresh.load_state_dict({**target, **both})
    assert outcome.loss_target == squared(torch.ones(2, 3))(fresh).item()


def test_case_44_mixed_train_flags_are_kept(attribute):
    model, base, target = ends(normalised)
    base = {name: target[name] if "running" in name else value for name, value in base.items()}
    model.train()
    model[1].eval()  # the usual way to freeze its statistics
    seen = set()

    def loss(at):
        seen.add(tuple(module.training for module in getattr(at, "model", at).modules()))
        return squared(picture(torch.float64))(at)

    with attribute.leaves(model):
        attribute(model, base, target, loss)
    assert seen == {(True, True, False, True, True)}


def test_case_45_dropout_draws_the_same_at_every_place(attribute):
    model, base, target = ends(dropping)
    inputs = torch.rand(5, 3, dtype=torch.float64)
    seen = []

    def loss(at):
        output = at(inputs)
        seen.append(torch.rand(1).item())
        return output.square().sum()

    with attribute.leaves(model):
        first = attribute(model, base, target, loss)
        second = attribute(model, base, target, loss)
    assert len(set(seen)) == 1
    assert first.error < 1e-9
    assert all(torch.equal(first.values[name], value) for name, value in second.values.items())
    torch.rand(1)
    other = attribute(model, base, target, loss)
    assert len(set(seen)) == 2
    assert not torch.equal(other.values["0.weight"], first.values["0.weight"])


def test_case_46_power_iterations_that_follow_the_path_are_warned_about(attribute):
    def build():
        return nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 3)), nn.Tanh(), nn.Linear(3, 1)).double()

    model, base, target = ends(build)
    inputs = torch.rand(4, 3, dtype=torch.float64)
    with (
        attribute.leaves(model),
        pytest.warns(FilterAttrWarning, match="the attributions should sum to the loss change"),
    ):
        outcome = attribute(model, base, target, squared(inputs), buffers="target", n_steps=64)
    assert outcome.error > 0.01


def test_case_47_a_zero_baseline_through_weight_norm_is_named(attribute):
    def build():
        return nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3)), nn.Linear(3, 1))

    model, base, target = ends(build)
    base = {name: torch.zeros_like(value) for name, value in base.items()}
    with attribute.leaves(model):
        message = attribute.refuses(model, base, target, squared(torch.ones(2, 3)))
    assert "finite" in message
    assert "0.parametrizations.weight" in message
    assert "t = 0" in message


@pytest.mark.parametrize("method", ["gausslegendre", "riemann_left"])
@pytest.mark.filterwarnings("ignore::filterattr.FilterAttrWarning")
def test_case_48_an_all_zero_base_network_works(attribute, method):
    model, base, target = ends(lambda: layered(nn.Tanh))
    base = {name: torch.zeros_like(value) for name, value in base.items()}
    loss = squared(picture(torch.float64))
    with attribute.leaves(model):
        outcome = attribute(model, base, target, loss, method=method, n_steps=1 if method == "riemann_left" else 16)
    if method == "gausslegendre":
        assert outcome.error < 1e-9


def test_case_49_a_sample_without_a_finite_loss_is_named_with_its_place(attribute):
    model, base, target = ends(convolutions)
    samples = [picture(), picture() * math.nan, picture()]
    with attribute.leaves(model):
        message = attribute.refuses(model, base, target, lambda model, x: model(x).square().sum(), samples)
    assert "t = 0" in message
    assert "sample 1" in message
    assert "'0'" in message  # the first module whose output is not finite


def test_case_49_so_is_one_that_breaks_in_the_middle_of_the_path(attribute):
    model = nn.Linear(1, 1, bias=False).double()
    base, target = ({"weight": torch.tensor([[value]], dtype=torch.float64)} for value in (-1.0, 2.0))

    def loss(at):
        weight = at(torch.ones(1, 1, dtype=torch.float64)).sum()
        return weight * (math.inf if abs(weight.item()) < 0.3 else 1.0)  # between t = 0.23 and t = 0.43

    with attribute.leaves(model):
        message = attribute.refuses(model, base, target, loss, n_steps=9)
    assert "finite" in message
    assert "t = 0.3379" in message


def test_case_49_the_first_module_is_found_also_if_it_returns_several_tensors(attribute):
    class Head(nn.Module):
        def forward(self, states):
            return {"sum": states[0].sum(), "states": states}

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent, self.head = nn.LSTM(2, 3), Head()

        def forward(self, inputs):
            return self.head(self.recurrent(inputs))["sum"]

    model, base, target = ends(Network)
    message = attribute.refuses(model, base, target, lambda model: model(torch.full((4, 2), math.nan)))
    assert "first seen in the output of 'recurrent'" in message
    message = attribute.refuses(model, base, target, lambda model: model(torch.ones(4, 2)).abs() * math.inf)
    assert message.endswith("got inf at t = 0.")  # no module is to blame


def test_case_49_so_is_a_gradient_that_is_not_finite_though_the_loss_is(attribute):
    model = nn.Linear(1, 2).double()
    base, target = (
        {"weight": torch.full((2, 1), value, dtype=torch.float64), "bias": torch.zeros(2, dtype=torch.float64)}
        for value in (-1.0, 1.0)
    )

    def loss(at, inputs):
        return at(inputs).abs().sqrt().sum()  # the middle node lies at 0

    samples = [torch.ones(1, 1, dtype=torch.float64) * value for value in (0.5, 1.0)]
    with attribute.leaves(model):
        message = attribute.refuses(model, base, target, loss, samples, n_steps=3, method="riemann_middle")
    assert "the gradient of 'weight' must be finite" in message
    assert "at t = 0.5 (sample 0)" in message


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (lambda value: value.item(), "float"),
        (lambda value: value.reshape(1), "shape (1,)"),
        (lambda value: (value, value), "tuple"),
        (lambda value: None, "NoneType"),
        (lambda value: value.detach(), "0.weight"),
        (lambda value: int(value.item()), "int"),
        (lambda value: value.detach().long(), "int64"),
        (lambda value: torch.complex(value, value), "complex64"),
        (lambda value: value.expand(4), "shape (4,)"),
    ],
)
def test_case_50_a_loss_that_is_no_scalar_is_told_so(attribute, returned, told):
    model, base, target = ends(convolutions)
    with attribute.leaves(model):
        message = attribute.refuses(model, base, target, lambda at: returned(at(picture()).square().sum()))
    assert "loss" in message
    assert told in message


@pytest.mark.filterwarnings("ignore::filterattr.FilterAttrWarning")
class TestThreads:
    def test_case_51_a_worker_thread_gives_the_bits_of_the_main_thread(self, attribute):
        def build():
            return nn.Sequential(nn.Conv2d(1, 16, 5), nn.SiLU(), nn.Conv2d(16, 16, 5), nn.SiLU(), nn.Conv2d(16, 1, 3))

        model, base, target = ends(build)
        inputs = torch.rand(2, 1, 40, 40)
        threads, found = torch.get_num_threads(), {}
        try:
            torch.set_num_threads(1)
            main = attribute(model, base, target, squared(inputs), n_steps=2)
            worker = threading.Thread(
                target=lambda: found.update(outcome=attribute(model, base, target, squared(inputs), n_steps=2))
            )
            worker.start()
            worker.join()
            torch.set_num_threads(2)
            two = attribute(model, base, target, squared(inputs), n_steps=2)
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(found["outcome"].values[name], value) for name, value in main.values.items())
        for name, value in main.values.items():
            assert float((two.values[name] - value).norm() / value.norm()) <= 1e-5

    def test_case_51_a_split_batch_agrees(self, attribute):
        model, base, target = ends(convolutions)
        inputs = picture()
        whole = attribute(model, base, target, squared(inputs))
        split = attribute(model, base, target, lambda model: sum(model(one[None]).square().sum() for one in inputs))
        for name, value in whole.values.items():
            assert float((split.values[name] - value).norm() / value.norm()) <= 1e-5


@pytest.mark.parametrize(("kind", "rounding"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("n_nodes", [16, 4096])
def test_accumulation_is_exact_to_the_rounding_of_its_type(n_nodes, kind, rounding):
    """The promise is against exact summation, given the gradients of every node; bfloat16 rounds these gradients."""
    leaf = nn.Parameter(torch.zeros(3, dtype=kind))
    sums = GradientSums({"weight": leaf})
    rule = Quadrature.rule("riemann_middle", n_nodes)
    factors = torch.randn(n_nodes, 3, generator=torch.Generator().manual_seed(1)) * 1e3 + 1
    exact: list[list[float]] = [[], [], []]
    for factor, coefficient in zip(factors, rule.coefficients, strict=True):
        leaf = nn.Parameter(torch.zeros(3, dtype=kind))
        value = (leaf * factor).sum()
        sums.take_all(value, {"weight": leaf}, coefficient)
        for terms, one in zip(exact, factor.tolist(), strict=True):
            terms.append(coefficient * one)
    for total, terms in zip(sums.sums["weight"].tolist(), exact, strict=True):
        assert abs(total - math.fsum(terms)) <= rounding * math.fsum(map(abs, terms))


@pytest.mark.filterwarnings("ignore::filterattr.FilterAttrWarning")
def test_a_batch_of_samples_is_not_what_a_mean_over_samples_is():
    """Completeness is checked for every sample, so that errors of two samples cannot cancel."""
    model, base, target = ends(convolutions)
    data = list(picture().split(1))
    attributor = FilterAttributor(model, unit="weight", select="*")

    def loss(model, x):
        return model(x).square().sum()

    both = attributor.attribute(base, target, loss, data, n_steps=2)
    single = [attributor.attribute(base, target, loss, [x], n_steps=2) for x in data]
    gaps = [abs(one.total - (one.loss_target - one.loss_base)) for one in single]
    changes = [abs(one.loss_target - one.loss_base) for one in single]
    assert both.completeness_error == pytest.approx(sum(gaps) / sum(changes), rel=1e-9)
