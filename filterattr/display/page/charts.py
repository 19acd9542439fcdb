"""Charts as small SVG pictures that take their colours from the page, and say in words what they show."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from filterattr.display.page.markup import Markup, element, joined, number

# drawn for the width of a phone: wider screens put several charts side by side
WIDTH, HEIGHT = 380, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 12, 44
SLOTS = 6
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 4", "1 4")


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        label: Its name in the legend.
        xs: Places.
        ys: Values; those that are not finite are left out.
        lows: Lower ends of a ribbon around it; none if empty.
        highs: Upper ends.
        slot: Which colour, dash and mark it has; ``None``: a gray null, drawn as a band with its mean.
    """

    label: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    lows: tuple[float, ...] = ()
    highs: tuple[float, ...] = ()
    slot: int | None = 0


@dataclass(frozen=True)
class Axes:
    """How places and values become points.

    Attributes:
        x_label: Below the chart.
        y_label: Above the chart.
        x_ticks: Places with a label each.
        y_range: Lowest and highest value that is shown.
        log: Whether places are spread by their logarithm.
        rules: Values with a thin line across.
    """

    x_label: str
    y_label: str
    x_ticks: tuple[tuple[float, str], ...]
    y_range: tuple[float, float]
    log: bool = False
    rules: tuple[float, ...] = ()

    def x(self, place: float) -> float:
        """Turn a place into a horizontal position."""
        ticks = [tick for tick, _ in self.x_ticks]
        scale = math.log if self.log else float
        low, high, here = scale(min(ticks)), scale(max(ticks)), scale(place)
        return _LEFT + (here - low) / ((high - low) or 1.0) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        """Turn a value into a vertical position; what is out of range lands on the edge."""
        low, high = self.y_range
        inside = min(max(value, low), high)
        return HEIGHT - _BOTTOM - (inside - low) / ((high - low) or 1.0) * (HEIGHT - _TOP - _BOTTOM)


def round_range(values: Sequence[float], *, include: Sequence[float] = (), most: float = math.inf) -> tuple[float, ...]:
    """Round ticks that span some values.

    Args:
        values: The values; those that are not finite do not count.
        include: What must be inside, too.
        most: The highest tick is at most this.

    Returns:
        Between 3 and 8 ticks at equal distances.

    Example:
        >>> round_range([0.03, 0.94])
        (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    """
    finite = [min(value, most) for value in values if math.isfinite(value)] + list(include) or [0.0, 1.0]
    low, high = min(finite), max(finite)
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 5))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if span / (factor * power) <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(round(place * step, 12) for place in range(first, max(last, first + 2) + 1))


def line_chart(lines: Sequence[Line], axes: Axes, *, title: str, description: str) -> Markup:
    """Draw lines, with ribbons for intervals and gray bands for nulls.

    Args:
        lines: The lines; nulls are drawn below all others.
        axes: Where what goes.
        title: What is drawn; shown above it.
        description: The same in words, for readers who do not see the picture.

    Returns:
        A figure with its legend.
    """
    ordered = sorted(lines, key=lambda line: line.slot is not None)
    content = [_frame(axes), *(_ribbon(line, axes) for line in ordered), *(_stroke(line, axes) for line in ordered)]
    return _figure(content, HEIGHT, title, description, [(line.label, _swatch(line.slot)) for line in lines])


def bar_chart(
    names: Sequence[str], values: Sequence[tuple[str, Sequence[float]]], *, title: str, description: str, x_label: str
) -> Markup:
    """Draw percentages as horizontal bars, one group a name, so that many long names can be read.

    The axis is linear up to 1 and logarithmic above: small layers are often taken whole while large ones hold most
    of the units, and both must be seen.

    Args:
        names: One per group, from top to bottom.
        values: Label to one percentage per group.
        title: What is drawn.
        description: The same in words.
        x_label: What the percentages are.

    Returns:
        A figure with its legend.
    """
    left, thickness = 128, 9 if len(values) > 1 else 12
    group = thickness * len(values) + 7
    height = _TOP + group * len(names) + _BOTTOM
    bottom = height - _BOTTOM

    def x(value: float) -> float:
        place = value if value <= 1 else 1 + math.log10(value)
        return left + place / 3 * (WIDTH - left - 22)

    content = []
    for tick in (0, 1, 10, 100):
        content.append(element("line", x1=_p(x(tick)), x2=_p(x(tick)), y1=_TOP, y2=bottom, class_="grid"))
        content.append(_text(x(tick), bottom + 16, str(tick), "middle"))
    content.append(_text((left + WIDTH - 22) / 2, bottom + 36, x_label, "middle"))
    for place, name in enumerate(names):
        top = _TOP + place * group + 3
        shown = name if len(name) <= 19 else f"{name[:8]}…{name[-10:]}"
        content.append(_text(left - 6, top + (group - 7) / 2 + 4, shown, "end", title=name))
        for slot, (label, shares) in enumerate(values):
            tip = element("title", f"{name}, {label}: {number(shares[place])}%")
            content.append(
                element(
                    "rect",
                    tip,
                    x=left,
                    y=_p(top + slot * thickness),
                    width=_p(max(x(shares[place]) - left, 0)),
                    height=thickness - 1,
                    class_=f"fill s{slot % SLOTS}",
                )
            )
    return _figure(
        content, height, title, description, [(label, _block(slot)) for slot, (label, _) in enumerate(values)]
    )


