"""Cards of trained weights: network, training, and quality of the restoration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from filterattr.errors import name_some
from sr_zoo.building import ARCHITECTURES, build_with
from sr_zoo.comparison import measure_estimates
from sr_zoo.degradations import Degradation, evaluation_inputs, from_config
from sr_zoo.evaluation import measure
from sr_zoo.models import TwoBranch
from sr_zoo.pretrained import OpenedWeights, WeightsError, find_weights, open_weights, save_network, trained_on

Table: TypeAlias = dict[str, dict[str, dict[str, float]]]
Folders: TypeAlias = Mapping[str, Sequence[Tensor]]

HALF_TOLERANCE = 0.01


def make_card(
    weights: Path, folders: Folders, *, data: str, seed: int = 0, table: Table | None = None, key: str | None = None
) -> str:
    """Measure weights and describe them.

    Args:
        weights: Weights as `sr_zoo.pretrained.open_weights` opens them.
        folders: Name of a test set to its ``uint8`` photographs of shape ``(3, H, W)``.
        data: What the weights were trained on, with its licence.
        seed: Seed of the noise.
        table: The result of `measure_weights`, if it is known already.
        key: As in `sr_zoo.pretrained.open_weights`.

    Returns:
        The card as Markdown, with architecture, recipe, command, seed, data, and a table of PSNR (dB) and SSIM on RGB
        and luma for clean, blurred, noisy and both inputs. For a two-branch network it has the accuracy of the
        predictor. For weights of other projects, recipe and command are not known.

    Raises:
        WeightsError: The weights cannot be opened.
        ImageError: The photographs cannot be measured on, or the network does not map colours to colours.
    """
    opened = open_weights(weights, key=key)
    network, provenance = opened.network, opened.provenance
    scale = int(network.upscale)  # type: ignore[arg-type]
    arguments = ", ".join(f"{name}={value}" for name, value in opened.arguments.items())
    lines = [
        f"# {weights.stem}",
        "",
        f"- network: `{type(network).__name__}({arguments})`, "
        f"{sum(parameter.numel() for parameter in network.parameters())} parameters"
        + (", averaged weights (EMA)" if "recipe" in provenance else "")
        + (", stored in half precision" if provenance.get("precision") == "half" else ""),
        *_training(provenance, data),
        "",
        f"PSNR in dB and SSIM, border of {scale} pixels left out, noise seed {seed}; measured by "
        f"`python -m sr_zoo card {weights.stem} --images {' '.join(folders)}`:",
        "",
        "| photographs | input | PSNR RGB | SSIM RGB | PSNR luma | SSIM luma |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, rows in (_measured(opened, folders, seed) if table is None else table).items():
        lines += [
            f"| {name} ({len(folders[name])}) | {condition} | {row['psnr']:.2f} | {row['ssim']:.4f} | "
            f"{row['psnr_luma']:.2f} | {row['ssim_luma']:.4f} |"
            for condition, row in rows.items()
        ]
    if isinstance(network, TwoBranch):
        lines += _predictions(network, folders, trained_on(provenance), seed)
    return "\n".join(lines) + "\n"


def measure_weights(weights: str | Path, folders: Folders, *, seed: int = 0, key: str | None = None) -> Table:
    """Measure weights on every test set, with the inputs that they were trained for.

    Args:
        weights: Weights as `sr_zoo.pretrained.open_weights` opens them.
        folders: Name of a test set to its ``uint8`` photographs of shape ``(3, H, W)``.
        seed: Seed of the noise.
        key: As in `sr_zoo.pretrained.open_weights`.

    Returns:
        Name of the test set to input to PSNR and SSIM; see `sr_zoo.evaluation.measure`.

    Example:
        >>> import torch
        >>> flat = [torch.zeros(3, 32, 32, dtype=torch.uint8)]
        >>> table = measure_weights("srresnet_x2_f32b8_target", {"flat": flat})
        >>> list(table["flat"])
        ['clean', 'blur', 'noise', 'both']
    """
    return _measured(open_weights(weights, key=key), folders, seed)


def _measured(opened: OpenedWeights, folders: Folders, seed: int) -> Table:
    scale = int(opened.network.upscale)  # type: ignore[arg-type]
    inputs = evaluation_inputs(scale, degradations=trained_on(opened.provenance))
    return {
        name: measure(opened.network, photographs, inputs, seed=seed, progress=True)
        for name, photographs in folders.items()
    }


def write_half(weights: Path, out: Path, folders: Folders, *, seed: int = 0, key: str | None = None) -> Table:
    """Write weights in half precision, if that changes no PSNR by more than 0.01 dB.

    Both are measured first. An existing file at ``out`` is replaced only if the new one passes.

    Args:
        weights: Weights as `sr_zoo.pretrained.open_weights` opens them.
        out: The file to write, other than the file of the weights.
        folders: Test sets to measure both on.
        seed: Seed of the noise.
        key: As in `sr_zoo.pretrained.open_weights`.

    Returns:
        The result of `measure_weights` for the written weights.

    Raises:
        WeightsError: ``out`` is the file of the weights, or a PSNR changes by more than 0.01 dB. Nothing is written.
        StorageError: The file cannot be written; an existing file is unchanged.

    Example:
        >>> from pathlib import Path
        >>> import tempfile
        >>> import torch
        >>> from sr_zoo.pretrained import find_weights
        >>> out = Path(tempfile.mkdtemp()) / "half.safetensors"
        >>> grain = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
        >>> table = write_half(find_weights("srresnet_x2_f32b8_target"), out, {"grain": [grain]})
        >>> out.stat().st_size < 500_000
        True
    """
    source = find_weights(weights)
    if out.exists() and out.samefile(source):
        raise WeightsError(f"'{out}' holds the weights themselves; name another file for their half precision.")
    opened = open_weights(source, key=key)
    if opened.architecture not in ARCHITECTURES:
        raise WeightsError(
            f"half precision is written of {', '.join(ARCHITECTURES)}; '{weights}' holds {opened.architecture}."
        )
    halves = {name: value.half() for name, value in opened.network.state_dict().items()}
    too_large = [name for name, value in halves.items() if not value.isfinite().all()]
    if too_large:
        raise WeightsError(
            f"half precision holds numbers up to 65504; weights in {name_some(too_large)} are larger. Keep '{weights}' "
            "as it is."
        )
    network = build_with(opened.architecture, opened.arguments, halves, weights)
    half = _measured(opened._replace(network=network), folders, seed)
    worst, change = _worst(_measured(opened, folders, seed), half)
    if not change <= HALF_TOLERANCE:
        raise WeightsError(
            f"half precision must change no PSNR by more than {HALF_TOLERANCE} dB; it changes that of {worst} by "
            f"{change:.3f}. Keep '{weights}' as it is."
        )
    save_network(out, opened.architecture, opened.arguments, halves, {**opened.provenance, "precision": "half"})
    return half


def _worst(whole: Table, half: Table) -> tuple[str, float]:
    """Where half precision changes PSNR most, and by how many dB."""
    changes = {
        f"{folder}, {name}": abs(row[metric] - half[folder][name][metric])
        for folder, rows in whole.items()
        for name, row in rows.items()
        for metric in ("psnr", "psnr_luma")
    }
    return max(changes.items(), key=lambda change: math.inf if math.isnan(change[1]) else change[1])


def _training(provenance: Mapping[str, Any], data: str) -> list[str]:
    """How the weights came about, as far as they say."""
    try:
        recipe = provenance["recipe"]
        return [
            f"- stage: {provenance['stage']}; it learned to undo `{from_config(recipe['degradation'])}`",
            f"- trained on: {data}; {provenance['photographs']} photographs, the others held out for validation",
            f"- recipe: {recipe['iterations']} iterations, batch {recipe['batch_size']}, patch {recipe['patch_size']}, "
            f"Adam {recipe['learning_rate']:g} to {recipe['final_rate']:g} (cosine), L1, EMA {recipe['ema_decay']}, "
            f"{recipe['precision']}, seed {recipe['seed']}",
            f"- command: `{provenance['command']}` (torch {provenance['torch']})",
            f"- cosine to the weights it started from: {provenance['cosine_to_first_weights']:.3f}",
            *_first_losses(provenance),
        ]
    except KeyError:
        return [f"- trained on: {data}; the file does not say how"]


def _first_losses(provenance: Mapping[str, Any]) -> list[str]:
    """How the loss began, so that a run of the same recipe can be compared; the first weights do not say."""
    losses = provenance.get("first_losses")
    if not losses:
        return []
    listed = ", ".join(f"{loss:.5f} up to iteration {iteration}" for iteration, loss in losses.items())
    return [f"- mean training loss: {listed}"]


def _predictions(network: TwoBranch, folders: Folders, degradations: Mapping[str, Degradation], seed: int) -> list[str]:
    """What the predictor tells, as lines of the card."""
    lines = [
        "",
        "What the predictor tells: share of photographs in which it is right (mean absolute error; 1: full strength):",
        "",
        "| photographs | input | " + " | ".join(network.predicts) + " |",
        "| --- " * (2 + len(network.predicts)) + "|",
    ]
    inputs = evaluation_inputs(network.upscale, degradations=degradations)
    for folder, photographs in folders.items():
        for name, told in measure_estimates(network, photographs, inputs, seed=seed).items():
            cells = [f"{told[kind]['accuracy']:.1%} ({told[kind]['error']:.3f})" for kind in network.predicts]
            lines.append(f"| {folder} ({len(photographs)}) | {name} | " + " | ".join(cells) + " |")
    return lines
