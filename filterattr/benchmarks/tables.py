"""What the benchmarks print and write."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from filterattr.files.writing import replace_file


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown.

    Args:
        lines: Cells, line by line; the first line is the head.

    Returns:
        The table, with a line break at its end.

    Example:
        >>> print(markdown([["name", "value"], ["a", "1"]]))
        | name | value |
        | --- | --- |
        | a | 1 |
        <BLANKLINE>
    """
    head, *rest = lines
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *rest))


def write_csv(columns: Sequence[str], rows: Iterable[Sequence[object]], path: Path) -> None:
    """Write rows of one kind.

    Args:
        columns: Their names.
        rows: The values; floats get six digits.
        path: The file.

    Raises:
        StorageError: The disk refuses.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "table.csv"
        >>> write_csv(["name", "value"], [("a", 1 / 3)], path)
        >>> print(path.read_text())
        name,value
        a,0.333333
        <BLANKLINE>
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([f"{value:.6g}" if isinstance(value, float) else value for value in row] for row in rows)
    replace_file(path, [text.getvalue().encode()])


def first_line(text: str | None) -> str:
    """The title of a module, for the help of its command.

    Args:
        text: The docstring of the module.

    Example:
        >>> first_line("Rankings against truth: `command`.")
        'Rankings against truth.'
    """
    return (text or "").partition("\n")[0].partition(":")[0] + "."
