"""``Returns:`` holds words alone: the types are in the annotations, and a colon in a sentence is no end of a type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sphinx.ext.napoleon.docstring import GoogleDocstring

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def setup(_app: Sphinx) -> dict[str, Any]:
    GoogleDocstring._consume_returns_section = _words
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _words(section: GoogleDocstring, preprocess_types: bool = False) -> list[tuple[str, str, list[str]]]:  # noqa: ARG001
    lines = section._dedent(section._consume_to_next_section())
    return [("", "", lines)] if lines else []
