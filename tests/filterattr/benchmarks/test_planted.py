"""Rankings against truth that is known."""

from __future__ import annotations

import csv
import dataclasses
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import LayerConductance

from filterattr import FilterAttrWarning, FilterScores, FilterSelection, SettingError, Unit, swapped
from filterattr.analysis.rankings import weight_change
from filterattr.benchmarks.families import families
from filterattr.benchmarks.planted import Row, main, run, table
from filterattr.benchmarks.planting import FUNCTIONS, GENERAL, PlantedPair, is_learnt, loss, plant
from filterattr.benchmarks.scoring import Judge, auroc, conductance, has_channels, rankings
from filterattr.units.unit import ScoredParameter

pytestmark = pytest.mark.filterwarnings("ignore::filterattr.errors.FilterAttrWarning")


@pytest.fixture(scope="module")
def pairs() -> list[PlantedPair]:
    return [plant(families()["LoRA"], seed) for seed in range(2)]


def test_signed_scores_find_the_carriers_and_the_size_of_the_change_does_not(pairs: list[PlantedPair]) -> None:
    found: dict[str, list[float]] = {"signed": [], "change": [], "random": []}
    for pair in pairs:
        for ranked in rankings(pair):
            truth = auroc(ranked.scores, pair.carriers[ranked.function])
            for key, name in {"signed": "signed, lambda 0", "change": "weight change", "random": "random"}.items():
                found[key] += [truth] if ranked.ranking == name else []
    assert all(len(values) == 4 for values in found.values())
    assert np.mean(found["signed"]) >= 0.95
    assert 0.35 < np.mean(found["change"]) < 0.65
    assert 0.3 < np.mean(found["random"]) < 0.7


def test_a_function_is_learnt_by_its_carriers_and_masking_them_takes_it_away(pairs: list[PlantedPair]) -> None:
    reverted, moved = [], []
    for pair in pairs:
        losses = {}
        for role in ("base", "target"):
            with torch.no_grad(), swapped(pair.attributor.model, getattr(pair, role)) as model:
                losses[role] = {name: loss(model, batches[0]).item() for name, batches in pair.held_out.items()}
        outputs = Judge.of(pair).outputs
        for name, other in (FUNCTIONS, FUNCTIONS[::-1]):
            assert losses["target"][name] < losses["base"][name]
            reverted.append(outputs.reverted(pair.carriers[name])[name])
            moved.append(outputs.moved(pair.carriers[name])[other])
        assert losses["base"][GENERAL] < 0.2
        assert losses["target"][GENERAL] < 0.2
    assert np.mean(reverted) > 0.5  # the drift comes after the training, and takes some of it along
    assert np.mean(moved) < 0.3


def test_everything_else_drifts_as_far_per_weight(pairs: list[PlantedPair]) -> None:
    for pair in pairs:
        change = weight_change(pair.attributor, pair.base, pair.target).flat()
        carriers = (pair.carriers["A"] | pair.carriers["B"]).flat()
        assert bool((change > 0).all())
        assert change[~carriers].mean() == pytest.approx(float(change[carriers].mean()), rel=0.25)
        assert change[~carriers].max() <= change[carriers].max() * 2
        # what is no part of an adapter stays
        assert all(torch.equal(pair.base[name], pair.target[name]) for name in pair.base if "layer" in name)


def test_a_pair_depends_on_its_seed_alone(pairs: list[PlantedPair]) -> None:
    state = torch.get_rng_state()
    again = plant(families()["LoRA"], 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(pairs[0].target[name], value) for name, value in again.target.items())
    assert again.carriers["A"] == pairs[0].carriers["A"] != pairs[1].carriers["A"]


def test_carriers_overlap_or_share_a_layer_where_they_should() -> None:
    quick = {"n_search": 1, "n_held_out": 1}
    overlapping = plant(families()["CNN, overlapping"], 0, **quick).carriers
    assert (overlapping["A"] & overlapping["B"]).count == overlapping["A"].count // 2
    layer = plant(families()["CNN, one layer"], 0, **quick).carriers
    (used,) = {name for chosen in layer.values() for name, count in chosen.per_layer().items() if count}
    assert layer["A"].per_layer()[used] == layer["B"].per_layer()[used] == layer["A"].count
    assert (layer["A"] & layer["B"]).count == 0


