"""Curves and matrices of where the outputs go."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from filterattr import FilterAttributor, FilterScores, SettingError
from filterattr.analysis.output_tables import OutputCurve, OutputMatrix, output_curve, output_matrix
from filterattr.analysis.outputs import Outputs
from filterattr.analysis.rankings import weight_change


def answer(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


@pytest.fixture
def diagonal() -> tuple[Outputs, FilterScores]:
    """Output channel k is the square of input k; channels rank as they count."""
    base, target = (nn.Linear(4, 4, bias=False).double() for _ in range(2))
    with torch.no_grad():
        base.weight.zero_()
        target.weight.copy_(torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0])))
    data = {"own": [torch.tensor([1.0, 1, 1, 0]).double()], "other": [torch.tensor([0.0, 0, 1, 1]).double()]}
    return Outputs(base, base, target, answer, data), weight_change(FilterAttributor(base, unit="filter"), base, target)


def test_a_curve_measures_every_size(diagonal: tuple[Outputs, FilterScores]) -> None:
    outputs, scores = diagonal
    curve = output_curve(outputs, scores, "own", ranking="change", fractions=(0, 0.25, 0.5, 0.75, 1), progress=False)
    assert curve.counts == (0, 1, 2, 3, 4)
    assert [one.value for one in curve.reverted] == pytest.approx([0, 16 / 29, 25 / 29, 1, 1])
    assert [one.value for one in curve.moved["other"]] == pytest.approx([0, 0, 0, 4 / 5, 1])
    for place, selection in enumerate(scores.tops(curve.fractions)):
        assert curve.reverted[place].value == outputs.reverted(selection)["own"]
    assert curve.smallest(0.8) == 2
    assert curve.smallest(0.9) == 3
    assert curve.smallest(0.9, moved=0.1) is None
    assert curve.smallest(0.8, moved=0.1) == 2
    assert curve.smallest(1.01) is None
    rows = curve.rows()
    assert len(rows) == 10
    assert {(row["measure"], row["on"]) for row in rows} == {("reverted", "own"), ("moved", "other")}
    again = OutputCurve.from_json(curve.to_json())
    assert again.counts == curve.counts
    with pytest.raises(SettingError, match="got 'third'"):
        output_curve(outputs, scores, "third", ranking="change")
    with pytest.raises(SettingError, match="ascend"):
        output_curve(outputs, scores, "own", ranking="change", fractions=(0.5, 0.25))


def test_a_matrix_holds_every_set_against_every_function(diagonal: tuple[Outputs, FilterScores]) -> None:
    outputs, scores = diagonal
    sets = {"own": scores.select({"weight": [0, 1]}), "other": scores.select({"weight": [2, 3]})}
    matrix = output_matrix(outputs, sets)
    assert matrix.reverted["own"].value == pytest.approx(25 / 29)
    assert matrix.reverted["other"].value == 1.0
    assert matrix.moved["own"]["other"].value == 0.0
    assert matrix.moved["other"]["own"].value == pytest.approx(4 / 29)
    assert [row["measure"] for row in matrix.rows()] == ["reverted", "moved"] * 2
    assert OutputMatrix.from_json(matrix.to_json()).counts == {"own": 2, "other": 2}
    for wrong in ({}, {"third": sets["own"]}):
        with pytest.raises(SettingError, match="every set must belong to a function"):
            output_matrix(outputs, wrong)
