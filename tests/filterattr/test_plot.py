"""Pictures show what the results say."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from filterattr import FilterAttributor
from filterattr.display.plot import plot_layers, plot_path, short_name
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


def test_names_are_shortened() -> None:
    assert short_name("body.0.conv1.weight") == "body.0.conv1"
    assert short_name("vector") == "vector"
