"""Scores that keep their sign."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from filterattr import FilterAttribution, FilterAttributor, FilterAttrWarning, SettingError
from filterattr.analysis.masking import Masking
from filterattr.results.signed import expected_removed, gain_of, signed_contrast


def copying(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) - x).square().sum()


def linear(weight: list[list[float]]) -> nn.Module:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
    return layer


BASE, TARGET = linear([[0.0, 0.0], [0.0, 0.0]]), linear([[1.0, 0.0], [0.0, 1.0]])


def of(*x: float, base: nn.Module = BASE, target: nn.Module = TARGET, **settings: object) -> FilterAttribution:
    attributor = FilterAttributor(target, unit="filter")
    return attributor.attribute(base, target, copying, [torch.tensor(x, dtype=torch.float64)], **settings)  # type: ignore[arg-type]


def test_the_score_is_its_formula() -> None:
    # the loss of base on x is |x|^2, output channel k is worth x_k^2 of it
    found = {"own": of(1.0, 3.0), "other": of(2.0, 1.0), "third": of(0.0, 1.0)}
    first, second = signed_contrast(found, "own", collateral=0.5)["weight"].tolist()
    assert first == pytest.approx(1 / 10 - 0.5 * (4 / 5 + 0))
    assert second == pytest.approx(9 / 10 - 0.5 * (1 / 5 + 1))
    alone = signed_contrast(found, "own", collateral=0)["weight"].tolist()
    assert alone == pytest.approx([1 / 10, 9 / 10])
    priced = signed_contrast(found, "own", collateral={"other": 2.0})["weight"].tolist()
    assert priced == pytest.approx([1 / 10 - 2 * 4 / 5, 9 / 10 - 2 * 1 / 5])


def test_the_scale_of_the_loss_does_not_matter() -> None:
    attributor = FilterAttributor(TARGET, unit="filter")
    samples = [torch.tensor([1.0, 3.0]).double()]
    scaled = attributor.attribute(BASE, TARGET, lambda model, x: 1000 * copying(model, x), samples)
    for own, guard in ((of(1.0, 3.0), scaled), (scaled, of(1.0, 3.0))):
        found = signed_contrast({"own": own, "guard": guard}, "own", collateral=1.0)["weight"].tolist()
        assert found == pytest.approx([0.0, 0.0], abs=1e-12)


def test_a_unit_that_harms_is_not_taken_for_one_that_carries() -> None:
    """An absolute value cannot tell them apart; the unit that harms has the larger attribution here."""
    target = linear([[1.0, 0.0], [0.0, -1.0]])
    found = of(2.0, 1.0, target=target)  # channel 0 gains 4, channel 1 loses 1 - 4 = -3
    assert gain_of(found) == pytest.approx(1.0)
    assert found.scores()["weight"].tolist() == pytest.approx([4.0, 3.0])
    assert signed_contrast({"own": found}, "own")["weight"].tolist() == pytest.approx([4.0, -3.0])


def test_a_guard_that_gains_nothing_has_a_scale() -> None:
    """On clean inputs target is as good as base or worse; a gain near 0 would make one unit's noise decide alone."""
    target = linear([[1.0, 0.0], [0.0, -1.0]])
    even = of(3.0, 3.0 / 3**0.5, target=target)  # 9 for it, 9 against it
    assert gain_of(even) == pytest.approx(0.0, abs=1e-9)
    worse = of(1.0, 3.0, target=target)  # gains 1, loses 27
    assert gain_of(worse) == pytest.approx(-26.0)
    own = of(3.0, 1.0)
    scores = {
        name: signed_contrast({"own": own, "clean": guard}, "own", collateral=1.0)["weight"].tolist()
        for name, guard in {"even": even, "worse": worse}.items()
    }
    assert scores["even"] == pytest.approx([9 / 10 - 1, 1 / 10 - 1])
    assert scores["worse"] == pytest.approx([9 / 10 - 1 / 14, 1 / 10 - 27 / 14])
    with pytest.warns(FilterAttrWarning, match="every attribution is 0"):
        nothing = of(0.0, 0.0)
    assert signed_contrast({"own": own, "nothing": nothing}, "own")["weight"].tolist() == pytest.approx([0.9, 0.1])


def test_pooled_attributions_have_a_gain_too() -> None:
    pooled = of(1.0, 3.0, aggregate="pooled", n_steps=4)
    assert gain_of(pooled) == pytest.approx(-pooled.total)
    assert float(signed_contrast({"own": pooled}, "own")["weight"].sum()) == pytest.approx(1.0)


