"""Sets that are searched for: masks, their derivatives, the search, and the best of all sets beside it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from filterattr import (
    FilterAttributor,
    FilterAttrWarning,
    FilterScores,
    Group,
    LossError,
    NonFiniteError,
    SettingError,
    StorageError,
    signed_contrast,
)
from filterattr.analysis import Outputs, magnitude, random_ranking
from filterattr.analysis.masks import MaskObjective
from filterattr.analysis.set_search import SearchHistory, search
from filterattr.benchmarks import Judge, families, loss, plant
from tests.reference import slow_outputs, slow_search
from tests.reliability.fingerprint import Fingerprint


def answer(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


def network(seed: int, width: int = 6) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 4, bias=False)).double()


def inputs(n: int = 6) -> dict[str, list[Tensor]]:
    """The functions see different directions of the input."""
    generator = torch.Generator().manual_seed(0)
    seen = {"own": [1.0, 1, 0, 0], "other": [0.0, 0, 1, 0.5], "clean": [0.0, 0, 0, 1]}
    return {
        name: [torch.tensor(one).double() * torch.randn(4, generator=generator).double() for _ in range(n)]
        for name, one in seen.items()
    }


def pair(seed: int = 0, unit: Any = "filter", **settings: Any) -> tuple[Outputs, FilterScores]:
    base, target = network(2 * seed), network(2 * seed + 1)
    outputs = Outputs(base, base, target, answer, inputs(), **settings)
    return outputs, magnitude(FilterAttributor(base, unit=unit, select=("*.weight",)), target)


GROUPS = {"": Group({"0.weight": "o i -> o", "2.weight": "o i -> i"})}  # a hidden unit: its row and its column


class TestMasks:
    @pytest.mark.parametrize("unit", ["filter", "kernel", "weight", GROUPS], ids=str)
    @pytest.mark.parametrize("keep", [True, False])
    def test_derivatives_are_those_of_differences(self, unit: Any, keep: bool) -> None:
        outputs, scores = pair(unit=unit, keep=keep)
        objective = MaskObjective(outputs, scores, "own", {"other": 0.7, "clean": 2.0})
        mask = torch.rand(scores.n_units, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        worth, gradient = objective.derivatives(mask, objective.everything)
        assert worth.objective == pytest.approx(objective.worth(mask).objective, rel=1e-12)
        for place in range(0, len(mask), max(1, len(mask) // 7)):
            step = torch.zeros_like(mask).index_fill_(0, torch.tensor([place]), 1e-5)
            ends = [objective.worth(mask + sign * step).objective for sign in (1, -1)]
            assert gradient[place].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-8)

    def test_a_mask_is_worth_what_the_measures_say(self) -> None:
        outputs, scores = pair()
        chosen = scores.top(4)
        worth = MaskObjective(outputs, scores, "own", {"other": 0.5}).worth(chosen.flat().double())
        assert worth.reverted == pytest.approx(outputs.reverted(chosen)["own"], rel=1e-12)
        assert worth.moved == pytest.approx({"other": outputs.moved(chosen)["other"]}, rel=1e-12)
        assert worth.objective == pytest.approx(worth.reverted - 0.5 * worth.moved["other"], rel=1e-12)

    def test_ends_of_a_mask_are_exact(self) -> None:
        base, target = network(0).float(), network(1).float()
        data = {"own": [torch.ones(4)]}
        outputs = Outputs(base, base, target, answer, data)
        scores = magnitude(FilterAttributor(base, unit="filter"), target)
        objective = MaskObjective(outputs, scores, "own")
        mask = torch.rand(scores.n_units, dtype=torch.float64)
        mask[::3], mask[1::3] = 1.0, 0.0
        found = objective.weights(mask)
        for name, part in scores._split(mask).items():
            ends = base.get_parameter(name), target.get_parameter(name)
            assert torch.equal(found[name][part == 1], ends[0][part == 1])
            assert torch.equal(found[name][part == 0], ends[1][part == 0])
            inside = (part > 0) & (part < 1)
            shape = [-1] + [1] * (ends[0].ndim - 1)
            mixed = part[inside].reshape(shape) * ends[0][inside] + (1 - part[inside].reshape(shape)) * ends[1][inside]
            torch.testing.assert_close(found[name][inside].double(), mixed.double(), rtol=1e-5, atol=1e-7)

    def test_tied_weights_move_together(self) -> None:
        def build(seed: int) -> nn.Module:
            torch.manual_seed(seed)
            layers = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 4, bias=False)).double()
            layers[2].weight = layers[0].weight
            return layers

        base, target = build(0), build(1)
        outputs = Outputs(base, base, target, answer, inputs())
        scores = magnitude(FilterAttributor(base, unit="filter"), target)
        objective = MaskObjective(outputs, scores, "own")
        mask = torch.full((4,), 0.3, dtype=torch.float64)
        _, gradient = objective.derivatives(mask, objective.everything)
        step = torch.tensor([0, 1e-5, 0, 0]).double()
        expected = (objective.worth(mask + step).objective - objective.worth(mask - step).objective) / 2e-5
        assert gradient[1].item() == pytest.approx(expected, rel=1e-5)

    def test_what_cannot_be_is_told(self) -> None:
        outputs, scores = pair()
        with pytest.raises(SettingError, match=r"there is no function 'third'"):
            MaskObjective(outputs, scores, "third")
        with pytest.raises(SettingError, match="the price of 'clean' is -1"):
            MaskObjective(outputs, scores, "own", {"clean": -1})
        base = network(0)
        same = Outputs(base, base, base, answer, inputs())
        with pytest.raises(SettingError, match="nothing to revert"):
            MaskObjective(same, scores, "own")
        detached = Outputs(base, base, network(1), lambda model, x: model(x).detach(), inputs())
        with pytest.raises(LossError, match="have derivatives"):
            search(detached, scores, "own", amount=3)

    def test_a_guard_on_which_both_ends_agree_costs_nothing(self) -> None:
        base, target = network(0), network(1)
        data = {"own": inputs()["own"], "nothing": [torch.zeros(4).double()]}
        for one in (base, target):
            with torch.no_grad():
                one[0].bias.zero_()
        objective = MaskObjective(Outputs(base, base, target, answer, data), pair()[1], "own", 1.0)
        assert objective.prices == {}

    def test_derivatives_that_are_no_numbers_are_told(self) -> None:
        base, target = network(0), network(1)
        outputs = Outputs(base, base, target, lambda model, x: model(x) + (0 * model(x)).abs().sqrt(), inputs())
        with pytest.raises(NonFiniteError, match="breaks the network"):
            search(outputs, pair()[1], "own", amount=2)


class TestAgainstAllSets:
    def test_the_best_of_all_sets_is_found_or_nearly(self) -> None:
        """10 rows, 3 of them: 120 sets of every network."""
        ranks, gaps = [], []
        for seed in range(6):
            outputs, scores = pair(seed)
            ends = network(2 * seed), network(2 * seed + 1)
            prices = {"other": 1.0, "clean": 1.0}
            rows = [(name, row) for name, part in scores.items() for row in range(len(part))]
            every = slow_search.best_of_all(*ends, inputs(), "own", prices, slow_outputs.squared, rows, 3)
            chance = random_ranking(scores, torch.Generator().manual_seed(seed))
            found = search(outputs, chance, "own", amount=3, progress=False)
            worth = found.reverted - sum(found.moved.values())
            chosen = {
                (name, row) for name, part in found.selection.items() for row in part.nonzero().flatten().tolist()
            }
            rank = next(place for place, (_, one) in enumerate(every) if set(one) == chosen)
            assert worth == pytest.approx(every[rank][0], rel=1e-9)
            ranks.append(rank)
            gaps.append(every[0][0] - worth)
        # nothing was learnt here: the functions of random networks are as entangled as can be
        assert sum(rank == 0 for rank in ranks) >= 2, ranks
        assert max(ranks) <= 5, ranks
        assert float(np.mean(gaps)) < 0.15, gaps


class TestSearch:
    def test_a_set_is_better_than_that_of_the_scores(self) -> None:
        outputs, scores = pair()
        found = search(outputs, scores, "own", amount=4, progress=False)
        first = found.history.steps[0]
        assert (first.phase, first.is_look) == ("start", True)
        assert found.selection.count == 4
        assert found.scores.top(4) == found.selection
        assert found.reverted - sum(found.moved.values()) > first.objective
        assert outputs.reverted(found.selection)["own"] == pytest.approx(found.reverted, rel=1e-12)
        assert outputs.moved(found.selection)["clean"] == pytest.approx(found.moved["clean"], rel=1e-12)

    def test_scores_that_are_0_are_a_start_like_any_other(self) -> None:
        outputs, scores = pair()
        nothing = scores * 0.0
        assert search(outputs, nothing, "own", amount=3, progress=False).selection.count == 3
        with pytest.raises(SettingError, match="are NaN"):
            search(outputs, nothing * float("nan"), "own", amount=3)

    def test_passes_are_counted(self) -> None:
        calls = {True: 0, False: 0}

        def counting(model: nn.Module, x: Tensor) -> Tensor:
            calls[torch.is_grad_enabled()] += 1
            return model(x)

        base, target = network(0), network(1)
        outputs = Outputs(base, base, target, counting, inputs())
        calls[False] = 0
        found = search(outputs, pair()[1], "own", amount=3, greedy_steps=3, steps=5, batch=2, progress=False)
        assert calls == {True: found.n_passes, False: found.n_forwards}
        assert found.n_passes == (3 + 5) * 2 * 3
        assert sum(not step.is_look for step in found.history.steps) == 8
        assert SearchHistory.from_json(found.history.to_json()) == found.history
        assert len(found.history.rows()) == len(found.history.steps)

    def test_batches_take_every_sample_before_any_comes_again(self) -> None:
        seen: list[float] = []

        def watching(model: nn.Module, x: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                seen.append(float(x[0]))
            return model(x)

        base, target = network(0), network(1)
        data = {"own": [torch.full((4,), float(k)).double() for k in range(6)]}
        outputs = Outputs(base, base, target, watching, data)
        search(outputs, pair()[1], "own", amount=3, greedy_steps=6, steps=0, batch=2, progress=False)
        assert sorted(seen[:6]) == sorted(seen[6:]) == [0, 1, 2, 3, 4, 5]
        assert seen[:6] != seen[6:]

    def test_the_caller_loses_nothing(self) -> None:
        outputs, scores = pair()
        before, state = Fingerprint(outputs.model), torch.get_rng_state()
        with torch.inference_mode():
            search(outputs, scores, "own", amount=3, progress=False)
            assert torch.is_inference_mode_enabled()
        assert not before.changes(outputs.model)
        assert torch.equal(torch.get_rng_state(), state)

        def failing(model: nn.Module, x: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                raise KeyboardInterrupt
            return model(x)

        broken = Outputs(outputs.model, outputs.base, outputs.target, failing, inputs())
        with torch.no_grad(), pytest.raises(KeyboardInterrupt):
            search(broken, scores, "own", amount=3, progress=False)
        assert torch.is_grad_enabled()
        assert not before.changes(outputs.model)

    @pytest.mark.parametrize("until", [None, 0.3])
    def test_an_interrupted_search_goes_on_to_the_same_bits(self, until: float | None, tmp_path: Path) -> None:
        outputs, scores = pair()
        settings: dict[str, Any] = {"amount": 8, "until": until, "batch": 4, "greedy_steps": 4, "steps": 8}
        straight = search(outputs, scores, "own", **settings, progress=False)
        path = tmp_path / "search.safetensors"
        n_done = straight.n_passes // (4 * 3)
        for last in (2, 5, n_done - 1):

            def stop(done: int, _: int | None, last: int = last) -> None:
                if done == last:
                    raise KeyboardInterrupt

            with contextlib.suppress(KeyboardInterrupt):
                search(outputs, scores, "own", **settings, checkpoint=path, progress=stop)
        resumed = search(outputs, scores, "own", **settings, checkpoint=path, progress=False)
        assert resumed.selection == straight.selection
        assert torch.equal(resumed.scores.flat(), straight.scores.flat())
        assert resumed.history == straight.history
        assert (resumed.n_passes, resumed.n_forwards) == (straight.n_passes, straight.n_forwards)
        with pytest.raises(StorageError, match="belongs to another job: it has seed 0, here 1"):
            search(outputs, scores, "own", **settings, seed=1, checkpoint=path)
        other = Outputs(outputs.model, outputs.base, outputs.target, lambda m, x: 2 * m(x), inputs())
        with pytest.raises(StorageError, match="another outputs"):
            search(other, scores, "own", **settings, checkpoint=path)

    def test_the_smallest_set_that_reverts_enough(self) -> None:
        """Channel k of the output is worth k squared of 204, so that the two highest revert 0.55 and three 0.73."""
        base, target = (nn.Linear(8, 8, bias=False).double() for _ in range(2))
        with torch.no_grad():
            base.weight.zero_()
            target.weight.copy_(torch.eye(8))
        data = {"own": [torch.arange(1.0, 9.0).double()]}
        outputs = Outputs(base, base, target, answer, data)
        scores = magnitude(FilterAttributor(base, unit="filter"), target)
        for until, count in ((0.3, 1), (0.54, 2), (0.7, 3), (0.99, 7)):
            found = search(outputs, scores, "own", amount=8, until=until, progress=False)
            assert found.selection["weight"].nonzero().flatten().tolist() == list(range(8 - count, 8))
            assert found.reverted >= until
        with pytest.warns(FilterAttrWarning, match=r"no set of 2 units was found that reverts 0.9 of 'own'"):
            found = search(outputs, scores, "own", amount=2, until=0.9, progress=False)
        assert found.selection.count == 2

    @pytest.mark.parametrize(
        ("wrong", "told"),
        [
            ({"amount": 0}, "no unit at all"),
            ({"amount": 1, "batch": 0, "rate": -1}, "batch is 0; rate is -1"),
            ({"amount": 1, "until": 1.5}, "until is 1.5"),
        ],
    )
    def test_numbers_that_make_no_sense_are_told_before_any_pass(self, wrong: dict[str, Any], told: str) -> None:
        outputs, scores = pair()
        with pytest.raises(SettingError, match=told):
            search(outputs, scores, "own", **wrong)


@pytest.mark.filterwarnings("ignore::filterattr.errors.FilterAttrWarning")
def test_a_search_from_any_start_reverts_a_planted_function_on_other_samples() -> None:
    gains = []
    for seed in range(2):
        planted = plant(families()["LoRA"], seed)
        attributor, ends = planted.attributor, (planted.base, planted.target)
        found = {
            name: attributor.attribute(*ends, loss, planted.search[name], n_steps=8, progress=False)
            for name in ("A", "B")
        }
        outputs = Outputs(
            attributor.model, *ends, lambda model, x: model(x[0]), planted.search, distance="js", per_row=True
        )
        judge = Judge.of(planted)
        for name, other in (("A", "B"), ("B", "A")):
            scores = signed_contrast(found, name)
            start = random_ranking(scores, torch.Generator().manual_seed(seed))
            count = planted.carriers[name].count
            searched = search(outputs, start, name, amount=count, collateral={other: 1.0}, progress=False).selection
            # base and target agree on general inputs, which leaves no scale to be moved on
            worth = [
                judge.outputs.reverted(chosen)[name] - judge.outputs.moved(chosen)[other]
                for chosen in (searched, scores.top(count), start.top(count))
            ]
            gains.append((worth[0] - worth[1], worth[0] - worth[2]))
    assert np.mean([over_signed for over_signed, _ in gains]) > -0.1, gains
    assert min(over_start for _, over_start in gains) > 0.3, gains
