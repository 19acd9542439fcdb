"""HTML and SVG that are safe by construction: every text is escaped unless it was made here."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable
from typing import TypeAlias

# what no page may hold: control characters but for tab and line ends, halves of surrogate pairs, non-characters
_FORBIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_VOID = {"br", "hr", "img", "input", "link", "meta"}


class Markup(str):
    """Text that is a piece of a page already; `element` leaves it as it is, and escapes every other text."""

    __slots__ = ()


Child: TypeAlias = "str | int | float | Iterable[Child] | None"


def escaped(text: str) -> Markup:
    """Make a text harmless inside an element or a quoted attribute.

    Args:
        text: Anything that a user, a file name or a state dict came up with.

    Returns:
        The text with ``& < > " '`` written as entities, and what no page may hold as U+FFFD.

    Example:
        >>> escaped("<b>")
        '&lt;b&gt;'
    """
    return Markup(html.escape(_FORBIDDEN.sub("\ufffd", text), quote=True))


def element(name: str, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """Write one element.

    Args:
        name: Its name.
        *children: Texts, which are escaped; `Markup`, which is not; numbers; iterables of these; ``None`` is nothing.
        **attributes: ``class_`` is ``class``, ``aria_label`` is ``aria-label``. ``True`` writes the name alone,
            ``None`` and ``False`` write nothing.

    Returns:
        The element.

    Example:
        >>> element("p", "1 < 2", element("b", "!"), class_="note", hidden=True)
        '<p class="note" hidden>1 &lt; 2<b>!</b></p>'
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{joined(*children)}</{name}>")


def joined(*children: Child) -> Markup:
    """Write children one after the other.

    Args:
        *children: As for `element`.

    Returns:
        The piece of the page.

    Example:
        >>> joined("a & b", [element("br"), 2])
        'a &amp; b<br>2'
    """
    return Markup("".join(_child(child) for child in children))


def number(value: float) -> str:
    """Write a number for people.

    Args:
        value: The number.

    Returns:
        Four significant digits for a float, thousands separated for an int, ``n/a`` for what is not a number.

    Example:
        >>> number(0.123456), number(151936), number(1.5e-7), number(float("nan"))
        ('0.1235', '151,936', '1.5e-07', 'n/a')
    """
    if isinstance(value, int):
        text = f"{value:,}"
    elif math.isnan(value):
        text = "n/a"
    elif math.isinf(value):
        text = "∞" if value > 0 else "-∞"
    else:
        text = f"{value:.4g}"
    return text.replace("-", "\u2212") if text[0] == "-" else text


def _attribute(key: str, value: str | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escaped(str(value))}"'


def _child(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, str):
        return escaped(child)
    if isinstance(child, int | float):
        return escaped(str(child))
    return joined(*child)
