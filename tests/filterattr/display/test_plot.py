"""Pictures show what the results say."""

from __future__ import annotations

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from filterattr import FilterAttributor
from filterattr.display import join_layers, plot_layers, plot_path, plot_shares, short_name, short_names
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


def test_names_of_a_deep_network_lose_what_they_share_and_stay_apart() -> None:
    names = [
        f"model.encoder.layers.{layer}.self_attention.projection.{part}.weight" for layer in (0, 11) for part in "qk"
    ]
    assert short_names(names, width=40) == [name.removeprefix("model.encoder.layers.")[:-7] for name in names]
    short = short_names(names, width=16)
    assert len(set(short)) == 4
    assert all(len(name) <= 16 and "…" in name for name in short)
    assert len(set(short_names(names, width=4))) == 4, "names that would become equal are not shortened"
    assert short_names(["only.one.weight"]) == ["only.one"]


@pytest.mark.parametrize(
    ("names", "blocks"),
    [
        ([f"layer.{index}.{part}.weight" for index in range(24) for part in ("q", "k", "v", "o")], 24),
        ([f"body.{index}.weight" for index in range(300)], 60),
        ([f"body.{index}.weight" for index in range(60)], 60),
        ([f"net.{index}.conv.weight" for index in range(61)], 31),
    ],
)
def test_hundreds_of_layers_become_blocks_that_hold_each_layer_once(names: list[str], blocks: int) -> None:
    joined = join_layers(names)
    assert len(joined) == blocks
    assert [name for block in joined.values() for name in block] == names


def test_shares_of_many_layers_add_up_on_a_logarithmic_axis() -> None:
    make = lambda: nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(100))).double()  # noqa: E731
    base = make()
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.copy_(torch.eye(2) + 0.1 * torch.randn(2, 2))
    target = {name: value + 0.01 * torch.randn_like(value) for name, value in base.state_dict().items()}
    found = FilterAttributor(base, unit="filter").attribute(base, target, squared_sum, [torch.ones(1, 2).double()])
    axis = Figure().subplots()
    plot_shares({"task": found}, axis)
    assert len(axis.patches) == 50
    assert sum(bar.get_height() for bar in axis.patches) == pytest.approx(100)
    assert axis.get_yscale() == "log"


def test_waypoints_are_marked_on_the_path() -> None:
    base, middle, target = smooth_network(), smooth_network(), smooth_network()
    found = FilterAttributor(base).attribute(base, target, squared_sum, [image()], waypoints=[middle])
    axis = Figure().subplots()
    plot_path({"task": found}, axis)
    assert [list(line.get_xdata()) for line in axis.lines[1:]] == [[0.5, 0.5]]


def test_plots_make_axes_of_their_own(attribution) -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    try:
        first, second = plot_path({"task": attribution}), plot_shares({"task": attribution})
        assert first.figure is not second.figure
        assert plt.get_fignums() == [1, 2]
        own = Figure().subplots()
        assert plot_layers({"top": attribution.scores().top(0.25)}, own) is own
        assert plt.get_fignums() == [1, 2]
    finally:
        plt.close("all")
