"""aggregate="pooled": equality with a literal mean, its standard errors, when it is settled, and what it refuses."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from filterattr import FilterAttribution, FilterAttributor, Group, NonFiniteError, SettingError
from filterattr.estimators.pooled import PooledEstimator
from tests.networks import image, relu_network, smooth_network, squared_sum
from tests.reference import slow_refinement
from tests.reliability.fingerprint import Fingerprint

WEIGHTS = ["0.weight", "2.weight"]


def networks() -> tuple[nn.Module, nn.Module]:
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 3, 3)).double()

    return build(), build()


def pooled(base: nn.Module, target: nn.Module, data: list[Tensor], **options: object) -> FilterAttribution:
    return FilterAttributor(base).attribute(base, target, squared_sum, data, aggregate="pooled", **options)


def places_seen(base: nn.Module, target: nn.Module, data: list[Tensor], **options: object) -> list[list[float]]:
    """Where on the path each sample is looked at, told by the weights that the loss sees."""
    first, last = (float(one[0].weight.detach()[0, 0, 0, 0]) for one in (base, target))
    seen: list[list[float]] = [[] for _ in data]

    def loss(model: nn.Module, sample: Tensor) -> Tensor:
        number = next(index for index, one in enumerate(data) if one is sample)
        seen[number].append((float(model[0].weight.detach()[0, 0, 0, 0]) - first) / (last - first))
        return squared_sum(model, sample)

    FilterAttributor(base).attribute(base, target, loss, data, aggregate="pooled", **options)
    seen[0] = seen[0][2:-1]  # both ends of the first sample, and a second look at base
    return seen


@pytest.mark.parametrize("n_steps", [None, 3])
def test_equals_a_literal_mean_over_samples(n_steps: int | None) -> None:
    base, target = networks()
    data = [image(seed) for seed in range(20)]
    torch.manual_seed(3)
    places = places_seen(base, target, data, n_steps=n_steps)
    torch.manual_seed(3)
    found = pooled(base, target, data, n_steps=n_steps)
    rows = slow_refinement.pooled(base, target, squared_sum, data, places)
    mean = {name: np.mean([row[name] for row in rows], 0) for name in rows[0]}
    expected = {
        "sum_of_abs": slow_refinement.kernels(mean, WEIGHTS),
        "sum": np.concatenate([mean[name].sum((2, 3)).reshape(-1) for name in WEIGHTS]),
    }
    expected["abs_of_sum"] = np.abs(expected["sum"])
    for reduction, values in expected.items():
        np.testing.assert_allclose(found.scores(reduction).flat().numpy(), values, rtol=1e-8, atol=1e-12)
    assert found.total == pytest.approx(sum(value.sum() for value in mean.values()), rel=1e-10)
    assert found.remainder == pytest.approx(mean["0.bias"].sum() + mean["2.bias"].sum(), rel=1e-10)
    assert (found.n_samples, found.n_passes, found.n_steps) == (20, 20 * (n_steps or 1), n_steps or 1)
    signed = [np.concatenate([row[name].sum((2, 3)).reshape(-1) for name in WEIGHTS]) for row in rows]
    quarters = [int(4 * (own[0] * len(own))) for own in places]
    np.testing.assert_allclose(found.standard_errors("sum").flat().numpy(), literal_error(signed, quarters), rtol=1e-7)


def literal_error(rows: list[np.ndarray], groups: list[int]) -> np.ndarray:
    """Standard error of a mean, from differences inside the groups."""
    total: np.ndarray | float = 0.0
    for group in set(groups):
        own = np.array([row for row, other in zip(rows, groups, strict=True) if other == group])
        total = total + ((own - own.mean(0)) ** 2).sum(0)
    return np.sqrt(total / (len(rows) - len(set(groups))) / len(rows))


def test_standard_errors_of_absolute_scores_use_the_signs_known_before_each_sample() -> None:
    base, target = networks()
    data = [image(seed) for seed in range(12)]
    torch.manual_seed(3)
    places = places_seen(base, target, data)
    torch.manual_seed(3)
    found = pooled(base, target, data).standard_errors().flat().numpy()
    rows = slow_refinement.pooled(base, target, squared_sum, data, places)
    known = {name: rows[0][name] for name in WEIGHTS}
    terms = []
    for index, row in enumerate(rows):
        parts = {name: np.sign(known[name]) * row[name] for name in WEIGHTS}
        terms.append(np.concatenate([parts[name].sum((2, 3)).reshape(-1) for name in WEIGHTS]))
        if index:
            known = {name: known[name] + row[name] for name in WEIGHTS}
    quarters = [int(4 * own[0]) for own in places]
    np.testing.assert_allclose(found, literal_error(terms, quarters), rtol=1e-6)


@pytest.mark.parametrize(("varied", "lowest"), [(True, 0.8), (False, 0.2)])
def test_standard_errors_are_the_spread_over_new_samples_or_above_it(varied: bool, lowest: float) -> None:
    """Above it where samples hardly differ: what the path adds inside a quarter is counted, but strata take it out."""
    base, target = networks()
    if varied:
        target = blend_of(base, target)
    data = [
        [image(64 * run + number) * (4 * float(torch.rand(())) if varied else 1) for number in range(64)]
        for run in range(24)
    ]
    found = [pooled(base, target, samples) for samples in data]
    spread = torch.stack([one.scores().flat() for one in found]).std(0)
    told = torch.stack([one.standard_errors().flat() for one in found]).mean(0)
    assert lowest < float((spread / told).median()) < 1.25


def blend_of(base: nn.Module, target: nn.Module) -> nn.Module:
    """A target close to base, so that gradients differ little along the path."""
    near = copy.deepcopy(base)
    with torch.no_grad():
        for own, other in zip(near.parameters(), target.parameters(), strict=True):
            own.lerp_(other, 0.05)
    return near


class TestDraws:
    def test_sixteen_samples_see_sixteen_strata_and_each_half_eight(self) -> None:
        for block in range(3):
            drawn = [PooledEstimator.draw(7, 16 * block + number) for number in range(16)]
            assert sorted(int(16 * place) for place, _ in drawn) == list(range(16))
            for half in (1.0, -1.0):
                assert sorted(int(8 * place) for place, own in drawn if own == half) == list(range(8))

    def test_draws_do_not_follow_a_pattern_of_the_data(self) -> None:
        every_other = [PooledEstimator.draw(0, index)[0] for index in range(0, 640, 2)]
        assert np.mean(every_other) == pytest.approx(0.5, abs=0.05)
        assert np.histogram(every_other, 4, (0, 1))[0].min() > 50

    def test_the_same_state_draws_the_same_and_another_one_does_not(self) -> None:
        base, target = networks()
        data = [image(seed) for seed in range(4)]

        def scores(seed: int) -> Tensor:
            torch.manual_seed(seed)
            return pooled(base, target, data).scores().flat()

        assert torch.equal(scores(1), scores(1))
        assert not torch.equal(scores(1), scores(2))

    def test_more_strata_see_every_part_of_the_path(self) -> None:
        base, target = networks()
        for own in places_seen(base, target, [image(seed) for seed in range(3)], n_steps=5):
            assert [int(5 * place) for place in own] == list(range(5))


def test_the_bias_against_the_mean_of_absolute_values_is_as_explained() -> None:
    """Attributions that have opposite signs in two halves of the samples cancel; those of one sign do not."""

    class Two(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((1, 2), value, dtype=torch.float64))

    def loss(model: nn.Module, sign: float) -> Tensor:
        return model.weight[0, 0] * sign + model.weight[0, 1]

    attributor = FilterAttributor(Two(0.0), unit="weight")
    options = (Two(0.0), Two(1.0), loss, [1.0, -1.0] * 8)
    assert attributor.attribute(*options).scores()["weight"].tolist() == [[1.0, 1.0]]
    both = attributor.attribute(*options, aggregate="pooled")
    assert both.scores()["weight"].tolist() == [[0.0, 1.0]]
    assert both.total == 1.0


class TestResult:
    def test_what_was_not_seen_is_nan_also_after_a_file(self, tmp_path) -> None:
        base, target = networks()
        found = pooled(base, target, [image(seed) for seed in range(4)])
        found.save(tmp_path / "a.safetensors")
        for one in (found, FilterAttribution.load(tmp_path / "a.safetensors")):
            numbers = (one.loss_base, one.loss_target, one.completeness_error, one.barrier, *one.path_losses)
            assert all(map(math.isnan, numbers))
            assert (one.aggregate, one.method, one.path_places) == ("pooled", "stratified", (0.0, 1.0))
            assert one.agreement == found.agreement
            assert "stratified 1, pooled, agreement" in repr(one)

    def test_complex_weights_unmoved_weights_and_groups(self) -> None:
        class Complex(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a = nn.Parameter(torch.randn(3, 2, dtype=torch.complex128))
                self.b = nn.Parameter(torch.randn(3, 2, dtype=torch.float64))
                self.c = nn.Parameter(torch.ones(3, 2, dtype=torch.float64))

            def forward(self, x: Tensor) -> Tensor:
                return ((self.a * (self.b + self.c)).abs().square() * x).sum()

        base, target = Complex(), Complex()
        data = [torch.rand(3, 2, dtype=torch.float64) for _ in range(48)]
        attributor = FilterAttributor(base, unit={"": Group({"a": "o i -> o", "b": "o i -> o", "c": "o i -> o"})})

        def loss(model: nn.Module, x: Tensor) -> Tensor:
            return model(x)

        whole = attributor.attribute(base, target, loss, data)
        found = attributor.attribute(base, target, loss, data, aggregate="pooled", n_steps=8)
        torch.testing.assert_close(found.scores("sum")["model"], whole.scores("sum")["model"], rtol=0.05, atol=0.05)
        assert found.total == pytest.approx(whole.loss_target - whole.loss_base, rel=0.02, abs=0.1)

    def test_a_gradient_that_is_not_finite_is_named_with_its_place(self) -> None:
        base, target = networks()

        def loss(model: nn.Module, sample: Tensor) -> Tensor:
            value = squared_sum(model, sample)
            return value + (model[2].bias * 0).abs().sqrt().sum() if sample.mean() > 2 else value

        with pytest.raises(NonFiniteError, match=r"the gradient of '2.bias' must be finite; got nan at t = .*sample 1"):
            FilterAttributor(base).attribute(base, target, loss, [image(), image() + 3], aggregate="pooled")


class TestUntil:
    def test_settled_stops_early_and_the_set_is_that_of_all_samples(self) -> None:
        base, target = (nn.Sequential(nn.Conv2d(1, 20, 3), nn.SiLU(), nn.Conv2d(20, 20, 3)).double() for _ in range(2))
        data = [image(seed) for seed in range(400)]
        found = pooled(base, target, iter(data), until="settled")
        assert 16 <= found.n_samples < 400
        assert found.agreement >= 0.95
        everything = pooled(base, target, data)
        assert found.scores().top(0.01).overlap(everything.scores().top(0.01)) >= 0.75

    def test_noise_is_never_settled(self) -> None:
        base, target = (nn.Linear(40, 10).double() for _ in range(2))

        def loss(model: nn.Module, seed: int) -> Tensor:
            noise = torch.randn(10, 40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            return (model.weight * noise).sum() + model.bias.sum()

        found = FilterAttributor(base, unit="weight").attribute(
            base, target, loss, range(100), aggregate="pooled", until="settled"
        )
        assert found.n_samples == 100
        assert found.agreement < 0.95

    def test_a_function_sees_the_results_so_far_and_can_stop(self) -> None:
        base, target = networks()
        data = [image(seed) for seed in range(60)]
        seen: list[FilterAttribution] = []

        def enough(so_far: FilterAttribution) -> bool:
            seen.append(so_far)
            return so_far.n_samples >= 32

        torch.manual_seed(0)
        found = pooled(base, target, data, until=enough)
        assert [one.n_samples for one in seen] == [16, 24, 32]
        assert torch.equal(found.scores().flat(), seen[-1].scores().flat())
        torch.manual_seed(0)
        assert torch.equal(pooled(base, target, data[:24]).scores().flat(), seen[1].scores().flat())

    def test_to_be_asked_changes_no_number(self) -> None:
        base, target = networks()
        data = [image(seed) for seed in range(40)]
        found = []
        for until in (None, lambda _: False):
            torch.manual_seed(3)
            found.append(pooled(base, target, data, until=until))
        silent, asked = found
        assert (asked.total, asked.remainder) == (silent.total, silent.remainder)
        assert all(torch.equal(value, asked.scores("sum")[name]) for name, value in silent.scores("sum").items())

    def test_a_function_that_raises_leaves_the_model_alone(self) -> None:
        base, target = networks()
        before = Fingerprint(base)

        def enough(_: FilterAttribution) -> bool:
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            pooled(base, target, [image()] * 20, until=enough)
        assert before.changes(base) == []


class TestResume:
    @pytest.mark.parametrize("stop_at", [3, 20, 31])
    def test_an_interrupted_job_goes_on_with_the_same_bits(self, tmp_path, stop_at: int) -> None:
        base, target = networks()
        data = [image(seed) for seed in range(40)]
        options = {"aggregate": "pooled", "checkpoint": tmp_path / "job.safetensors"}
        calls: list[int] = []

        def loss(model: nn.Module, sample: Tensor) -> Tensor:
            if sample is data[stop_at] and not calls:
                raise KeyError("power cut")
            return squared_sum(model, sample)

        attributor = FilterAttributor(base)
        torch.manual_seed(5)
        with pytest.raises(KeyError, match="power cut"):
            attributor.attribute(base, target, loss, data, **options)
        calls.append(1)
        torch.manual_seed(6)
        again = attributor.attribute(base, target, loss, data, **options)
        finished = attributor.attribute(base, target, loss, data, **options)
        torch.manual_seed(5)
        whole = pooled(base, target, data)
        for one in (again, finished):
            assert torch.equal(one.scores().flat(), whole.scores().flat())
            assert torch.equal(one.standard_errors().flat(), whole.standard_errors().flat())
            assert (one.agreement, one.n_samples) == (whole.agreement, 40)

    def test_a_job_that_had_stopped_stops_there_again_and_can_go_on(self, tmp_path) -> None:
        base, target = networks()
        data = [image(seed) for seed in range(40)]
        options = {"checkpoint": tmp_path / "job.safetensors"}
        asked: list[int] = []

        def enough(so_far: FilterAttribution) -> bool:
            asked.append(so_far.n_samples)
            return so_far.n_samples == 24

        first = pooled(base, target, data, until=enough, **options)
        again = pooled(base, target, data, until=enough, **options)
        assert asked == [16, 24, 24]
        assert torch.equal(first.scores().flat(), again.scores().flat())
        assert pooled(base, target, data, **options).n_samples == 40


class TestSettings:
    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({"aggregate": "mean"}, 'aggregate must be "per_sample" or "pooled"'),
            ({"aggregate": "pooled", "method": "riemann_left"}, "draws its nodes by itself: leave out method="),
            ({"aggregate": "pooled", "n_steps": 0}, "n_steps must be a whole number of at least 1"),
            ({"aggregate": "pooled", "until": "tired"}, 'until must be "settled" or a function'),
            ({"until": "settled"}, 'until needs aggregate="pooled"'),
        ],
    )
    def test_settings_that_do_not_go_together_are_refused(self, options: dict[str, object], reason: str) -> None:
        base = relu_network()
        with pytest.raises(SettingError, match=reason):
            FilterAttributor(base).attribute(base, base, squared_sum, [image()], **options)

    def test_without_data_there_is_one_sample(self) -> None:
        base, target = smooth_network(), smooth_network()
        found = FilterAttributor(base).attribute(
            base, target, lambda model: squared_sum(model, image()), aggregate="pooled", n_steps=32
        )
        whole = FilterAttributor(base).attribute(base, target, lambda model: squared_sum(model, image()))
        assert found.n_samples == 1
        torch.testing.assert_close(found.scores().flat(), whole.scores().flat(), rtol=0.05, atol=0.05)
