"""Where the outputs of a masked network go: back to base, or elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from filterattr import FilterAttributor, FilterSelection, LossError, NonFiniteError, SettingError
from filterattr.analysis.masking import Masking
from filterattr.analysis.outputs import MeasuredOutputs, Outputs, Reversion, reversion
from filterattr.analysis.rankings import weight_change
from tests.networks import image, relu_network
from tests.reference import slow_outputs
from tests.reference.slow_analysis import with_kernels


def answer(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


def rows(model: nn.Module, places: list[int], base: nn.Module, target: nn.Module) -> FilterSelection:
    return weight_change(FilterAttributor(model, unit="filter"), base, target).select({"weight": places})


def linear(weight: list[list[float]]) -> nn.Module:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
    return layer


@pytest.fixture
def diagonal() -> tuple[nn.Module, nn.Module, dict[str, list[Tensor]]]:
    """Base is 0, target copies; output channel k is the square of input k, so that shares are known."""
    data = {
        "first": [torch.tensor([2.0, 1.0]).double(), torch.tensor([4.0, 2.0]).double()],
        "second": [torch.tensor([0.0, 1.0]).double()],
    }
    return linear([[0.0, 0.0], [0.0, 0.0]]), linear([[1.0, 0.0], [0.0, 1.0]]), data


def test_shares_follow_their_closed_form(diagonal: Any) -> None:
    base, target, data = diagonal
    outputs = Outputs(base, base, target, answer, data)
    first = rows(base, [0], base, target)
    # the energies of the first channel are 4 and 16, those of the second 1 and 4
    assert outputs.reverted(first) == pytest.approx({"first": 20 / 25, "second": 0.0}, abs=1e-15)
    assert outputs.moved(first) == pytest.approx({"first": 20 / 25, "second": 0.0}, abs=1e-15)
    everything, nothing = rows(base, [0, 1], base, target), rows(base, [], base, target)
    assert outputs.reverted(everything) == {"first": 1.0, "second": 1.0}
    assert outputs.moved(everything) == {"first": 1.0, "second": 1.0}
    assert outputs.reverted(nothing) == {"first": 0.0, "second": 0.0}
    assert outputs.moved(nothing) == {"first": 0.0, "second": 0.0}


def test_shares_of_some_functions_take_their_samples_alone(diagonal: Any) -> None:
    base, target, data = diagonal
    calls: list[int] = []

    def counting(model: nn.Module, x: Tensor) -> Tensor:
        calls.append(1)
        return answer(model, x)

    outputs = Outputs(base, base, target, counting, data)
    first = rows(base, [0], base, target)
    calls.clear()
    assert outputs.shares(first) == (outputs.reverted(first), outputs.moved(first))
    assert len(calls) == 3 * 3
    calls.clear()
    assert outputs.shares(first, ("second",)) == ({"second": 0.0}, {"second": 0.0})
    assert len(calls) == 1


def test_damage_raises_the_loss_as_much_as_the_way_back_and_is_told_from_it() -> None:
    """The target cancels what its two hidden units do; without one of them the output is far on the other side."""
    data = {"one": [torch.ones(2).double()]}
    base, target = linear([[0.0, 1.0]]), linear([[-9.0, 9.0]])  # outputs 1 and 0; the truth is 0

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return model(x).square().sum()

    units = weight_change(FilterAttributor(base, unit="... -> ..."), base, target)
    back, damaged = units.select({"weight": [0]}), units.select({"weight": [(0, 1)]})
    masking, outputs = Masking(base, base, target, loss, data), Outputs(base, base, target, answer, data)
    assert masking.removed(back)["one"] == 1.0
    assert masking.removed(damaged)["one"] == 64.0  # the output is -8: more "removed" than everything
    assert outputs.reverted(back)["one"] == 1.0
    assert outputs.reverted(damaged)["one"] == 1 - 81  # nine times as far from base as target is
    assert outputs.moved(damaged)["one"] == 64.0


@pytest.mark.parametrize(
    ("name", "slow"),
    [
        ("squared", slow_outputs.squared),
        ("kl", slow_outputs.kullback_leibler),
        ("js", slow_outputs.jensen_shannon),
    ],
)
@pytest.mark.parametrize("keep", [True, False])
def test_shares_are_those_of_the_reference(name: Any, slow: Callable[..., float], keep: bool) -> None:
    torch.manual_seed(0)
    base, target = relu_network().double(), relu_network().double()
    data = {"one": [image(seed).double() for seed in range(3)]}

    def logits(model: nn.Module, x: Tensor) -> Tensor:
        return model(x).reshape(-1)

    scores = weight_change(FilterAttributor(base), base, target)
    chosen = scores.top(0.3)
    kernels = [
        (parameter, out, into) for parameter, marked in chosen.items() for out, into in marked.nonzero().tolist()
    ]
    masked = with_kernels(target, base, kernels)
    outputs = Outputs(base, base, target, logits, data, distance=name, keep=keep)
    expected = slow_outputs.reverted(masked, base, target, data["one"], slow)
    assert outputs.reverted(chosen)["one"] == pytest.approx(expected, rel=1e-9)
    expected = slow_outputs.moved(masked, base, target, data["one"], slow)
    assert outputs.moved(chosen)["one"] == pytest.approx(expected, rel=1e-9)
    measured = outputs.measure(chosen)
    assert measured.moved("one").value == pytest.approx(expected, rel=1e-9)
    assert measured.moved("one").low < expected < measured.moved("one").high


def test_kept_and_repeated_outputs_are_the_same_with_randomness_inside(diagonal: Any) -> None:
    base, target, data = diagonal

    def noisy(model: nn.Module, x: Tensor) -> Tensor:
        return model(x) + torch.randn(2).double()

    state = torch.get_rng_state()
    found = [Outputs(base, base, target, noisy, data, keep=keep) for keep in (True, False)]
    first = rows(base, [0], base, target)
    assert found[0].reverted(first) == found[1].reverted(first)
    assert found[0].reverted(first)["first"] == pytest.approx(20 / 25)
    assert torch.equal(torch.get_rng_state(), state)


def test_rows_of_a_batch_are_samples(diagonal: Any) -> None:
    base, target, data = diagonal
    batches = {name: [torch.stack(samples)] for name, samples in data.items()}
    alone, together = (
        Outputs(base, base, target, answer, inputs, per_row=per_row)
        for inputs, per_row in ((data, False), (batches, True))
    )
    assert together.n_samples == alone.n_samples == {"first": 2, "second": 1}
    first = rows(base, [0], base, target)
    assert together.measure(first).reverted("first") == alone.measure(first).reverted("first")
    assert Outputs(base, base, target, answer, batches).n_samples == {"first": 1, "second": 1}


def test_a_distance_of_ones_own(diagonal: Any) -> None:
    base, target, data = diagonal
    largest = Outputs(base, base, target, answer, data, distance=lambda said, end: (said - end).abs().max())
    # without the first channel the largest difference to base is 1 of 2, then 2 of 4
    assert largest.reverted(rows(base, [0], base, target))["first"] == pytest.approx(1 - 3 / 6)
    with pytest.raises(LossError, match=r"the distance must be one number; got shape \(2,\)"):
        Outputs(base, base, target, answer, data, distance=lambda said, end: said - end)


def test_random_sets_are_the_same_if_only_their_function_is_looked_at(diagonal: Any) -> None:
    base, target, data = diagonal
    outputs = Outputs(base, base, target, answer, data)
    with_others, alone = (
        reversion(
            outputs,
            rows(base, [0], base, target),
            "first",
            generator=torch.Generator().manual_seed(0),
            draws=5,
            null_moves=moves,
        )
        for moves in (True, False)
    )
    assert alone.null_reverted == with_others.null_reverted
    assert alone.moved == with_others.moved
    assert set(with_others.null_moved["random"]) == {"second"}
    assert alone.null_moved["random"] == {}


def test_a_set_that_reverts_nothing_else_beats_its_nulls() -> None:
    torch.manual_seed(0)
    n = 8
    base, target = linear(torch.zeros(n, n).tolist()), linear(torch.eye(n).tolist())
    data = {name: [row * (1 + k) for row in torch.eye(n).double()[part] for k in range(2)]
            for name, part in (("own", slice(0, 2)), ("rest", slice(2, n)))}  # fmt: skip
    outputs = Outputs(base, base, target, answer, data)
    carriers, others = rows(base, [0, 1], base, target), rows(base, [2, 3], base, target)
    generator = torch.Generator().manual_seed(0)
    right = reversion(outputs, carriers, "own", generator=generator, draws=39)
    assert (right.reverted.value, right.moved["rest"].value) == (1.0, 0.0)
    assert right.count == 2
    # the carriers themselves may be among the draws: 1 of 28 pairs
    same = sum(value == 1.0 for value in right.null_reverted["random"])
    assert right.p_values["random"] == (1 + same) / 40
    wrong = reversion(outputs, others, "own", generator=generator, draws=39)
    assert (wrong.reverted.value, wrong.p_values["layer-matched"]) == (0.0, 1.0)
    assert wrong.moved["rest"].value == pytest.approx(2 / 6)
    assert [len(draws["rest"]) for draws in wrong.null_moved.values()] == [39, 39]
    assert Reversion.from_json(right.to_json()) == right
    assert [(row["measure"], row["on"]) for row in right.rows()] == [("reverted", "own"), ("moved", "rest")]
    assert reversion(outputs, others, "own").p_values == {}


def test_a_draw_whose_outputs_are_not_numbers_counts_as_far_away(diagonal: Any) -> None:
    """A null of networks that break must not make every set look significant, nor insignificant."""
    base, target, data = diagonal

    def breaking(model: nn.Module, x: Tensor) -> Tensor:
        return torch.where(model.weight[1, 1] == 0, torch.nan, model(x)) if bool(model.weight.any()) else model(x)

    outputs = Outputs(base, base, target, breaking, data)
    assert outputs.reverted(rows(base, [1], base, target))["first"] == -math.inf
    assert outputs.moved(rows(base, [1], base, target))["first"] == math.inf


def test_two_networks_are_compared_draw_by_draw(diagonal: Any) -> None:
    base, target, data = diagonal
    outputs = Outputs(base, base, target, answer, data)
    bootstrap = outputs.bootstrap()
    first, everything = (outputs.measure(rows(base, places, base, target), bootstrap) for places in ([0], [0, 1]))
    gap = everything.more_reverted("first", first)
    # every sample has the same share, so that no draw differs
    assert (gap.value, gap.low, gap.high) == pytest.approx((0.2, 0.2, 0.2))


def test_where_ends_say_the_same_there_is_no_share(diagonal: Any) -> None:
    base, target, data = diagonal
    outputs = Outputs(base, base, target, answer, {**data, "none": [torch.zeros(2).double()]})
    assert math.isnan(outputs.moved(rows(base, [0], base, target))["none"])
    assert math.isnan(MeasuredOutputs(outputs, outputs.sample_distances(base.state_dict()), outputs.bootstrap())
                      .reverted("none").value)  # fmt: skip


def test_what_cannot_be_measured_is_refused(diagonal: Any) -> None:
    base, target, data = diagonal
    with pytest.raises(SettingError, match="distance must be a function or one of squared, kl, js; got 'l1'"):
        Outputs(base, base, target, answer, data, distance="l1")  # type: ignore[arg-type]
    with pytest.raises(LossError, match="output must return one tensor; got tuple"):
        Outputs(base, base, target, lambda model, x: (model(x),), data)  # type: ignore[arg-type, return-value]
    with pytest.raises(NonFiniteError, match=r"output of target must be finite \('first', sample 0\)"):
        Outputs(base, base, linear([[math.inf, 0.0], [0.0, 0.0]]), answer, data)
    outputs = Outputs(base, base, target, answer, data)
    with pytest.raises(SettingError, match="reversion needs a function of 'first', 'second'"):
        reversion(outputs, rows(base, [0], base, target), "third")


@pytest.mark.parametrize("keep", [True, False])
def test_the_model_is_itself_also_after_an_output_that_fails(diagonal: Any, keep: bool) -> None:
    base, target, data = diagonal
    model = linear([[5.0, 6.0], [7.0, 8.0]])
    before, parameter = model.weight.detach().clone(), model.weight
    broken = False

    def failing(network: nn.Module, x: Tensor) -> Tensor:
        if broken:
            raise KeyError("gone")
        return network(x)

    outputs = Outputs(model, base, target, failing, data, keep=keep)
    broken = True
    with pytest.raises(KeyError):
        outputs.reverted(rows(base, [0], base, target))
    assert model.weight is parameter
    assert torch.equal(model.weight, before)
