"""The log of a training, line by line, and the pictures of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sr_zoo.training.recipe import TrainingError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


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
        >>> from pathlib import Path
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


def open_board(folder: Path, iteration: int) -> SummaryWriter:
    """Open a log for TensorBoard.

    Args:
        folder: Where its files go.
        iteration: Where the training goes on; later entries of a run that was killed are hidden.

    Returns:
        What `write_board` writes to.

    Raises:
        TrainingError: The package tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - optional
    except ImportError as error:
        raise TrainingError("a log for TensorBoard needs its package: pip install tensorboard.") from error
    return SummaryWriter(str(folder), purge_step=iteration + 1)


def write_board(board: SummaryWriter, entry: Mapping[str, Any]) -> None:
    """Write a line of the log for TensorBoard.

    Args:
        board: What `open_board` opened.
        entry: A line of `read_log`; every number becomes a curve, ``psnr`` one for each input.
    """
    numbers = {name: value for name, value in entry.items() if name not in ("iteration", "psnr")}
    numbers |= {f"psnr/{name}": value for name, value in entry.get("psnr", {}).items()}
    for name, value in numbers.items():
        board.add_scalar(name, value, entry["iteration"])
    board.flush()
