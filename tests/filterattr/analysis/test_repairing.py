"""Repairs of networks whose answer is known on paper, the limit on what a skill may lose, and what is refused."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from filterattr import FilterAttribution, FilterAttributor, FilterAttrWarning, SettingError, blend
from filterattr.analysis import Masking, Repaired, repair
from filterattr.analysis.repairing import PRICES, RepairHistory
from tests.reliability.fingerprint import Fingerprint

Losses = Mapping[str, Callable[[nn.Module, Tensor], Tensor]]
ONE = [torch.ones(1, dtype=torch.float64)]
# what every weight of a network of four is to a skill and to an ability
WORTH = {"skill": [8.0, 1.0, 0.25, 0.75], "old": [1.0, 2.0, 1.0, 0.0]}


class Weights(nn.Module):
    """Four weights, of which each is a unit."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((4, 1), value, dtype=torch.float64))


def separate(worth: list[float], at: float) -> Callable[[nn.Module, Tensor], Tensor]:
    """A loss that is a sum over the weights: of each, its worth times the square of how far it is away."""
    return lambda model, _: (torch.tensor(worth).double() * (model.get_parameter("weight")[:, 0] - at).square()).sum()


BASE, TARGET = Weights(0.0), Weights(1.0)
LOSSES: Losses = {"skill": separate(WORTH["skill"], 1.0), "old": separate(WORTH["old"], 0.0)}


def attributed(losses: Losses, base: nn.Module = BASE) -> dict[str, FilterAttribution]:
    attributor = FilterAttributor(TARGET, unit="weight")
    return {name: attributor.attribute(base, TARGET, loss, ONE, n_steps=4) for name, loss in losses.items()}


def masking(losses: Losses) -> Masking:
    return Masking(TARGET, BASE, TARGET, losses, dict.fromkeys(losses, ONE))


def repaired(losses: Losses = LOSSES, **settings: Any) -> Repaired:
    return repair(masking(losses), attributed(losses), **{"keep": "skill", **settings})


def part(name: str, units: list[bool]) -> float:
    """Part of a function that some weights are worth."""
    return sum(itertools.compress(WORTH[name], units)) / sum(WORTH[name])


class TestClosedForms:
    @pytest.mark.parametrize("price", PRICES)
    @pytest.mark.parametrize("at_most", [0.02, 0.05, 0.3])
    def test_a_set_goes_back_as_far_as_the_skill_allows(self, price: float, at_most: float) -> None:
        result = repaired(prices=[price], at_most=at_most)
        units = [part("old", [k == u for k in range(4)]) > price * part("skill", [k == u for k in range(4)])
                 for u in range(4)]  # fmt: skip
        assert result.selection["weight"].flatten().tolist() == units
        # the skill falls with the square of the way, and the loss of the ability with that of what is left
        way = min(1.0, math.sqrt(0.97 * at_most / part("skill", units)))
        assert 1 - result.strength == pytest.approx(way, rel=1e-5)
        assert result.lost["skill"] == pytest.approx(part("skill", units) * way**2, rel=1e-5)
        assert result.recovered["old"] == pytest.approx(part("old", units) * (1 - (1 - way) ** 2), rel=1e-5)
        assert result.expected["old"] == pytest.approx(part("old", units) * way, rel=1e-5)
        assert result.expected["skill"] == pytest.approx(part("skill", units) * way, rel=1e-5)

    def test_the_price_that_recovers_most_is_taken(self) -> None:
        each = [repaired(prices=[price], at_most=0.1) for price in PRICES]
        together = repaired(at_most=0.1)
        best = max(each, key=lambda one: one.recovered["old"])
        assert together.recovered == best.recovered
        assert together.price == best.price
        assert len({one.recovered["old"] for one in each}) > 2  # there was something to choose
        assert together.history.steps == sum((one.history.steps for one in each), ())

    def test_the_best_set_of_all_is_found_where_units_go_all_the_way(self) -> None:
        for at_most in (0.06, 0.11, 0.16, 0.9):
            sets = [list(units) for units in itertools.product([False, True], repeat=4)]
            best = max(part("old", units) for units in sets if part("skill", units) <= at_most)
            result = repaired(partly=False, at_most=at_most)
            assert result.recovered["old"] == pytest.approx(best, rel=1e-12)
            assert result.strength == 0

    def test_an_ability_may_become_better_than_at_base(self) -> None:
        losses = {**LOSSES, "old": separate(WORTH["old"], 0.4)}  # half way back is better than all the way
        result = repaired(losses, at_most=0.3)
        assert result.recovered["old"] > 1.5

    def test_attributions_may_begin_near_target(self) -> None:
        near = Weights(0.9)
        result = repair(masking(LOSSES), attributed(LOSSES, near), "skill", prices=[1.0])
        assert result.selection["weight"].flatten().tolist() == [
            False,
            True,
            True,
            False,
        ]  # as from base: all is separate

    def test_the_checkpoint_does_what_was_measured(self) -> None:
        result = repaired()
        state = blend(TARGET, BASE, result.selection, result.strength)
        measured = masking(LOSSES)
        losses = measured.losses_of(state)
        shares = {name: measured.share_removed(name, losses[name]) for name in losses}
        assert shares == {**result.lost, **result.recovered}


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def distance(model: nn.Module, sample: tuple[Tensor, Tensor]) -> Tensor:
    value: Tensor = (model(sample[0]) - sample[1]).square().sum()
    return value


