"""What a section of a report is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from filterattr.display.page.markup import Markup, element


@dataclass(frozen=True)
class Verdict:
    """One thing that came out, in words.

    Attributes:
        text: The sentence.
        good: Whether it speaks for believing the results, against it, or neither.
    """

    text: str
    good: bool | None = None


@dataclass(frozen=True)
class Section:
    """One section of the page.

    Attributes:
        key: Its anchor.
        title: Its heading.
        verdicts: What came out.
        body: Everything else.
    """

    key: str
    title: str
    verdicts: tuple[Verdict, ...]
    body: Markup


def side_by_side(charts: Sequence[Markup]) -> Markup | None:
    """Put charts side by side where there is room.

    Args:
        charts: The charts.

    Returns:
        The piece of the page; nothing without charts.
    """
    return element("div", charts, class_="charts") if charts else None


def details(summary: str, content: Markup) -> Markup:
    """Hide something until it is asked for.

    Args:
        summary: What it is.
        content: What is hidden.

    Returns:
        The piece of the page.
    """
    return element("details", element("summary", summary), content)
