"""Channel attribution in one sweep: Captum's numbers, the sums they obey, and a model that is left alone."""

from __future__ import annotations

import copy
import dataclasses
import gc
import random
import sys
import weakref
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from filterattr import ChannelAttribution, ChannelAttributor, LossError, ModelChangedError, NonFiniteError, SettingError
from filterattr.activations.hooks import cutting
from filterattr.errors import UnsupportedModelError
from sr_zoo.models import SRResNet
from tests.networks import relu_network, smooth_network

captum_attr = pytest.importorskip("captum.attr")

METHODS = ("conductance", "internal_influence", "integrated_gradients", "gradient_x_activation")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors: a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Classifier(nn.Module):
    """Everything passes through each of its layers; activations work in place."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 6, 3, groups=2, padding=1),
            nn.Softplus(),
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(6 * 16, 5), nn.ELU(inplace=True), nn.Linear(5, 3))

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image))


class Residual(nn.Module):
    """A layer that something passes around, between two that everything passes through."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = (nn.Conv2d(1, 1, 3, padding=1) for _ in range(3))

    def forward(self, image: Tensor) -> Tensor:
        features = self.first(image)
        return self.last(features + self.inner(features).tanh())


def pictures(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Inputs and baselines."""
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.rand(2, *shape, generator=generator, dtype=torch.float64)
    return first.to(dtype), (0.5 * second).to(dtype)


def squares(restored: Tensor) -> Tensor:
    """An image-to-image loss, one number per sample."""
    return (restored - 0.3).square().flatten(1).sum(1)


def captum_layer(method: str, function: Callable[..., Tensor], layer: nn.Module) -> object:
    names = {
        "conductance": "LayerConductance",
        "internal_influence": "InternalInfluence",
        "integrated_gradients": "LayerIntegratedGradients",
        "gradient_x_activation": "LayerGradientXActivation",
    }
    return getattr(captum_attr, names[method])(function, layer)


def captum_numbers(
    method: str,
    model: nn.Module,
    layer: str,
    inputs: Tensor,
    baselines: Tensor,
    output: Callable[[Tensor], Tensor],
    n_steps: int,
    quadrature: str = "gausslegendre",
) -> Tensor:
    attributor = captum_layer(method, lambda image: output(model(image)), model.get_submodule(layer))
    if method == "gradient_x_activation":
        return attributor.attribute(inputs).detach()
    return attributor.attribute(inputs, baselines, n_steps=n_steps, method=quadrature).detach()


def assert_equal_numbers(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Compare relative to the largest number of a layer: single ones are differences and may be near 0."""
    scale = float(expected.abs().max())
    assert scale > 0
    torch.testing.assert_close(found.to(torch.float64), expected.to(torch.float64), rtol=0.0, atol=tolerance * scale)


class TestCaptum:
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("quadrature", ["gausslegendre", "riemann_left", "riemann_middle", "riemann_right"])
    def test_smooth_network_in_double_precision(self, method: str, quadrature: str) -> None:
        model = smooth_network()
        ends = pictures(1, 2, 1, 6, 6)
        # Captum keeps coefficients and Riemann nodes in single precision: only powers of two are exact there
        n_steps = 7 if method == "conductance" else 8
        exact = method in ("conductance", "gradient_x_activation") or quadrature != "gausslegendre"
        found = ChannelAttributor(model).attribute(
            *ends, squares, attribution=method, n_steps=n_steps, method=quadrature
        )
        assert list(found) == ["0", "2", "4", "6"]
        for layer in found:
            expected = captum_numbers(method, model, layer, *ends, squares, n_steps=n_steps, quadrature=quadrature)
            assert_equal_numbers(found[layer], expected, 1e-9 if exact else 1e-7)

    @pytest.mark.parametrize("method", METHODS)
    def test_super_resolution_network_in_single_precision(self, method: str) -> None:
        model = SRResNet(num_feat=8, num_block=2)
        ends = pictures(2, 2, 3, 8, 8, dtype=torch.float32)
        found = ChannelAttributor(model).attribute(*ends, squares, attribution=method, n_steps=10)
        assert len(found) == 8
        for layer in found:
            expected = captum_numbers(method, model, layer, *ends, squares, n_steps=10)
            assert_equal_numbers(found[layer], expected, 1e-5)

    @pytest.mark.parametrize("method", ["conductance", "internal_influence", "gradient_x_activation"])
    def test_classifier_with_activations_in_place(self, method: str) -> None:
        model = Classifier().double()
        ends = pictures(3, 3, 2, 8, 8)
        quadrature = "gausslegendre" if method == "conductance" else "riemann_right"
        layers = ["features.0", "features.2", "head.1", "head.3"]

        def logit(scores: Tensor) -> Tensor:
            return scores[:, 1]

        found = ChannelAttributor(model, layers).attribute(
            *ends, logit, attribution=method, n_steps=8, method=quadrature
        )
        for layer in layers:
            expected = captum_numbers(method, model, layer, *ends, logit, n_steps=8, quadrature=quadrature)
            assert_equal_numbers(found[layer], expected, 1e-9)

    def test_integrated_gradients_work_where_captum_refuses_activations_in_place(self) -> None:
        model = Classifier().double()
        ends = pictures(3, 3, 2, 8, 8)
        found = ChannelAttributor(model).attribute(
            *ends, lambda scores: scores[:, 0], attribution="integrated_gradients", n_steps=8
        )
        other = copy.deepcopy(model)
        other.features[1].inplace = other.head[2].inplace = False
        for layer in found:
            expected = captum_numbers(
                "integrated_gradients", other, layer, *ends, lambda scores: scores[:, 0], n_steps=8
            )
            assert_equal_numbers(found[layer], expected, 1e-7)

    @pytest.mark.parametrize("method", ["internal_influence", "integrated_gradients"])
    def test_trapezoid_coefficients_sum_to_one_here(self, method: str) -> None:
        model = smooth_network()
        ends = pictures(1, 1, 1, 6, 6)
        found = ChannelAttributor(model, "2").attribute(
            *ends, squares, attribution=method, n_steps=5, method="riemann_trapezoid"
        )
        expected = captum_numbers(method, model, "2", *ends, squares, n_steps=5, quadrature="riemann_trapezoid")
        assert_equal_numbers(found["2"], expected * 5 / 4, 1e-7)


class TestCompleteness:
    def test_conductance_sums_to_the_change_of_the_output_over_every_cutting_layer(self) -> None:
        model = smooth_network()
        inputs, baselines = pictures(4, 2, 1, 6, 6)
        found = ChannelAttributor(model).attribute(inputs, baselines, squares, n_steps=200, method="riemann_trapezoid")
        change = squares(model(inputs)) - squares(model(baselines))
        torch.testing.assert_close(found.output_inputs - found.output_baselines, change.detach())
        for layer, error in found.completeness_errors.items():
            assert error is not None
            assert error < 1e-5
            torch.testing.assert_close(found[layer].flatten(1).sum(1), change.detach(), rtol=1e-5, atol=0.0)

    def test_trapezoid_converges_a_whole_order_faster_than_the_left_rule(self) -> None:
        model = smooth_network()
        ends = pictures(4, 1, 1, 6, 6)
        errors = {
            rule: [
                ChannelAttributor(model, "2").attribute(*ends, squares, n_steps=n, method=rule).completeness_errors["2"]
                for n in (20, 40)
            ]
            for rule in ("riemann_left", "riemann_trapezoid")
        }
        assert 1.7 < errors["riemann_left"][0] / errors["riemann_left"][1] < 2.4
        assert 3.5 < errors["riemann_trapezoid"][0] / errors["riemann_trapezoid"][1] < 4.5

    def test_reported_error_is_the_recomputed_one(self) -> None:
        found = ChannelAttributor(relu_network(), "0").attribute(*pictures(5, 3, 1, 6, 6), squares, n_steps=5)
        change = found.output_inputs - found.output_baselines
        total, absolute = (a.flatten(1).sum(1) for a in (found["0"], found["0"].abs()))
        expected = (total - change).abs().sum() / torch.maximum(change.abs(), 1e-3 * absolute).sum()
        assert found.completeness_errors["0"] == pytest.approx(float(expected), rel=1e-12)

    def test_a_layer_that_something_passes_around_has_no_such_sum(self) -> None:
        found = ChannelAttributor(Residual().double()).attribute(*pictures(6, 1, 1, 5, 5), squares, n_steps=300)
        errors = found.completeness_errors
        assert errors["inner"] is None
        assert max(errors["first"], errors["last"]) < 0.02

    def test_integrated_gradients_sum_to_the_change_that_the_layer_alone_makes(self) -> None:
        found = ChannelAttributor(Residual().double()).attribute(
            *pictures(7, 2, 1, 6, 6), squares, attribution="integrated_gradients", n_steps=12
        )
        assert max(found.completeness_errors.values()) < 1e-9
        change = found.output_inputs - found.output_baselines
        inner = found["inner"].flatten(1).sum(1)
        assert float((inner - change).abs().min()) > 0.01

    def test_methods_without_such_a_sum_report_none(self) -> None:
        ends = pictures(7, 1, 1, 5, 5)
        for method in ("internal_influence", "gradient_x_activation"):
            found = ChannelAttributor(smooth_network(), "0").attribute(*ends, squares, attribution=method, n_steps=2)
            assert found.completeness_errors == {"0": None}

    def test_equal_ends_give_exactly_zero(self) -> None:
        inputs, _ = pictures(8, 1, 1, 6, 6)
        for method in ("conductance", "integrated_gradients"):
            found = ChannelAttributor(smooth_network()).attribute(
                inputs, inputs.clone(), squares, attribution=method, n_steps=3
            )
            assert all(not tensor.any() for tensor in found.values())
            assert set(found.completeness_errors.values()) == {0.0}

    def test_linear_in_the_output(self) -> None:
        ends = pictures(9, 1, 1, 6, 6)
        attributor = ChannelAttributor(smooth_network(), "2")
        plain = attributor.attribute(*ends, squares, n_steps=4)["2"]
        scaled = attributor.attribute(*ends, lambda y: -3.0 * squares(y) + 5.0, n_steps=4)["2"]
        torch.testing.assert_close(scaled, -3.0 * plain, rtol=1e-12, atol=1e-14)


LINEAR_LAYERS = {
    "plain": (nn.Conv2d(4, 6, 3), (4, 7, 7)),
    "strided": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (4, 8, 8)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, bias=False), (4, 6, 6)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4, padding="same"), (4, 6, 6)),
    "dilated": (nn.Conv2d(4, 3, (3, 2), dilation=2), (4, 8, 8)),
    "reflecting": (nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect"), (4, 6, 6)),
    "circular": (nn.Conv2d(4, 3, 3, padding="same", padding_mode="circular"), (4, 6, 6)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (4, 5, 5)),
    "transposed in groups": (nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (4, 5, 5)),
    "one axis": (nn.Conv1d(4, 6, 3, stride=2, groups=2), (4, 9)),
    "three axes": (nn.Conv3d(4, 2, 2), (4, 3, 4, 4)),
    "linear": (nn.Linear(7, 5), (4, 7)),
}