class TestLimit:
    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("partly", [True, False])
    def test_it_is_kept_for_every_skill(self, seed: int, partly: bool) -> None:
        base, target = network(2 * seed), network(2 * seed + 1)

        generator = torch.Generator().manual_seed(seed)
        data = {}
        for name, end in {"new": target, "newer": target, "old": base, "clean": base}.items():
            inputs = torch.randn(6, 4, generator=generator).double()
            data[name] = list(zip(inputs, end(inputs).detach(), strict=True))
        attributor = FilterAttributor(target, unit="kernel")
        found = {name: attributor.attribute(base, target, distance, data[name], n_steps=4) for name in data}
        measured = Masking(target, base, target, distance, data)
        before = Fingerprint(target), Fingerprint(base)
        result = repair(measured, found, ["new", "newer"], at_most=0.1, partly=partly)
        assert [each.changes(model) for each, model in zip(before, (target, base), strict=True)] == [[], []]
        assert 0.01 < max(result.lost.values()) <= 0.1
        assert min(result.recovered.values()) > 0
        assert {**result.lost, **result.recovered} == measured.removed(result.selection, result.strength)
        inside = [step for step in result.history.steps if step.most_lost <= 0.1]
        assert max(step.mean_recovered for step in inside) == sum(result.recovered.values()) / 2
        assert result.n_forwards == len(result.history.steps) * 24 <= 6 * 6 * 24
        if partly:  # near the limit, and not far inside of it
            assert max(result.lost.values()) > 0.085

    def test_nothing_is_put_back_where_nothing_can_be(self) -> None:
        losses = {"skill": separate([1.0] * 4, 1.0), "old": separate([1.0] * 4, 0.0)}
        with pytest.warns(FilterAttrWarning, match=r"nothing could be given back for at most 0\.05 of 'skill'"):
            result = repaired(losses, prices=[2.0])  # no unit is worth it
        assert result.selection.count == 0
        assert result.recovered == {"old": 0.0}
        assert result.expected == {"old": 0.0, "skill": 0.0}
        state = blend(TARGET, BASE, result.selection, result.strength)
        assert torch.equal(state["weight"], TARGET.weight)

    def test_networks_without_a_loss_are_outside(self) -> None:
        def breaking(model: nn.Module, x: Tensor) -> Tensor:
            value = separate([1.0] * 4, 1.0)(model, x)
            return value * float("nan") if 0.5 < value < 4 else value  # between the ends the loss is no number

        scores = attributed({"skill": separate([1.0] * 4, 1.0), "old": LOSSES["old"]})
        result = repair(masking({"skill": breaking, "old": LOSSES["old"]}), scores, "skill", prices=[0.0])
        assert 0 < result.lost["skill"] <= 0.05
        assert any(math.isnan(step.lost["skill"]) and step.most_lost == math.inf for step in result.history.steps)


