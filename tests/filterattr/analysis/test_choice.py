"""The price and the size of a signed set, chosen by what masking it does."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from filterattr import FilterAttribution, FilterAttributor, FilterAttrWarning, SettingError, signed_contrast
from filterattr.analysis import PRICES, Chosen, Masking, Outputs, choose
from tests.reliability.fingerprint import Fingerprint


def answer(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) - x).square().sum()


def ends(n: int = 8) -> tuple[nn.Module, nn.Module]:
    """Base says nothing, target copies its input; unit i copies input i."""
    base, target = nn.Linear(n, n, bias=False).double(), nn.Linear(n, n, bias=False).double()
    with torch.no_grad():
        base.weight.zero_()
        target.weight.copy_(torch.eye(n))
    return base, target


def problem(**samples: list[float]) -> tuple[Outputs, dict[str, FilterAttribution], tuple[Any, ...]]:
    """The loss and the distances of unit i are the square of input i, and no unit depends on another one."""
    base, target = ends(len(next(iter(samples.values()))))
    data = {name: [torch.tensor(values).double().sqrt()] for name, values in samples.items()}
    attributor = FilterAttributor(target, unit="filter")
    attributions = {name: attributor.attribute(base, target, loss, some) for name, some in data.items()}
    return Outputs(target, base, target, answer, data), attributions, (target, base, target, loss, data)


def chosen_by_hand(
    data: dict[str, Tensor], of: str, until: float, largest: int, prices: tuple[float, ...]
) -> tuple[float, set[int]]:
    """Everything in closed form: shares of squares; no library."""
    parts = {name: values / values.sum() for name, values in data.items()}
    best: tuple[float, float, set[int]] | None = None
    for price in prices:
        score = parts[of] - price * sum(values for name, values in parts.items() if name != of)
        n_positive = int((score > 0).sum())
        most = min(largest, n_positive)
        if not most:
            continue
        for count in sorted({max(1, round(most * 2 ** (-step / 2))) for step in range(7)}):
            units = set(score.argsort(descending=True)[:count].tolist())
            if sum(parts[of][list(units)]) >= until:
                break
        else:
            continue
        places = list(units)
        # outputs are linear: a masked unit is all the way back, an unmasked one not at all
        worth = float(parts[of][places].sum() - sum(v[places].sum() for name, v in parts.items() if name != of))
        if best is None or worth > best[1]:
            best = price, worth, units
    assert best is not None
    return best[0], best[2]


SAMPLES = {
    "own": [8.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.5],
    "other": [0.5, 9.0, 0.5, 0.1, 0.2, 1.0, 2.0, 3.0],
    "clean": [0.1, 0.1, 2.0, 0.3, 0.1, 1.0, 1.0, 1.0],
}


def units_of(chosen: Chosen) -> set[int]:
    return set(chosen.selection["weight"].nonzero().flatten().tolist())


class TestAnswer:
    @pytest.mark.parametrize("until", [0.3, 0.4, 0.5])
    @pytest.mark.parametrize("by_loss", [True, False])
    def test_of_independent_units_is_that_of_the_closed_form(self, until: float, by_loss: bool) -> None:
        outputs, attributions, parts = problem(**SAMPLES)
        masking = Masking(*parts[:3], parts[3], {"own": parts[4]["own"]}) if by_loss else None
        chosen = choose(outputs, attributions, "own", masking=masking, until=until, amount=6)
        expected = chosen_by_hand(
            {name: torch.tensor(values).double() for name, values in SAMPLES.items()}, "own", until, 6, PRICES
        )
        assert (chosen.price, units_of(chosen)) == expected
        (row,) = (one for one in chosen.candidates.candidates if one.price == chosen.price)
        own = sum(SAMPLES["own"][unit] for unit in expected[1]) / sum(SAMPLES["own"])
        assert row.reverted == pytest.approx(own)
        assert row.moved["other"] == pytest.approx(
            sum(SAMPLES["other"][unit] for unit in expected[1]) / sum(SAMPLES["other"])
        )
        assert row.removed == pytest.approx(own) if by_loss else math.isnan(row.removed)
        assert chosen.selection == signed_contrast(attributions, "own", collateral=chosen.price).top(row.count)

    def test_prices_of_the_measure_decide_between_prices_of_the_score(self) -> None:
        outputs, attributions, _ = problem(**SAMPLES)
        free = choose(outputs, attributions, "own", until=0.5, amount=6, prices=(0.0, 2.0), collateral=0)
        guarded = choose(outputs, attributions, "own", until=0.5, amount=6, prices=(0.0, 2.0), collateral=4)
        moved = {
            name: outputs.moved(one.selection)["other"] for name, one in {"free": free, "guarded": guarded}.items()
        }
        assert moved["guarded"] < moved["free"]

    def test_says_when_no_set_is_enough_and_gives_the_nearest(self) -> None:
        outputs, attributions, _ = problem(**SAMPLES)
        with pytest.warns(FilterAttrWarning, match=r"no set of 2 units or fewer reverts 0\.99 of 'own'"):
            chosen = choose(outputs, attributions, "own", until=0.99, amount=2)
        best = max(chosen.candidates.candidates, key=lambda one: one.reverted)
        assert outputs.reverted(chosen.selection)["own"] == best.reverted
        assert not any(one.is_enough for one in chosen.candidates.candidates)

    def test_is_a_table(self) -> None:
        outputs, attributions, _ = problem(**SAMPLES)
        table = choose(outputs, attributions, "own", until=0.5, amount=6).candidates.to_frame()
        assert {"price", "count", "reverted", "moved other", "moved clean", "enough"} <= set(table.columns)

    def test_counts_its_forward_passes(self) -> None:
        outputs, attributions, _ = problem(**SAMPLES)
        calls = []
        model = outputs.model
        handle = model.register_forward_hook(lambda *_: calls.append(1))
        chosen = choose(outputs, attributions, "own", until=0.5, amount=6)
        handle.remove()
        assert len(calls) == chosen.n_forwards

    def test_leaves_the_network_as_it_is(self) -> None:
        outputs, attributions, _ = problem(**SAMPLES)
        before = Fingerprint(outputs.model)
        choose(outputs, attributions, "own", until=0.5, amount=6)
        assert not before.changes(outputs.model)


class TestMistakes:
    def test_are_gathered(self) -> None:
        outputs, attributions, parts = problem(**SAMPLES)
        masking = Masking(*parts[:3], parts[3], {"other": parts[4]["other"]})
        del attributions["clean"]
        with pytest.raises(SettingError) as error:
            choose(outputs, attributions, "own", masking=masking, until=1.5, amount=0, prices=())
        for part in ("'clean'", "masking has no samples of 'own'", "until is 1.5", "amount is 0", "there is no price"):
            assert part in str(error.value)

    def test_a_function_that_is_not_there(self) -> None:
        outputs, attributions, _ = problem(**SAMPLES)
        with pytest.raises(SettingError, match="there is no function 'rain'"):
            choose(outputs, attributions, "rain")

    def test_prices_that_leave_no_unit(self) -> None:
        outputs, attributions, _ = problem(own=[1.0, 2.0], other=[1.0, 2.0])
        with pytest.raises(SettingError, match="try lower prices"):
            choose(outputs, attributions, "own", prices=(8.0,))
