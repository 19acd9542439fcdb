"""Reports: one HTML file with all results, for a desk, a phone and paper, in light and in dark.

The page is made from results alone and needs no further package. It loads nothing: all pictures are inside the file,
and a content security policy forbids everything else except its own script. Every name and caption is escaped. Without
scripts all tables and pictures are shown; sorting, filtering, downloads and sliders need scripts.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import sys
import webbrowser
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

from filterattr.analysis.prediction import Confusion
from filterattr.analysis.record import Record
from filterattr.analysis.results import Curve, Modulation, NullCurve, SpecificityMatrix
from filterattr.display.page.evidence import (
    curves_section,
    matrix_section,
    modulation_section,
    predictions_section,
)
from filterattr.display.page.markup import Markup, element
from filterattr.display.page.pictures import Dial, Picture, Strip, findings
from filterattr.display.page.section import Section, Verdict
from filterattr.display.page.sections import (
    filters_section,
    path_section,
    pictures_section,
    provenance_section,
    tables_section,
)
from filterattr.display.page.short import Evidence, in_short
from filterattr.errors import SettingError
from filterattr.files.reading import reading
from filterattr.files.writing import replace_file
from filterattr.results.attribution import FilterAttribution
from filterattr.results.scores import FilterScores, FilterSelection

__all__ = ["Dial", "Picture", "Strip", "report"]

Tables: TypeAlias = Mapping[str, Record | Sequence[Mapping[str, Any]]]

_SIGNS = {True: ("✓", "good", "Good: "), False: ("!", "bad", "Caution: "), None: ("·", None, "")}


class ReportFile(type(Path())):  # type: ignore[misc]
    """The path of a report, which can be shown.

    Example:
        >>> ReportFile("report.html").name
        'report.html'
    """

    def show(self, height: int = 800) -> None:
        """Show the page: below the cell of a notebook, or else in the browser.

        Args:
            height: Height in a notebook, in pixels.

        Raises:
            StorageError: The file no longer exists.
        """
        with reading(self) as (stream, _):
            page = stream.read().decode("utf-8")
        shell = sys.modules.get("IPython")
        if shell is None or not hasattr(shell.get_ipython(), "kernel"):
            webbrowser.open(self.absolute().as_uri())
            return
        frame = element("iframe", srcdoc=page, style=f"width:100%;height:{height}px;border:0", title="report")
        importlib.import_module("IPython.display").display({"text/html": str(frame)}, raw=True)


def report(
    path: str | Path,
    title: str,
    *,
    question: str = "",
    attributions: Mapping[str, FilterAttribution] | None = None,
    selections: Mapping[str, FilterSelection] | None = None,
    scores: Mapping[str, FilterScores] | None = None,
    curves: Sequence[Curve] = (),
    nulls: Sequence[NullCurve] = (),
    matrix: SpecificityMatrix | None = None,
    modulations: Sequence[Modulation] = (),
    strips: Sequence[Strip | Dial] = (),
    confusions: Sequence[Confusion] = (),
    further: Sequence[Section] = (),
    tables: Tables | None = None,
    costs: Tables | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> ReportFile:
    """Write results as one self-contained HTML page. A section appears if it has something to show.

    Args:
        path: The file to write. An existing file is replaced when the new one is complete.
        title: Title of the page.
        question: The question that the page answers; empty lines separate paragraphs.
        attributions: Label to attribution: path health in words and pictures, and the share of every layer.
        selections: Label to selected units: a picture per layer, and a table of the units.
        scores: Label to the scores that ranked the units, under the labels of ``selections``. Scores without a
            selection show their 100 highest.
        curves: Masking and graft curves.
        nulls: The nulls of the curves. A chart shows those of the ranking with the largest effect on its function.
        matrix: The specificity matrix.
        modulations: One per function.
        strips: Pictures side by side, and dials with one row of pictures per strength.
        confusions: Confusion matrices of predictions, one per method.
        further: Sections of your own, made with the charts and tables of `filterattr.display.page`.
        tables: Caption to any other result of `filterattr.analysis`, or to rows.
        costs: Caption to rows of costs.
        provenance: Name to text, number or mapping: digests, versions, seeds, settings, time, command.

    Returns:
        The path; its `show` opens the page.

    Raises:
        SettingError: There is nothing to show, something is of another type, or a picture cannot be shown; all findings
            are in one message, and nothing is written.
        StorageError: The file cannot be written.

    Example:
        >>> import tempfile, torch
        >>> from filterattr import FilterAttributor
        >>> base, target = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        >>> loss = lambda model: (model(torch.ones(2)) - target(torch.ones(2))).square().sum()
        >>> attribution = FilterAttributor(base).attribute(base, target, loss)
        >>> path = report(f"{tempfile.mkdtemp()}/report.html", "A line", attributions={"fit": attribution})
        >>> path.read_text(encoding="utf-8")[:15]
        '<!DOCTYPE html>'
    """
    given: dict[str, Any] = {
        "attributions": attributions or {},
        "selections": selections or {},
        "scores": scores or {},
        "curves": curves,
        "nulls": nulls,
        "matrix": matrix,
        "modulations": modulations,
        "strips": strips,
        "confusions": confusions,
        "further": further,
        "tables": tables or {},
        "costs": costs or {},
        "provenance": provenance or {},
    }
    _check(given)
    sections = _sections(given)
    verdicts = [verdict for section in sections for verdict in section.verdicts]
    short = in_short(
        Evidence(given["attributions"], given["selections"], given["curves"], given["nulls"], given["matrix"], verdicts)
    )
    page = _page(title, question, short, sections)
    replace_file(path, [page.encode()])
    return ReportFile(path)


_TYPES: dict[str, tuple[type, ...]] = {
    "attributions": (FilterAttribution,),
    "selections": (FilterSelection,),
    "scores": (FilterScores,),
    "curves": (Curve,),
    "nulls": (NullCurve,),
    "modulations": (Modulation,),
    "strips": (Strip, Dial),
    "confusions": (Confusion,),
    "further": (Section,),
}
_TABLES = ("tables", "costs")
_LAST = ("tables", "costs", "provenance")  # sections of the caller's own stand before these


def _check(given: Mapping[str, Any]) -> None:
    """Check everything before the first drawing."""
    wrong = []
    if not any(given[name] for name in given if name not in ("nulls", "provenance")):
        wrong.append("there must be something to show; all results are empty")
    for name, kinds in _TYPES.items():
        values = given[name].values() if isinstance(given[name], Mapping) else given[name]
        names = " or ".join(kind.__name__ for kind in kinds)
        wrong += [
            f"{name} must hold {names}; got {type(value).__name__}" for value in values if not isinstance(value, kinds)
        ]
    if given["matrix"] is not None and not isinstance(given["matrix"], SpecificityMatrix):
        wrong.append(f"matrix must be a SpecificityMatrix; got {type(given['matrix']).__name__}")
    for name in _TABLES:
        for caption, rows in given[name].items():
            if not isinstance(rows, Record) and not _are_rows(rows):
                wrong.append(f"{name}[{caption!r}] must be a result or a list of rows; got {type(rows).__name__}")
    for panel in given["strips"]:
        wrong += findings(panel) if isinstance(panel, Strip | Dial) else []
    if not wrong:
        wrong = _units_findings(given["selections"], given["scores"])
    if wrong:
        raise SettingError("; ".join(wrong) + ".")


def _are_rows(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(row, Mapping) for row in value)


def _units_findings(selections: Mapping[str, FilterSelection], scores: Mapping[str, FilterScores]) -> list[str]:
    """Selections are drawn in one picture, and listed with the scores of their label."""
    held = list(selections.items())
    wrong = [
        f"all selections must be of the same units; {label!r} and {held[0][0]!r} are not"
        for label, selection in held[1:]
        if selection.parameters != held[0][1].parameters
    ]
    return wrong + [
        f"the scores and the selection of {label!r} must be of the same units"
        for label, ranking in scores.items()
        if label in selections and ranking.parameters != selections[label].parameters
    ]


def _sections(given: Mapping[str, Any]) -> list[Section]:
    """Make the sections, in the order in which they are read."""
    makers: tuple[tuple[Any, Callable[[], Section]], ...] = (
        (given["strips"], lambda: pictures_section(given["strips"])),
        (given["attributions"], lambda: path_section(given["attributions"])),
        (
            given["selections"] or given["scores"],
            lambda: filters_section(given["selections"], given["scores"], given["attributions"]),
        ),
        (given["curves"], lambda: curves_section(given["curves"], given["nulls"])),
        (given["matrix"], lambda: matrix_section(given["matrix"])),
        (given["modulations"], lambda: modulation_section(given["modulations"])),
        (given["confusions"], lambda: predictions_section(given["confusions"])),
        (given["tables"], lambda: tables_section("tables", "More results", given["tables"])),
        (given["costs"], lambda: tables_section("costs", "Cost", given["costs"])),
        (given["provenance"], lambda: provenance_section(given["provenance"])),
    )
    made = [make() for present, make in makers if present]
    end = next((place for place, section in enumerate(made) if section.key in _LAST), len(made))
    return [*made[:end], *given["further"], *made[end:]]


def _page(title: str, question: str, short: Markup, sections: Sequence[Section]) -> str:
    style, script = (_asset(name) for name in ("style.css", "script.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {_digest(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name_="generator", content="filterattr"),
        element("title", title),
        element("style", style),
    )
    paragraphs = [element("p", part, class_="question") for part in question.split("\n\n") if part.strip()]
    links = [element("li", element("a", section.title, href=f"#{section.key}")) for section in sections]
    verdicts = [verdict for section in sections for verdict in section.verdicts]
    checks = element("section", element("h2", "Every check"), _verdicts(verdicts), id="checks") if verdicts else None
    body = element(
        "body",
        element("header", element("h1", title), paragraphs),
        element("section", short, id="short", aria_label="In short"),
        element("nav", element("ul", links), aria_label="Sections"),
        element("main", checks, [_section(section) for section in sections]),
        element("footer", "Written by filterattr. This page is complete: it loads nothing from anywhere."),
        element("script", script),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _section(section: Section) -> Markup:
    return element("section", element("h2", section.title), section.body, id=section.key)


def _verdicts(verdicts: Sequence[Verdict]) -> Markup:
    entries = []
    for verdict in verdicts:
        sign, kind, spoken = _SIGNS[verdict.good]
        signed = element("span", sign, class_="sign", aria_hidden="true")
        heard = element("span", spoken, class_="unseen") if spoken else None
        entries.append(element("li", signed, heard, verdict.text, class_=kind))
    return element("ul", entries, class_="verdicts")


def _asset(name: str) -> Markup:
    """Text of a file of the page; it is ours, and holds nothing that would end its element."""
    return Markup(files("filterattr.display.page").joinpath(name).read_text(encoding="utf-8"))


def _digest(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