class TestRefusals:
    def test_everything_wrong_is_said_at_once(self) -> None:
        found = attributed({**LOSSES, "new": LOSSES["old"]})
        with pytest.raises(SettingError) as error:
            repair(masking(LOSSES), found, ["old", "others"], at_most=1.5)
        for text in (
            "at_most is 1.5",
            "no attribution of the skill 'others'",
            "the ability 'skill' was not lost: its loss rose by -10 as attributed, and by -10 on the samples",
            "the skill 'old' was not gained: its loss fell by -4 as attributed, and by -4 on the samples of masking",
            "'new' has an attribution and no samples in masking",
        ):
            assert text in str(error.value)

    @pytest.mark.parametrize(
        ("settings", "text"),
        [
            ({"keep": []}, "there is no skill to keep"),
            ({"prices": []}, "there is no price"),
            ({"prices": [float("nan")]}, "a price is nan"),
            ({"prices": [-1.0]}, "a price is -1"),
            ({"at_most": 0.0}, "at_most is 0"),
        ],
    )
    def test_settings(self, settings: dict[str, Any], text: str) -> None:
        with pytest.raises(SettingError, match=text):
            repaired(**settings)

    def test_an_ability_is_needed(self) -> None:
        with pytest.raises(SettingError, match="no ability beside the skill"):
            repaired({"skill": LOSSES["skill"]})

    def test_units_must_be_the_same(self) -> None:
        found = attributed(LOSSES)
        found["old"] = FilterAttributor(TARGET, unit="layer").attribute(BASE, TARGET, LOSSES["old"], ONE)
        with pytest.raises(SettingError, match="same units"):
            repair(masking(LOSSES), found, "skill")


class TestLosses:
    def test_every_function_is_measured_by_its_own_loss(self) -> None:
        measured = masking(LOSSES)
        assert dict(measured.loss_base) == {"skill": 10.0, "old": 0.0}
        assert dict(measured.loss_target) == {"skill": 0.0, "old": 4.0}

    @pytest.mark.parametrize("names", [["skill"], ["skill", "old", "more"]])
    def test_a_mapping_names_them_all(self, names: list[str]) -> None:
        losses = dict.fromkeys(names, LOSSES["skill"])
        with pytest.raises(SettingError, match=f"'{({*names} ^ {*LOSSES}).pop()}' has none, or no samples"):
            Masking(TARGET, BASE, TARGET, losses, dict.fromkeys(LOSSES, ONE))


class TestResult:
    def test_it_shows_itself(self) -> None:
        result = repaired(prices=[1.0])
        assert repr(result) == "Repaired(2 of 4 units, 0.0485 of 'skill' lost, 0.643 of 'old' recovered)"
        shown = result._repr_html_()
        assert all(text in shown for text in ("2 of 4 units", "5.0% of a skill", "64.3%", "recovered", "lost"))

    def test_the_history_is_a_table_and_a_file(self) -> None:
        history = repaired(prices=[0.0, 1.0]).history
        frame = history.to_frame()
        assert list(frame.columns) == ["price", "count", "strength", "lost skill", "recovered old"]
        assert frame["price"].tolist() == [step.price for step in history.steps]
        assert RepairHistory.from_json(history.to_json()) == history

    def test_progress_counts_prices(self) -> None:
        seen: list[tuple[int, int | None]] = []
        repaired(prices=[0.0, 9.0], progress=lambda done, total: seen.append((done, total)))
        assert seen == [(1, 2), (2, 2)]
