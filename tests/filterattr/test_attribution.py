"""The laws an attribution obeys, and equality with the published algorithm, closed forms and Captum."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from filterattr import (
    FilterAttributor,
    FilterAttrWarning,
    LossError,
    NonFiniteError,
    SettingError,
    StateMismatchError,
    UnitError,
    contrast,
)
from filterattr.analysis.masking import Masking
from sr_zoo.models import SRCNNStyle, SRResNet
from tests.networks import image, relu_network, smooth_network, squared_sum
from tests.reference import closed_form, naive_faig


class Flat(nn.Module):
    """A network that is one vector of weights."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.vector = nn.Parameter(values.clone())


def flat_attribution(base: Tensor, target: Tensor, loss: Callable[[Tensor], Tensor], **options: object) -> Tensor:
    attributor = FilterAttributor(Flat(base), unit="weight", select="vector")
    attribution = attributor.attribute(Flat(base), Flat(target), lambda model: loss(model.vector), **options)
    return attribution.scores("sum")["vector"]


@pytest.fixture
def ends(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return tuple(torch.randn(7, generator=generator, dtype=torch.float64) for _ in range(2))


class TestClosedForms:
    def test_linear_loss_with_one_node_of_any_rule(self, ends: tuple[Tensor, Tensor]) -> None:
        gradient = torch.arange(7, dtype=torch.float64)
        for method in ("gausslegendre", "riemann_left", "riemann_middle", "riemann_right"):
            found = flat_attribution(*ends, lambda w: w @ gradient, method=method, n_steps=1)
            torch.testing.assert_close(found, closed_form.linear_loss(gradient, *ends), rtol=1e-12, atol=1e-14)

    def test_quadratic_loss_with_one_node_in_the_middle(self, ends: tuple[Tensor, Tensor]) -> None:
        matrix = torch.randn(7, 7, dtype=torch.float64)
        matrix = matrix + matrix.T
        found = flat_attribution(*ends, lambda w: w @ matrix @ w / 2, method="riemann_middle", n_steps=1)
        torch.testing.assert_close(found, closed_form.quadratic_loss(matrix, *ends), rtol=1e-12, atol=1e-12)

    def test_cubic_loss_with_two_gauss_nodes(self, ends: tuple[Tensor, Tensor]) -> None:
        found = flat_attribution(*ends, lambda w: (w**3).sum(), n_steps=2)
        torch.testing.assert_close(found, closed_form.cubic_loss(*ends), rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:the attributions should sum")  # the right rule is as coarse as published
class TestPublishedAlgorithm:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
    @pytest.mark.parametrize("network", ["srresnet", "srcnn"])
    def test_one_hundred_right_steps_equal_the_literal_loop(self, network: str, dtype: torch.dtype) -> None:
        def build() -> nn.Module:
            if network == "srresnet":
                return SRResNet(num_feat=6, num_block=2, upscale=2).to(dtype)
            full = SRCNNStyle(upscale=2)
            narrow = [
                nn.Conv2d(m.in_channels // 16 or 3, m.out_channels // 16 or 3, 3, padding=1)
                if isinstance(m, nn.Conv2d)
                else m
                for m in full.features
            ]
            full.features = nn.Sequential(*narrow)
            return full.to(dtype)

        base, target = build(), build()
        degraded = torch.rand(1, 3, 10, 12, dtype=dtype)
        reference = torch.rand(1, 3, 20, 24, dtype=dtype)
        expected = naive_faig.kernel_scores(build, base.state_dict(), target.state_dict(), degraded, reference)
        attribution = FilterAttributor(build()).attribute(
            base,
            target,
            lambda model: (model(degraded) - reference).square().sum(),
            method="riemann_right",
            n_steps=100,
            progress=False,
        )
        scores = attribution.scores()
        found = scores.flat().numpy()
        tolerance = 1e-5 if dtype == torch.float32 else 1e-12
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * expected.max())
        if dtype == torch.float64:
            np.testing.assert_array_equal(scores.to_index(), np.argsort(-expected, kind="stable"))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
    @pytest.mark.parametrize("build", [SRResNet, SRCNNStyle])
    @pytest.mark.parametrize("n_steps", [10, pytest.param(100, marks=pytest.mark.slow)])
    def test_full_size_networks_equal_the_literal_loop(
        self, n_steps: int, build: type[nn.Module], dtype: torch.dtype
    ) -> None:
        base, target = build().to(dtype), build().to(dtype)
        degraded, reference = torch.rand(1, 3, 8, 8, dtype=dtype), torch.rand(1, 3, 16, 16, dtype=dtype)
        expected = naive_faig.kernel_scores(
            lambda: build().to(dtype), base.state_dict(), target.state_dict(), degraded, reference, steps=n_steps
        )
        assert len(expected) == {SRResNet: 151_936, SRCNNStyle: 156_224}[build]
        attribution = FilterAttributor(base).attribute(
            base,
            target,
            lambda model: (model(degraded) - reference).square().sum(),
            method="riemann_right",
            n_steps=n_steps,
        )
        found = attribution.scores().flat().numpy()
        # in fp32 either side is up to 1e-5 away from fp64: a rounded weight can flip a ReLU
        tolerance = 2e-5 if dtype == torch.float32 else 1e-12
        assert np.abs(found - expected).sum() / expected.sum() <= tolerance
        if dtype == torch.float64:
            # kernels whose scores agree to rounding may change places
            order = attribution.scores().to_index()
            assert (np.diff(expected[order]) <= 1e-12 * expected.max()).all()

    def test_discriminative_scores_over_images_equal_the_literal_loop(self) -> None:
        def build() -> nn.Module:
            return SRResNet(num_feat=4, num_block=1, upscale=2).double()

        base, target = build(), build()
        blurred, noisy = ([torch.rand(1, 3, 6, 6, dtype=torch.float64) for _ in range(2)] for _ in range(2))
        references = [torch.rand(1, 3, 12, 12, dtype=torch.float64) for _ in range(2)]
        expected = naive_faig.discriminative_scores(
            build, base.state_dict(), target.state_dict(), blurred, noisy, references, steps=20
        )
        attributor = FilterAttributor(base)
        scores = {
            name: attributor.attribute(
                base,
                target,
                lambda model, pair: (model(pair[0]) - pair[1]).square().sum(),
                zip(inputs, references, strict=True),
                method="riemann_right",
                n_steps=20,
            ).scores()
            for name, inputs in (("blur", blurred), ("noise", noisy))
        }
        found = 2 * contrast(scores, "blur").flat().numpy()  # the published code adds over images, we average
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12 * np.abs(expected).max())
        np.testing.assert_array_equal(contrast(scores, "noise").flat(), -contrast(scores, "blur").flat())


class TestCaptum:
    def test_equals_integrated_gradients_of_the_network_as_a_function_of_its_weights(self) -> None:
        captum = pytest.importorskip("captum.attr")
        base, target = relu_network(), relu_network()
        picture = image()
        names = [name for name, _ in base.named_parameters()]

        def loss_of_weights(*weights: Tensor) -> Tensor:
            rows = [
                torch.func.functional_call(base, dict(zip(names, row, strict=True)), (picture,)).square().sum()
                for row in zip(*weights, strict=True)
            ]
            return torch.stack(rows)

        expected = captum.IntegratedGradients(loss_of_weights).attribute(
            tuple(value[None] for value in target.state_dict().values()),
            tuple(value[None] for value in base.state_dict().values()),
            n_steps=24,
            method="gausslegendre",
            internal_batch_size=1,
        )
        attributor = FilterAttributor(base, unit="weight", select="*")
        attribution = attributor.attribute(base, target, squared_sum, [picture], n_steps=24)
        for name, value in zip(names, expected, strict=True):
            torch.testing.assert_close(attribution.scores("sum")[name], value[0].detach(), rtol=1e-5, atol=1e-10)


class TestCompleteness:
    def test_smooth_network_with_sixteen_nodes(self) -> None:
        base, target = smooth_network(), smooth_network()
        attribution = FilterAttributor(base).attribute(base, target, squared_sum, [image()])
        assert attribution.completeness_error <= 1e-9

    def test_relu_network_with_sixty_four_nodes(self) -> None:
        base, target = relu_network(), relu_network()
        for method in ("gausslegendre", "riemann_middle"):
            attribution = FilterAttributor(base).attribute(
                base, target, squared_sum, [image()], method=method, n_steps=64
            )
            assert attribution.completeness_error <= 1e-2

    def test_scored_and_remainder_sum_to_the_change_of_the_loss(self) -> None:
        base, target = smooth_network(), smooth_network()
        attribution = FilterAttributor(base).attribute(base, target, squared_sum, [image(1), image(2)])
        scored = float(attribution.scores("sum").flat().sum())
        assert scored + attribution.remainder == pytest.approx(attribution.total, rel=1e-12)
        assert attribution.total == pytest.approx(attribution.loss_target - attribution.loss_base, rel=1e-9)
        assert abs(attribution.remainder) > 1e-3 * abs(attribution.total)

    def test_reported_error_is_the_one_a_reader_computes(self) -> None:
        base, target = relu_network(), relu_network()
        with pytest.warns(FilterAttrWarning, match="should sum to the loss change"):
            attribution = FilterAttributor(base, unit="weight", select="*").attribute(
                base, target, squared_sum, [image()], method="riemann_left", n_steps=4
            )
        change = attribution.loss_target - attribution.loss_base
        found = abs(float(attribution.scores("sum").flat().sum()) - change) / abs(change)
        assert attribution.completeness_error == pytest.approx(found, rel=1e-12)

    def test_errors_of_different_samples_do_not_cancel(self) -> None:
        base, target = relu_network(), relu_network()

        def signed(model: nn.Module, sign: float) -> Tensor:
            return sign * squared_sum(model, image())

        with pytest.warns(FilterAttrWarning, match="relative error"):
            attribution = FilterAttributor(base).attribute(
                base, target, signed, [1.0, -1.0], method="riemann_left", n_steps=2
            )
        assert abs(attribution.total) < 1e-12
        assert attribution.completeness_error > 0.05


class TestLaws:
    def test_swapping_the_ends_flips_every_sign(self) -> None:
        base, target = smooth_network(), smooth_network()
        attributor = FilterAttributor(base)
        forth = attributor.attribute(base, target, squared_sum, [image()]).scores("sum").flat()
        back = attributor.attribute(target, base, squared_sum, [image()]).scores("sum").flat()
        torch.testing.assert_close(forth, -back, rtol=1e-10, atol=1e-14)

    def test_equal_ends_give_exactly_zero_and_a_warning(self) -> None:
        base = relu_network()
        with pytest.warns(FilterAttrWarning, match="every attribution is 0.*trained in place, keep its weights"):
            attribution = FilterAttributor(base).attribute(base, copy.deepcopy(base), squared_sum, [image()])
        assert attribution.scores().flat().abs().max() == 0
        assert attribution.completeness_error == 0
        assert attribution.cosine == pytest.approx(1)

    def test_a_pair_passed_as_two_samples_is_pointed_out(self) -> None:
        def loss(model: nn.Module, sample: tuple[Tensor, Tensor]) -> Tensor:
            degraded, reference = sample
            return (model(degraded) - reference).square().sum()

        base, target = relu_network(), relu_network()
        with pytest.raises(ValueError, match="unpack") as caught:
            FilterAttributor(base).attribute(base, target, loss, (image(), image()))
        assert "data is a tuple of 2" in caught.value.__notes__[0]
        assert "data=[(x, y)]" in caught.value.__notes__[0]
        with pytest.raises(ValueError, match="unpack") as caught:
            FilterAttributor(base).attribute(base, target, loss, [image(), image()[:, 0]])
        assert "data=list(zip(x, y))" in caught.value.__notes__[0]

    def test_data_sets_that_only_know_items_and_length_are_walked_through(self) -> None:
        class Items:
            def __getitem__(self, index: int) -> Tensor:
                return images[index % 3]  # never ends by itself

            def __len__(self) -> int:
                return 3

        images = [image(), image(), image()]
        passes: set[int | None] = set()
        base, target = smooth_network(), smooth_network()
        expected = FilterAttributor(base).attribute(base, target, squared_sum, images)
        for data in (Items(), TensorDataset(torch.stack(images))):
            loss = squared_sum if isinstance(data, Items) else lambda model, sample: squared_sum(model, sample[0])
            attribution = FilterAttributor(base).attribute(
                base, target, loss, data, progress=lambda _done, whole: passes.add(whole)
            )
            assert torch.equal(attribution.scores().flat(), expected.scores().flat())
        assert passes == {48}
        masking = Masking(base, base, target, squared_sum, {"all": Items()})
        assert masking.n_samples == {"all": 3}

    def test_a_parameter_that_did_not_change_scores_zero(self) -> None:
        base, target = smooth_network(), smooth_network()
        state = target.state_dict() | {"2.weight": base.state_dict()["2.weight"]}
        scores = FilterAttributor(base).attribute(base, state, squared_sum, [image()]).scores()
        assert scores["2.weight"].abs().max() == 0
        assert scores["0.weight"].abs().min() > 0

    def test_scores_are_linear_in_the_loss(self) -> None:
        base, target = smooth_network(), smooth_network()
        attributor = FilterAttributor(base)
        one = attributor.attribute(base, target, squared_sum, [image()]).scores("sum").flat()
        three = attributor.attribute(base, target, lambda m, x: 3 * squared_sum(m, x), [image()]).scores("sum").flat()
        torch.testing.assert_close(three, 3 * one, rtol=1e-12, atol=1e-14)

    def test_relabelled_channels_permute_the_scores(self) -> None:
        base, target = relu_network(), relu_network()
        order = torch.tensor([3, 0, 5, 1, 4, 2])

        def relabelled(network: nn.Module) -> nn.Module:
            network = copy.deepcopy(network)
            network[0].weight.data = network[0].weight.data[order]
            network[0].bias.data = network[0].bias.data[order]
            network[2].weight.data = network[2].weight.data[:, order]
            return network

        plain = FilterAttributor(base).attribute(base, target, squared_sum, [image()]).scores()
        moved = FilterAttributor(base).attribute(relabelled(base), relabelled(target), squared_sum, [image()]).scores()
        torch.testing.assert_close(moved["0.weight"], plain["0.weight"][order])
        torch.testing.assert_close(moved["2.weight"], plain["2.weight"][:, order])

    def test_signed_kernels_sum_to_signed_layers(self) -> None:
        base, target = smooth_network(), smooth_network()
        scores = {
            unit: FilterAttributor(base, unit=unit).attribute(base, target, squared_sum, [image()]).scores("sum")
            for unit in ("weight", "kernel", "filter", "input", "layer")
        }
        for name, value in scores["layer"].items():
            for unit in ("weight", "kernel", "filter", "input"):
                torch.testing.assert_close(scores[unit][name].sum(), value, rtol=1e-10, atol=1e-14)

    def test_scores_of_samples_are_averaged(self) -> None:
        base, target = smooth_network(), smooth_network()
        attributor = FilterAttributor(base)
        both = attributor.attribute(base, target, squared_sum, (image(seed) for seed in (1, 2)))
        single = [attributor.attribute(base, target, squared_sum, [image(seed)]) for seed in (1, 2)]
        assert both.n_samples == 2
        for reduction in ("sum_of_abs", "abs_of_sum", "sum"):
            mean = (single[0].scores(reduction).flat() + single[1].scores(reduction).flat()) / 2
            torch.testing.assert_close(both.scores(reduction).flat(), mean, rtol=1e-12, atol=1e-15)

    def test_reductions_are_ordered_as_their_formulas(self) -> None:
        base, target = smooth_network(), smooth_network()
        attribution = FilterAttributor(base).attribute(base, target, squared_sum, [image()])
        signed, outer, inner = (attribution.scores(r).flat() for r in ("sum", "abs_of_sum", "sum_of_abs"))
        torch.testing.assert_close(outer, signed.abs())
        assert (inner >= outer - 1e-15).all()


class TestEndPoints:
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile imports parts of torch that are
    def test_modules_state_dicts_and_wrapped_checkpoints_give_the_same_bits(self) -> None:
        base, target = smooth_network(), smooth_network()
        attributor = FilterAttributor(base)
        expected = attributor.attribute(base, target, squared_sum, [image()]).scores().flat()
        prefixed = {f"module.{name}": value for name, value in target.state_dict().items()}
        for ends in (
            (base.state_dict(), target.state_dict()),
            ({"params_ema": base.state_dict(), "params": {}}, {"params": prefixed}),
            (nn.DataParallel(base), torch.compile(target)),
        ):
            assert torch.equal(attributor.attribute(*ends, squared_sum, [image()]).scores().flat(), expected)

    def test_losses_at_the_ends_are_those_of_the_networks(self) -> None:
        base, target = relu_network(), relu_network()
        attribution = FilterAttributor(relu_network()).attribute(base, target, squared_sum, [image()], n_steps=64)
        assert attribution.loss_base == squared_sum(base, image()).item()
        assert attribution.loss_target == squared_sum(target, image()).item()
        assert attribution.path_places[0] == 0
        assert attribution.path_places[-1] == 1
        assert len(attribution.path_losses) == 66

    def test_losses_along_the_path_are_those_of_interpolated_networks(self) -> None:
        base, target = smooth_network(), smooth_network()
        attribution = FilterAttributor(base).attribute(base, target, squared_sum, [image()], n_steps=4)
        for t, loss in zip(attribution.path_places, attribution.path_losses, strict=True):
            between = smooth_network()
            state = {k: v + t * (target.state_dict()[k] - v) for k, v in base.state_dict().items()}
            between.load_state_dict(state)
            assert loss == pytest.approx(squared_sum(between, image()).item(), rel=1e-12)

    def test_barrier_and_cosine(self) -> None:
        one = torch.tensor([1.0, 0.0], dtype=torch.float64)
        attributor = FilterAttributor(Flat(one), unit="weight", select="vector")
        attribution = attributor.attribute(
            Flat(one), Flat(-one), lambda model: 1 - model.vector.square().sum(), n_steps=9, method="riemann_middle"
        )
        assert attribution.barrier == pytest.approx(1)
        assert attribution.cosine == pytest.approx(-1)


class TestBadInput:
    @pytest.fixture
    def attributor(self) -> FilterAttributor:
        return FilterAttributor(smooth_network())

    def test_every_missing_extra_and_misshapen_key_is_named_in_one_error(self, attributor: FilterAttributor) -> None:
        base = attributor.model.state_dict()
        target = dict(base)
        del target["0.bias"]
        target["4.wieght"] = target.pop("4.weight")
        target["6.weight"] = torch.zeros(1, 3, 1, 1)
        with pytest.raises(StateMismatchError) as caught:
            attributor.attribute(base, target, squared_sum, [image()])
        text = str(caught.value)
        for part in ("'0.bias'", "'4.weight'", "'4.wieght'", "'6.weight' has shape (1, 3, 1, 1), not (1, 2, 1, 1)"):
            assert part in text
        assert "base lacks" not in text

    def test_shapes_that_would_broadcast_are_refused(self, attributor: FilterAttributor) -> None:
        base = attributor.model.state_dict()
        target = base | {"0.weight": base["0.weight"][:, :, :1, :1]}
        with pytest.raises(StateMismatchError, match=r"'0\.weight' has shape \(4, 1, 1, 1\), not \(4, 1, 3, 3\)"):
            attributor.attribute(base, target, squared_sum, [image()])

    def test_networks_of_another_kind_are_refused(self, attributor: FilterAttributor) -> None:
        with pytest.raises(StateMismatchError, match=r"target lacks .* target has 2 that the model lacks: 'weight'"):
            attributor.attribute(attributor.model, nn.Linear(3, 3), squared_sum, [image()])

    def test_infinite_weights_are_refused_by_name(self, attributor: FilterAttributor) -> None:
        base = attributor.model.state_dict()
        target = base | {"0.weight": base["0.weight"] / 0}
        with pytest.raises(StateMismatchError, match=r"target holds infinite values or NaN in '0\.weight'"):
            attributor.attribute(base, target, squared_sum, [image()])

    @pytest.mark.parametrize(
        ("loss", "message"),
        [
            (lambda model, x: model(x), r"one scalar; got shape \(1, 1, 16, 16\)"),
            (lambda model, x: model(x).sum()[None], r"one scalar; got shape \(1,\)"),
            (lambda model, x: model(x).sum().item(), "one scalar tensor; got float"),
            (lambda model, x: (model(x).sum(), 0), "one scalar tensor; got tuple"),
            (lambda model, x: None, "one scalar tensor; got NoneType"),
            (lambda model, x: model(x).sum().detach(), "depends on no parameter of the path"),
            (lambda model, x: torch.tensor(1.0), "depends on no parameter of the path"),
            (lambda model, x: model(x).sum().long(), "real and floating; got torch.int64"),
        ],
    )
    def test_losses_that_are_no_scalar_are_refused(
        self, attributor: FilterAttributor, loss: Callable[..., object], message: str
    ) -> None:
        with pytest.raises(LossError, match=message):
            attributor.attribute(smooth_network(), smooth_network(), loss, [image()])

    def test_infinite_losses_name_their_place(self, attributor: FilterAttributor) -> None:
        with pytest.raises(NonFiniteError, match="the loss must be finite along the whole path; got nan at t = 0"):
            attributor.attribute(
                smooth_network(), smooth_network(), lambda model, x: model(x).sum() * float("nan"), [image()]
            )

    def test_infinite_gradients_name_parameters_and_place(self) -> None:
        base, target = torch.tensor([-1.0]), torch.tensor([1.0])
        with pytest.raises(NonFiniteError, match=r"gradient of 'vector' must be finite; got .* at t = 0\.5"):
            flat_attribution(base, target, lambda w: w.abs().sqrt().sum(), method="riemann_middle", n_steps=1)

    def test_a_changed_parameter_without_gradient_is_named(self) -> None:
        class Half(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.used, self.spare = nn.Linear(2, 2), nn.Linear(2, 2)

        base, target = Half(), Half()
        attributor = FilterAttributor(base)

        def loss(model: nn.Module) -> Tensor:
            return model.used(torch.ones(2)).sum()

        with pytest.raises(LossError, match=r"differ in 'spare\.weight', 'spare\.bias', but no gradient"):
            attributor.attribute(base, target, loss)
        attribution = attributor.attribute(base, target, loss, allow_unused="spare.*")
        assert attribution.scores()["spare.weight"].abs().max() == 0

    @pytest.mark.parametrize(
        ("loss", "data", "message"),
        [
            (squared_sum, None, r"callable as loss\(model\), because no data was given"),
            (lambda model: model(image()).sum(), [1], r"callable as loss\(model, sample\), because data was given"),
        ],
    )
    def test_losses_that_cannot_be_called_are_refused_before_any_work(
        self, attributor: FilterAttributor, loss: Callable[..., Tensor], data: object, message: str
    ) -> None:
        with pytest.raises(LossError, match=message):
            attributor.attribute(smooth_network(), smooth_network(), loss, data)  # type: ignore[arg-type]

    @pytest.mark.parametrize("data", [3, {"x": 1}, "photo.png", Dataset()])
    def test_data_that_is_no_series_of_samples_is_refused(self, attributor: FilterAttributor, data: object) -> None:
        with pytest.raises(SettingError, match="data must be an iterable of samples") as caught:
            attributor.attribute(smooth_network(), smooth_network(), squared_sum, data)  # type: ignore[arg-type]
        assert ("data=[sample]" in str(caught.value)) == (not isinstance(data, int | Dataset))

    def test_no_samples_are_refused(self, attributor: FilterAttributor) -> None:
        with pytest.raises(SettingError, match="at least one sample"):
            attributor.attribute(smooth_network(), smooth_network(), squared_sum, [])

    def test_a_selection_of_no_parameter_is_refused(self) -> None:
        with pytest.raises(UnitError, match=r"select='head\.\*' must name parameters .* like 'head\.\*'"):
            FilterAttributor(smooth_network(), select="head.*")
        with pytest.raises(UnitError, match=r"select=\[\] leaves none of '0\.weight', '0\.bias'"):
            FilterAttributor(smooth_network(), select=[])

    def test_unknown_reduction_is_refused(self, attributor: FilterAttributor) -> None:
        attribution = attributor.attribute(smooth_network(), smooth_network(), squared_sum, [image()])
        with pytest.raises(SettingError, match="reduction must be one of sum_of_abs, abs_of_sum, sum; got 'mean'"):
            attribution.scores("mean")  # type: ignore[arg-type]


def with_a_penalty(model: nn.Module, inputs: Tensor) -> Tensor:
    """The squared length of the gradient of a loss is part of the loss."""
    value = squared_sum(model, inputs)
    slopes = torch.autograd.grad(value, list(model.parameters()), create_graph=True)
    return value + 0.1 * sum(slope.square().sum() for slope in slopes)


def with_a_functional_penalty(model: nn.Module, inputs: Tensor) -> Tensor:
    """The same with `torch.func`."""
    weights = dict(model.named_parameters())
    slopes, value = torch.func.grad_and_value(
        lambda held: torch.func.functional_call(model, held, (inputs,)).square().sum()
    )(weights)
    return value + 0.1 * sum(slope.square().sum() for slope in slopes.values())


@pytest.mark.parametrize("loss", [with_a_penalty, with_a_functional_penalty])
def test_a_loss_may_take_derivatives_of_its_own_and_runs_once_at_every_place(loss: Callable[..., Tensor]) -> None:
    base, target = smooth_network(), smooth_network()
    samples, calls = [image(1), image(2)], []

    def counted(model: nn.Module, inputs: Tensor) -> Tensor:
        calls.append(inputs)
        return loss(model, inputs)

    found = FilterAttributor(base).attribute(base, target, counted, samples, n_steps=16, progress=False)
    by_hand = sum((loss(target, sample) - loss(base, sample)).item() for sample in samples) / len(samples)
    assert found.loss_target - found.loss_base == pytest.approx(by_hand, rel=1e-9)
    assert found.completeness_error < 1e-3
    assert len(calls) == 18 * len(samples) + 1  # one more, to see that it is the same function


class TestSelect:
    @pytest.mark.parametrize(
        ("select", "expected"),
        [
            (None, ["0.weight", "2.weight", "4.weight", "6.weight"]),
            ("2.*", ["2.weight", "2.bias"]),
            (["0.weight", "6.*"], ["0.weight", "6.weight", "6.bias"]),
            (lambda name, module, p: isinstance(module, nn.ConvTranspose2d) and p.ndim > 1, ["4.weight"]),
        ],
    )
    def test_globs_and_predicates(self, select: object, expected: list[str]) -> None:
        base, target = smooth_network(), smooth_network()
        attribution = FilterAttributor(base, select=select).attribute(base, target, squared_sum, [image()])
        assert list(attribution.scores()) == expected
        assert attribution.completeness_error < 1e-9

    def test_unselected_parameters_move_along_the_path_all_the_same(self) -> None:
        base, target = smooth_network(), smooth_network()
        whole = FilterAttributor(base).attribute(base, target, squared_sum, [image()])
        part = FilterAttributor(base, select="2.weight").attribute(base, target, squared_sum, [image()])
        assert torch.equal(whole.scores()["2.weight"], part.scores()["2.weight"])


class TestProgress:
    def test_a_callback_counts_the_passes(self) -> None:
        seen: list[tuple[int, int | None]] = []
        base, target = smooth_network(), smooth_network()
        FilterAttributor(base).attribute(
            base, target, squared_sum, [image(), image()], n_steps=3, progress=lambda *pair: seen.append(pair)
        )
        assert seen == [(done, 6) for done in range(1, 7)]

    def test_a_bar_is_drawn_when_asked_for(self, capsys: pytest.CaptureFixture[str]) -> None:
        base, target = smooth_network(), smooth_network()
        FilterAttributor(base).attribute(base, target, squared_sum, [image()], n_steps=3, progress=True)
        assert "attributing: 100%" in capsys.readouterr().err


class TestModelIsUntouched:
    def test_bytes_identities_and_gradients_after_success_and_after_errors(self) -> None:
        model = relu_network()
        squared_sum(model, image()).backward()
        target = relu_network()
        before = [(id(p), p.data_ptr(), p._version, p.detach().clone(), id(p.grad)) for p in model.parameters()]
        attributor = FilterAttributor(model)
        attributor.attribute(model, target, squared_sum, [image()], n_steps=64)
        for failing in range(1, 6):
            calls = []

            def loss(network: nn.Module, x: Tensor, calls: list[int] = calls, failing: int = failing) -> Tensor:
                calls.append(1)
                if len(calls) == failing:
                    raise RuntimeError("stop")
                return squared_sum(network, x)

            with pytest.raises(RuntimeError, match="stop"):
                attributor.attribute(model, target, loss, [image()])
        for (identity, pointer, version, value, grad), p in zip(before, model.parameters(), strict=True):
            assert (identity, pointer, version, grad) == (id(p), p.data_ptr(), p._version, id(p.grad))
            assert torch.equal(value, p)
