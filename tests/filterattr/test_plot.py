"""Pictures show what the results say."""

from __future__ import annotations

import pytest
import torch
from matplotlib.figure import Figure

from filterattr import FilterAttributor
from filterattr.analysis.evaluation import Masking, mask_curve, null_curve
from filterattr.display.plot import plot_layers, plot_masking, plot_path, short_name
from tests.networks import image, smooth_network, squared_sum


@pytest.fixture(scope="module")
def attribution():
    base, target = smooth_network(), smooth_network()
    return FilterAttributor(base).attribute(base, target, squared_sum, [image()])


def test_layers_are_bars_of_selected_shares(attribution) -> None:
    axis = Figure().subplots()
    selections = {"top": attribution.scores().top(0.25), "bottom": (-attribution.scores()).top(0.25)}
    plot_layers(selections, axis)
    heights = [bar.get_height() for bar in axis.patches]
    expected = [100 * float(selection[name].double().mean()) for selection in selections.values() for name in selection]
    assert heights == pytest.approx(expected, rel=1e-6)
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0", "2", "4", "6"]


def test_path_is_the_loss_relative_to_base(attribution) -> None:
    axis = Figure().subplots()
    plot_path({"task": attribution}, axis)
    (line,) = axis.lines
    assert list(line.get_xdata()) == list(attribution.path_places)
    assert line.get_ydata()[0] == 1
    assert line.get_ydata()[-1] == pytest.approx(attribution.loss_target / attribution.loss_base)


def test_masking_is_a_curve_with_intervals_above_bands_of_the_nulls(attribution) -> None:
    base, target = smooth_network(), smooth_network()
    masking = Masking(base, base, target, squared_sum, {"task": [image(), image() / 2]})
    scores = attribution.scores()
    curve = mask_curve(masking, scores, ranking="found", fractions=(0, 0.1, 0.5))
    generator = torch.Generator().manual_seed(0)
    null = null_curve(masking, scores, generator, ranking="found", null="random", fractions=(0.1, 0.5), draws=5)
    axis = Figure().subplots()
    plot_masking(curve, {"random": null}, "task", axis)
    means, found = axis.lines[:2]
    assert list(means.get_ydata()) == [band.mean for band in null.bands("task")]
    assert list(found.get_xdata()) == [10, 50], "a logarithmic axis has no place for 0"
    assert list(found.get_ydata()) == [share.value for share in curve.shares["task"][1:]]
    assert axis.get_ylabel() == "removed of task"
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["random", "found"]


def test_names_are_shortened() -> None:
    assert short_name("body.0.conv1.weight") == "body.0.conv1"
    assert short_name("vector") == "vector"
