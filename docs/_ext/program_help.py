"""``.. program-help:: sr_zoo demo`` shows what ``python -m sr_zoo demo --help`` prints, as it is at build time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from docutils.parsers.rst import Directive

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]


class ProgramHelp(Directive):
    required_arguments = 1
    optional_arguments = 10

    def run(self) -> list[nodes.Node]:
        done = subprocess.run(
            [sys.executable, "-m", *self.arguments[0].split(), *self.arguments[1:], "--help"],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env={**os.environ, "COLUMNS": "88", "NO_COLOR": "1"},
        )
        return [nodes.literal_block(done.stdout, done.stdout, language="text")]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("program-help", ProgramHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
