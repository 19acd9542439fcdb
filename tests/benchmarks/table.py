"""Print what pytest-benchmark saved as Markdown tables: ``python -m tests.benchmarks.table RESULTS.json PAGE.md``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def table(results: dict[str, Any]) -> str:
    """Lay out every benchmark that recorded a row.

    Args:
        results: The parsed file of ``--benchmark-json``.

    Returns:
        One Markdown table a question, each with its machine.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    for benchmark in results["benchmarks"]:
        if "question" in benchmark["extra_info"]:
            rows.setdefault(benchmark["extra_info"]["question"], []).append(benchmark["extra_info"])
    lines = []
    for question, found in rows.items():
        lines += [
            f"**{question[0].upper()}{question[1:]}**",
            "",
            "| case | result | lowest, highest |",
            "| --- | --- | --- |",
        ]
        lines += [f"| {row['case']} | {_shown(row['value'])} | {_spread(row['spread'])} |" for row in found]
        lines.append("")
    machines = sorted({f"{row['machine']}, {row['threads']} threads" for found in rows.values() for row in found})
    lines.append(f"Measured on {'; '.join(machines)}.")
    return "\n".join(lines) + "\n"


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


def _spread(spread: list[float] | None) -> str:
    return "" if spread is None else ", ".join(f"{value:.3g}" for value in spread)


def main() -> None:
    """Read, print, and write."""
    source, page = map(Path, sys.argv[1:])
    text = table(json.loads(source.read_text()))
    sys.stdout.write(text)
    page.write_text(text)


if __name__ == "__main__":
    main()
