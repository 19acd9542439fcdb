"""The parts of a report, for your own sections."""

from filterattr.display.page.charts import Axes, Line, bar_chart, line_chart, round_range
from filterattr.display.page.markup import Child, Markup, element, escaped, joined, number
from filterattr.display.page.pictures import Dial, Picture, Strip
from filterattr.display.page.section import Section, Verdict, details, side_by_side
from filterattr.display.page.tables import boxed, estimate_text, folded, table

__all__ = [
    "Axes",
    "Child",
    "Dial",
    "Line",
    "Markup",
    "Picture",
    "Section",
    "Strip",
    "Verdict",
    "bar_chart",
    "boxed",
    "details",
    "element",
    "escaped",
    "estimate_text",
    "folded",
    "joined",
    "line_chart",
    "number",
    "round_range",
    "side_by_side",
    "table",
]
