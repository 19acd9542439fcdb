"""The report is one page that is complete, harmless, and readable by everyone; Chromium is asked where there is one."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import os
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from filterattr import FilterAttributor, SettingError, StorageError, report
from filterattr.analysis import (
    Confusion,
    Curve,
    Estimate,
    Modulation,
    NullCurve,
    RankingRow,
    RankingTable,
    SpecificityMatrix,
)
from filterattr.display import Dial, Picture, Strip
from filterattr.display.page import charts, element, escaped, sections, tables
from filterattr.display.page.evidence import curves_section, modulation_section
from filterattr.display.page.pictures import encode_png
from filterattr.display.page.section import Verdict
from filterattr.display.page.short import Evidence, found, how_sure, what_next
from tests.browser import CHROMIUM, Browser
from tests.networks import image, smooth_network, squared_sum

HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "</style></title></script><svg onload=alert(1)>",
    "javascript:alert(1) & <!-- -->",
    "]]>\u202egnp.exe",
)
STYLE = (Path(charts.__file__).parent / "style.css").read_text()


@pytest.fixture(scope="module")
def attribution():
    torch.manual_seed(0)
    return FilterAttributor(smooth_network()).attribute(smooth_network(), smooth_network(), squared_sum, [image()])


def estimate(value: float, width: float = 0.1) -> Estimate:
    return Estimate(value, value - width, value + width)


def curve(ranking="deblurring", functions=("blur", "noise"), **changes) -> Curve:
    fractions = (0.0, 0.001, 0.01, 0.1, 1.0)
    shares = {name: tuple(estimate(v / (1 + i)) for v in (0, 0.2, 0.6, 0.9, 1)) for i, name in enumerate(functions)}
    settings = {
        "ranking": ranking,
        "intervention": "mask",
        "order": "most",
        "fractions": fractions,
        "counts": (0, 1, 10, 100, 1000),
        "losses": {name: tuple(estimate(10 + i) for i in range(5)) for name in functions},
        "shares": shares,
        "loss_base": dict.fromkeys(functions, 20.0),
        "loss_target": dict.fromkeys(functions, 10.0),
        "n_samples": dict.fromkeys(functions, 4),
    }
    return Curve(**settings | changes)


def null(ranking="deblurring", functions=("blur", "noise"), kind="random") -> NullCurve:
    drawn = tuple(tuple(0.01 * (i + place) for i in range(30)) for place in range(3))
    return NullCurve(kind, ranking, "mask", (0.001, 0.01, 0.1), (1, 10, 100), dict.fromkeys(functions, drawn))


def matrix(first="blur", second="noise", margin=0.5) -> SpecificityMatrix:
    return SpecificityMatrix(
        counts={first: 10, second: 12},
        shares={
            first: {first: estimate(0.8), second: estimate(0.1), "clean": Estimate(float("nan"))},
            second: {first: estimate(-0.1), second: estimate(2.3), "clean": estimate(0.4)},
        },
        row_margins={first: {second: estimate(margin)}, second: {first: estimate(0.5)}},
        column_margins={first: {second: estimate(0.5)}, second: {first: estimate(0.5)}},
        n_samples={first: 4, second: 4, "clean": 4},
        confidence=0.95,
    )


def modulation(first="blur", second="noise") -> Modulation:
    strengths = (0.0, 0.5, 1.0, 1.5)
    shares = {first: tuple(map(estimate, (0.8, 0.4, 0.0, 0.1))), second: tuple(map(estimate, (0.1, 0.0, 0.0, 0.0)))}
    steps = {first: tuple(map(estimate, (-0.4, -0.4, 0.1))), second: tuple(map(estimate, (-0.1, 0.0, 0.0)))}
    ends = {first: 20.0, second: 30.0}
    return Modulation(first, 10, strengths, shares, shares, steps, ends, {first: 1.0, second: 2.0})


def rankings(name="magnitude") -> RankingTable:
    rows = [
        RankingRow(one, "blur", p, 10, 5, {"blur": estimate(p)}, estimate(-p), estimate(p))
        for one in ("FAIG", name)
        for p in (0.01, 0.02, 0.05, 0.1, 0.2)
    ]
    return RankingTable("FAIG", tuple(rows))


def gray(level: float) -> np.ndarray:
    return np.full((12, 16), level)


def everything(attribution, names=("deblurring", "blur", "noise", "caption", "key")) -> dict:
    label, first, second, caption, key = names
    picture = Picture(gray(0.5), caption)
    return {
        "question": f"What?\n\n{caption}",
        "attributions": {label: attribution},
        "selections": {label: attribution.scores().top(0.5)},
        "scores": {label: attribution.scores("sum"), "other": attribution.scores()},
        "curves": [curve(label, (first, second)), curve(label, (first, second), order="least")],
        "nulls": [null(label, (first, second)), null(label, (first, second), "layer-matched")],
        "matrix": matrix(first, second),
        "modulations": [modulation(first, second)],
        "strips": [
            Strip(caption, [picture, Picture(np.zeros((4, 4, 3), np.uint8), "two", caption)], caption),
            Dial(caption, {s: [Picture(gray(s / 2), f"{caption} {s}")] for s in (1.5, 0.0, 0.5, 1.0)}, note=caption),
        ],
        "confusions": [Confusion(label, {first: {first: 3, second: 1}, second: {second: 2, "unsure": 2}})],
        "tables": {caption: rankings(label)},
        "costs": {caption: [{"step": label, "passes": 12, "seconds": 1.5}]},
        "provenance": {key: {"digest": "0" * 64, caption: [1, 2]}, "time": "2026-01-01", "command": caption},
    }


class Page(HTMLParser):
    """Elements, texts, and what is wrong with their nesting."""

    VOID = {"br", "hr", "img", "input", "link", "meta"}

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.errors: list[str] = []
        self.content: dict[str, str] = {}
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attrs):
        if len(dict(attrs)) != len(attrs):
            self.errors.append(f"an attribute twice in {tag}")
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.errors.append(f"</{tag}> closes something else")

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            self.content[self.open[-1]] = data
        else:
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(attribution, tmp_path_factory) -> Page:
    path = tmp_path_factory.mktemp("report") / "report.html"
    return Page(report(path, "What was found", **everything(attribution)))


class TestShort:
    def test_effects_come_first_with_what_happens_to_the_other_functions(self):
        weak = curve(ranking="other", shares={"blur": (estimate(0.0),) * 5, "noise": (estimate(0.0),) * 5})
        assert (
            found(Evidence(curves=[weak, curve()]))
            == "Masking the first 1% of deblurring removes 0.60 of blur and 0.30 of noise."
        )
        least = curve(order="least")
        graft = curve(intervention="graft")
        assert "Masking" not in found(Evidence(curves=[least, graft]))

    def test_without_effects_it_is_the_chosen_units_and_without_these_the_scores(self, attribution):
        selection = attribution.scores().top(3)
        largest = max(selection, key=lambda name: int(selection[name].sum()))
        text = found(Evidence({"task": attribution}, {"task": selection}))
        assert text.startswith(f"Selected are 3 of {selection.n_units} units for task, most of them in ")
        assert text.endswith(f"{largest.removesuffix('.weight')}.")
        best = max(attribution.per_layer(), key=lambda row: row.share).name.removesuffix(".weight")
        assert found(Evidence({"task": attribution})) == f"The largest share of the scores is for task in {best}."

    def test_checks_are_counted_and_the_first_that_fails_is_named(self):
        good, bad, open_ = Verdict("a holds.", True), Verdict("b fails.", False), Verdict("c.")
        assert how_sure([open_]) == "Nothing on this page tests it yet."
        assert how_sure([good, open_, good]) == "All 2 checks hold."
        assert how_sure([good, bad, bad]) == "1 of 3 checks hold. Against it: b fails."

    def test_the_next_step_is_the_first_that_is_missing(self, attribution):
        selection = attribution.scores().top(3)
        sound = SimpleNamespace(concerns=())
        given = {"task": sound, "other": sound}
        steps = [
            what_next(evidence)
            for evidence in (
                Evidence(),
                Evidence(given),
                Evidence(given, {"task": selection}),
                Evidence(given, {"task": selection}, [curve()]),
                Evidence(given, {"task": selection}, [curve()], [null()]),
                Evidence(given, {"task": selection}, [curve()], [null()], matrix(), [Verdict("no.", False)]),
                Evidence(given, {"task": selection}, [curve()], [null()], matrix()),
            )
        ]
        calls = [
            "attributions=",
            "scores.top(0.01)",
            "mask_curve(",
            "null_curve(",
            "specificity(",
            "other sizes",
            "blend(",
        ]
        assert [call in step for call, step in zip(calls, steps, strict=True)] == [True] * 7
        assert len(set(steps)) == 7

    def test_a_path_in_doubt_is_mended_before_units_are_chosen(self, attribution):
        doubtful = dataclasses.replace(attribution, cosine=0.1)
        assert doubtful.concerns
        assert what_next(Evidence({"task": doubtful})).startswith("Fix the path of task first")


class TestPage:
    def test_is_well_formed(self, page):
        assert page.errors == []
        assert page.open == []
        assert page.source.startswith('<!DOCTYPE html>\n<html lang="en">')
        ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
        assert len(set(ids)) == len(ids)

    def test_every_section_is_there_and_linked(self, page):
        keys = {attributes.get("id") for attributes in page.all("section")}
        assert keys == {
            "short", "checks",
            "pictures", "path", "filters", "curves", "matrix", "modulation", "predictions", "tables", "costs",
            "provenance",
        }  # fmt: skip
        assert {attributes["href"] for attributes in page.all("a")} == {f"#{key}" for key in keys - {"short", "checks"}}

    def test_loads_nothing_from_anywhere(self, page):
        for tag, attributes in page.elements:
            for name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
                value = attributes.get(name)
                assert value is None or value.startswith(("data:image/png;base64,", "#")), (tag, name)
        assert not page.all("link")
        assert not page.all("iframe")
        assert not re.search(r"url\(|@import|https?:", page.content["style"])
        assert not re.search(r"fetch|XMLHttp|import|https?:", page.content["script"])

    def test_policy_allows_its_own_script_and_style_alone(self, page):
        policy = next(one["content"] for one in page.all("meta") if "http-equiv" in one)
        assert policy.startswith("default-src 'none'; img-src data:;")
        assert "unsafe" not in policy
        for tag in ("script", "style"):
            digest = base64.b64encode(hashlib.sha256(page.content[tag].encode()).digest()).decode()
            assert f"{tag}-src 'sha256-{digest}'" in policy
            assert len(page.all(tag)) == 1
        assert not any("style" in attributes for _, attributes in page.elements)

    def test_every_picture_has_a_text_alternative(self, page):
        assert all(one["alt"] for one in page.all("img"))
        assert page.all("img")[1]["alt"] == "caption"
        drawn = [one for one in page.all("svg") if one.get("aria-hidden") != "true"]
        assert len(drawn) >= 5
        named = {one["id"] for tag in ("title", "desc") for one in page.all(tag) if "id" in one}
        for one in drawn:
            assert one["role"] == "img"
            assert set(one["aria-labelledby"].split()) <= named

    def test_headings_and_tables_tell_their_structure(self, page):
        levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(later - earlier <= 1 for earlier, later in pairwise(levels))
        assert all(one["scope"] in ("row", "col") for one in page.all("th"))
        ids = {one["id"] for one in page.all("p") if "id" in one}
        assert all(one.get("aria-labelledby") in ids or one.get("aria-label") for one in page.all("table"))

    def test_is_small(self, page):
        assert len(page.source.encode()) < 120_000

    def test_same_results_give_the_same_bytes(self, page, attribution, tmp_path):
        again = report(tmp_path / "again.html", "What was found", **everything(attribution))
        assert again.read_text(encoding="utf-8") == page.source


@pytest.fixture(scope="module")
def hostile(attribution, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    return Page(report(path, HOSTILE[0], **everything(attribution, HOSTILE)))


class TestHostileNames:
    def test_add_no_element_and_no_attribute(self, hostile, page):
        assert hostile.errors == []
        assert {tag for tag, _ in hostile.elements} == {tag for tag, _ in page.elements}
        assert {key for _, one in hostile.elements for key in one} == {key for _, one in page.elements for key in one}
        assert [hostile.content["script"], hostile.content["style"]] == [page.content["script"], page.content["style"]]

    @pytest.mark.parametrize("name", HOSTILE)
    def test_appear_as_they_are(self, hostile, name):
        assert name in "".join(hostile.texts)

    def test_of_parameters_are_escaped(self, tmp_path):
        network = torch.nn.Sequential()
        network.add_module(HOSTILE[0], torch.nn.Conv2d(1, 2, 3).double())
        other = torch.nn.Sequential()
        other.add_module(HOSTILE[0], torch.nn.Conv2d(1, 2, 3).double())
        found = FilterAttributor(network).attribute(network, other, squared_sum, [image()])
        read = Page(
            report(tmp_path / "r.html", "t", attributions={"a": found}, selections={"a": found.scores().top(1)})
        )
        assert f"{HOSTILE[0]}.weight" in read.texts
        assert len(read.all("script")) == 1

    def test_that_no_page_can_hold_are_replaced(self, tmp_path):
        name = "nul \x00 escape \x1b half \udcff tab \t"
        path = report(tmp_path / "r.html", name, tables={"t": [{"file": name}]})
        assert "nul \ufffd escape \ufffd half \ufffd tab \t" in path.read_text(encoding="utf-8")

    def test_escape_quotes_too(self):
        assert element("p", title="\"'<") == '<p title="&quot;&#x27;&lt;"></p>'
        assert element("p", element("b", "&")) == "<p><b>&amp;</b></p>"
        assert element("p", str(escaped("&") + "&")) == "<p>&amp;amp;&amp;</p>"  # a sum is no markup any more


class TestSections:
    @pytest.mark.parametrize(
        ("given", "key"),
        [
            ("attributions", "path"),
            ("selections", "filters"),
            ("scores", "filters"),
            ("curves", "curves"),
            ("matrix", "matrix"),
            ("modulations", "modulation"),
            ("strips", "pictures"),
            ("confusions", "predictions"),
            ("tables", "tables"),
            ("costs", "costs"),
        ],
    )
    def test_appear_when_there_is_something_to_show(self, attribution, tmp_path, given, key):
        read = Page(report(tmp_path / "r.html", "t", **{given: everything(attribution)[given]}))
        assert {one["id"] for one in read.all("section")} - {"short", "checks"} == {key}
        assert read.errors == []

    def test_the_first_screen_is_an_answer_before_everything_else(self, page):
        source = page.source
        assert source.index('id="short"') < source.index("<nav") < source.index('id="checks"')
        assert source.count("<dt>") == 3

    def test_path_section_says_what_the_health_check_says(self, attribution):
        section = sections.path_section({"task": attribution})
        (verdict,) = section.verdicts
        health = sections.path_health(attribution)
        assert verdict.good is health.is_healthy
        assert str(health) in verdict.text

    def test_units_are_listed_by_their_score(self, attribution):
        scores = attribution.scores("sum")
        section = sections.filters_section({"a": scores.top(5)}, {"a": scores}, {"task": attribution})
        rows = re.findall(r"<td>(\d+\.weight)</td><td>([\d ]+)</td><td [^>]*data-value=\"([^\"]+)\"", section.body)
        frame = scores.to_frame().head(5)
        assert [row[0] for row in rows] == list(frame["parameter"])
        assert [tuple(map(int, row[1].split())) for row in rows] == list(frame["unit"])
        assert [float(row[2]) for row in rows] == list(frame["score"])
        assert section.verdicts[0].text.startswith(f"a: 5 of {scores.n_units} units")

    def test_long_tables_are_cut_and_say_so(self, tmp_path):
        rows = [{"unit": place} for place in range(sections.MOST_ROWS + 1)]
        read = Page(report(tmp_path / "r.html", "t", tables={"all": rows}))
        assert len(read.all("tr")) == sections.MOST_ROWS + 1
        assert "all (the first 500 of 501 rows)" in read.texts
        assert "On paper: the first 20 of 500 rows." in read.texts

    def test_a_matrix_without_a_leading_diagonal_names_the_margin(self, tmp_path):
        good = Page(report(tmp_path / "r.html", "t", matrix=matrix()))
        assert any("all 95% intervals of the margins exclude 0" in text for text in good.texts)
        bad = Page(report(tmp_path / "r.html", "t", matrix=matrix(margin=0.05)))
        assert any("blur against noise (0.05 [" in text for text in bad.texts)

    def test_matrix_cells_are_the_darker_the_more_is_removed(self, tmp_path):
        cells = [one.get("class") for one in Page(report(tmp_path / "r.html", "t", matrix=matrix())).all("td")][:6]
        assert cells == ["h8 own", "h1", "h0", "h0", "h10 own", "h4"]

    def test_curves_are_held_against_their_nulls(self):
        section = curves_section([curve()], [null(), null(kind="layer-matched"), null("denoising")])
        assert "removes 0.60 of blur, against 0.15 by random sets (p = 0.032)" in section.verdicts[0].text
        assert section.verdicts[0].good is True
        assert section.body.count('class="band"') == 2 * (2 + 2)  # both functions, both nulls: bands and swatches

    def test_few_draws_are_no_evidence_either_way(self):
        few = NullCurve("random", "deblurring", "mask", (0.01,), (10,), {"blur": ((0.1, 0.2, 0.3),)})
        (verdict,) = curves_section([curve(functions=("blur",))], [few]).verdicts
        assert verdict.good is None
        assert "(p = 0.250, the smallest that 3 draws allow)" in verdict.text
        beaten = NullCurve("random", "deblurring", "mask", (0.01,), (10,), {"blur": ((0.1, 0.9, 0.3),)})
        assert curves_section([curve(functions=("blur",))], [beaten]).verdicts[0].good is False

    def test_predictions_are_counted(self, tmp_path):
        confusion = Confusion("overlap", {"blur": {"blur": 3, "noise": 1}, "both": {"noise": 2, "unsure": 2, "x": 0}})
        read = Page(report(tmp_path / "r.html", "t", confusions=[confusion]))
        assert any(text.startswith("overlap: 0.38 [0.14, 0.69] of 8 samples right, 0.25 unsure") for text in read.texts)
        headings = [text for text in read.texts if text in ("true", "blur", "both", "x", "unsure", "noise")]
        assert headings == ["true", "blur", "both", "noise", "x", "unsure", "blur", "both"]
        cells = [one["class"] for one in read.all("td")]
        assert cells == ["h8 own", "h0", "h2", "h0", "h0", "h0", "h0 own", "h5", "h0", "h5"]

    def test_modulation_says_what_moves(self):
        (verdict,) = modulation_section([modulation()]).verdicts
        assert verdict.good is True
        assert verdict.text.endswith("at every step from 0 to 1, while noise moves by at most 0.20.")


class TestCharts:
    def test_put_higher_values_higher_and_cut_at_the_edge(self):
        axes = charts.Axes("x", "y", ((0.1, "0.1"), (100.0, "100")), (0.0, 1.0), log=True)
        assert axes.y(1.0) < axes.y(0.5) < axes.y(0.0)
        assert axes.y(7.0) == axes.y(1.0)
        assert axes.x(10.0) - axes.x(1.0) == pytest.approx(axes.x(1.0) - axes.x(0.1))

    @pytest.mark.parametrize("values", [[0.0, 1.0], [-3e-7, 2e-7], [5.0], [123.0, 4567.0], [float("nan")], []])
    def test_ticks_span_the_values(self, values):
        ticks = charts.round_range(values)
        assert 3 <= len(ticks) <= 8
        finite = [value for value in values if np.isfinite(value)]
        assert all(ticks[0] <= value <= ticks[-1] for value in finite)

    def test_leave_out_what_is_not_a_number(self):
        line = charts.Line("a", (0.0, 0.5, 1.0), (0.0, float("nan"), 1.0))
        axes = charts.Axes("x", "y", ((0.0, "0"), (1.0, "1")), (0.0, 1.0))
        drawn = charts.line_chart([line], axes, title="t", description="d")
        assert "nan" not in drawn
        assert drawn.count("<circle") == 2 + 1  # two points and the swatch

    def test_layers_are_told_apart_by_a_scale_that_shows_small_and_large(self):
        drawn = charts.bar_chart(["a", "b"], [("x", (1.0, 100.0))], title="t", description="d", x_label="%")
        widths = [float(width) for width in re.findall(r'<rect x="128" y="[\d.]+" width="([\d.]+)"', drawn)]
        assert widths[1] == pytest.approx(3 * widths[0], abs=0.2)


class TestTables:
    def test_fold_intervals_into_one_column(self):
        shown = tables.table(tables.folded([{"a": 0.51, "a_low": 0.44, "a_high": 0.7}]), "t")
        assert ">0.51 [0.44, 0.70]</td>" in shown
        assert 'data-value="0.51" data-low="0.44" data-high="0.7"' in shown

    def test_keep_small_numbers(self):
        assert tables.estimate_text(Estimate(0.00123, 0.0009, 0.002)) == "0.00123 [0.00090, 0.00200]"
        assert tables.estimate_text(Estimate(-0.001, -0.002, 0.1), 2) == "0.00 [0.00, 0.10]"
        assert tables.estimate_text(Estimate(12345.0, 12000.0, 13000.0)) == "12,345 [12,000, 13,000]"
        assert tables.estimate_text(Estimate(1.0, 1.0, 1.0)) == "1 [1, 1]"
        assert tables.estimate_text(Estimate(float("nan")), 2) == "n/a"

    def test_align_numbers_alone(self):
        shown = tables.table([{"a": 1, "b": "x", "c": True}, {"a": None, "b": 2, "c": False}], "t")
        assert re.findall(r'<th[^>]*class="number"[^>]*>(\w)', shown) == ["a"]
        assert "<td>yes</td>" in shown


class TestPictures:
    @pytest.mark.parametrize("shape", [(1, 1), (5, 7), (8, 3, 3), (33, 40, 3)])
    @pytest.mark.parametrize("smooth", [True, False])
    def test_come_back_from_png_bit_for_bit(self, shape, smooth):
        drawn = np.random.default_rng(0).integers(0, 256, shape)
        pixels = (drawn.cumsum(1) % 256 if smooth else drawn).astype(np.uint8)
        read = np.asarray(Image.open(io.BytesIO(encode_png(pixels))))
        np.testing.assert_array_equal(read, pixels)

    def test_are_smaller_than_their_pixels_where_they_are_smooth(self):
        ramp = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
        assert len(encode_png(ramp)) < ramp.nbytes / 8

    def test_are_cut_to_the_range_of_a_screen(self, tmp_path):
        path = report(tmp_path / "r.html", "t", strips=[Strip("s", [Picture(np.array([[-1.0, 0.5, 9.0]]), "c")])])
        source = Page(path).all("img")[0]["src"].partition(",")[2]
        assert np.asarray(Image.open(io.BytesIO(base64.b64decode(source)))).tolist() == [[0, 128, 255]]

    def test_given_as_files_are_kept_as_they_are(self, tmp_path):
        data = encode_png(np.zeros((2, 2), np.uint8))
        (shown,) = Page(report(tmp_path / "r.html", "t", strips=[Strip("s", [Picture(data, "c")])])).all("img")
        assert shown["src"] == f"data:image/png;base64,{base64.b64encode(data).decode()}"

    def test_of_a_dial_are_sorted_and_start_at_one(self, page):
        frames = [one for one in page.all("div") if one.get("class") == "frame"]
        assert [one["data-strength"] for one in frames] == ["0", "0.5", "1", "1.5"]
        assert ["data-start" in one for one in frames] == [False, False, True, False]


class TestRefusals:
    def test_all_findings_are_in_one_error_and_nothing_is_written(self, tmp_path):
        bad = [
            Picture(np.zeros((3, 8, 8)), "channels first"),
            Picture(np.zeros((8, 8), np.int32), "integers"),
            Picture(np.full((2, 2), np.nan), "holes"),
            Picture(b"GIF89a", "animated"),
        ]
        with pytest.raises(SettingError, match="move the channels last") as caught:
            report(
                tmp_path / "r.html",
                "t",
                strips=[Strip("s", bad), Dial("d", {0.5: []}, start=1.0)],
                curves=[null()],
                matrix=curve(),
                tables={"t": "text"},
            )
        for words in (
            "got int32",
            "not finite",
            "PNG or JPEG",
            "'d' needs frames for at least two strengths",
            "no frame for its start 1",
            "'d' has no pictures (strength 0.5)",
            "curves must hold Curve; got NullCurve",
            "matrix must be a SpecificityMatrix; got Curve",
            "tables['t'] must be a result or a list of rows; got str",
        ):
            assert words in str(caught.value)
        assert not list(tmp_path.iterdir())

    def test_an_empty_report_is_refused(self, tmp_path):
        with pytest.raises(SettingError, match="something to show"):
            report(tmp_path / "r.html", "t", provenance={"seed": 0})

    def test_selections_of_different_units_are_refused(self, attribution, tmp_path):
        network = torch.nn.Conv2d(1, 1, 3).double()
        other = FilterAttributor(network).attribute(network, torch.nn.Conv2d(1, 1, 3).double(), squared_sum, [image()])
        own, foreign = attribution.scores(), other.scores()
        with pytest.raises(SettingError, match="'b' and 'a' are not"):
            report(tmp_path / "r.html", "t", selections={"a": own.top(1), "b": foreign.top(1)})
        with pytest.raises(SettingError, match="the scores and the selection of 'a'"):
            report(tmp_path / "r.html", "t", selections={"a": own.top(1)}, scores={"a": foreign})

    def test_a_full_disk_leaves_the_old_page(self, tmp_path, monkeypatch):
        path = report(tmp_path / "r.html", "old", matrix=matrix())

        def full(_descriptor):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            report(path, "new", matrix=matrix())
        assert "<title>old</title>" in path.read_text()
        assert list(tmp_path.iterdir()) == [path]


def colours(scheme: str) -> dict[str, tuple[float, ...]]:
    """The colours of the style sheet, 0 to 1."""
    light, dark = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)[:2]
    found = dict(re.findall(r"--(\w+): #(\w{6});", light))
    if scheme == "dark":
        found |= dict(re.findall(r"--(\w+): #(\w{6});", dark))
    return {name: tuple(int(value[i : i + 2], 16) / 255 for i in (0, 2, 4)) for name, value in found.items()}


def contrast_of(first, second) -> float:
    """Contrast ratio as in WCAG 2.2."""

    def luminance(colour):
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
class TestContrast:
    def test_is_known_to_the_test(self, scheme):
        assert contrast_of((0, 0, 0), (1, 1, 1)) == pytest.approx(21)
        assert contrast_of((0.5, 0.5, 0.5), colours(scheme)["surface"]) < 7

    @pytest.mark.parametrize("name", ["text", "quiet", "link", "good", "bad"])
    @pytest.mark.parametrize("ground", ["surface", "raised"])
    def test_of_text_is_enough_for_aa(self, scheme, name, ground):
        found = colours(scheme)
        assert contrast_of(found[name], found[ground]) >= 4.5

    @pytest.mark.parametrize("name", ["edge", *(f"s{slot}" for slot in range(charts.SLOTS))])
    def test_of_lines_and_controls_is_enough(self, scheme, name):
        found = colours(scheme)
        assert contrast_of(found[name], found["surface"]) >= 3

    def test_of_text_on_every_heat_is_enough(self, scheme):
        found = colours(scheme)
        mixes = re.findall(r"\.h\d+ \{ background: color-mix\(in srgb, var\(--heat\) (\d+)%", STYLE)
        assert len(mixes) == 10
        for mix in mixes:
            part = int(mix) / 100
            ground = [part * h + (1 - part) * s for h, s in zip(found["heat"], found["surface"], strict=True)]
            assert contrast_of(found["text"], ground) >= 4.5


def test_every_colour_of_the_style_sheet_is_one_of_the_tested():
    rules = STYLE[STYLE.index("* {") :]
    assert not re.findall(r"#[0-9a-fA-F]{3,8}\b|rgba?\(|hsl", rules)
    assert set(colours("light")) == {
        "surface", "raised", "text", "quiet", "edge", "grid", "link", "good", "bad", "heat", "band",
        *(f"s{slot}" for slot in range(charts.SLOTS)),
    }  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture(scope="module")
def path(attribution, tmp_path_factory):
    names = ("deblurring", "a_very_long_name_" * 8, "noise", *HOSTILE[:2])
    path = tmp_path_factory.mktemp("report") / "report.html"
    return report(path, f"What was found {HOSTILE[1]}", **everything(attribution, names))


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
class TestInTheBrowser:
    @pytest.mark.parametrize("dark", [False, True])
    @pytest.mark.parametrize("width", [320, 375, 1280])
    def test_no_complaint_and_no_sideways_scroll(self, browser, path, width, dark):
        browser.open(path, width=width, dark=dark)
        assert browser.complaints() == []
        assert browser.run("document.documentElement.scrollWidth") <= width
        light = browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert light is not dark

    def test_the_policy_stops_foreign_scripts(self, browser, path, tmp_path):
        spoilt = tmp_path / "spoilt.html"
        spoilt.write_text(path.read_text().replace("</main>", "</main><script>window.foreign = 1</script>"))
        browser.open(spoilt)
        assert browser.run("window.foreign === undefined")
        assert any("Content Security Policy" in said for said in browser.complaints())

    def test_tables_sort_by_keyboard(self, browser, path):
        browser.open(path)
        column = "[...document.querySelectorAll('#tables tbody tr')].map(row => Number(row.cells[2].dataset.value))"
        before = browser.run(column)
        browser.run("document.querySelectorAll('#tables th button')[2].focus()")
        heading = "document.querySelectorAll('#tables th')[2].getAttribute('aria-sort')"
        browser.press("Enter")
        assert browser.run(column) == sorted(before, reverse=True)
        assert browser.run(heading) == "descending"
        browser.press("Enter")
        assert browser.run(column) == sorted(before)
        assert browser.run(heading) == "ascending"
        browser.run("document.querySelectorAll('#tables th button')[0].click()")
        assert browser.run(heading) is None
        names = browser.run("[...document.querySelectorAll('#tables tbody tr')].map(row => row.cells[0].textContent)")
        assert names == sorted(names, key=str.lower)
        assert browser.complaints() == []

    def test_tables_are_filtered(self, browser, path):
        browser.open(path)
        browser.run("""{
            const field = document.querySelector('#tables input');
            field.value = 'faig'; field.dispatchEvent(new Event('input'));
        }""")
        assert browser.run("document.querySelectorAll('#tables tbody tr:not([hidden])').length") == 5
        assert browser.run("document.querySelector('#tables [role=status]').textContent") == "5 of 10 rows"

    def test_tables_are_downloaded_as_harmless_csv(self, browser, tmp_path):
        rows = [{"name": "=cmd()", "value": 0.1, "a,b": 'say "x"'}, {"name": "ok", "value": float("nan"), "a,b": ""}]
        report(tmp_path / "r.html", "t", tables={"All of it": rows, "Rankings": rankings()})
        browser.open(tmp_path / "r.html")
        browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        browser.run("document.querySelector('.tools button').click()")
        saved = tmp_path / "All_of_it.csv"
        for _ in range(100):  # a busy machine takes its time
            if saved.exists():
                break
            browser.run("new Promise(done => setTimeout(done, 200))")
        assert saved.read_bytes().decode("utf-8-sig") == ('name,value,"a,b"\r\n\'=cmd(),0.1,"say ""x"""\r\nok,,\r\n')
        head = browser.run("csvOf(document.querySelectorAll('table')[1]).split('\\r\\n')[0]")
        assert head.startswith(
            "ranking,function,fraction,count,n passes,removed blur,removed blur low,removed blur high"
        )

    def test_the_slider_shows_one_frame_at_a_time(self, browser, path):
        browser.open(path)
        shown = (
            "[...document.querySelectorAll('.frame')].filter(one => one.offsetHeight).map(one => one.dataset.strength)"
        )
        said = "document.querySelector('.slider input').getAttribute('aria-valuetext')"
        assert browser.run(shown) == ["1"]
        browser.run("document.querySelector('.slider input').focus()")
        for key, strength in (("ArrowRight", "1.5"), ("Home", "0"), ("ArrowRight", "0.5")):
            browser.press(key)
            assert browser.run(shown) == [strength]
            assert browser.run(said) == f"strength {strength}"
            assert browser.run("document.querySelector('.slider output').textContent") == strength

    def test_everything_is_there_without_scripts(self, browser, path):
        browser.open(path, scripts=False)
        browser.run("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        boxes = "[...document.querySelectorAll('.frame, table, svg, img')].map(one => one.getBoundingClientRect())"
        assert browser.run(f"{boxes}.length") > 20
        assert browser.run(f"{boxes}.every(box => box.height > 0)")
        assert browser.run("document.querySelectorAll('button, input').length") == 0

    def test_everything_that_can_be_used_has_a_name(self, browser, path):
        browser.open(path)
        nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
        roles = {"button", "slider", "searchbox", "image", "link", "table", "region", "img", "DisclosureTriangle"}
        seen = [node for node in nodes if not node["ignored"] and node["role"]["value"] in roles]
        assert {"button", "slider", "searchbox", "link", "table", "region"} <= {node["role"]["value"] for node in seen}
        assert [node for node in seen if not node.get("name", {}).get("value")] == []

    def test_prints_all_frames_in_light_colours(self, browser, path):
        browser.open(path, dark=True)
        assert browser.pdf().startswith(b"%PDF-")
        browser.call("Emulation.setEmulatedMedia", media="print")
        assert browser.run("[...document.querySelectorAll('.frame')].every(one => one.offsetHeight)")
        assert not browser.run("[...document.querySelectorAll('.tools, .slider, nav')].some(one => one.offsetHeight)")
        assert browser.run("getComputedStyle(document.querySelector('h1')).color") == "rgb(27, 31, 36)"
