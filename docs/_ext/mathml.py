"""Formulas as MathML: drawn by the browser itself, so that a page needs neither a script nor a network."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.errors import ExtensionError

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.writers.html5 import HTML5Translator

# docutils sets the index of an accented letter under it; without a formula font, browsers set a bar into the letter
_INDEXED = re.compile(r"<munderover>\s*(<mi>.*?</mi>)\s*(<mi>.*?</mi>)\s*(<mo [^>]*>ˉ</mo>)\s*</munderover>")
_BAR = re.compile(r"<mover accent=\"true\">(\s*<mi>.*?</mi>\s*<mo [^>]*>ˉ</mo>\s*</mover>)")


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _inline(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(_converted(node.astext()))
    raise nodes.SkipNode


def _block(translator: HTML5Translator, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math-block">{_converted(node.astext(), as_block=True)}</div>\n')
    raise nodes.SkipNode


def _converted(formula: str, *, as_block: bool = False) -> str:
    try:
        markup = tex2mathml(formula, as_block=as_block)
    except MathError as error:
        raise ExtensionError(f"a formula cannot be drawn: {formula}", error) from error
    return _BAR.sub(r"<mover>\1", _INDEXED.sub(r"<msub><mover>\1\3</mover>\2</msub>", markup))
