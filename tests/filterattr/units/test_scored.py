"""What is kept of scores, and mappings that nobody can change."""

from __future__ import annotations

import pytest
import torch

from filterattr.units.scored import ReadOnly, ScoredParameter, kept_as, kept_by
from filterattr.units.unit import Unit


@pytest.mark.parametrize(
    ("pattern", "group", "twins"), [("... -> ...", None, True), ("o i -> o", None, False), ("... -> ...", "g", False)]
)
def test_numbers_that_are_equal_are_kept_once(pattern: str, group: str | None, twins: bool) -> None:
    scored = ScoredParameter(Unit(pattern), (3, 2), group)
    for statistic, reduction, has_twin in (
        ("means", "sum_of_abs", False),
        ("means", "abs_of_sum", True),
        ("means", "sum", False),
        ("mean_squares", "sum_of_abs", False),
        ("mean_squares", "sum", True),
    ):
        assert kept_as(statistic, reduction, scored) == ("sum_of_abs" if has_twin and twins else reduction)


def test_a_mapping_that_holds_another_one_holds_its_content() -> None:
    values = {"w": torch.ones(2)}
    held = ReadOnly(ReadOnly(values))
    assert held.kept["w"] is values["w"]
    assert kept_by(held) is held.kept
    assert kept_by(values) is values
    assert repr(held) == repr(values)
