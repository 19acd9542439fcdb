"""From gradient sums to scores and totals, and what the completeness error is compared with."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from filterattr import FilterAttribution, FilterAttributor
from filterattr.integral.contributions import Totals

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
