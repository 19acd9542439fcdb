"""Repairs against simpler ways, on a network whose answers are known on paper and on the pairs of the command."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from filterattr import FilterAttributor, SettingError, swapped
from filterattr.benchmarks import SKILL, ForgettingPair, RepairRow, forgetting_pairs, repair_contest, run_repairs
from filterattr.benchmarks.contest import repair_table
from filterattr.benchmarks.repair import main

SKILL_WORTH, ABILITY_WORTH = torch.tensor([6.0, 2.0, 1.0, 1.0]), torch.tensor([1.0, 1.0, 5.0, 3.0])


class Weights(nn.Module):
    """Four weights: those of target are 1, those of base 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 1))


def apart(said: Tensor, other: Tensor) -> Tensor:
    return (said - other).square().mean(0).sum()


@pytest.fixture(scope="module")
def pair() -> ForgettingPair:
    """Losses are sums over the weights; a sample is a factor of its loss, and how far the weights should be."""
    model = Weights()

    def output(model: nn.Module, sample: tuple[Tensor, Tensor, float]) -> Tensor:
        scales, worth, _ = sample
        return (scales[:, None] * worth).sqrt() * model.get_parameter("weight")[:, 0]

    def losses(model: nn.Module, sample: tuple[Tensor, Tensor, float]) -> Tensor:
        scales, worth, goal = sample
        return scales * (worth * (model.get_parameter("weight")[:, 0] - goal).square()).sum()

    def samples(seed: int) -> dict[str, Any]:
        scales = torch.rand(20, generator=torch.Generator().manual_seed(seed)) + 0.5
        return {SKILL: [(scales, SKILL_WORTH, 1.0)], "old": [(scales, ABILITY_WORTH, 0.0)]}

    ends = {"weight": torch.zeros(4, 1)}, {"weight": torch.ones(4, 1)}
    attributor = FilterAttributor(model, unit="weight")
    return ForgettingPair(attributor, *ends, losses, output, apart, samples(0), samples(1), samples(2))


@pytest.fixture(scope="module")
def rows(pair: ForgettingPair) -> dict[str, RepairRow]:
    return {row.method: row for row in repair_contest("by hand", pair, at_most=0.05, draws=2)}


def test_interpolation_goes_as_far_as_the_skill_allows(rows: dict[str, RepairRow]) -> None:
    row = rows["interpolation of all weights"]
    way = (0.97 * 0.05) ** 0.5
    assert row.way == pytest.approx(way, rel=1e-4)
    assert row.lost == pytest.approx(way**2, rel=1e-4)  # the shares do not depend on the samples
    assert row.recovered == pytest.approx(1 - (1 - way) ** 2, rel=1e-4)
    assert (row.recovered_low, row.recovered_high) == pytest.approx((row.recovered, row.recovered), rel=1e-4)
    assert row.units == 1.0


@pytest.mark.parametrize("method", ["repair, outputs near target", "repair, losses from base"])
def test_a_repair_takes_the_best_weights(rows: dict[str, RepairRow], method: str) -> None:
    row = rows[method]
    way = (0.97 * 0.05 / 0.2) ** 0.5  # of the last two weights: a fifth of the skill, and four fifths of the ability
    assert row.units == 0.5
    assert row.way == pytest.approx(way, rel=1e-4)
    assert row.recovered == pytest.approx(0.8 * (1 - (1 - way) ** 2), rel=1e-4)
    assert row.recovered > max(other.recovered for name, other in rows.items() if "repair" not in name) - 1e-6


def test_every_way_keeps_the_limit(rows: dict[str, RepairRow]) -> None:
    assert len(rows) == 8
    assert max(row.searched_lost for row in rows.values()) <= 0.05
    assert min(row.recovered for row in rows.values()) > 0.05
    assert all(row.n_networks > 0 for row in rows.values())


def test_the_table_and_the_file_hold_all_rows(pair: ForgettingPair, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "repair.csv"
    run_repairs({"by hand": lambda: pair}, path)
    with path.open() as stream:
        read = list(csv.DictReader(stream))
    assert [row["method"] for row in read][:3] == [
        "repair, outputs near target",
        "repair, losses from base",
        "interpolation of all weights",
    ]
    assert float(read[2]["recovered"]) == pytest.approx(0.392, abs=1e-3)
    printed = capsys.readouterr().out
    assert printed.count("\n") == len(read) + 2
    assert "| by hand | interpolation of all weights | 100% | 0.22 | 0.05 [0.05, 0.05] | 0.39 [0.39, 0.39] |" in printed


def test_a_row_of_the_table() -> None:
    row = RepairRow("a", "b", 0.5, 1.0, 0.0, 0.0, -0.25, -1.5, 0.0, 1.25, 0.004, 2.0, 3)
    assert repair_table([row]).splitlines()[2] == "| a | b | 50% | 1.00 | -0.25 [-1.50, 0.00] | 1.25 [0.00, 2.00] | 3 |"


@pytest.mark.parametrize("name", ["digits", "LoRA"])
def test_pairs_gain_a_skill_and_lose_an_ability(name: str) -> None:
    pytest.importorskip("sklearn")
    before = torch.get_rng_state()
    pair = forgetting_pairs()[name]()
    assert torch.equal(torch.get_rng_state(), before)
    changed = [key for key, value in pair.target.items() if not torch.equal(value, pair.base[key])]
    assert all(("up" in key or "down" in key) == (name == "LoRA") for key in changed)

    def loss(state: dict[str, Tensor], samples: Any) -> float:
        with torch.no_grad(), swapped(pair.attributor.model, state) as model:
            return float(np.mean(torch.cat([pair.losses(model, sample) for sample in samples]).numpy()))

    for part in (pair.search, pair.held_out):
        gains = {key: loss(pair.base, some) - loss(pair.target, some) for key, some in part.items()}
        assert gains[SKILL] > 0.3
        assert gains["upright digits"] < -0.1
    inputs = [torch.cat([batch[0] for batch in part[SKILL]]) for part in (pair.scored, pair.search, pair.held_out)]
    assert len({tuple(image.flatten().tolist()) for image in torch.cat(inputs)}) == sum(
        map(len, inputs)
    )  # no sample is in two parts


def test_pairs_without_their_data_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(SettingError, match="pip install scikit-learn"):
        forgetting_pairs()["digits"]()


@pytest.mark.parametrize("arguments", [["--pairs", "nothing"], ["--wrong"]])
def test_unknown_words_are_refused(arguments: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_the_command_runs_the_pairs_that_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: dict[str, Any] = {}

    def run(pairs: dict[str, Callable[[], ForgettingPair]], out: Path) -> None:
        ran.update(pairs=list(pairs), out=out)

    monkeypatch.setattr("filterattr.benchmarks.repair.run_repairs", run)
    assert main(["--pairs", "LoRA", "--out", str(tmp_path / "a.csv")]) == 0
    assert ran == {"pairs": ["LoRA"], "out": tmp_path / "a.csv"}
