"""``Returns:`` holds words alone, as the types are in the annotations; private bases are not shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sphinx.ext.napoleon.docstring import GoogleDocstring
from sphinx.util.inspect import TypeAliasForwardRef

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, Any]:
    GoogleDocstring._consume_returns_section = _words
    # an alias inside another annotation, such as ``StateLike | None``, is written with its name
    TypeAliasForwardRef.__repr__ = _name
    app.connect("autodoc-process-bases", _without_private)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _without_private(_app: Sphinx, _name: str, _object: object, _options: object, bases: list[type]) -> None:
    bases[:] = [base for base in bases if not getattr(base, "__name__", "").startswith("_")] or [object]


def _name(alias: TypeAliasForwardRef) -> str:
    return alias.name


def _words(section: GoogleDocstring, preprocess_types: bool = False) -> list[tuple[str, str, list[str]]]:  # noqa: ARG001
    lines = section._dedent(section._consume_to_next_section())
    return [("", "", lines)] if lines else []
