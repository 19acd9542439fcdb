"""The log of a training, line by line, and the pictures of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filterattr import StorageError
from filterattr.files import replace_file, replacing
from sr_zoo.training.recipe import TrainingError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


NAME = "log.jsonl"


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
    path = Path(folder) / NAME
    entries = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            break
        if not isinstance(entry, dict) or "iteration" not in entry:
            break
        entries.append(entry)
    return entries


def append_to_log(folder: str | Path, entry: Mapping[str, Any]) -> None:
    """Add a line to the log of a run, and bring it to the disk.

    Args:
        folder: The folder of the run; it must exist.
        entry: What `read_log` will return.

    Raises:
        StorageError: The disk refuses; the lines before are unharmed, and a piece of this one is passed over.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> append_to_log(folder, {"iteration": 100, "loss": 0.1})
        >>> read_log(folder)
        [{'iteration': 100, 'loss': 0.1}]
    """
    path = Path(folder) / NAME
    try:
        with path.open("a") as stream:
            stream.write(json.dumps(entry) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise StorageError(
            f"'{path}' could not be continued ({error.strerror}); the lines before are unharmed. Free some space and "
            "give the command again: the training goes on from its last checkpoint."
        ) from error


def cut_log(folder: str | Path, iteration: int) -> None:
    """Keep the lines up to an iteration: what came after was lost with the run that wrote it.

    The file is written only if there is something to leave out, and then beside the old one.

    Args:
        folder: The folder of the run; it must exist.
        iteration: The last one to keep.

    Raises:
        StorageError: The disk refuses; the old log is unharmed.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> for number in (100, 200, 300):
        ...     append_to_log(folder, {"iteration": number})
        >>> cut_log(folder, 200)
        >>> read_log(folder)
        [{'iteration': 100}, {'iteration': 200}]
    """
    path = Path(folder) / NAME
    kept = "".join(json.dumps(entry) + "\n" for entry in read_log(folder) if entry["iteration"] <= iteration)
    if path.exists() and path.read_text(errors="replace") != kept:
        replace_file(path, [kept.encode()])


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
    with replacing(Path(folder) / "curves.png") as stream:
        figure.savefig(stream, format="png", dpi=120)


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
