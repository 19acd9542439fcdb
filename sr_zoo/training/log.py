"""The log of a training, line by line, and the pictures of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_log(folder: str | Path) -> list[dict[str, Any]]:
    """Read the log of a run; a last line cut off by a kill is passed over.

    Args:
        folder: The folder of the run.

    Returns:
        One dictionary per report: ``iteration``, ``loss`` (L1), ``rate``, ``patches_per_second``, ``cosine`` to the
        first weights, and at validations ``psnr`` in dB per input.

    Example:
        >>> read_log("no such run")
        []
    """
    path = Path(folder) / "log.jsonl"
    entries = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


def draw_curves(folder: str | Path) -> None:
    """Draw loss and validation PSNR of a run as ``curves.png`` in its folder.

    Args:
        folder: The folder of the run; it must exist.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "log.jsonl").write_text('{"iteration": 1, "loss": 0.1, "psnr": {"clean": 30.0}}')
        54
        >>> draw_curves(folder)
        >>> (folder / "curves.png").exists()
        True
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import

    entries = read_log(folder)
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([e["iteration"] for e in entries], [e["loss"] for e in entries], lw=1)
    left.set(xlabel="iteration", ylabel="training loss (L1)")
    if entries and all(e["loss"] > 0 for e in entries):
        left.set_yscale("log")
    validated = [e for e in entries if "psnr" in e]
    for name in validated[-1]["psnr"] if validated else ():
        right.plot(
            [e["iteration"] for e in validated],
            [e["psnr"][name] for e in validated],
            label=name,
            marker=".",
        )
    right.set(xlabel="iteration", ylabel="validation PSNR (dB, RGB)")
    if validated:
        right.legend(frameon=False)
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(folder) / "curves.png", dpi=120)
