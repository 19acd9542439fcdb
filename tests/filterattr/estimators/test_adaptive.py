"""method="adaptive": the nested rule, when it stops, what it reports, and equality with a literal refinement."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from filterattr import FilterAttribution, FilterAttributor, FilterAttrWarning, SettingError, StorageError
from filterattr.integral.quadrature import NestedQuadrature
from tests.networks import image, relu_network, smooth_network, squared_sum
from tests.reference import slow_refinement

WEIGHTS = ["0.weight", "2.weight", "4.weight"]


def networks(kind: str) -> tuple[nn.Module, nn.Module]:
    def build() -> nn.Module:
        activation = {"smooth": nn.SiLU, "kinks": nn.ReLU}[kind]
        return nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), activation(), nn.Conv2d(12, 12, 3, padding=1), activation(),
            nn.Conv2d(12, 1, 3),
        ).double()  # fmt: skip

    return build(), build()


class TestRule:
    @pytest.mark.parametrize("limit", [7, 30, 31, 127])
    def test_every_refinement_keeps_all_nodes_and_integrates_constants_exactly(self, limit: int) -> None:
        rule = NestedQuadrature.up_to(limit)
        known: list[tuple[float, float]] = []
        for cells, (nodes, densities, scale) in enumerate(zip(rule.nodes, rule.densities, rule.scales, strict=True)):
            known += zip(nodes, densities, strict=True)
            expected = slow_refinement.smooth_steps(4 * 2**cells)
            found = sorted((t, density * scale) for t, density in known)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)
            assert len(known) <= limit
        assert 2 * len(known) + 1 > limit

    def test_the_error_falls_with_the_fourth_power_on_smooth_functions(self) -> None:
        rule = NestedQuadrature.up_to(63)
        total, errors = 0.0, []
        for nodes, densities, scale in zip(rule.nodes, rule.densities, rule.scales, strict=True):
            total += sum(density * math.exp(t) for t, density in zip(nodes, densities, strict=True))
            errors.append(abs(total * scale - (math.e - 1)))
        assert errors[1] < 1e-4
        assert errors[1] / errors[2] > 12
        assert errors[2] / errors[3] > 12


class TestLiteralLoop:
    @pytest.mark.filterwarnings("ignore:.*have not reached the tolerance:filterattr.FilterAttrWarning")
    @pytest.mark.parametrize(
        ("kind", "tolerance", "limit"),
        [("smooth", 0.01, 127), ("smooth", 1e-9, 63), ("kinks", 0.01, 127), ("kinks", 1e-6, 15)],
    )
    def test_equals_a_refinement_that_starts_anew_every_time(self, kind: str, tolerance: float, limit: int) -> None:
        base, target = networks(kind)
        samples = [image(seed) for seed in range(2)]
        slow = [
            slow_refinement.refined(base, target, squared_sum, sample, WEIGHTS, tolerance, limit) for sample in samples
        ]
        found = FilterAttributor(base).attribute(
            base, target, squared_sum, samples, method="adaptive", tolerance=tolerance, n_steps=limit
        )
        expected = np.mean([slow_refinement.kernels(total, WEIGHTS) for total, _, _ in slow], 0)
        np.testing.assert_allclose(found.scores().flat().numpy(), expected, rtol=1e-9, atol=1e-12 * expected.max())
        counts = [count for _, count, _ in slow]
        assert (found.n_passes, found.n_steps, found.mean_steps) == (sum(counts), max(counts), sum(counts) / 2)
        assert found.n_unsettled == sum(not enough for _, _, enough in slow)
        assert found.tolerance == tolerance

    def test_every_gradient_is_computed_once(self) -> None:
        base, target = networks("smooth")
        calls: list[None] = []

        def loss(model: nn.Module) -> Tensor:
            calls.append(None)
            return squared_sum(model, image())

        found = FilterAttributor(base).attribute(base, target, loss, method="adaptive", tolerance=1e-6)
        assert len(calls) == found.n_passes + 2 + 1  # both ends, and a second look at base


class TestReport:
    def test_a_sample_that_needs_more_nodes_gets_more(self) -> None:
        base, target = smooth_network(), smooth_network()

        def loss(model: nn.Module, sharpness: float) -> Tensor:
            return torch.tanh(sharpness * model(image()).mean()) + model(image()).square().mean()

        easy, hard = (
            FilterAttributor(base).attribute(base, target, loss, [s], method="adaptive", tolerance=1e-3)
            for s in (0.1, 300.0)
        )
        both = FilterAttributor(base).attribute(base, target, loss, [0.1, 300.0], method="adaptive", tolerance=1e-3)
        assert easy.n_steps < hard.n_steps == both.n_steps
        assert both.n_passes == easy.n_passes + hard.n_passes
        assert both.mean_steps == (easy.n_steps + hard.n_steps) / 2

    def test_what_was_not_reached_is_warned_about(self) -> None:
        base, target = networks("kinks")
        with pytest.warns(FilterAttrWarning, match=r"1 of 1 samples have not reached the tolerance 1e-09 with 7 nodes"):
            found = FilterAttributor(base).attribute(
                base, target, squared_sum, [image()], method="adaptive", tolerance=1e-9, n_steps=7
            )
        assert found.n_unsettled == 1

    def test_reached_means_that_completeness_is_within_the_tolerance(self) -> None:
        for seed in range(4):
            torch.manual_seed(seed)
            base, target = relu_network(), relu_network()

            def loss(model: nn.Module, sample: Tensor) -> Tensor:
                return (model(sample) - target(sample).detach()).square().sum()  # noqa: B023 - called in this round

            found = FilterAttributor(base).attribute(base, target, loss, [image(seed)], method="adaptive")
            assert found.n_unsettled == 0
            assert found.completeness_error <= 0.01

    def test_equal_ends_stop_at_the_first_comparison_with_zero(self) -> None:
        base = relu_network()
        with pytest.warns(FilterAttrWarning, match="every attribution is 0"):
            found = FilterAttributor(base).attribute(base, base, squared_sum, [image()], method="adaptive")
        assert found.n_steps == 7
        assert not found.scores().flat().any()
        assert found.n_unsettled == 0

    def test_it_survives_a_file_and_says_what_it_used(self, tmp_path) -> None:
        base, target = networks("smooth")
        found = FilterAttributor(base).attribute(base, target, squared_sum, [image()], method="adaptive")
        found.save(tmp_path / "a.safetensors")
        again = FilterAttribution.load(tmp_path / "a.safetensors")
        assert (again.tolerance, again.n_unsettled, again.mean_steps) == (0.01, 0, found.mean_steps)
        assert f"adaptive to 0.01 with {found.mean_steps:.3g} nodes in the mean" in repr(again)


class TestSettings:
    @pytest.mark.parametrize("tolerance", [0, 1, -1, True, "fine"])
    def test_tolerances_outside_0_and_1_are_refused(self, tolerance: object) -> None:
        base = relu_network()
        with pytest.raises(SettingError, match="the tolerance must lie between 0 and 1"):
            FilterAttributor(base).attribute(base, base, squared_sum, [image()], method="adaptive", tolerance=tolerance)

    @pytest.mark.parametrize("n_steps", [1, 6, 8.0, True])
    def test_too_few_nodes_to_compare_are_refused(self, n_steps: object) -> None:
        base = relu_network()
        with pytest.raises(SettingError, match="must be a whole number of at least 7 for a rule that is refined"):
            FilterAttributor(base).attribute(base, base, squared_sum, [image()], method="adaptive", n_steps=n_steps)

    def test_a_tolerance_without_refinement_is_refused(self) -> None:
        base = relu_network()
        with pytest.raises(SettingError, match='needs method="adaptive"'):
            FilterAttributor(base).attribute(base, base, squared_sum, [image()], tolerance=0.01)

    def test_waypoints_need_fixed_nodes(self) -> None:
        base, target = relu_network(), relu_network()
        with pytest.raises(SettingError, match="waypoints need a rule with fixed nodes"):
            FilterAttributor(base).attribute(
                base, target, squared_sum, [image()], method="adaptive", waypoints=[relu_network()]
            )


def test_an_interrupted_job_goes_on_with_the_same_bits(tmp_path) -> None:
    base, target = networks("kinks")
    samples = [image(seed) for seed in range(4)]
    options = {"method": "adaptive", "checkpoint": tmp_path / "job.safetensors"}
    attributor = FilterAttributor(base)

    def stops(model: nn.Module, sample: Tensor) -> Tensor:
        if torch.equal(sample, samples[2]):
            raise KeyError("power cut")
        return squared_sum(model, sample)

    with pytest.raises(KeyError, match="power cut"):
        attributor.attribute(base, target, stops, samples, **options)
    again = attributor.attribute(base, target, squared_sum, samples, **options)
    whole = attributor.attribute(base, target, squared_sum, samples, method="adaptive")
    assert torch.equal(again.scores().flat(), whole.scores().flat())
    assert (again.n_passes, again.n_steps) == (whole.n_passes, whole.n_steps)
    with pytest.raises(StorageError, match=r"it has tolerance 0\.01, here 0\.5"):
        attributor.attribute(base, target, squared_sum, samples, tolerance=0.5, **options)
