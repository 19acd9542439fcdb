"""Tables of a report; the page's script makes them sortable, filterable and downloadable."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from filterattr.analysis.record import Estimate
from filterattr.display.page.markup import Markup, element, joined, number

PRINTED_ROWS = 20


def folded(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Turn every three columns ``x``, ``x_low`` and ``x_high`` into one of estimates.

    Args:
        rows: What `Record.rows` gives.

    Returns:
        The rows with fewer columns.

    Example:
        >>> folded([{"set": "blur", "share": 0.5, "share_low": 0.4, "share_high": 0.7}])
        [{'set': 'blur', 'share': Estimate(value=0.5, low=0.4, high=0.7)}]
    """
    names = set(rows[0]) if rows else set()
    wide = {name for name in names if {f"{name}_low", f"{name}_high"} <= names}
    ends = {f"{name}_{end}" for name in wide for end in ("low", "high")}
    return [
        {
            key: Estimate(value, row[f"{key}_low"], row[f"{key}_high"]) if key in wide else value
            for key, value in row.items()
            if key not in ends
        }
        for row in rows
    ]


def table(rows: Sequence[Mapping[str, Any]], caption: str, *, tools: bool = True) -> Markup:
    """Write a table.

    Args:
        rows: One mapping a row, from heading to a text, a number, an `Estimate`, a truth value or ``None``; headings
            are those of all rows in the order of their first appearance.
        caption: What it shows; also the name of the file when it is downloaded.
        tools: Whether the script adds sorting, a filter and a download.

    Returns:
        The table in a box that scrolls by itself. On paper only the first `PRINTED_ROWS` rows of it appear.

    Example:
        >>> print(table([{"layer": "<body>", "share": 0.5}], "Layers"))
        <div><p ...<td>&lt;body&gt;</td><td class="number" data-value="0.5">0.5</td></tr></tbody></table></div></div>
    """
    headings = list(dict.fromkeys(key for row in rows for key in row))
    cells = {key: [row.get(key) for row in rows] for key in headings}
    kinds = {key: _kind(values) for key, values in cells.items()}
    head = [
        element("th", key.replace("_", " "), scope="col", class_=kinds[key] or None, data_interval=_spread(cells[key]))
        for key in headings
    ]
    body = [element("tr", [_cell(row.get(key), kinds[key]) for key in headings]) for row in rows]
    key = "t" + hashlib.sha256(joined(caption, head, body).encode()).hexdigest()[:12]
    built = element(
        "table",
        element("thead", element("tr", head)),
        element("tbody", body),
        aria_labelledby=key,
        data_tools=tools,
    )
    long = len(rows) > PRINTED_ROWS
    note = f"On paper: the first {PRINTED_ROWS} of {number(len(rows))} rows."
    return element(
        "div", boxed(built, caption, key), element("p", note, class_="paper") if long else None, class_=long and "long"
    )


def boxed(table: Markup, caption: str, key: str) -> Markup:
    """Put a table below its caption, in a box that scrolls by itself.

    Args:
        table: The table.
        caption: What it shows; the script puts its tools below it.
        key: What the table calls the caption.

    Returns:
        Caption and box.
    """
    box = element("div", table, class_="scroll", role="region", aria_labelledby=key, tabindex="0")
    return joined(element("p", caption, class_="caption", id=key), box)


def estimate_text(estimate: Estimate, decimals: int | None = None) -> str:
    """Write a number with its interval.

    Args:
        estimate: The number.
        decimals: How many; by default so many that two digits of half the interval are left.

    Returns:
        ``"0.50 [0.40, 0.70]"``, or the number alone where its spread is not known.

    Example:
        >>> estimate_text(Estimate(0.5, 0.4, 0.7)), estimate_text(Estimate(0.5)), estimate_text(Estimate(0.5), 2)
        ('0.50 [0.40, 0.70]', '0.5', '0.50')
    """
    half = (estimate.high - estimate.low) / 2
    if decimals is None and not 0 < half < math.inf:
        text = number(estimate.value)
        return text if math.isnan(half) else f"{text} [{number(estimate.low)}, {number(estimate.high)}]"
    if decimals is None:
        decimals = min(max(1 - math.floor(math.log10(half)), 0), 8)
    value, low, high = (_fixed(bound, decimals) for bound in (estimate.value, estimate.low, estimate.high))
    return value if math.isnan(half) else f"{value} [{low}, {high}]"


def _fixed(value: float, decimals: int) -> str:
    """A number with so many decimals; nothing is below 0 that rounds to it."""
    return (
        f"{round(value, decimals) + 0.0:,.{decimals}f}".replace("-", "\u2212")
        if math.isfinite(value)
        else number(value)
    )


def _kind(values: Sequence[Any]) -> str:
    numbers = [value for value in values if value is not None and not isinstance(value, bool)]
    return "number" if numbers and all(isinstance(value, int | float | Estimate) for value in numbers) else ""


def _spread(values: Sequence[Any]) -> bool:
    return any(isinstance(value, Estimate) for value in values)


def _cell(value: Any, kind: str) -> Markup:
    if isinstance(value, Estimate):
        text = estimate_text(value)
        return element(
            "td", text, class_=kind or None, data_value=value.value, data_low=value.low, data_high=value.high
        )
    if isinstance(value, bool):
        return element("td", "yes" if value else "no")
    if isinstance(value, int | float):
        return element("td", number(value), class_=kind or None, data_value=value)
    return element("td", "" if value is None else value if isinstance(value, str) else str(value), class_=kind or None)
