"""``.. name-list:: package``: every name that a package exports, with the first line of its docstring."""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from docutils.nodes import Node
    from sphinx.application import Sphinx

# packages whose names the reference lists under their modules
MODULES = ("filterattr.analysis", "filterattr.benchmarks", "filterattr.display", "filterattr.export")


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("name-list", NameList)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def lines_of(package: str) -> list[tuple[str, str, str]]:
    """Name, full name in the reference, and first line, in the order of the alphabet."""
    module = importlib.import_module(package)
    objects = {name: getattr(module, name) for name in sorted(module.__all__, key=str.lower)}
    documented = {name: item for name, item in objects.items() if inspect.isclass(item) or inspect.isfunction(item)}
    return [
        (
            name,
            f"{item.__module__ if item.__module__.startswith(MODULES) else package}.{name}",
            (inspect.getdoc(item) or "").split("\n")[0],
        )
        for name, item in documented.items()
    ]


class NameList(SphinxDirective):
    """Makes the table."""

    required_arguments = 1

    def run(self) -> list[Node]:
        text = [".. list-table::", "   :widths: auto", ""]
        for name, full, line in lines_of(self.arguments[0]):
            text += [f"   * - :py:obj:`{name} <{full}>`", f"     - {line}"]
        return self.parse_text_to_nodes("\n".join(text))
