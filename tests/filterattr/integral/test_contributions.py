"""From gradient sums to scores and totals, and what the completeness error is compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from filterattr import FilterAttribution, FilterAttributor
from filterattr.integral.contributions import BatchedContributions, Contributions, Totals
from filterattr.units.unit import ScoredParameter, Unit

pytestmark = pytest.mark.filterwarnings("ignore:the attributions should sum:filterattr.FilterAttrWarning")


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
