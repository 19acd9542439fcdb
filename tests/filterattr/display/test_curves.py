"""Pictures of the evaluation show the numbers of the results."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from filterattr import FilterAttributor, SettingError
from filterattr.analysis import (
    Estimate,
    Masking,
    Signals,
    Stability,
    compare_rankings,
    confusion,
    largest_wins,
    magnitude,
    mask_curve,
    modulation,
    null_curve,
    specificity,
    weight_change,
)
from filterattr.display import (
    plot_confusion,
    plot_curves,
    plot_modulation,
    plot_rankings,
    plot_specificity,
    plot_stability,
)


def copying(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) - x).square().sum()


@pytest.fixture(scope="module")
def masking() -> Masking:
    base, target = nn.Linear(3, 3, bias=False).double(), nn.Linear(3, 3, bias=False).double()
    with torch.no_grad():
        base.weight.copy_(0.1 * torch.ones(3, 3))
        target.weight.copy_(torch.diag(torch.tensor([1.0, 0.9, 0.8])))
    rows = torch.eye(3).double()
    data = {name: [rows[[k]] * (1 + j / 4) for j in range(5)] for k, name in enumerate(("first", "second", "third"))}
    return Masking(base, base, target, copying, data)


@pytest.fixture(scope="module")
def scores(masking):
    return weight_change(FilterAttributor(masking.model), masking.base, masking.target)


def test_curves_show_shares_over_the_bands_of_their_nulls(masking, scores) -> None:
    axis = Figure().subplots()
    curve = mask_curve(masking, scores, ranking="change")
    generator = torch.Generator().manual_seed(0)
    null = null_curve(masking, scores, generator, ranking="change", fractions=(0.2, 0.5), draws=4)
    plot_curves({"change": curve}, "first", axis, [null])
    mean, line = axis.lines[:2]
    assert list(line.get_ydata()) == [estimate.value for estimate in curve.shares["first"]]
    assert list(line.get_xdata()) == [100 * fraction for fraction in curve.fractions]
    assert list(mean.get_ydata()) == [band.mean for band in null.bands("first")]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["random (4)", "change"]
    graft = mask_curve(masking, scores, ranking="change", intervention="graft")
    with pytest.raises(SettingError, match="one intervention"):
        plot_curves({"change": graft}, "first", axis, [null])


def test_axes_reach_as_far_as_what_is_drawn(masking, scores) -> None:
    curve = mask_curve(masking, scores, ranking="change", fractions=(0, 0.2, 0.4))
    for values, (lowest, highest) in {
        (0.0, 0.01, 0.1): (0.0, 0.12),
        (0.0, 0.4, 0.9): (0.0, 0.92),
        (0.0, -0.3, 0.1): (-0.32, 0.12),
        (0.0, -7.0, 30.0): (-0.5, 1.5),
        (math.nan, math.nan, math.nan): (0.0, 0.05),
    }.items():
        axis = Figure().subplots()
        shares = tuple(Estimate(value, value - 0.02 * (value < 0), value + 0.02 * (value > 0)) for value in values)
        plot_curves({"change": replace(curve, shares={"first": shares})}, "first", axis)
        margin = 0.05 * (highest - lowest)
        assert axis.get_ylim() == pytest.approx((lowest - margin, highest + margin))
        assert axis.get_xlim()[1] == pytest.approx(44)
        assert [text.get_text() for text in axis.get_xticklabels()] == ["0", "20", "40"]


def test_matrices_show_numbers_and_frame_their_diagonal(masking, scores) -> None:
    axis = Figure().subplots()
    matrix = specificity(masking, {"second": scores.top(1), "first": scores.top(2)})
    plot_specificity(matrix, axis)
    shown = {(round(text.get_position()[0]), round(text.get_position()[1])): text.get_text() for text in axis.texts}
    assert shown[1, 0].startswith(f"{matrix.shares['second']['second'].value:.2f}\n[")
    assert [patch.get_xy() for patch in axis.patches] == [(0.5, -0.5), (-0.5, 0.5)]
    assert "not diagonal-dominant" in axis.get_title()


def test_modulation_has_one_line_a_function_that_target_has_learnt(masking, scores) -> None:
    axis = Figure().subplots()
    dial = modulation(masking, scores.top(1), function="first")
    dial = replace(dial, loss_base={**dial.loss_base, "third": 0.0})
    plot_modulation(dial, axis)
    assert list(axis.lines[0].get_ydata()) == [estimate.value for estimate in dial.shares["first"]]
    assert axis.get_legend().get_texts()[0].get_text() == "first (own)"
    assert len(axis.get_legend().get_texts()) == 2


def test_rankings_are_sorted_and_the_reference_has_its_own_colour(masking, scores) -> None:
    axis = Figure().subplots()
    other = magnitude(FilterAttributor(masking.model), masking.base)
    rankings = {"change": {"first": scores}, "magnitude": {"first": -other}}
    table = compare_rankings(masking, rankings, reference="change", fractions=(0.2,))
    plot_rankings(table, "first", 0.2, axis)
    values = [row.shares["first"].value for row in table.entries]
    dots = [line.get_xdata()[0] for line in axis.lines if line.get_marker() == "o" and line.get_mfc() != "none"]
    assert dots == sorted(values)
    with pytest.raises(SettingError, match="no rows of 'second'"):
        plot_rankings(table, "second", 0.2, axis)


def test_confusion_leaves_out_unsure_if_nobody_was() -> None:
    axis = Figure().subplots()
    values = {"a": 0.6, "b": 0.2}
    plot_confusion(confusion({"a": [Signals(values, values, values)] * 4}, largest_wins, method="overlap"), axis)
    assert [label.get_text() for label in axis.get_xticklabels()] == ["a"]
    assert [text.get_text() for text in axis.texts] == ["4"]
    assert axis.get_title().startswith("overlap: 100.0% right")
    tied = {"a": 0.5, "b": 0.5}
    axis = Figure().subplots()
    plot_confusion(confusion({"a": [Signals(tied, tied, tied)]}, largest_wins, method="overlap"), axis)
    assert [label.get_text() for label in axis.get_xticklabels()] == ["a", "unsure"]


def test_stability_is_drawn_against_the_number_of_samples() -> None:
    axis = Figure().subplots()
    rising = (Estimate(0.3, 0.2, 0.4), Estimate(0.6, math.nan, math.nan))
    plot_stability(Stability(100, 4, 5, 10, (1,), (1.0,), (1, 2), rising, rising), axis)
    assert list(axis.lines[0].get_ydata()) == [0.3, 0.6]
    assert axis.lines[2].get_ydata()[0] == 0.05
