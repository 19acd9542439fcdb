"""The list of versions in the sidebar: a build by itself knows one, ``docs/versions.py`` builds and lists several."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("build-finished", _list_this_one)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def write_versions(site: Path, current: str, versions: list[dict[str, Any]]) -> None:
    """Tell the pages of a built version which others there are, and which pages those lack."""
    content = json.dumps({"current": current, "versions": versions})
    (site / "_static" / "versions.js").write_text(f"window.filterattrVersions = {content};\n")


def _list_this_one(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        name = app.config.html_context["docs_version"]
        write_versions(Path(app.outdir), name, [{"name": name, "lacks": []}])