def by_kernel(layer: nn.Module, value: Tensor) -> Tensor:
    """What every kernel alone makes of its input channel: shape ``(N, out, in, ...)``, one kernel after the other."""
    single = copy.deepcopy(layer)
    single.bias = None
    weight = layer.weight.detach()
    groups = getattr(layer, "groups", 1)
    transposed = isinstance(layer, nn.ConvTranspose2d)
    outputs = weight.shape[1] * groups if transposed else weight.shape[0]
    inputs = weight.shape[0] // groups if transposed else weight.shape[1]
    rows = []
    for o in range(outputs):
        for i in range(inputs):
            mask = torch.zeros_like(weight)
            if transposed:
                mask[o // (outputs // groups) * inputs + i, o % (outputs // groups)] = 1
            else:
                mask[o, i] = 1
            single.weight = nn.Parameter(weight * mask)
            out = single(value).detach()
            rows.append(out[..., o] if isinstance(layer, nn.Linear) else out[:, o])
    return torch.stack(rows, 1).unflatten(1, (outputs, inputs))


class TestKernels:
    @pytest.mark.parametrize("kind", LINEAR_LAYERS)
    @pytest.mark.parametrize("method", ["conductance", "integrated_gradients"])
    def test_signed_kernels_sum_to_the_channel(self, kind: str, method: str) -> None:
        layer, shape = LINEAR_LAYERS[kind]
        model = nn.Sequential(nn.Tanh(), copy.deepcopy(layer), nn.SiLU()).double()
        found = ChannelAttributor(model).attribute(
            *pictures(10, 3, *shape), squares, attribution=method, n_steps=4, kernels=True
        )
        kernels, filters = found.kernels("sum")["1.weight"], found.filters("sum")["1.weight"]
        torch.testing.assert_close(kernels.sum(1), filters, rtol=1e-9, atol=1e-12 * float(filters.abs().max()))

    @pytest.mark.parametrize("kind", LINEAR_LAYERS)
    def test_each_kernel_is_what_it_alone_contributes(self, kind: str) -> None:
        layer, shape = LINEAR_LAYERS[kind]
        layer = copy.deepcopy(layer).double()
        inputs, baselines = pictures(11, 2, *shape)
        found = ChannelAttributor(layer).attribute(inputs, baselines, squares, n_steps=3, kernels=True)
        nodes = [float(t) for t in captum_nodes(4)]
        points = [baselines + t * (inputs - baselines) for t in nodes]
        expected = torch.zeros(())
        for here, there in pairwise(points):
            out = layer(here).detach().requires_grad_()
            (derivative,) = torch.autograd.grad(squares(out).sum(), out)
            if isinstance(layer, nn.Linear):
                derivative = derivative.movedim(-1, 1)
            expected = expected + (by_kernel(layer, there) - by_kernel(layer, here)) * derivative.unsqueeze(2)
        per_sample = expected.flatten(3).sum(3)
        for reduction, reduced in (("sum", per_sample), ("abs_of_sum", per_sample.abs())):
            scores = found.kernels(reduction)["weight"]
            torch.testing.assert_close(scores, reduced.mean(0), rtol=1e-9, atol=1e-10)

    def test_the_rest_of_gradient_times_activation_is_the_bias(self) -> None:
        layer = nn.Conv2d(2, 3, 3).double()
        inputs, _ = pictures(12, 1, 2, 5, 5)
        found = ChannelAttributor(layer).attribute(
            inputs, None, squares, attribution="gradient_x_activation", kernels=True
        )
        rest = found.filters("sum")["weight"] - found.kernels("sum")["weight"].sum(1)
        out = layer(inputs).detach()
        torch.testing.assert_close(rest, (2 * (out - 0.3) * layer.bias.detach().view(3, 1, 1)).sum((0, 2, 3)))

    def test_a_reused_layer_sums_its_calls(self) -> None:
        layer = nn.Conv2d(2, 2, 3, padding=1)
        found = ChannelAttributor(nn.Sequential(layer, nn.Tanh(), layer).double()).attribute(
            *pictures(13, 1, 2, 5, 5), squares, n_steps=3, kernels=True
        )
        torch.testing.assert_close(found.kernels("sum")["0.weight"].sum(1), found.filters("sum")["0.weight"])

    def test_scores_select_kernels_of_the_model(self) -> None:
        model = SRResNet(num_feat=4, num_block=1)
        found = ChannelAttributor(model).attribute(
            *pictures(14, 1, 3, 6, 6, dtype=torch.float32), squares, n_steps=2, kernels=True
        )
        names = {name for name, _ in model.named_parameters() if name.endswith("weight")}
        assert set(found.kernels()) == set(found.filters()) == names
        assert found.kernels().top(10).count == 10
        assert found.filters().top(3).weights()["conv_first.weight"].shape == model.conv_first.weight.shape

    def test_a_layer_that_does_more_than_its_weight_is_named(self) -> None:
        class Standardised(nn.Conv2d):
            def forward(self, image: Tensor) -> Tensor:
                return functional.conv2d(image, self.weight - self.weight.mean(), self.bias)

        attributor = ChannelAttributor(nn.Sequential(Standardised(1, 2, 3)))
        with pytest.raises(
            UnsupportedModelError, match="what their weight and bias make of their first argument; '0' put"
        ):
            attributor.attribute(*pictures(15, 1, 1, 5, 5, dtype=torch.float32), squares, n_steps=2, kernels=True)

    def test_unavailable_kernels_are_refused(self) -> None:
        ends = pictures(16, 1, 1, 5, 5)
        model = smooth_network()
        with pytest.raises(SettingError, match="internal_influence does not"):
            ChannelAttributor(model).attribute(*ends, squares, attribution="internal_influence", kernels=True)
        with pytest.raises(SettingError, match="'1', without kernels"):
            ChannelAttributor(model, "1").attribute(*ends, squares, kernels=True)
        found = ChannelAttributor(model, "1").attribute(*ends, squares, n_steps=1)
        with pytest.raises(SettingError, match=r"attribute\(..., kernels=True\)"):
            found.kernels()
        with pytest.raises(SettingError, match=r"convolution or linear layer; got '1'. Use channels\(\)"):
            found.filters()
        with pytest.raises(SettingError, match="reduction must be one of abs_of_sum, sum; got 'sum_of_abs'"):
            found.kernels("sum_of_abs")


def captum_nodes(count: int) -> list[float]:
    from captum.attr._utils.approximation_methods import approximation_parameters

    return approximation_parameters("gausslegendre")[1](count)


class TestScores:
    def test_channel_scores_are_summed_over_places_then_absolute_then_averaged(self) -> None:
        found = ChannelAttributor(smooth_network(), "0").attribute(*pictures(17, 3, 1, 6, 6), squares, n_steps=3)
        whole = found["0"]
        for reduction, expected in (
            ("abs_of_sum", whole.sum((2, 3)).abs().mean(0)),
            ("sum", whole.sum((2, 3)).mean(0)),
            ("sum_of_abs", whole.abs().sum((2, 3)).mean(0)),
        ):
            torch.testing.assert_close(found.channels(reduction)["0"], expected)
            torch.testing.assert_close(found.filters(reduction)["0.weight"], expected)

    def test_channels_of_a_linear_layer_are_its_last_axis(self) -> None:
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
        found = ChannelAttributor(model).attribute(*pictures(18, 2, 5, 4), squares, n_steps=3)
        torch.testing.assert_close(found.channels("sum")["0"], found["0"].sum(1).mean(0))

    def test_rows_that_are_windows_of_samples_count_for_their_sample(self) -> None:
        class Windows(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(4, 3)

            def forward(self, tokens: Tensor) -> Tensor:
                return self.layer(tokens.reshape(-1, 2, 4)).tanh().reshape(len(tokens), -1)

        ends = pictures(19, 2, 6, 4)
        found = ChannelAttributor(Windows().double()).attribute(*ends, squares, n_steps=3, kernels=True)
        assert found["layer"].shape == (6, 2, 3)
        expected = found["layer"].reshape(2, 6, 3).sum(1).abs().mean(0)
        torch.testing.assert_close(found.channels()["layer"], expected)
        torch.testing.assert_close(found.kernels("sum")["layer.weight"].sum(1), found.channels("sum")["layer"])
        assert found.completeness_errors["layer"] is not None

    def test_samples_may_stand_behind_the_time(self) -> None:
        class LastSample(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(3, 3)

            def forward(self, tokens: Tensor) -> Tensor:
                return self.layer(tokens.transpose(0, 1)).sum((0, 2))

        attributor = ChannelAttributor(LastSample().double())
        found = attributor.attribute(*pictures(20, 2, 5, 3), lambda y: y, n_steps=2)
        assert found["layer"].shape == (5, 2, 3)
        torch.testing.assert_close(found.channels()["layer"], found["layer"].sum(0).abs().mean(0))

    def test_summary_and_text(self) -> None:
        found = ChannelAttributor(smooth_network()).attribute(*pictures(21, 2, 1, 6, 6), squares, n_steps=3)
        rows = found.per_layer()
        assert [(row.name, row.n_channels, row.n_calls) for row in rows] == [
            ("0", 4, 1),
            ("2", 4, 1),
            ("4", 2, 1),
            ("6", 1, 1),
        ]
        assert rows[0].sum == pytest.approx(float(found["0"].sum() / 2))
        assert repr(found) == "ChannelAttribution(conductance of 4 layers, 2 samples, 4 passes)"

    def test_one_number_for_all_samples_is_their_sum(self) -> None:
        ends = pictures(22, 3, 1, 6, 6)
        attributor = ChannelAttributor(smooth_network())
        single, each = (attributor.attribute(*ends, out, n_steps=3) for out in (lambda y: squares(y).sum(), squares))
        assert single.output_inputs.shape == ()
        for layer in each:
            torch.testing.assert_close(single[layer], each[layer])
        assert single.completeness_errors["0"] is not None

    def test_unknown_reduction(self) -> None:
        found = ChannelAttributor(smooth_network(), "0").attribute(*pictures(23, 1, 1, 5, 5), squares, n_steps=1)
        with pytest.raises(SettingError, match="reduction must be one of sum_of_abs, abs_of_sum, sum; got 'mean'"):
            found.channels("mean")


class Recurrent(nn.Module):
    """Gives its recurrent layer the time first, as PyTorch does by default."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.act, self.lstm = nn.Linear(4, 6), nn.Tanh(), nn.LSTM(6, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        steps = self.act(self.enter(tokens.transpose(0, 1)))
        return self.head(self.lstm(steps)[0][-1])


class Flattened(Recurrent):
    """Puts time and samples into one axis."""

    def forward(self, tokens: Tensor) -> Tensor:
        rows = tokens.transpose(0, 1).reshape(-1, 4)
        steps = self.act(self.enter(rows)).reshape(-1, len(tokens), 6)
        return self.head(self.lstm(steps)[0][-1])


class Normed(nn.Module):
    """Batch statistics connect the samples, dropout draws for every place."""

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.enter, self.norm, self.drop, self.head = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(p), nn.Linear(6, 2)
        self.turned = False

    def forward(self, tokens: Tensor) -> Tensor:
        turned = tokens.transpose(0, 1) if self.turned else tokens
        steps = self.enter(turned)
        steps = self.drop(self.norm(steps.flatten(0, 1)).reshape(steps.shape).tanh())
        return self.head(steps).sum(0 if self.turned else 1)


def logit(scores: Tensor) -> Tensor:
    return scores[:, 0]


class TestPlaceOfTheSamples:
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("kind", [Recurrent, Flattened])
    @pytest.mark.parametrize("length", [6, 3, 5])  # a multiple of the samples, as many, neither
    def test_several_samples_are_the_mean_of_single_ones(self, method: str, kind: type[nn.Module], length: int) -> None:
        model = kind().double()
        inputs, baselines = pictures(60, 3, length, 4)
        options = {"attribution": method, "n_steps": 5, "kernels": method != "internal_influence"}

        def run(chosen: slice) -> object:
            return ChannelAttributor(model, "enter").attribute(inputs[chosen], baselines[chosen], logit, **options)

        together, alone = run(slice(None)), [run(slice(i, i + 1)) for i in range(3)]
        for reduction in ("abs_of_sum", "sum", "sum_of_abs"):
            mean = torch.stack([one.channels(reduction)["enter"] for one in alone]).mean(0)
            torch.testing.assert_close(together.channels(reduction)["enter"], mean, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(
            together.filters()["enter.weight"],
            torch.stack([one.filters()["enter.weight"] for one in alone]).mean(0),
            rtol=1e-10,
            atol=1e-14,
        )
        if options["kernels"]:
            mean = torch.stack([one.kernels()["enter.weight"] for one in alone]).mean(0)
            torch.testing.assert_close(together.kernels()["enter.weight"], mean, rtol=1e-10, atol=1e-14)

    def test_completeness_is_measured_sample_by_sample_behind_the_time(self) -> None:
        inputs, baselines = pictures(61, 3, 6, 4)
        found = ChannelAttributor(Recurrent().double(), "enter").attribute(inputs, baselines, logit, n_steps=4)
        change = found.output_inputs - found.output_baselines
        total, absolute = found["enter"].sum((0, 2)), found["enter"].abs().sum((0, 2))
        expected = (total - change).abs().sum() / torch.maximum(change.abs(), 1e-3 * absolute).sum()
        assert found.completeness_errors["enter"] == pytest.approx(float(expected), rel=1e-12)

    def test_channels_that_stand_where_the_samples_do_are_refused(self) -> None:
        found = ChannelAttributor(Recurrent().double(), "act").attribute(*pictures(62, 3, 6, 4), logit, n_steps=2)
        with pytest.raises(
            SettingError, match=r"another one of the channels; none were found for 'act', shape \(6, 3, 6"
        ):
            found.channels()
        alone = ChannelAttributor(Recurrent().double(), "act").attribute(*pictures(62, 1, 6, 4), logit, n_steps=2)
        with pytest.raises(SettingError, match="none were found for 'act'"):
            alone.channels()

    @pytest.mark.parametrize("p", [0.0, 0.5])
    @pytest.mark.parametrize("turned", [False, True])
    def test_batch_statistics_and_dropout_do_not_hide_it(self, p: float, turned: bool) -> None:
        model = Normed(p).double().train()
        model.turned = turned
        found = ChannelAttributor(model).attribute(
            *pictures(63, 4, 8, 4), logit, attribution="internal_influence", n_steps=3
        )
        for name in ("enter", "head"):
            sums = found[name].sum(0 if turned else 1)
            torch.testing.assert_close(found.channels()[name], sums.abs().mean(0))

    def test_layers_that_see_no_batch_are_refused(self) -> None:
        class Positions(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.places, self.head = nn.Linear(4, 4), nn.Linear(4, 1)
                self.register_buffer("table", torch.rand(6, 4))

            def forward(self, tokens: Tensor) -> Tensor:
                return self.head(tokens * self.places(self.table).tanh()).sum((1, 2))

        found = ChannelAttributor(Positions().double()).attribute(
            *pictures(64, 3, 6, 4), lambda y: y, attribution="internal_influence", n_steps=2
        )
        with pytest.raises(SettingError, match=r"3 samples.*none were found for 'places', shape \(6, 4\)"):
            found.channels()

    @pytest.mark.parametrize("channels", [1, 3])
    def test_an_image_without_the_axis_of_the_samples_is_refused_before_the_work(self, channels: int) -> None:
        model = nn.Sequential(nn.Conv2d(channels, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1)).double()
        passes: list[int] = []
        model.register_forward_pre_hook(lambda *_: passes.append(1))
        image, baseline = (end[0] for end in pictures(65, 1, channels, 8, 8))
        with pytest.raises(
            SettingError, match=r"'0' \(Conv2d\) puts out shape \(6, 6, 6\).*Use inputs\.unsqueeze\(0\)"
        ):
            ChannelAttributor(model).attribute(image, baseline, lambda y: y.sum(), n_steps=50)
        assert len(passes) == 2
        batched = ChannelAttributor(model).attribute(image[None], baseline[None], lambda y: y.sum(), n_steps=2)
        assert batched.channels()["0"].shape == (6,)
        assert batched.filters().top(0.5)["0.weight"].shape == (6,)
        of_relu = ChannelAttributor(model, "1").attribute(image, baseline, lambda y: y.sum(), n_steps=2)
        with pytest.raises(SettingError, match=r"none were found for '1', shape \(6, 6, 6\)"):
            of_relu.channels()

    def test_a_vector_without_the_axis_of_the_samples_is_refused(self) -> None:
        ends = pictures(66, 4)
        with pytest.raises(SettingError, match=r"'0' \(Linear\) puts out shape \(8,\)"):
            ChannelAttributor(nn.Sequential(nn.Linear(4, 8)).double()).attribute(*ends, lambda y: y.sum(), n_steps=2)

    def test_other_channels_than_the_weight_has_filters_are_no_filters(self) -> None:
        class Shuffled(nn.Conv2d):
            def forward(self, image: Tensor) -> Tensor:
                return functional.pixel_shuffle(super().forward(image), 2)

        found = ChannelAttributor(nn.Sequential(Shuffled(1, 4, 3)).double()).attribute(
            *pictures(67, 2, 1, 6, 6), squares, n_steps=2
        )
        assert found.channels()["0"].shape == (1,)
        with pytest.raises(SettingError, match="'0' put out another number of channels than"):
            found.filters()

    @pytest.mark.parametrize("kind", [Recurrent, Flattened])
    @pytest.mark.parametrize("samples", [1, 3])
    def test_nodes_in_batches_are_refused_where_samples_do_not_stand_in_front(
        self, kind: type[nn.Module], samples: int
    ) -> None:
        attributor = ChannelAttributor(kind().double(), "enter")
        with pytest.raises((SettingError, ModelChangedError), match=r"'enter'.*[Ll]eave internal_batch_size out"):
            attributor.attribute(*pictures(68, samples, 6, 4), logit, n_steps=4, internal_batch_size=2 * samples)

    def test_nodes_in_batches_are_refused_where_the_output_does_not_come_apart(self) -> None:
        class TwoDirections(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.enter, self.gru = nn.Linear(4, 3), nn.GRU(3, 2, bidirectional=True, batch_first=True)

            def forward(self, tokens: Tensor) -> Tensor:
                return self.gru(self.enter(tokens))[1]  # directions first: two of them, as many as nodes

        attributor = ChannelAttributor(TwoDirections().double())
        last = lambda state: state[-1].sum(-1).sum()  # noqa: E731
        assert attributor.attribute(*pictures(69, 2, 3, 4), last, n_steps=3)["enter"].any()
        with pytest.raises(SettingError, match=r"is another for two nodes at once\. Leave internal_batch_size out"):
            attributor.attribute(*pictures(69, 2, 3, 4), last, n_steps=3, internal_batch_size=4)

    def test_half_precision_finds_it_too(self) -> None:
        model = Recurrent().bfloat16()
        ends = tuple(end.bfloat16() for end in pictures(70, 3, 6, 4))
        found = ChannelAttributor(model, "enter").attribute(*ends, lambda y: y[:, 0].float(), n_steps=8)
        torch.testing.assert_close(found.channels()["enter"], found["enter"].sum(0).abs().mean(0))


class TestCaptumsFirstIdioms:
    @pytest.mark.parametrize("number", [0, 0.5])
    @pytest.mark.parametrize("method", METHODS[:3])
    def test_a_number_is_a_baseline(self, number: float, method: str) -> None:
        model = smooth_network()
        inputs, _ = pictures(71, 2, 1, 6, 6)
        found = ChannelAttributor(model).attribute(inputs, number, squares, attribution=method, n_steps=8)
        full = ChannelAttributor(model).attribute(
            inputs, torch.full_like(inputs, number), squares, attribution=method, n_steps=8
        )
        for layer in found:
            assert torch.equal(found[layer], full[layer])

    def test_one_baseline_serves_all_samples(self) -> None:
        model = smooth_network()
        inputs, baselines = pictures(72, 3, 1, 6, 6)
        found = ChannelAttributor(model).attribute(inputs, baselines[:1], squares, n_steps=7)
        expected = captum_layer("conductance", lambda image: squares(model(image)), model[2]).attribute(
            inputs, baselines[:1], n_steps=7
        )
        assert_equal_numbers(found["2"], expected.detach(), 1e-9)

    def test_none_among_several_stays_the_same(self) -> None:
        class Scaled(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(3, 2)

            def forward(self, tokens: Tensor, scale: Tensor) -> Tensor:
                return self.layer(tokens).tanh() * scale

        (tokens, _), scale = pictures(73, 2, 3), torch.rand(2, 1, dtype=torch.float64)
        attributor = ChannelAttributor(Scaled().double())
        found = attributor.attribute((tokens, scale), (0, None), logit, n_steps=4)
        twice = attributor.attribute((tokens, scale), (tokens * 0, scale), logit, n_steps=4)
        assert torch.equal(found["layer"], twice["layer"])

    @pytest.mark.parametrize("baselines", [True, (0, 0), "zeros", (None, None)])
    def test_other_things_are_not_baselines(self, baselines: object) -> None:
        with pytest.raises(SettingError, match="inputs and baselines must be"):
            ChannelAttributor(nn.Linear(3, 1)).attribute(torch.ones(1, 3), baselines, lambda y: y.sum())

    def test_a_fraction_is_no_baseline_of_token_ids(self) -> None:
        with pytest.raises(SettingError, match="number 0 is Tensor and float"):
            ChannelAttributor(Text(), "embed").attribute(
                torch.ones(1, 3, dtype=torch.long), 0.5, logit, attribution="integrated_gradients"
            )

    def test_token_ids_with_an_embedding_layer(self) -> None:
        model = Text().double()
        ids = torch.tensor([[1, 2, 3], [4, 5, 1]])
        exact = {"n_steps": 8, "method": "riemann_middle"}
        for baselines in (0, torch.zeros_like(ids)):
            found = ChannelAttributor(model, "embed").attribute(
                ids, baselines, logit, attribution="integrated_gradients", **exact
            )
            expected = captum_layer("integrated_gradients", lambda ids: logit(model(ids)), model.embed).attribute(
                ids, torch.zeros_like(ids), n_steps=8, method="riemann_middle"
            )
            assert_equal_numbers(found["embed"], expected.detach(), 1e-9)
            assert found.channels()["embed"].shape == (4,)
        assert found.completeness_errors["embed"] < 0.01
        product = ChannelAttributor(model, "embed").attribute(ids, None, logit, attribution="gradient_x_activation")
        expected = captum_layer("gradient_x_activation", lambda ids: logit(model(ids)), model.embed).attribute(ids)
        assert_equal_numbers(product["embed"], expected.detach(), 1e-9)

    @pytest.mark.parametrize("method", ["conductance", "internal_influence"])
    def test_methods_between_token_ids_say_the_way_out(self, method: str) -> None:
        ids = torch.tensor([[1, 2, 3]])
        with pytest.raises(
            SettingError, match=r"int64 and would have to move.*ution='integrated_gradients'.*inputs_embeds=embeddings"
        ):
            ChannelAttributor(Text(), "embed").attribute(ids, 0, logit, attribution=method)


class Text(nn.Module):
    """Embeds token ids."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 4), nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embed(ids)).mean(1))


Pair = namedtuple("Pair", "logits hidden")


@dataclasses.dataclass(frozen=True)
class Record:
    logits: Tensor
    hidden: Tensor | None = None


class Answers(OrderedDict):
    """What Hugging Face models return: fields that are items, too."""

    @property
    def logits(self) -> Tensor:
        return self["logits"]


class TestReturnedThings:
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda scores: Pair(scores, scores),
            lambda scores: Record(scores),
            lambda scores: Record(scores, scores),
            lambda scores: Answers(logits=scores, past=None, kind="text"),
            lambda scores: Pair(Record(scores), [scores, (scores,)])._replace(logits=scores),
        ],
    )
    def test_come_apart_by_node(self, wrap: Callable[[Tensor], object]) -> None:
        attributor = ChannelAttributor(Classifier().double())
        ends = pictures(74, 2, 2, 8, 8)
        one, three = (
            attributor.attribute(
                *ends,
                lambda answer: answer.logits[:, 1],
                n_steps=6,
                internal_batch_size=2 * k,
                forward=lambda m, x: wrap(m(x)),
            )
            for k in (1, 3)
        )
        for layer in one:
            torch.testing.assert_close(three[layer], one[layer], rtol=1e-10, atol=1e-14)

    def test_of_hugging_face(self) -> None:
        outputs = pytest.importorskip("transformers.modeling_outputs")
        attributor = ChannelAttributor(Text().double(), "head")
        ends = pictures(75, 2, 4)

        def forward(model: nn.Module, features: Tensor) -> object:
            return outputs.SequenceClassifierOutput(logits=model.head(features).tanh(), hidden_states=(features,))

        one, three = (
            attributor.attribute(*ends, lambda y: y.logits[:, 0], n_steps=6, internal_batch_size=2 * k, forward=forward)
            for k in (1, 3)
        )
        torch.testing.assert_close(three["head"], one["head"], rtol=1e-10, atol=1e-14)


class TestTheSameFunctionEverywhere:
    @pytest.mark.parametrize("method", METHODS[:3])
    @pytest.mark.parametrize("kind", ["in place", "counter", "generator", "cache"])
    def test_an_output_that_changes_is_named(self, method: str, kind: str) -> None:
        reference = torch.rand(2, 1, 12, 12, dtype=torch.float64)
        generator = torch.Generator().manual_seed(0)
        kept: list[Tensor] = []

        def output(restored: Tensor) -> Tensor:
            if kind == "in place":
                return (restored - reference.mul_(1.1)).square().sum()
            if kind == "generator":
                return (restored * torch.rand(restored.shape, generator=generator, dtype=torch.float64)).sum()
            kept.append(restored.detach())
            return (restored * (len(kept) if kind == "counter" else sum(kept))).sum()

        with pytest.raises(
            LossError, match=r"must be the same function.*at first and .* at the end.*seed the generator"
        ):
            ChannelAttributor(smooth_network()).attribute(
                *pictures(76, 2, 1, 6, 6), output, attribution=method, n_steps=4
            )

    def test_a_cache_that_the_model_keeps_is_the_same_everywhere(self) -> None:
        class Caching(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(3, 3)
                self.kept: dict[str, list[Tensor]] = {"seen": []}

            def forward(self, tokens: Tensor) -> Tensor:
                self.kept["seen"].append(tokens.detach())
                return (self.layer(tokens) * len(self.kept["seen"])).sum(1)

        model = Caching().double()
        found = ChannelAttributor(model).attribute(
            *pictures(79, 2, 3), lambda y: y, n_steps=5, method="riemann_trapezoid"
        )
        assert model.kept == {"seen": []}
        assert found.completeness_errors["layer"] < 1e-9

    def test_the_inputs_may_be_written_to(self) -> None:
        class Writing(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(3, 3)

            def forward(self, tokens: Tensor, scale: Tensor) -> Tensor:
                return (self.layer(tokens.mul_(2)) * scale.add_(1)).sum(1)

        inputs, baselines, scale = *pictures(77, 2, 3), torch.rand(2, 1, dtype=torch.float64)
        found = ChannelAttributor(Writing().double()).attribute(
            (inputs, scale), (baselines, scale), lambda y: y, n_steps=5, method="riemann_trapezoid"
        )
        assert found.completeness_errors["layer"] < 1e-9


class TestDepth:
    def test_conductance_is_linear_in_the_number_of_layers(self) -> None:
        class Deep(nn.Module):
            def __init__(self, depth: int) -> None:
                super().__init__()
                self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(depth))

            def forward(self, tokens: Tensor) -> Tensor:
                for layer in self.layers:
                    tokens = tokens + 0.01 * torch.tanh(layer(tokens))
                return tokens

        def steps(depth: int) -> int:
            """Python's calls inside the library; time itself is noise."""
            count = 0

            def trace(frame: object, event: str, _argument: object) -> None:
                nonlocal count
                count += event == "call" and "filterattr" in frame.f_code.co_filename

            ends = pictures(78, 1, 2, dtype=torch.float32)
            sys.setprofile(trace)
            try:
                ChannelAttributor(Deep(depth)).attribute(*ends, lambda y: y.sum(1), n_steps=1)
            finally:
                sys.setprofile(None)
            return count

        assert steps(200) < 4.4 * steps(50)

    def test_layers_that_cut_the_network_are_those_of_a_search(self) -> None:
        class Tangled(nn.Module):
            def __init__(self, seed: int) -> None:
                super().__init__()
                self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(6))
                self.seed = seed

            def forward(self, tokens: Tensor) -> Tensor:
                plan = random.Random(self.seed)
                known = [tokens]
                for _ in range(9):
                    layer = self.layers[plan.randrange(6)] if plan.random() < 0.8 else torch.tanh
                    parts = plan.sample(known, min(len(known), 1 + (plan.random() < 0.3)))
                    known.append(layer(sum(parts)))
                return self.layers[0](known[-1]) + (known[-1] if plan.random() < 0.5 else 0)

        for seed in range(40):
            model = Tangled(seed)
            outputs: dict[str, list[Tensor]] = {}
            handles = [
                layer.register_forward_hook(keep_in(outputs.setdefault(name, [])))
                for name, layer in model.layers.named_children()
            ]
            leaf = torch.rand(1, 2, requires_grad=True)
            value = model(leaf).sum()
            expected = {name for name, tensors in outputs.items() if crossed_once(value, leaf, tensors)}
            assert cutting(value, [leaf], outputs) == expected
            for handle in handles:
                handle.remove()


def keep_in(outputs: list[Tensor]) -> Callable[[nn.Module, object, Tensor], None]:
    return lambda _module, _arguments, output: outputs.append(output)


def crossed_once(value: Tensor, leaf: Tensor, tensors: list[Tensor]) -> bool:
    """Follow every single way from the value to the leaf."""
    stops = {(tensor.grad_fn, tensor.output_nr) for tensor in tensors}
    seen: set[object] = set()
    counts: set[int] = set()
    waiting = [(value.grad_fn, 0, 0)]
    while waiting:
        node, number, passed = waiting.pop()
        passed += (node, number) in stops
        seen.add((node, number))
        if getattr(node, "variable", None) is leaf:
            counts.add(passed)
        waiting += [(later, place, passed) for later, place in node.next_functions if later is not None]
    return stops <= seen and counts <= {1}


class TestPasses:
    @pytest.mark.parametrize("method", METHODS[:3])
    @pytest.mark.parametrize("quadrature", ["gausslegendre", "riemann_trapezoid"])
    def test_nodes_in_batches_give_the_same_numbers(self, method: str, quadrature: str) -> None:
        attributor = ChannelAttributor(Classifier().double())
        ends = pictures(24, 2, 2, 8, 8)
        options = {"attribution": method, "n_steps": 7, "method": quadrature, "kernels": method != "internal_influence"}
        one, three = (
            attributor.attribute(*ends, lambda scores: scores[:, 1], internal_batch_size=2 * k, **options)
            for k in (1, 3)
        )
        for layer in one:
            torch.testing.assert_close(three[layer], one[layer], rtol=1e-10, atol=1e-14)
        if method != "internal_influence":
            for name, kernels in one.kernels("sum").items():
                torch.testing.assert_close(three.kernels("sum")[name], kernels, rtol=1e-10, atol=1e-14)
        assert one.n_passes == three.n_passes

    def test_batches_of_nodes_reach_the_output_one_by_one(self) -> None:
        reference = torch.rand(2, 1, 6, 6, dtype=torch.float64)  # would not fit a batch

        class Both(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Conv2d(1, 1, 3, padding=1)

            def forward(self, image: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
                return {"images": (self.layer(image).tanh(), image)}

        attributor = ChannelAttributor(Both().double())
        output = lambda found: (found["images"][0] - reference).square().sum()  # noqa: E731
        one, four = (
            attributor.attribute(*pictures(25, 2, 1, 6, 6), output, n_steps=6, internal_batch_size=2 * k)
            for k in (1, 4)
        )
        torch.testing.assert_close(four["layer"], one["layer"])

    def test_batches_need_samples_first(self) -> None:
        class SequenceFirst(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(3, 3)

            def forward(self, tokens: Tensor, weights: Tensor) -> Tensor:
                return (self.layer(tokens.transpose(0, 1)).tanh() * weights).sum((0, 2))

        attributor = ChannelAttributor(SequenceFirst().double())
        inputs, baselines = pictures(26, 2, 4, 3)
        weights, column = torch.rand(3, dtype=torch.float64), torch.rand(2, 1, dtype=torch.float64)
        one = attributor.attribute((inputs, weights), (baselines, weights), lambda y: y, n_steps=2)
        assert one["layer"].shape == (4, 2, 3)
        with pytest.raises(SettingError, match=r"2 samples first in all inputs; got shapes '\(2, 4, 3\)', '\(3,\)'"):
            attributor.attribute((inputs, weights), (baselines, weights), lambda y: y, n_steps=2, internal_batch_size=4)
        with pytest.raises(
            ModelChangedError, match=r"for 'layer'\. Choose other layers, or leave internal_batch_size out"
        ):
            attributor.attribute((inputs, column), (baselines, column), lambda y: y, n_steps=3, internal_batch_size=4)
        with pytest.raises(SettingError, match=r"returns tensors with the samples first.*got shape \(\)"):
            ChannelAttributor(smooth_network()).attribute(
                *pictures(26, 2, 1, 5, 5),
                lambda y: y,
                n_steps=2,
                internal_batch_size=4,
                forward=lambda m, x: m(x).sum(),
            )

    def test_one_sweep_runs_the_model_once_per_node(self) -> None:
        model = SRResNet(num_feat=4, num_block=2)
        passes = []
        model.register_forward_pre_hook(lambda *_: passes.append(1))
        found = ChannelAttributor(model).attribute(*pictures(27, 1, 3, 5, 5, dtype=torch.float32), squares, n_steps=9)
        assert (found.n_passes, len(passes)) == (10, 13)  # and once at either end, and again at the inputs

    def test_integrated_gradients_skip_what_comes_before_the_layer(self) -> None:
        model = smooth_network()
        attributor = ChannelAttributor(model, "6")
        counted: list[object] = []

        class Count(torch.overrides.TorchFunctionMode):
            def __torch_function__(self, func, types, args=(), kwargs=None):
                if func in (torch.conv2d, torch.conv_transpose2d):
                    counted.append(func)
                return func(*args, **(kwargs or {}))

        with Count():
            attributor.attribute(*pictures(28, 1, 1, 6, 6), squares, attribution="integrated_gradients", n_steps=10)
        assert len(counted) == 4 * 4  # both ends, to remember, and again at the inputs; none of the ten nodes

    def test_several_inputs_and_a_condition_that_stays(self) -> None:
        class Conditioned(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer, self.embed = nn.Conv2d(2, 2, 3), nn.Embedding(4, 2)

            def forward(self, image: Tensor, noise: Tensor, level: Tensor) -> Tensor:
                return self.layer(image * noise) * self.embed(level)[:, :, None, None]

        model = Conditioned().double()
        (image, first), (noise, second) = pictures(29, 2, 2, 5, 5), pictures(30, 2, 2, 5, 5)
        level = torch.tensor([1, 3])
        found = ChannelAttributor(model, ["layer", "embed"]).attribute(
            (image, noise, level), (first, second, level), squares, n_steps=400, method="riemann_trapezoid"
        )
        assert found.completeness_errors["layer"] < 1e-4
        assert not found["embed"].any()
        influence = ChannelAttributor(model, "embed").attribute(
            (image, noise, level), (first, second, level), squares, attribution="internal_influence", n_steps=4
        )
        assert influence["embed"].abs().min() > 0

    def test_how_the_model_is_called_can_be_chosen(self) -> None:
        class Keyword(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Conv2d(1, 1, 3)

            def forward(self, image: Tensor, *, scale: float) -> dict[str, Tensor]:
                return {"restored": scale * self.layer(image)}

        model = Keyword().double()
        ends = pictures(31, 1, 1, 5, 5)
        found = ChannelAttributor(model).attribute(
            *ends, squares, n_steps=2, forward=lambda m, image: m(image, scale=2.0)["restored"]
        )
        direct = ChannelAttributor(model.layer).attribute(*ends, lambda y: squares(2.0 * y), n_steps=2)
        torch.testing.assert_close(found["layer"], direct[""])

    def test_low_precision_activations_are_summed_in_double(self) -> None:
        model = smooth_network().to(torch.bfloat16)
        ends = tuple(end.bfloat16() for end in pictures(32, 1, 1, 6, 6))
        found = ChannelAttributor(model).attribute(*ends, lambda y: squares(y.float()), n_steps=16, kernels=True)
        exact = ChannelAttributor(copy.deepcopy(model).double()).attribute(
            *(end.double() for end in ends), squares, n_steps=16
        )
        for layer in found:
            assert found[layer].dtype == torch.float64
            assert_equal_numbers(found[layer], exact[layer], 0.1)

    def test_inside_no_grad_and_inference_mode(self) -> None:
        attributor = ChannelAttributor(smooth_network())
        ends = pictures(33, 1, 1, 6, 6)
        outside = attributor.attribute(*ends, squares, n_steps=3)
        for context in (torch.no_grad(), torch.inference_mode()):
            with context:
                inside = attributor.attribute(*(end.clone() for end in ends), squares, n_steps=3)
                assert not torch.is_grad_enabled()
            for layer in outside:
                torch.testing.assert_close(inside[layer].clone(), outside[layer], rtol=0.0, atol=0.0)

    def test_model_made_in_inference_mode(self) -> None:
        with torch.inference_mode():
            model = smooth_network()
        found = ChannelAttributor(model).attribute(*pictures(33, 1, 1, 6, 6), squares, n_steps=3)
        assert found["0"].any()

    @pytest.mark.parametrize("method", METHODS)
    def test_dropout_draws_the_same_everywhere(self, method: str) -> None:
        model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 6), nn.Dropout(0.5), nn.Tanh()).double()
        attributor = ChannelAttributor(model)
        state = torch.get_rng_state()
        first, second = (
            attributor.attribute(*pictures(34, 4, 6), squares, attribution=method, n_steps=50, method="riemann_middle")
            for _ in range(2)
        )
        assert torch.equal(torch.get_rng_state(), state)
        for layer in first:
            assert torch.equal(first[layer], second[layer])
            error = first.completeness_errors[layer]
            assert error is None or error < 0.05

    def test_checkpointed_layers_count_once(self) -> None:
        class Checkpointed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body = smooth_network()
                self.wrapped = True

            def forward(self, image: Tensor) -> Tensor:
                return checkpoint(self.body, image, use_reentrant=False) if self.wrapped else self.body(image)

        model = Checkpointed()
        ends = pictures(35, 1, 1, 6, 6)
        with_checkpoint = ChannelAttributor(model).attribute(*ends, squares, n_steps=3)
        model.wrapped = False
        without = ChannelAttributor(model).attribute(*ends, squares, n_steps=3)
        for layer in without:
            torch.testing.assert_close(with_checkpoint[layer], without[layer])
        model.wrapped = True
        with pytest.raises(UnsupportedModelError, match=r"'body\.2' cannot be replaced: activation checkpointing"):
            ChannelAttributor(model, "body.2").attribute(*ends, squares, attribution="integrated_gradients", n_steps=3)


class TestLayers:
    def test_names_globs_predicates_and_the_default(self) -> None:
        model = Classifier()
        assert list(ChannelAttributor(model).layers) == ["features.0", "features.2", "head.1", "head.3"]
        assert list(ChannelAttributor(model, "head.1").layers) == ["head.1"]
        assert list(ChannelAttributor(model, ["head.*", "features"]).layers) == [
            "features",
            *(f"head.{i}" for i in range(4)),
        ]
        relus = ChannelAttributor(model, lambda name, module: isinstance(module, nn.ReLU)).layers
        assert list(relus) == ["features.1"]

    def test_everything_wrong_with_the_choice_is_named(self) -> None:
        with pytest.raises(
            SettingError, match=r"'body', 'tail\.\*' \(nearest: .*\) fit none of 'features', 'features\.0'"
        ):
            ChannelAttributor(Classifier(), ["head.1", "body", "tail.*"])
        with pytest.raises(SettingError, match="leaves none of ReLU"):
            ChannelAttributor(nn.ReLU())
        with pytest.raises(UnsupportedModelError, match=r"must be a torch\.nn\.Module; got function"):
            ChannelAttributor(lambda image: image)

    def test_a_module_under_two_names_is_one_layer(self) -> None:
        layer = nn.Conv2d(1, 1, 3, padding=1)
        model = nn.ModuleDict({"first": layer, "second": layer})
        assert list(ChannelAttributor(model, "second").layers) == ["first"]

    def test_calls_of_a_reused_layer_are_kept_and_summed(self) -> None:
        class Recursive(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Conv2d(1, 1, 3, padding=1)

            def forward(self, image: Tensor) -> Tensor:
                return self.layer(self.layer(image).tanh()).tanh()

        class Unrolled(nn.Module):
            def __init__(self, layer: nn.Module) -> None:
                super().__init__()
                self.first, self.second = copy.deepcopy(layer), copy.deepcopy(layer)

            def forward(self, image: Tensor) -> Tensor:
                return self.second(self.first(image).tanh()).tanh()

        model = Recursive().double()
        ends = pictures(36, 1, 1, 6, 6)
        for method in METHODS:
            reused = ChannelAttributor(model).attribute(*ends, squares, attribution=method, n_steps=4)
            unrolled = ChannelAttributor(Unrolled(model.layer)).attribute(*ends, squares, attribution=method, n_steps=4)
            first, second = reused.layers["layer"].calls
            torch.testing.assert_close(first, unrolled["first"])
            torch.testing.assert_close(second, unrolled["second"])
            torch.testing.assert_close(reused["layer"], unrolled["first"] + unrolled["second"])
            assert reused.per_layer()[0].n_calls == 2
            if method == "conductance":  # the change passes through both, so their sum is twice the change
                assert reused.completeness_errors == {"layer": None}

    def test_calls_side_by_side_cut_the_network_together(self) -> None:
        class Siamese(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Conv2d(1, 1, 3)

            def forward(self, image: Tensor) -> Tensor:
                return self.layer(image).tanh() * self.layer(image.flip(2)).tanh()

        found = ChannelAttributor(Siamese().double()).attribute(
            *pictures(37, 1, 1, 6, 6), squares, n_steps=100, method="riemann_trapezoid"
        )
        assert found.completeness_errors["layer"] < 1e-3

    def test_calls_of_different_shapes_have_channels_but_no_sum(self) -> None:
        class Pyramid(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Conv2d(1, 2, 3, padding=1)

            def forward(self, image: Tensor) -> Tensor:
                small = functional.avg_pool2d(image, 2)
                return self.layer(image).square().sum((1, 2, 3)) + self.layer(small).square().sum((1, 2, 3))

        found = ChannelAttributor(Pyramid().double()).attribute(
            *pictures(38, 2, 1, 6, 6), lambda y: y, n_steps=3, kernels=True
        )
        with pytest.raises(SettingError, match=r"'layer' puts out '\(2, 2, 3, 3\)', '\(2, 2, 6, 6\)'"):
            found["layer"]
        expected = sum(call.sum((2, 3)) for call in found.layers["layer"].calls).abs().mean(0)
        torch.testing.assert_close(found.channels()["layer"], expected)
        assert found.completeness_errors["layer"] is not None

    def test_outputs_that_are_views_and_worked_on_in_place(self) -> None:
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.ReLU(inplace=True), nn.Linear(32, 1)).double()
        ends = pictures(39, 1, 1, 6, 6)
        found = ChannelAttributor(model, ["0", "1", "2"]).attribute(*ends, lambda y: y[:, 0], n_steps=4)
        torch.testing.assert_close(found["1"], found["0"].flatten(1))
        other = nn.Sequential(model[0], model[1], nn.ReLU(), model[3])
        expected = ChannelAttributor(other, ["0", "2"]).attribute(*ends, lambda y: y[:, 0], n_steps=4)
        torch.testing.assert_close(found["0"], expected["0"])
        torch.testing.assert_close(found["2"], expected["2"])

    def test_everything_unfit_is_named_at_once(self) -> None:
        class Sizes(nn.Module):
            def forward(self, tokens: Tensor) -> tuple[int, ...]:
                return tuple(tokens.shape)

        class Unfit(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.used, self.unused, self.idle = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
                self.sizes = Sizes()

            def forward(self, tokens: Tensor) -> Tensor:
                return self.used(tokens).sum((1, 2)) * self.sizes(tokens)[0]

        attributor = ChannelAttributor(Unfit(), ["used", "unused", "idle", "sizes"])
        expected = r"'unused', 'idle' did not run.*; 'sizes' puts out a tuple without a floating tensor"
        with pytest.raises(UnsupportedModelError, match=expected):
            attributor.attribute(*pictures(40, 1, 2, 3, dtype=torch.float32), lambda y: y, n_steps=2)

    def test_layers_that_the_output_does_not_depend_on_are_named(self) -> None:
        class TwoHeads(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body, self.left, self.right = nn.Linear(3, 3), nn.Linear(3, 1), nn.Linear(3, 1)

            def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
                features = self.body(tokens)
                return self.left(features)[:, 0], self.right(features.detach())[:, 0]

        ends = pictures(41, 2, 3, dtype=torch.float32)
        attributor = ChannelAttributor(TwoHeads())
        for method in METHODS:
            with pytest.raises(LossError, match="must reach every layer; none reaches 'right'"):
                attributor.attribute(*ends, lambda heads: heads[0], attribution=method, n_steps=2)
        with pytest.raises(LossError, match="none reaches 'body', 'left'"):
            attributor.attribute(*ends, lambda heads: heads[1], n_steps=2)

    def test_layers_inside_no_grad_are_named(self) -> None:
        class Frozen(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 1)

            def forward(self, tokens: Tensor) -> Tensor:
                with torch.no_grad():
                    features = self.body(tokens)
                return self.head(features)[:, 0]

        with pytest.raises(LossError, match="no derivative leads to 'body'"):
            ChannelAttributor(Frozen()).attribute(*pictures(42, 1, 3, dtype=torch.float32), lambda y: y, n_steps=2)

    def test_a_model_that_takes_other_ways_is_refused(self) -> None:
        class Branching(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(3, 3)

            def forward(self, tokens: Tensor) -> Tensor:
                once = self.layer(tokens)
                return (once if tokens.mean() > 0.3 else self.layer(once)).sum(1)

        ends = torch.ones(1, 3), torch.zeros(1, 3)
        with pytest.raises(
            ModelChangedError, match="in the same way at every place of the path; it does not for 'layer'"
        ):
            ChannelAttributor(Branching()).attribute(*ends, lambda y: y, n_steps=2)

    def test_wrappers_are_looked_through(self) -> None:
        model = smooth_network()
        ends = pictures(43, 1, 1, 6, 6)
        plain = ChannelAttributor(model).attribute(*ends, squares, n_steps=2)
        wrapped = ChannelAttributor(nn.DataParallel(model)).attribute(*ends, squares, n_steps=2)
        assert list(wrapped) == list(plain)
        torch.testing.assert_close(wrapped["2"], plain["2"])

    @pytest.mark.slow
    def test_compiled_models_and_submodules_are_looked_through(self) -> None:
        ends = pictures(43, 1, 1, 6, 6)
        model = smooth_network()
        plain = ChannelAttributor(model).attribute(*ends, squares, n_steps=2)
        model[2] = torch.compile(nn.Sequential(model[2]), backend="eager")
        compiled = torch.compile(model, backend="eager")
        compiled(ends[0])
        found = ChannelAttributor(compiled).attribute(*ends, squares, n_steps=2)
        assert list(found) == ["0", "2.0", "4", "6"]
        torch.testing.assert_close(found["2.0"], plain["2"])


class TestOldSpellings:
    """What version 0.1 called otherwise works, gives the same numbers, and says its new name to whoever calls."""

    @staticmethod
    def attribute(**options: object) -> ChannelAttribution:
        torch.manual_seed(0)
        model, ends = Classifier().double(), pictures(90, 2, 2, 8, 8)
        return ChannelAttributor(model).attribute(*ends, lambda y: y[:, 1], n_steps=4, **options)

    @pytest.mark.parametrize(
        ("old", "new", "said"),
        [
            ({"method": "conductance"}, {"attribution": "conductance"}, "say attribution='conductance'"),
            ({"method": "internal_influence"}, {"attribution": "internal_influence"}, "say attribution='internal"),
            ({"quadrature": "riemann_left"}, {"method": "riemann_left"}, "say method='riemann_left'"),
            ({"batch_nodes": 3}, {"internal_batch_size": 6}, "say internal_batch_size=6"),
        ],
    )
    def test_work_and_say_the_new_one(self, old: dict[str, object], new: dict[str, object], said: str) -> None:
        expected = self.attribute(**new)
        with pytest.warns(FutureWarning, match=said) as seen:
            found = self.attribute(**old)
        assert [warning.filename for warning in seen] == [__file__]
        assert (found.attribution, found.method) == (expected.attribution, expected.method)
        for layer in expected:
            assert torch.equal(found[layer], expected[layer])

    def test_both_old_names_at_once(self) -> None:
        with pytest.warns(FutureWarning) as seen:
            found = self.attribute(method="internal_influence", quadrature="riemann_right")
        assert len(seen) == 2
        assert (found.attribution, found.method) == ("internal_influence", "riemann_right")
        with pytest.warns(FutureWarning, match="quadrature is called method"):
            assert found.quadrature == "riemann_right"

    @pytest.mark.parametrize(
        "options",
        [
            {"method": "conductance", "attribution": "conductance"},
            {"quadrature": "riemann_left", "method": "riemann_left"},
            {"batch_nodes": 1, "internal_batch_size": 2},
        ],
    )
    def test_are_refused_beside_the_new_one(self, options: dict[str, object]) -> None:
        with pytest.raises(SettingError, match="is the old name of"):
            self.attribute(**options)

    def test_points_that_fill_no_further_node_are_no_error(self) -> None:
        expected, found = (self.attribute(internal_batch_size=size) for size in (4, 5))
        assert all(torch.equal(found[layer], expected[layer]) for layer in expected)


class TestSettings:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"attribution": "saliency"}, SettingError, "attribution must be one of conductance, .*; got 'saliency'"),
            ({"n_steps": 0}, SettingError, "n_steps must be a whole number of at least 1; got 0"),
            ({"n_steps": 2.5}, SettingError, "n_steps must be a whole number of at least 1; got 2.5"),
            ({"method": "simpson"}, SettingError, "must be one of gausslegendre, .*; got 'simpson'"),
            (
                {"internal_batch_size": 0},
                SettingError,
                "internal_batch_size must be a whole number of at least 1; got 0",
            ),
            ({"forward": "model"}, SettingError, "forward must be a function .*; got str"),
            ({"output": None}, LossError, "output must be a function .*; got NoneType"),
            ({"output": lambda y: 3.0}, LossError, "must return a tensor; got float"),
            (
                {"output": lambda y: y},
                LossError,
                r"shape \(2,\), or one for all, shape \(\); got shape \(2, 1, 12, 12\)",
            ),
            ({"output": lambda y: y.sum().long()}, LossError, r"must be real and floating; got torch\.int64"),
            ({"output": lambda y: y.detach().sum()}, LossError, "no derivative leads to '0', '2', '4', '6'"),
            ({"output": lambda y: y.sum() / 0}, NonFiniteError, r"finite along the whole path; got .*inf at t = 0\."),
            ({"baselines": None}, SettingError, "needs baselines, where its path starts; got None"),
        ],
    )
    def test_are_checked(self, options: dict[str, object], error: type[Exception], message: str) -> None:
        inputs, baselines = pictures(44, 2, 1, 6, 6)
        given = {"inputs": inputs, "baselines": baselines, "output": squares, "n_steps": 2} | options
        with pytest.raises(error, match=message):
            ChannelAttributor(smooth_network()).attribute(**given)

    @pytest.mark.parametrize(
        ("inputs", "baselines", "message"),
        [
            (torch.ones(1, 1), (torch.ones(1, 1),) * 2, "there are 1 inputs and 2 baselines"),
            (torch.ones(2, 3), torch.ones(3), r"number 0 has shape \(2, 3\) .* and \(3,\)"),
            (
                (torch.ones(1), torch.tensor([1])),
                (torch.ones(1), torch.tensor([2])),
                "number 1 is torch.int64 and would",
            ),
            ((torch.ones(1), 3.0), (torch.ones(1), 2.0), "number 1 is float and float"),
            (torch.ones(()), torch.ones(()), r"number 0 has shape \(\), without samples"),
        ],
    )
    def test_ends_must_fit(self, inputs: object, baselines: object, message: str) -> None:
        with pytest.raises(SettingError, match=message):
            ChannelAttributor(nn.Linear(3, 1)).attribute(inputs, baselines, lambda y: y)

    def test_infinite_derivatives_are_named(self) -> None:
        class Root(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(2, 2, bias=False)

            def forward(self, tokens: Tensor) -> Tensor:
                return self.layer(tokens).abs().sqrt().sum(1)

        ends = torch.ones(1, 2), torch.zeros(1, 2)
        with pytest.raises(NonFiniteError, match="must be finite; they are not for 'layer'"):
            ChannelAttributor(Root()).attribute(*ends, lambda y: y, n_steps=2, method="riemann_left")


class Busy(nn.Module):
    """Writes to itself in every forward pass, and may fail."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Conv2d(2, 1, 3, padding=1)
        self.error: BaseException | None = None
        self.passes = 0
        self.fails_at = 0

    def forward(self, image: Tensor) -> Tensor:
        image.sub_(0.5)
        features = self.drop(self.norm(self.first(image))).relu_()
        Busy.count += 1
        if self.error is not None and Busy.count == self.fails_at:
            raise self.error
        return self.last(features)

    count = 0


def fingerprint(model: nn.Module) -> list[object]:
    """Everything about a model that a call must leave as it was."""
    state: list[object] = []
    for name, module in model.named_modules():
        state += [name, id(module), module.training, len(module._forward_hooks), len(module._forward_pre_hooks)]
        state += [sorted(module.__dict__)]
        for local, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                gradient = None if tensor.grad is None else tensor.grad.numpy().tobytes()
                state += [local, id(tensor), tensor.detach().numpy().tobytes(), tensor._version]
                state += [tensor.requires_grad, gradient, tensor.stride()]
    return state


@pytest.fixture
def busy() -> Iterator[Busy]:
    model = Busy().double()
    model(torch.rand(2, 1, 5, 5, dtype=torch.float64)).sum().backward()
    model.first.bias.requires_grad_(False)
    model.norm.eval()
    Busy.count = 0
    return model


class TestModelIsLeftAlone:
    @pytest.mark.parametrize("method", METHODS)
    def test_after_a_call(self, busy: Busy, method: str) -> None:
        before, state = fingerprint(busy), torch.get_rng_state()
        inputs, baselines = pictures(45, 2, 1, 5, 5)
        kept = inputs.clone(), baselines.clone()
        ChannelAttributor(busy).attribute(inputs, baselines, squares, attribution=method, n_steps=2)
        assert fingerprint(busy) == before
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(inputs, kept[0])
        assert torch.equal(baselines, kept[1])
        assert not inputs.requires_grad

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("fails_at", [1, 2, 3, 4])
    @pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt("no"), SystemExit("no")], ids=repr)
    def test_after_a_failure(self, busy: Busy, method: str, fails_at: int, error: BaseException) -> None:
        ends = pictures(45, 2, 1, 5, 5)
        busy.train()
        busy.error, busy.fails_at = error, fails_at
        before = fingerprint(busy)
        if method == "gradient_x_activation":
            busy.fails_at = 1
        with pytest.raises(type(error), match="no"):
            ChannelAttributor(busy).attribute(*ends, squares, attribution=method, n_steps=4)
        assert fingerprint(busy) == before
        assert torch.is_grad_enabled()
        busy.error = None
        assert ChannelAttributor(busy).attribute(*ends, squares, n_steps=1)["first"].any()

    @pytest.mark.parametrize(
        ("method", "runs"),
        [
            ("conductance", 60),
            ("integrated_gradients", 60),
            pytest.param("conductance", None, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
            pytest.param("integrated_gradients", None, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
        ],
    )
    def test_after_an_interrupt_anywhere_in_the_library(self, method: str, runs: int | None) -> None:
        model = nn.Sequential(nn.Conv1d(1, 1, 1), nn.BatchNorm1d(1)).double()
        attributor = ChannelAttributor(model)
        ends = pictures(46, 2, 1, 2)
        before, state = fingerprint(model), torch.get_rng_state()

        def run(interrupt_at: int) -> int:
            """Interrupt at one of the library's instructions; return how many there were."""
            done = 0

            def trace(frame: object, event: str, _argument: object) -> object:
                nonlocal done
                if "filterattr" not in frame.f_code.co_filename or "tests" in frame.f_code.co_filename:
                    return None
                frame.f_trace_opcodes = True
                if event == "opcode":
                    done += 1
                    if done == interrupt_at:
                        raise KeyboardInterrupt
                return trace

            previous = sys.gettrace()
            sys.settrace(trace)
            try:
                attributor.attribute(*ends, lambda y: (y**3).sum(), attribution=method, n_steps=1)
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(previous)
            return done

        total = run(0)
        for place in range(1, total, 1 if runs is None else total // runs):
            run(place)
            assert fingerprint(model) == before, f"interrupted at {place} of {total}"
            assert torch.equal(torch.get_rng_state(), state)
            assert torch.is_grad_enabled()
        assert attributor.attribute(*ends, lambda y: (y**3).sum(), attribution=method, n_steps=1)["0"].any()

    def test_hooks_and_gradients_of_the_user_are_not_touched(self, busy: Busy) -> None:
        called = []
        handle = busy.first.weight.register_hook(lambda gradient: called.append("gradient"))
        busy.first.register_forward_hook(lambda *_: called.append("forward"))
        ChannelAttributor(busy).attribute(*pictures(47, 1, 1, 5, 5), squares, n_steps=1)
        assert set(called) == {"forward"}
        assert len(busy.first._forward_hooks) == 1
        handle.remove()

    def test_nothing_keeps_model_or_attributor_alive(self) -> None:
        model = smooth_network()
        attributor = ChannelAttributor(model)
        found = attributor.attribute(*pictures(48, 1, 1, 5, 5), squares, n_steps=1)
        alive = weakref.ref(model)
        del model, attributor
        gc.collect()
        assert alive() is None
        assert not found["0"].requires_grad

    def test_memory_does_not_grow_with_the_number_of_steps(self) -> None:
        attributor = ChannelAttributor(smooth_network())
        ends = pictures(49, 1, 1, 16, 16)

        def alive_at_the_end(method: str, n_steps: int) -> int:
            """Bytes of tensors when the model has run for the last node, before it runs at the inputs again."""
            bytes_alive = 0
            waiting = attributor.attribute(*ends, squares, attribution=method, n_steps=n_steps).n_passes + EXTRA[method]

            def output(restored: Tensor) -> Tensor:
                nonlocal waiting, bytes_alive
                waiting -= 1
                if waiting == 1:
                    storages = {}
                    for thing in gc.get_objects():
                        if type(thing) is Tensor:
                            with suppress(RuntimeError):  # sparse and wrapped tensors of other tests have no storage
                                storages[thing.data_ptr()] = thing.untyped_storage().nbytes()
                    bytes_alive = sum(storages.values())
                return squares(restored)

            attributor.attribute(*ends, output, attribution=method, n_steps=n_steps)
            assert waiting == 0
            return bytes_alive

        EXTRA = {"conductance": 3, "internal_influence": 2, "integrated_gradients": 2 + 1 + 4 + 1}
        for method in EXTRA:
            few, many = (alive_at_the_end(method, n_steps) for n_steps in (4, 16))
            assert few > 0
            assert many < 1.05 * few
