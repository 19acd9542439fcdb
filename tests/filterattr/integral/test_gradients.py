"""Gradients are taken once each, whole, and dropped; scores and totals follow from their sums."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from filterattr import FilterAttribution, FilterAttributor, LossError
from filterattr.integral.gradients import BatchedContributions, Contributions, GradientSums, Totals
from filterattr.integral.path import SMALL
from filterattr.units.unit import ScoredParameter, Unit

pytestmark = pytest.mark.filterwarnings("ignore:the attributions should sum:filterattr.FilterAttrWarning")

SIZES = {"one": 1, "small": SMALL, "large": SMALL + 1, "long": 70_000, "last": 3}


def leaves_of(sizes: dict[str, int], kind: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.randn(size, dtype=kind)) for name, size in sizes.items()}


def add(sums: GradientSums, leaves: dict[str, nn.Parameter], loss: Tensor, coefficient: float) -> None:
    """One node, as `PathNode` does it."""
    sums.take_all(loss, leaves, coefficient)


class TestSums:
    @pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.complex64], ids=str)
    def test_are_those_of_the_gradients_times_their_coefficients(self, kind: torch.dtype) -> None:
        wide = torch.complex128 if kind.is_complex else torch.float64
        sums = GradientSums(leaves_of(SIZES, kind))
        expected = {name: torch.zeros(size, dtype=wide) for name, size in SIZES.items()}
        for coefficient in (0.25, -1.5, 1.0):
            leaves = leaves_of(SIZES, kind)
            add(sums, leaves, sum((leaf * leaf.conj()).real.sum() for leaf in leaves.values()), coefficient)
            for name, leaf in leaves.items():
                expected[name] += coefficient * 2 * leaf.detach().to(wide)
                assert leaf.grad is None or name in sums.small
        assert list(sums.sums) == list(SIZES)
        for name, total in sums.sums.items():
            assert total.dtype == kind
            rounding = 1e-12 if kind == torch.float64 else 1e-6
            torch.testing.assert_close(total.to(wide), expected[name], rtol=rounding, atol=rounding)

    @pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
    def test_of_narrow_types_are_float32(self, kind: torch.dtype) -> None:
        """In the type of the weights a small gradient would get lost beside the sum of many."""
        sums = GradientSums(leaves_of(SIZES, kind))
        for _ in range(1000):
            leaves = leaves_of(SIZES, kind)
            add(sums, leaves, sum(leaf.sum() for leaf in leaves.values()), 1e-3)
        for total in sums.sums.values():
            assert total.dtype == torch.float32
            torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-4, atol=0)

    def test_of_a_weight_that_is_used_twice_are_whole(self) -> None:
        for size in SIZES.values():
            leaves = leaves_of({"w": size})
            sums = GradientSums(leaves)
            add(sums, leaves, (3 * leaves["w"]).sum() + leaves["w"].sum(), 0.5)
            assert sums.sums["w"].eq(2).all()

    def test_start_from_zero_with_the_next_sample(self) -> None:
        sums = GradientSums(leaves_of(SIZES))
        for _ in range(2):
            leaves = leaves_of(SIZES)
            add(sums, leaves, sum(leaf.sum() for leaf in leaves.values()), 1.0)
            assert all(total.eq(1).all() for total in sums.sums.values())
            assert sums.reached == set(SIZES)
            sums.reset()
            assert sums.reached == set()
            assert not any(total.any() for total in sums.sums.values())

    def test_start_from_zero_with_the_next_segment_of_the_same_sample(self) -> None:
        leaves = leaves_of(SIZES)
        sums = GradientSums(leaves)
        add(sums, leaves, sum(leaf.sum() for leaf in leaves.values()), 1.0)
        sums.zero()
        assert not any(total.any() for total in sums.sums.values())
        assert sums.reached == set(SIZES)

    def test_of_gradients_in_another_order_of_memory(self) -> None:
        for shape in ((2, 3), (100, 90)):
            leaf = nn.Parameter(torch.randn(shape))
            sums = GradientSums({"w": leaf})
            numbers = torch.arange(float(math.prod(shape))).view(shape)
            leaf.grad = numbers.t().contiguous().t()
            sums.collect({"w": leaf}, 0.5)
            if leaf.grad is not None and math.prod(shape) > SMALL:
                sums.take("w", leaf.grad, 0.5)
            assert torch.equal(sums.sums["w"], numbers / 2)

    def test_of_small_parameters_of_one_type_lie_in_one_buffer(self) -> None:
        kinds = {"a": torch.float32, "b": torch.float64, "c": torch.bfloat16}
        sums = GradientSums({f"{name}{n}": torch.empty(SMALL, dtype=kinds[name]) for n in range(20) for name in kinds})
        buffers = {total.untyped_storage().data_ptr() for total in sums.sums.values()}
        assert len(buffers) == 3


class TestWhatGetsNone:
    def test_is_not_reached_and_its_sum_stays(self) -> None:
        leaves = leaves_of(SIZES)
        sums = GradientSums(leaves)
        add(sums, leaves, leaves["one"].sum() + leaves["long"].sum(), 2.0)
        assert sums.reached == {"one", "long"}
        assert {name for name, total in sums.sums.items() if total.any()} == {"one", "long"}
        assert sums.sums["one"].eq(2).all()
        assert sums.sums["long"].eq(2).all()

    @pytest.mark.parametrize("name", SIZES)
    def test_gradients_of_a_backward_pass_inside_of_the_loss_are_refused(self, name: str) -> None:
        leaves = leaves_of(SIZES)
        leaves[name].sum().backward()
        with pytest.raises(LossError, match=rf"must not call backward\(\); it left gradients in '{name}'"):
            GradientSums(leaves).take_all(leaves[name].sum(), leaves, 1.0)

    @pytest.mark.parametrize("size", [9, SMALL + 1])
    def test_sparse_gradients_are_added_dense(self, size: int) -> None:
        table = nn.Embedding(size, 1, sparse=True)
        leaves = {"w": table.weight}
        sums = GradientSums(leaves)
        add(sums, leaves, table(torch.tensor([2, 2, 5])).sum(), 0.5)
        assert sums.sums["w"].flatten()[[2, 5]].tolist() == [1.0, 0.5]
        assert sums.sums["w"].sum() == 1.5
        assert sums.reached == {"w"}


class TestNotFinite:
    @pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
    def test_sums_are_found_by_name(self, value: float) -> None:
        for kind in (torch.float32, torch.complex64):
            sums = GradientSums(leaves_of(SIZES, kind))
            assert sums.find_nonfinite() == {}
            for name in ("small", "long"):
                sums.sums[name][-1] = complex(1, value) if kind.is_complex else value
            found = sums.find_nonfinite()
            assert list(found) == ["small", "long"]
            assert {type(number) for number in found.values()} == {float}
            assert all(number == value or math.isnan(number) == math.isnan(value) for number in found.values())


class Flat(nn.Module):
    """A network that is one vector of weights."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.tensor(values, dtype=torch.float64))


