"""The card of trained weights: what they are, how they came about, and how well they restore."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sr_zoo.degradations import evaluation_inputs, from_config
from sr_zoo.evaluation import measure
from sr_zoo.pretrained import describe_network, load_network


def make_card(weights: Path, folders: Mapping[str, Sequence[Tensor]], *, data: str, seed: int = 0) -> str:
    """Measure weights and describe them.

    Args:
        weights: A file of `sr_zoo.pretrained.save_network`.
        folders: Name of a test set to its ``uint8`` photographs of shape ``(3, H, W)``.
        data: What the weights were trained on, with its licence.
        seed: Seed of the noise.

    Returns:
        The card as Markdown, with architecture, recipe, command, seed, data, and a table of PSNR (dB) and SSIM on RGB
        and luma for clean, blurred, noisy and both inputs.
    """
    description = describe_network(weights)
    provenance = description["provenance"]
    recipe = provenance["recipe"]
    network = load_network(weights)
    scale = int(network.upscale)  # type: ignore[arg-type]
    arguments = ", ".join(f"{name}={value}" for name, value in description["arguments"].items())
    lines = [
        f"# {weights.stem}",
        "",
        f"- network: `{type(network).__name__}({arguments})`, "
        f"{sum(parameter.numel() for parameter in network.parameters())} parameters, averaged weights (EMA)",
        f"- stage: {provenance['stage']}; it learned to undo `{from_config(recipe['degradation'])}`",
        f"- trained on: {data}; {provenance['photographs']} photographs, the others held out for validation",
        f"- recipe: {recipe['iterations']} iterations, batch {recipe['batch_size']}, patch {recipe['patch_size']}, "
        f"Adam {recipe['learning_rate']:g} to {recipe['final_rate']:g} (cosine), L1, EMA {recipe['ema_decay']}, "
        f"{recipe['precision']}, seed {recipe['seed']}",
        f"- command: `{provenance['command']}` (torch {provenance['torch']})",
        f"- cosine to the weights it started from: {provenance['cosine_to_first_weights']:.3f}",
        "",
        f"PSNR in dB and SSIM, border of {scale} pixels left out, noise seed {seed}; measured by "
        f"`python -m sr_zoo card {weights.stem} --images {' '.join(folders)}`:",
        "",
        "| photographs | input | PSNR RGB | SSIM RGB | PSNR luma | SSIM luma |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    inputs = evaluation_inputs(scale, degradations=provenance.get("degradations", ("blur", "noise")))
    with torch.no_grad():
        for name, photographs in folders.items():
            rows = measure(network, photographs, inputs, seed=seed, progress=True)
            lines += [
                f"| {name} ({len(photographs)}) | {condition} | {row['psnr']:.2f} | {row['ssim']:.4f} | "
                f"{row['psnr_luma']:.2f} | {row['ssim_luma']:.4f} |"
                for condition, row in rows.items()
            ]
    return "\n".join(lines) + "\n"
