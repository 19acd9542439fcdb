"""Rankings to compare with, against literal loops."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from filterattr import (
    ChannelAttributor,
    FilterAttributor,
    FilterScores,
    FilterSelection,
    Group,
    LossError,
    NonFiniteError,
    SettingError,
    StateMismatchError,
    StorageError,
    UnitError,
    blend,
)
from filterattr.analysis import (
    KnockOutJob,
    all_rankings,
    channel_ranking,
    fisher,
    gradient_times_change,
    input_path,
    magnitude,
    random_ranking,
    taylor,
    weight_change,
)
from tests.networks import image, relu_network, smooth_network, squared_sum
from tests.reference.slow_analysis import gradients, kernel_sums, knock_outs, mean_loss

MEMBERS = [(0, "weight"), (0, "bias"), (2, "weight")]


def test_weight_change_equals_a_loop_over_kernels() -> None:
    base, target = smooth_network(), smooth_network()
    scores = weight_change(FilterAttributor(base), base, target)
    relative = weight_change(FilterAttributor(base), base, target, relative=True)
    for out in range(4):
        before, after = base[2].weight[out, 1], target[2].weight[out, 1]
        change = (after - before).abs().sum().item()
        assert float(scores["2.weight"][out, 1]) == pytest.approx(change, rel=1e-12)
        assert float(relative["2.weight"][out, 1]) == pytest.approx(change / before.abs().sum().item(), rel=1e-12)


def test_relative_change_of_dead_kernels() -> None:
    base, target = nn.Conv2d(1, 2, 3).double(), nn.Conv2d(1, 2, 3).double()
    with torch.no_grad():
        base.weight.zero_()
        target.weight[0].zero_()
    scores = weight_change(FilterAttributor(base), base, target, relative=True)["weight"]
    assert scores.tolist() == [[0.0], [float("inf")]]


def test_weight_change_of_other_networks_is_refused_by_name() -> None:
    base = smooth_network()
    with pytest.raises(StateMismatchError, match=r"'0\.weight'.* do not"):
        weight_change(FilterAttributor(base), base, nn.Linear(2, 2))


@pytest.mark.parametrize("at", ["base", "target"])
def test_gradient_times_change_equals_plain_autograd(at: str) -> None:
    ends = {"base": smooth_network(), "target": smooth_network()}
    squared_sum(ends[at], image()).backward()
    scores = gradient_times_change(
        FilterAttributor(ends["base"]), ends["base"], ends["target"], squared_sum, [image()], at=at
    )
    change = ends["target"][0].weight - ends["base"][0].weight
    expected = (ends[at][0].weight.grad * change).abs().sum((2, 3))
    torch.testing.assert_close(scores["0.weight"], expected.detach(), rtol=1e-12, atol=1e-15)


def test_gradient_times_change_refuses_other_places() -> None:
    base = smooth_network()
    with pytest.raises(SettingError, match='at must be "target" or "base"'):
        gradient_times_change(FilterAttributor(base), base, base, squared_sum, [image()], at="middle")


def test_random_ranking_repeats_with_its_seed_and_shuffles_everything() -> None:
    base, target = smooth_network(), smooth_network()
    like = weight_change(FilterAttributor(base), base, target)
    first, again, other = (random_ranking(like, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.top(5) == again.top(5)
    assert first.to_index().tolist() != other.to_index().tolist()


def test_magnitude_equals_a_loop_over_kernels() -> None:
    target = smooth_network()
    plain, square = (magnitude(FilterAttributor(target), target, square=flag) for flag in (False, True))
    for name in ("0.weight", "2.weight"):
        weights = target.get_parameter(name).detach()
        torch.testing.assert_close(plain[name], torch.tensor(kernel_sums(weights.abs()), dtype=torch.float64))
        torch.testing.assert_close(square[name], torch.tensor(kernel_sums(weights**2), dtype=torch.float64))


def every_gradient_ranking(base: nn.Module, target: nn.Module, samples: list[Tensor]) -> dict[str, FilterScores]:
    attributor = FilterAttributor(base)
    along = {"along": lambda x, t: t * x, "n_steps": 3, "method": "riemann_trapezoid"}
    return {
        "taylor": taylor(attributor, target, squared_sum, samples),
        "snip": taylor(attributor, base, squared_sum, samples),
        "fisher": fisher(attributor, target, squared_sum, samples),
        "fisher x change": fisher(attributor, target, squared_sum, samples, base=base),
        "input path": input_path(attributor, target, squared_sum, samples, **along),
        "input path x change": input_path(attributor, target, squared_sum, samples, base=base, **along),
    }


@pytest.mark.parametrize(
    ("name", "score"),
    [
        ("taylor", lambda at, base, target: (at("target", 1) * target).abs()),
        ("snip", lambda at, base, target: (at("base", 1) * base).abs()),
        ("fisher", lambda at, base, target: at("target", 1) ** 2),
        ("fisher x change", lambda at, base, target: (at("target", 1) * (target - base)) ** 2),
        ("input path", lambda at, base, target: (at("target", 0) + 2 * at("target", 0.5) + at("target", 1)).abs() / 4),
        (
            "input path x change",
            lambda at, base, target: (
                ((at("target", 0) + 2 * at("target", 0.5) + at("target", 1)) * (target - base)).abs() / 4
            ),
        ),
    ],
)
@pytest.mark.parametrize("parameter", ["0.weight", "2.weight"])
def test_gradient_rankings_equal_plain_autograd_on_copies(name: str, score, parameter: str) -> None:
    ends = {"base": relu_network(), "target": relu_network()}
    samples = [image(1), image(2), image(3)]
    found = every_gradient_ranking(ends["base"], ends["target"], samples)[name]
    total = torch.zeros(())
    for sample in samples:
        at = partial(gradient_at, ends, sample, parameter)
        total = total + score(at, *(ends[role].get_parameter(parameter).detach() for role in ends))
    expected = torch.tensor(kernel_sums(total / 3), dtype=torch.float64)
    torch.testing.assert_close(found[parameter], expected, rtol=1e-10, atol=1e-12)


def gradient_at(ends: dict[str, nn.Module], sample: Tensor, parameter: str, role: str, t: float) -> Tensor:
    return gradients(ends[role], squared_sum, t * sample)[parameter]


def test_gradient_rankings_leave_model_modes_and_randomness_alone() -> None:
    base, target = relu_network(), relu_network()
    base.requires_grad_(False)
    base[0].weight.grad = None
    before = [parameter.detach().clone() for parameter in base.parameters()]
    state = torch.get_rng_state()
    with torch.no_grad():
        scores = taylor(
            FilterAttributor(base), target, lambda model, x: squared_sum(model, x + torch.randn(1)), [image()]
        )
        assert not torch.is_grad_enabled()
    assert float(scores.flat().max()) > 0
    assert torch.equal(torch.get_rng_state(), state)
    for parameter, value in zip(base.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
        assert parameter.grad is None
        assert not parameter.requires_grad


def test_gradient_rankings_refuse_what_has_no_gradient() -> None:
    base = relu_network()
    attributor = FilterAttributor(base)
    with pytest.raises(LossError, match="one real scalar"):
        taylor(attributor, base, lambda model, x: model(x), [image()])
    with pytest.raises(SettingError, match="it is empty"):
        fisher(attributor, base, squared_sum, [])
    with pytest.raises(NonFiniteError, match=r"sample 0"):
        fisher(attributor, base, squared_sum, [image() * float("inf")])
    with pytest.raises(StateMismatchError, match="do not"):
        fisher(attributor, base, squared_sum, [image()], base=nn.Linear(1, 1))


def kernel_places(scores: FilterScores) -> list[tuple[str, int, int]]:
    return [(name, o, i) for name, tensor in scores.items() for o in range(len(tensor)) for i in range(tensor.shape[1])]


@pytest.mark.parametrize("batch_units", [1, 7])
def test_knock_out_equals_copies_of_networks(batch_units: int) -> None:
    base, target = relu_network(), relu_network()
    samples = [image(1), image(2)]
    slow = knock_outs(base, target, squared_sum, samples)
    job = KnockOutJob(FilterAttributor(base), base, target, squared_sum, samples, batch_units=batch_units)
    assert (job.cost().n_units, job.cost().n_forwards) == (48, 96)
    found = job.run(progress=False)
    assert found.is_complete
    assert found.n_forwards == 96
    assert found.loss_target == pytest.approx(mean_loss(target, squared_sum, samples), rel=1e-12)
    assert found.scores.flat().tolist() == pytest.approx(
        [slow[place] for place in kernel_places(found.scores)], rel=1e-9, abs=1e-11
    )


def test_knock_out_of_grouped_and_transposed_layers_and_tied_weights() -> None:
    base, target = smooth_network(), smooth_network()
    job = KnockOutJob(FilterAttributor(base, unit="filter"), base, target, squared_sum, [image()], batch_units=3)
    one_by_one = KnockOutJob(FilterAttributor(base, unit="filter"), base, target, squared_sum, [image()])
    found, slow = job.run().scores, one_by_one.run().scores
    torch.testing.assert_close(found.flat(), slow.flat(), rtol=1e-9, atol=1e-12)
    whole = FilterAttributor(base, unit="filter").scored_parameters()["4.weight"]
    selection = {name: torch.zeros(tensor.shape, dtype=torch.bool) for name, tensor in found.items()}
    selection["4.weight"][1] = True
    masked = blend(target, base, FilterSelection(selection, found.parameters))
    network = copy.deepcopy(base)
    network.load_state_dict(masked)
    expected = mean_loss(network, squared_sum, [image()]) - mean_loss(target, squared_sum, [image()])
    assert float(slow["4.weight"][1]) == pytest.approx(expected, rel=1e-9)
    assert whole.units_shape == (2,)
    tied = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)).double()
    tied[1].weight = tied[0].weight
    ends = copy.deepcopy(tied), copy.deepcopy(tied)
    nn.init.eye_(ends[0][0].weight)
    pair = [
        KnockOutJob(FilterAttributor(tied), *ends, squared_sum, [torch.ones(1, 2).double()], batch_units=b).run()
        for b in (1, 4)
    ]
    torch.testing.assert_close(pair[0].scores.flat(), pair[1].scores.flat(), rtol=1e-12, atol=1e-12)


def test_a_knock_out_that_ran_out_of_time_goes_on_where_it_was(tmp_path) -> None:
    base, target = relu_network(), relu_network()
    calls = 0

    def counting(model: nn.Module, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return squared_sum(model, x)

    def job(file: str | None = "job.safetensors") -> KnockOutJob:
        path = None if file is None else tmp_path / file
        return KnockOutJob(FilterAttributor(base), base, target, counting, [image()], checkpoint=path)

    first = job().run(seconds=0)
    assert not first.is_complete
    assert first.units.count == 16
    assert int(torch.isneginf(first.scores.flat()).sum()) == 32
    assert first.scores.top(16) == first.units
    second = job()
    assert second.cost().n_units == 32
    calls = 0
    found = second.run()
    assert calls == found.n_forwards == 32
    assert found.is_complete
    torch.testing.assert_close(found.scores.flat(), job(None).run().scores.flat(), rtol=0, atol=0)
    with pytest.raises(StorageError, match="another samples"):
        KnockOutJob(FilterAttributor(base), base, target, counting, [image(5)], checkpoint=tmp_path / "job.safetensors")
    with pytest.raises(StorageError, match="the loss of target was"):
        KnockOutJob(
            FilterAttributor(base), base, target, lambda model, x: 2 * squared_sum(model, x), [image()],
            checkpoint=tmp_path / "job.safetensors",
        )  # fmt: skip


def test_a_knock_out_looks_at_the_loss_of_both_ends(tmp_path) -> None:
    """Another function may agree with the first at target: a distance from what target answers is 0 there."""
    base, target = relu_network(), relu_network()
    answer = target(image()).detach()
    path = tmp_path / "job.safetensors"

    def job(power: int) -> KnockOutJob:
        loss = lambda model, x: (model(x) - answer).abs().pow(power).sum()  # noqa: E731
        return KnockOutJob(FilterAttributor(base), base, target, loss, [image()], checkpoint=path)

    job(2).run(seconds=0)
    assert job(2).loss_target == 0 < job(2).cost().n_units
    with pytest.raises(StorageError, match="the loss of base was"):
        job(1)


def test_knock_outs_that_kept_the_loss_of_target_alone_go_on(tmp_path) -> None:
    base, target = relu_network(), relu_network()
    path = tmp_path / "job.safetensors"

    def job() -> KnockOutJob:
        return KnockOutJob(FilterAttributor(base), base, target, squared_sum, [image()], checkpoint=path)

    first = job()
    first.run(seconds=0)
    stored = first._file.read()
    first._file.write(stored.tensors, {name: one for name, one in stored.numbers.items() if name != "loss_base"})
    assert job().cost().n_units == 32


def test_knock_out_refuses_what_it_cannot_do() -> None:
    base = relu_network()
    attributor = FilterAttributor(base)
    with pytest.raises(SettingError, match="needs samples"):
        KnockOutJob(attributor, base, base, squared_sum, [])
    with pytest.raises(StateMismatchError, match=r"0\.weight"):
        KnockOutJob(attributor, nn.Linear(1, 1), base, squared_sum, [image()])
    empty = weight_change(attributor, base, base).top(0)
    with pytest.raises(SettingError, match="at least one unit"):
        KnockOutJob(attributor, base, base, squared_sum, [image()], units=empty)

    def branching(model: nn.Module, x: Tensor) -> Tensor:
        return squared_sum(model, x) if model(x).sum().item() > 1e9 else 2 * squared_sum(model, x)

    with pytest.raises(SettingError, match="batch_units=1"):
        KnockOutJob(attributor, base, relu_network(), branching, [image()], batch_units=4).run()


def test_all_rankings_say_what_they_cost() -> None:
    base, target = smooth_network(), smooth_network()
    backwards = 0

    def counting(model: nn.Module, x: Tensor) -> Tensor:
        value = squared_sum(model, x)

        def count(gradient: Tensor) -> Tensor:
            nonlocal backwards
            backwards += 1
            return gradient

        if value.requires_grad:
            value.register_hook(count)
        return value

    found = all_rankings(
        FilterAttributor(base), base, target, counting, [image(1), image(2)], torch.Generator().manual_seed(0),
        along=lambda x, t: t * x, output=lambda model, x: model(x).sum(), n_steps=6,
    )  # fmt: skip
    names = [
        name for name in found if name not in ("attribution, |sum|", "attribution, signed", "input path, published")
    ]
    assert backwards == sum(found[name].n_passes for name in names)
    assert len({ranking.scores.n_units for ranking in found.values()}) == 1
    assert found["input path, published"].n_passes == 12
    assert len({tuple(ranking.scores.to_index()) for ranking in found.values()}) == len(found)


@pytest.mark.parametrize(("unit", "method"), [("filter", "internal_influence"), ("kernel", "conductance")])
def test_channel_ranking_averages_the_layers_of_single_samples(unit: str, method: str) -> None:
    model, target = relu_network(), relu_network()
    samples = [image(1), image(2)]
    found = channel_ranking(
        FilterAttributor(model, unit=unit), target, samples, lambda x: (x, 0 * x),
        lambda out, x: out.square().sum((1, 2, 3)), attribution=method, n_steps=4,
    )  # fmt: skip
    parts = [
        ChannelAttributor(target).attribute(
            x, 0 * x, lambda out: out.square().sum((1, 2, 3)), attribution=method, n_steps=4, kernels=unit == "kernel"
        )
        for x in samples
    ]
    expected = [part.kernels() if unit == "kernel" else part.filters() for part in parts]
    torch.testing.assert_close(found.scores.flat(), (expected[0].flat() + expected[1].flat()) / 2)
    assert found.n_passes == sum(part.n_passes for part in parts)
    assert found.scores.parameters == FilterAttributor(model, unit=unit).scored_parameters()


def test_channel_ranking_refuses_other_units() -> None:
    model = relu_network()
    with pytest.raises(UnitError, match="must be filters or kernels"):
        channel_ranking(
            FilterAttributor(model, unit="weight"), model, [image()], lambda x: (x, 0 * x), lambda out, x: out.sum()
        )
    with pytest.raises(UnitError, match="only weights of layers"):
        channel_ranking(
            FilterAttributor(model, select="*", unit="filter"), model, [image()], lambda x: (x, 0 * x),
            lambda out, x: out.sum(),
        )  # fmt: skip


def test_an_interrupted_knock_out_keeps_what_it_has(tmp_path) -> None:
    base, target = relu_network(), relu_network()
    calls = 0

    def interrupted(model: nn.Module, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 40:
            raise KeyboardInterrupt
        return squared_sum(model, x)

    def job() -> KnockOutJob:
        return KnockOutJob(
            FilterAttributor(base), base, target, interrupted, [image()], checkpoint=tmp_path / "job.safetensors"
        )

    before = dict(base.named_parameters())
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        job().run(progress=False)
    assert all(value is before[name] for name, value in base.named_parameters())
    # 6 + 36 + 6 units in groups of 16 of one parameter: at least one group was done
    assert 0 < job().cost().n_units < 48
    slow = knock_outs(base, target, squared_sum, [image()])
    found = job().run(progress=False).scores
    assert found.flat().tolist() == pytest.approx([slow[place] for place in kernel_places(found)], rel=1e-9, abs=1e-11)


def test_knock_out_checkpoints_that_hold_something_else_are_refused(tmp_path) -> None:
    base = relu_network()
    path = tmp_path / "job.safetensors"

    def job(**options: object) -> KnockOutJob:
        return KnockOutJob(FilterAttributor(base), base, relu_network(), squared_sum, [image()], **options)

    weight_change(FilterAttributor(base), base, base).save(path)
    with pytest.raises(StorageError, match="must be a checkpoint file"):
        job(checkpoint=path)
    assert str(job().cost()).startswith("48 units, 48 forward passes, about ")


class TestGroups:
    """Units that span several parameters score what their members' units score together."""

    @pytest.fixture
    def ends(self) -> tuple[nn.Module, nn.Module]:
        torch.manual_seed(5)
        base, target = (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double() for _ in range(2))
        return base, target

    @pytest.fixture
    def attributor(self, ends) -> FilterAttributor:
        members = {"0.weight": "o i -> o", "0.bias": "o -> o", "2.weight": "o i -> i"}
        return FilterAttributor(ends[0], unit={"": Group(members)})

    @staticmethod
    def by_neuron(first: Tensor, bias: Tensor, second: Tensor) -> Tensor:
        return first.sum(1) + bias + second.sum(0)

    def test_sizes_and_changes(self, ends, attributor):
        base, target = ends
        changes = [(target[i].get_parameter(n) - base[i].get_parameter(n)).abs() for i, n in MEMBERS]
        (found,) = weight_change(attributor, base, target).values()
        torch.testing.assert_close(found, self.by_neuron(*changes).detach())
        (found,) = magnitude(attributor, target, square=True).values()
        squares = [target[i].get_parameter(n).square() for i, n in MEMBERS]
        torch.testing.assert_close(found, self.by_neuron(*squares).detach())

    def test_gradients(self, ends, attributor):
        target, inputs = ends[1], torch.rand(5, 3, dtype=torch.float64)
        (found,) = taylor(attributor, target, lambda model: model(inputs).square().sum()).values()
        weights = [target[i].get_parameter(n) for i, n in MEMBERS]
        slopes = torch.autograd.grad(target(inputs).square().sum(), weights)
        expected = self.by_neuron(*[(g * w).abs() for g, w in zip(slopes, weights, strict=True)])
        torch.testing.assert_close(found, expected.detach())

    @pytest.mark.parametrize("batch", [1, 3])
    def test_knocking_out_a_neuron_puts_all_its_weights_back(self, ends, attributor, batch):
        base, target = ends
        inputs = torch.rand(5, 3, dtype=torch.float64)

        def loss(model: nn.Module, inputs: Tensor) -> Tensor:
            return model(inputs).square().sum()

        units = weight_change(attributor, base, target).top(1.0)
        job = KnockOutJob(attributor, base, target, loss, [inputs], units=units, batch_units=batch)
        (found,) = job.run(progress=False).scores.values()
        for neuron in range(4):
            mixed = copy.deepcopy(target)
            with torch.no_grad():
                mixed[0].weight[neuron], mixed[0].bias[neuron] = base[0].weight[neuron], base[0].bias[neuron]
                mixed[2].weight[:, neuron] = base[2].weight[:, neuron]
                difference = loss(mixed, inputs) - loss(target, inputs)
            assert float(found[neuron]) == pytest.approx(float(difference))