def test_auroc_is_the_share_of_pairs_in_the_right_order() -> None:
    like = {"w": ScoredParameter(Unit("... -> ..."), (40,))}
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(8, (40,), generator=generator).double()  # many ties
    inside = torch.rand(40, generator=generator) < 0.3
    right = [(a > b) + (a == b) / 2 for a, b in product(values[inside].tolist(), values[~inside].tolist())]
    found = auroc(FilterScores({"w": values}, like), FilterSelection({"w": inside}, like))
    assert found == pytest.approx(sum(right) / len(right))


def test_the_command_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "planted.csv"
    assert main(["--families", "LoRA", "--seeds", "1", "--out", str(path)]) == 0
    printed = capsys.readouterr().out
    with path.open() as file:
        rows = list(csv.DictReader(file))
    change = [row for row in rows if row["ranking"] == "weight change"]
    assert [(row["family"], row["seed"], row["function"], row["n_passes"]) for row in change] == [
        ("LoRA", "0", "A", "0"),
        ("LoRA", "0", "B", "0"),
    ]
    mean = sum(float(row["auroc"]) for row in change) / 2
    assert f"| weight change | {mean:.2f}".replace("| 0.", "| .") in printed
    with pytest.raises(SettingError, match="got 'GAN'"):
        run(["GAN"], [0])


def test_a_broken_network_does_not_drown_the_others_in_the_table() -> None:
    (row,) = [one for one in run(["LoRA"], [0], progress=False) if one.ranking == "random" and one.function == "A"]
    broken = row._replace(reverted=-40.0, moved=90.0)
    assert "| .00 | 1.00 | 0 |" in table([broken])


def test_a_pair_that_lost_a_function_is_left_out_and_named(pairs: list[PlantedPair], monkeypatch: Any) -> None:
    lost = dataclasses.replace(pairs[0], target=pairs[0].base)
    assert is_learnt(pairs[0])
    assert not is_learnt(lost)
    monkeypatch.setattr("filterattr.benchmarks.planted.plant", lambda family, seed: lost)
    with pytest.warns(FilterAttrWarning, match="left out, as the drift took a function away from them: 'LoRA 3'"):
        assert run(["LoRA"], [3], progress=False) == []


def test_the_table_leaves_a_cell_empty_where_a_ranking_does_not_apply() -> None:
    rows = [
        Row("CNN", 0, "A", "Captum", 0.5, 0.25, 0.125, 0.5, 8),
        Row("LSTM", 0, "A", "other", 0.75, 1.0, 1.0, 0.0, 8),
    ]
    lines = table(rows).splitlines()
    assert lines[2] == "| Captum | .50 |  | .25 | .12 | .50 | 8 |"
    assert lines[3] == "| other |  | .75 | 1.00 | 1.00 | .00 | 8 |"


def test_the_price_is_chosen_for_each_pair_and_captum_scores_channels() -> None:
    pair = plant(families()["CNN"], 0, n_search=4, n_held_out=8)
    assert has_channels(pair)
    names = {ranked.ranking for ranked in rankings(pair)}
    assert {"signed, price chosen", "Captum, conductance of channels"} <= names
    scores = conductance(pair, pair.search["A"])
    x, y = (torch.cat(parts) for parts in zip(*pair.search["A"], strict=True))
    with swapped(pair.attributor.model, pair.target) as model:
        layer = model.get_submodule("2.conv")
        method = LayerConductance(
            lambda inputs, classes: torch.nn.functional.cross_entropy(model(inputs), classes, reduction="none"), layer
        )
        by_captum = method.attribute(x, torch.zeros_like(x), additional_forward_args=(y,), n_steps=8)
    torch.testing.assert_close(scores["2.conv.weight"], by_captum.detach().sum((0, 2, 3)).abs().double())