def _figure(
    content: Sequence[Markup], height: float, title: str, description: str, legend: Sequence[tuple[str, Markup]]
) -> Markup:
    key = "c" + hashlib.sha256(joined(title, description, *content).encode()).hexdigest()[:12]
    drawing = element(
        "svg",
        element("title", title, id=f"{key}t"),
        element("desc", description, id=f"{key}d"),
        *content,
        viewBox=f"0 0 {WIDTH} {_p(height)}",
        role="img",
        aria_labelledby=f"{key}t {key}d",
    )
    entries = [element("li", swatch, label) for label, swatch in legend]
    return element(
        "figure",
        element("figcaption", title),
        drawing,
        element("ul", entries, class_="legend", aria_hidden="true"),
        class_="chart",
    )


def _swatch(slot: int | None) -> Markup:
    """The same line as in the chart, beside its name."""
    if slot is None:
        inside = element("rect", x=0, y=1, width=30, height=10, class_="band")
        line = element("line", x1=0, x2=30, y1=6, y2=6, class_="null")
        return element("svg", inside, line, viewBox="0 0 30 12", width=30, height=12, aria_hidden="true")
    line = element(
        "line",
        x1=0,
        x2=30,
        y1=6,
        y2=6,
        class_=f"stroke s{slot % SLOTS}",
        stroke_dasharray=_DASHES[slot % SLOTS] or None,
    )
    return element("svg", line, _mark(15, 6, slot), viewBox="0 0 30 12", width=30, height=12, aria_hidden="true")


def _block(slot: int) -> Markup:
    """The same bar as in the chart, beside its name."""
    inside = element("rect", x=0, y=0, width=12, height=12, class_=f"fill s{slot % SLOTS}")
    return element("svg", inside, viewBox="0 0 12 12", width=12, height=12, aria_hidden="true")


def _frame(axes: Axes) -> Markup:
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    parts = []
    low, high = axes.y_range
    for tick in round_range([low, high]):
        if not low - 1e-9 <= tick <= high + 1e-9:
            continue
        y = axes.y(tick)
        parts.append(element("line", x1=_LEFT, x2=right, y1=_p(y), y2=_p(y), class_="grid"))
        parts.append(_text(_LEFT - 6, y + 4, number(tick), "end"))
    heights = [_p(axes.y(rule)) for rule in axes.rules]
    parts += [element("line", x1=_LEFT, x2=right, y1=y, y2=y, class_="rule") for y in heights]
    for place, label in axes.x_ticks:
        x = axes.x(place)
        parts.append(element("line", x1=_p(x), x2=_p(x), y1=bottom, y2=bottom + 4, class_="rule"))
        if label:
            parts.append(_text(x, bottom + 17, label, "middle"))
    parts.append(_text((_LEFT + right) / 2, HEIGHT - 6, axes.x_label, "middle"))
    middle = (_TOP + bottom) / 2
    parts.append(_text(12, middle, axes.y_label, "middle", transform=f"rotate(-90 12 {_p(middle)})"))
    return element("g", parts)


def _ribbon(line: Line, axes: Axes) -> Markup:
    points = [
        (place, low, high)
        for place, low, high in zip(line.xs, line.lows, line.highs, strict=False)
        if math.isfinite(low) and math.isfinite(high)
    ]
    if len(points) < 2:
        return Markup("")
    upper = [f"{_p(axes.x(place))} {_p(axes.y(high))}" for place, _, high in points]
    lower = [f"{_p(axes.x(place))} {_p(axes.y(low))}" for place, low, _ in reversed(points)]
    kind = "band" if line.slot is None else f"ribbon s{line.slot % SLOTS}"
    return element("path", d=f"M{' L'.join([*upper, *lower])} Z", class_=kind)


def _stroke(line: Line, axes: Axes) -> Markup:
    points = [(axes.x(x), axes.y(y)) for x, y in zip(line.xs, line.ys, strict=True) if math.isfinite(y)]
    if not points:
        return Markup("")
    way = f"M{' L'.join(f'{_p(x)} {_p(y)}' for x, y in points)}"
    if line.slot is None:
        return element("path", d=way, class_="null")
    slot = line.slot % SLOTS
    stroke = element("path", d=way, class_=f"stroke s{slot}", stroke_dasharray=_DASHES[slot] or None)
    return joined(stroke, [_mark(x, y, slot) for x, y in points])


def _mark(x: float, y: float, slot: int) -> Markup:
    """Circle, square, diamond, triangle: colour is never the only difference."""
    kind, around = slot % 4, f"fill s{slot % SLOTS}"
    if kind == 0:
        return element("circle", cx=_p(x), cy=_p(y), r=3, class_=around)
    if kind == 1:
        return element("rect", x=_p(x - 2.7), y=_p(y - 2.7), width=5.4, height=5.4, class_=around)
    corners = [(0, -4), (4, 0), (0, 4), (-4, 0)] if kind == 2 else [(0, -3.8), (3.6, 3), (-3.6, 3)]
    return element("path", d="M" + " L".join(f"{_p(x + dx)} {_p(y + dy)}" for dx, dy in corners) + " Z", class_=around)


def _text(
    x: float, y: float, text: str, anchor: str, *, title: str | None = None, transform: str | None = None
) -> Markup:
    full = element("title", title) if title else None
    return element("text", full, text, x=_p(x), y=_p(y), text_anchor=anchor, transform=transform)


def _p(value: float) -> str:
    """A position: a tenth of a pixel is enough."""
    return f"{value:.1f}".removesuffix(".0")
