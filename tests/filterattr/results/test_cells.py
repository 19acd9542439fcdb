"""Results show themselves: the highest units by name and place, and in notebooks as well-formed, harmless HTML."""

from __future__ import annotations

import sys
import types
import webbrowser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from filterattr import FilterAttribution, FilterAttributor, FilterScores, FilterSelection, ScoredParameter, Unit, report
from filterattr.results.cells import curve, highest

LIKE = {"<b>.weight": ScoredParameter(Unit("o i -> o i"), (3, 4)), "last": ScoredParameter(Unit("... -> ..."), (2,))}


def scores() -> FilterScores:
    values = torch.arange(12.0).reshape(3, 4)
    return FilterScores({"<b>.weight": values.double(), "last": torch.tensor([7.5, -1.0]).double()}, LIKE)


def attribution() -> FilterAttribution:
    torch.manual_seed(0)
    base, target = (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)) for _ in range(2))
    return FilterAttributor(base).attribute(base, target, lambda model: model(torch.ones(3)).square().sum())


def parsed(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def texts(element: ElementTree.Element) -> str:
    return " ".join(element.itertext())


def test_the_highest_are_found_with_their_places() -> None:
    found = highest(scores().kept, 6)
    assert [(name, place, value) for name, place, value in found] == [
        ("<b>.weight", (2, 3), 11.0),
        ("<b>.weight", (2, 2), 10.0),
        ("<b>.weight", (2, 1), 9.0),
        ("<b>.weight", (2, 0), 8.0),
        ("last", (0,), 7.5),
        ("<b>.weight", (1, 3), 7.0),
    ]


@pytest.mark.parametrize("size", [0, 3, 10, 1000])
def test_the_earlier_ones_win_among_equals_and_nan_is_last(size: int) -> None:
    values = torch.randint(0, 4, (size,)).double()
    if size > 2:
        values[1] = torch.nan
    expected = sorted(range(size), key=lambda place: (-values[place].nan_to_num(nan=-torch.inf).item(), place))[:10]
    assert [place[0] for _, place, _ in highest({"w": values})] == expected


def test_print_shows_the_highest_units_of_scores() -> None:
    printed = str(scores()).splitlines()
    assert printed[0] == "FilterScores(14 units in 2 parameters); the highest:"
    assert printed[1].split() == ["parameter", "unit", "score"]
    assert printed[2].split() == ["<b>.weight", "(2,", "3)", "11"]
    assert len(printed) == 2 + 10
    assert "\n" not in repr(scores())


def test_print_shows_where_the_units_of_a_selection_are() -> None:
    selection = scores().top(5)
    assert str(selection).splitlines() == [
        "FilterSelection(5 of 14 units in 2 parameters); most in:",
        "  <b>.weight  4 of 12  (2, 0), (2, 1), (2, 2), ...",
        "  last        1 of 2   (0,)",
    ]
    assert str(scores().top(0)) == "FilterSelection(0 of 14 units in 2 parameters)"


@pytest.mark.parametrize("made", [scores, lambda: scores().top(5), lambda: scores().top(0), attribution])
def test_notebooks_get_well_formed_html_that_loads_nothing(made: Any) -> None:
    text = made()._repr_html_()
    tree = parsed(text)
    assert "<b>" not in text  # names are escaped
    assert not any(element.tag in ("script", "link", "img", "iframe") for element in tree.iter())
    assert "http" not in text


def test_scores_show_their_values_as_bars() -> None:
    tree = parsed(scores()._repr_html_())
    rows = [texts(row) for row in tree.iter("tr")]
    assert "<b>.weight (2, 3) 11" in rows[1]
    widths = [float(bar.attrib["width"]) for bar in tree.iter("rect")]
    assert widths[:2] == [120.0, pytest.approx(120 * 10 / 11, abs=0.1)]


def test_an_attribution_says_whether_to_believe_it() -> None:
    result = attribution()
    tree = parsed(result._repr_html_())
    said = texts(tree)
    assert f"{result.completeness_error:.2g}" in said
    assert f"{result.cosine:.4f}" in said
    assert all(concern in said for concern in result.concerns)
    assert result.concerns
    shares = sorted((row.share for row in result.per_layer()), reverse=True)
    assert f"{shares[0]:.1%}" in said
    points = next(tree.iter("polyline")).attrib["points"].split()
    assert len(points) == len(result.path_places)


def test_pooled_attributions_show_themselves_too() -> None:
    base, target = nn.Linear(3, 2), nn.Linear(3, 2)
    pooled = FilterAttributor(base).attribute(
        base, target, lambda model, x: model(x).square().sum(), torch.rand(9, 3), aggregate="pooled"
    )
    said = texts(parsed(pooled._repr_html_()))
    assert "nan" not in said


def test_a_curve_needs_two_points() -> None:
    assert curve([0.0], [1.0], "one") == ""
    assert curve([0.0, 1.0], [float("nan"), 1.0], "one") == ""
    assert "polyline" in curve([0.0, 1.0], [1.0, 1.0], "a flat one")


def test_tables_become_frames() -> None:
    pytest.importorskip("pandas")
    selection = scores().top(5)
    frame = selection.to_frame()
    assert list(frame.columns) == ["parameter", "unit"]
    places: dict[str, list[tuple[int, ...]]] = {}
    for name, unit in zip(frame["parameter"], frame["unit"], strict=True):
        places.setdefault(name, []).append(unit)
    assert scores().select(places) == selection
    result = attribution()
    layers = result.to_frame()
    assert list(layers["name"]) == [row.name for row in result.per_layer()]
    assert layers["share"].sum() == pytest.approx(1)


def test_a_report_opens_in_the_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    written = report(tmp_path / "report.html", "A line", attributions={"fit": attribution()})
    assert written == tmp_path / "report.html"
    assert isinstance(written, Path)
    written.show()
    assert opened == [(tmp_path / "report.html").as_uri()]


def test_a_report_opens_inside_a_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, str]] = []
    monkeypatch.setattr(webbrowser, "open", lambda _: pytest.fail("the browser was opened"))
    display = types.ModuleType("IPython.display")
    display.display = lambda content, raw: shown.append(content)  # type: ignore[attr-defined]
    shell = types.ModuleType("IPython")
    shell.get_ipython = lambda: types.SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    shell.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", shell)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    report(tmp_path / "report.html", "A line & more", attributions={"fit": attribution()}).show(height=300)
    frame = parsed(shown[0]["text/html"])
    assert frame.tag == "iframe"
    assert frame.attrib["srcdoc"] == (tmp_path / "report.html").read_text(encoding="utf-8").replace(
        "\n", " "
    )  # as XML does
    assert "height:300px" in frame.attrib["style"]


def test_selections_of_groups_show_themselves() -> None:
    half = ScoredParameter(Unit("o i -> o"), (4, 3), "both")
    selection = FilterSelection({"both": torch.tensor([True, False, True, False])}, {"a": half, "b": half})
    assert "both  2 of 4  (0,), (2,)" in str(selection)