def attribution(
    base: list[float], target: list[float], loss: Callable[[Tensor], Tensor], **options: object
) -> FilterAttribution:
    attributor = FilterAttributor(Flat(base), unit="weight", select="vector")
    return attributor.attribute(Flat(base), Flat(target), lambda model: loss(model.vector), **options)


class TestWhatTheErrorIsComparedWith:
    """The error is ``gap / max(|change|, 1e-3 sum |a|, 1e-12 max |loss|)``; each of the three counts somewhere."""

    @pytest.mark.parametrize("reverse", [False, True])
    def test_the_change_of_the_loss(self, reverse: bool) -> None:
        ends = ([1.0], [0.0]) if reverse else ([0.0], [1.0])
        # left cells of w^2: from 0 to 1 the sum is .75, from 1 to 0 it is -1.25
        found = attribution(*ends, lambda w: w.square().sum(), method="riemann_left", n_steps=4)
        assert found.completeness_error == 0.25

    def test_the_attributions_where_the_loss_does_not_change(self) -> None:
        # .75 of the weight that goes up and -1.25 of the one that goes down: a gap of .5 beside a sum |a| of 2
        found = attribution([0.0, 1.0], [1.0, 0.0], lambda w: w.square().sum(), method="riemann_left", n_steps=4)
        assert found.loss_base == found.loss_target
        assert found.total == -0.5
        assert found.completeness_error == pytest.approx(0.5 / (1e-3 * 2), rel=1e-14)

    @pytest.mark.parametrize("size", [2.0**20, -(2.0**20)])
    def test_the_rounding_of_losses_that_swallow_the_change(self, size: float) -> None:
        change = 2.0**-40  # below the last digit of the loss
        found = attribution([0.0], [1.0], lambda w: size + change * w.sum(), n_steps=1)
        assert found.loss_base == found.loss_target == size
        assert found.total == change
        assert found.completeness_error == pytest.approx(change / (1e-12 * 2.0**20), rel=1e-14)

    @pytest.mark.filterwarnings("ignore:every attribution is 0:filterattr.FilterAttrWarning")
    def test_nothing_is_lacking_where_nothing_is_there(self) -> None:
        found = attribution([0.0], [1.0], lambda w: 0 * w.sum(), n_steps=1)
        assert found.completeness_error == 0.0

    @pytest.mark.parametrize(
        ("losses", "scale"),
        [
            ([1.0, 5.0, 2.0], 1.0),  # from end to end
            ([2.0, 9.0, 2.0], 4e-3),
            ([2.0, -9e12, 2.0], 9.0),  # a place between the ends, of either sign
            ([3e12, 0.0, 3e12], 3.0),
        ],
    )
    def test_it_is_the_largest_of_three(self, losses: list[float], scale: float) -> None:
        gap, found = Totals(signed=0.25, remainder=7.0, absolute=4.0, unscored=6.0).gap(losses)
        assert gap == abs(0.25 - (losses[-1] - losses[0]))
        assert found == pytest.approx(scale, rel=1e-14)


