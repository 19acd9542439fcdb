"""Open Graph wants absolute addresses: where nobody says where the site will live (``DOCS_URL``), a page names none."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_ADDRESS = re.compile(r'<meta property="og:(?:url|image|image:alt)" content="[^"]*" />\n?')


def setup(app: Sphinx) -> dict[str, Any]:
    # after sphinxext.opengraph, which writes them
    app.connect("html-page-context", _without_relative, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _without_relative(app: Sphinx, _page: str, _template: str, context: dict[str, Any], _doctree: object) -> None:
    # pages that are made, such as the index of names, have no tags
    if not app.config.ogp_site_url and "metatags" in context:
        context["metatags"] = _ADDRESS.sub("", context["metatags"])
