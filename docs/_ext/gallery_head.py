"""Every example begins with its run time and links to it as a notebook and as a script."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_TIME = re.compile(
    r"\.\. rst-class:: sphx-glr-timing\n\n"
    r" +\*\*Total running time of the script:\*\* \((\d+) minutes ([\d.]+) seconds\)\n"
)
_TITLE = re.compile(r"^[^\n]+\n=+\n", re.MULTILINE)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", _move_time)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _move_time(_app: Sphinx, page: str, source: list[str]) -> None:
    """Take the run time, which sphinx-gallery writes at the end, to the title of the page."""
    time, title = _TIME.search(source[0]), _TITLE.search(source[0])
    if time is None or title is None:
        return
    name = page.rpartition("/")[2]
    head = (
        "\n.. rst-class:: run-time\n\n"
        f"Runs in {in_words(60 * int(time[1]) + float(time[2]))} on one core. Open it as a "
        f":download:`notebook <{name}.ipynb>` or as a :download:`script <{name}.py>`.\n"
    )
    source[0] = source[0][: title.end()] + head + source[0][title.end() : time.start()] + source[0][time.end() :]


def in_words(seconds: float) -> str:
    """A duration as people say it."""
    if seconds < 90:
        count = max(round(seconds), 1)
        return f"{count} second{'s' if count > 1 else ''}"
    return f"{round(seconds / 60)} minutes"