def scored(pattern: str, shape: tuple[int, ...], group: str | None = None) -> ScoredParameter:
    return ScoredParameter(Unit(pattern), shape, group)


def by_hand(values: Tensor, axes: tuple[int, ...]) -> dict[str, Tensor]:
    signed = values.sum(axes) if axes else values
    return {"sum_of_abs": values.abs().sum(axes) if axes else values.abs(), "abs_of_sum": signed.abs(), "sum": signed}


class TestScores:
    PARAMETERS: ClassVar = {
        "kernels": scored("o i h -> o i", (2, 3, 4)),
        "weights": scored("... -> ...", (5,)),
        "layer": scored("... ->", (2, 2)),
        "first": scored("o i -> o", (3, 2), "both"),
        "second": scored("o -> o", (3,), "both"),
        "alone": scored("o i -> i", (3, 2), "single"),
    }

    def values(self, *front: int) -> dict[str, Tensor]:
        shapes = {name: one.shape for name, one in self.PARAMETERS.items()} | {"rest": (4,), "more": (2, 2)}
        return {name: torch.randn(*front, *shape, dtype=torch.float64) for name, shape in shapes.items()}

    def expected(self, values: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        first, second = by_hand(values["first"], (1,)), by_hand(values["second"], ())
        both = {reduction: first[reduction] + second[reduction] for reduction in ("sum_of_abs", "sum")}
        return {
            "kernels": by_hand(values["kernels"], (2,)),
            "weights": by_hand(values["weights"], ()),
            "layer": by_hand(values["layer"], (0, 1)),
            "both": {**both, "abs_of_sum": both["sum"].abs()},
            "single": by_hand(values["alone"], (0,)),
        }

    def totals(self, values: dict[str, Tensor]) -> list[float]:
        rest = [values["rest"], values["more"]]
        signed, remainder = (sum(one.sum() for one in some) for some in (values.values(), rest))
        absolute, unscored = (sum(one.abs().sum() for one in some) for some in (values.values(), rest))
        return [float(number) for number in (signed, remainder, absolute, unscored)]

    def test_are_those_by_hand(self) -> None:
        values = self.values()
        contributions = Contributions(self.PARAMETERS)
        for _ in range(2):  # the second call starts anew
            found = dict(contributions.per_unit((name, value.clone()) for name, value in values.items()))
        expected = self.expected(values)
        assert list(found) == ["kernels", "weights", "layer", "both", "single"]  # groups when all members are known
        for name, scores in found.items():
            assert list(scores) == ["sum_of_abs", "abs_of_sum", "sum"]
            for reduction, score in scores.items():
                torch.testing.assert_close(score, expected[name][reduction], rtol=1e-14, atol=1e-15)
        assert list(contributions.totals()) == pytest.approx(self.totals(values), rel=1e-13)

    def test_of_several_samples_are_those_of_each(self) -> None:
        values = self.values(3)
        contributions = BatchedContributions(self.PARAMETERS)
        found = dict(contributions.per_unit((name, value.clone()) for name, value in values.items()))
        totals = contributions.totals_of_each(3)
        for index in range(3):
            sample = {name: value[index] for name, value in values.items()}
            for name, scores in self.expected(sample).items():
                for reduction, score in scores.items():
                    torch.testing.assert_close(found[name][reduction][index], score, rtol=1e-13, atol=1e-15)
            assert list(totals[index]) == pytest.approx(self.totals(sample), rel=1e-13)

    def test_of_nothing_are_nothing(self) -> None:
        contributions = BatchedContributions({})
        assert list(contributions.per_unit([])) == []
        assert contributions.totals() == Totals(0.0, 0.0, 0.0, 0.0)
        assert contributions.totals_of_each(2) == 2 * [Totals(0.0, 0.0, 0.0, 0.0)]