def test_a_set_is_expected_to_remove_the_sum_of_its_units() -> None:
    found = {"own": of(1.0, 3.0), "other": of(2.0, 1.0)}
    second = found["own"].scores().select({"weight": [1]})
    expected = expected_removed(found, second)
    assert expected == pytest.approx({"own": 0.9, "other": 0.2})
    # rows of a linear layer do not meet in this loss, so that it is exact
    data = {"own": [torch.tensor([1.0, 3.0]).double()], "other": [torch.tensor([2.0, 1.0]).double()]}
    assert Masking(BASE, BASE, TARGET, copying, data).removed(second) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("moves", "chosen", "expected", "removed"),
    [
        ([[0.5, 0.5]], (0, 0), 0.5, 0.25),  # two that can stand in for each other: less than expected
        ([[3.0, -2.0]], (0, 0), 3.0, 9.0),  # one that undoes two thirds of the other: overshoot
        ([[3.0, -2.0]], (0, 1), -2.0, 4.0),  # the one that undoes: masking it is damage, not improvement
    ],
)
def test_where_the_expectation_stops_being_true(
    moves: list[list[float]], chosen: tuple[int, int], expected: float, removed: float
) -> None:
    base, target = linear([[0.0, 0.0]]), linear(moves)

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return (model(x) - 1).square().sum()  # 1 at base, 0 at target

    data = [torch.ones(2).double()]
    found = FilterAttributor(target, unit="... -> ...").attribute(base, target, loss, data)
    selection = found.scores().select({"weight": [chosen]})
    assert expected_removed({"own": found}, selection)["own"] == pytest.approx(expected)
    assert Masking(base, base, target, loss, {"own": data}).removed(selection)["own"] == pytest.approx(removed)


def test_what_cannot_be_contrasted_is_refused() -> None:
    found = {"own": of(1.0, 3.0), "other": of(2.0, 1.0)}
    with pytest.raises(SettingError, match="there is no function 'blur'"):
        signed_contrast(found, "blur")
    with pytest.raises(SettingError, match="the price of 'other' is -1"):
        signed_contrast(found, "own", collateral=-1)
    with pytest.raises(SettingError, match="'own' guards nothing"):
        signed_contrast(found, "own", collateral={"own": 1.0})
    with pytest.raises(SettingError, match="target must be better than base at 'own'"):
        signed_contrast({"own": of(1.0, 3.0, base=TARGET, target=BASE)}, "own")
    kernels = FilterAttributor(TARGET).attribute(BASE, TARGET, copying, [torch.ones(2).double()])
    with pytest.raises(SettingError, match="same units"):
        signed_contrast({"own": found["own"], "kernels": kernels}, "own")


def test_the_fewest_units_whose_parts_reach_a_share_are_taken() -> None:
    """Energies 1, 4, 9 and 16 of 30: the two largest channels are 25 / 30 of the function."""
    base, target = (linear(torch.diag(torch.full((4,), end)).tolist()) for end in (0.0, 1.0))
    found = {
        "own": of(1.0, 2.0, 3.0, 4.0, base=base, target=target),
        "other": of(0.0, 0.0, 0.0, 1.0, base=base, target=target),
    }
    parts = signed_contrast(found, "own", collateral=0)
    assert parts.top(until=16 / 30 - 1e-9)["weight"].tolist() == [False, False, False, True]
    assert parts.top(until=0.8)["weight"].tolist() == [False, False, True, True]
    assert expected_removed(found, parts.top(until=0.8))["own"] == pytest.approx(25 / 30)
    # a price puts channel 3 behind the others; the size goes by what is carried, the order by the score
    priced = signed_contrast(found, "own", collateral=0.4)
    assert priced.top(until=0.4, parts=parts)["weight"].tolist() == [False, True, True, False]
    with pytest.raises(SettingError, match=r"no more than the 4 units with a positive score come to, 1; got 1.01"):
        parts.top(until=1.01)
    for wrong in ({}, {"amount": 2, "until": 0.5}, {"amount": 2, "parts": parts}):
        with pytest.raises(SettingError, match="takes an amount, or until="):
            parts.top(**wrong)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="got 0"):
        parts.top(until=0)


def test_units_that_harm_are_never_taken_to_reach_a_share() -> None:
    target = linear([[1.0, 0.0], [0.0, -1.0]])
    found = {"own": of(2.0, 1.0, target=target)}  # parts 4 and -3 of a gain of 1
    parts = signed_contrast(found, "own")
    assert parts.top(until=3.99).count == 1
    with pytest.raises(SettingError, match=r"the 1 units with a positive score come to, 4; got 4.5"):
        parts.top(until=4.5)
