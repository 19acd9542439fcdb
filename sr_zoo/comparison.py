"""Comparison of networks of equal cost and training, and of the accuracy of predictors."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from filterattr import SettingError
from sr_zoo.cost import cost
from sr_zoo.degradations import Degradation, evaluation_inputs, spellings_of
from sr_zoo.evaluation import check_colour, measure, traced_photograph
from sr_zoo.models import TwoBranch
from sr_zoo.pretrained import OpenedWeights, open_weights, takes_key, trained_on
from sr_zoo.training import wanted_estimates

# what the repetitions of a network may differ in
_FREE = {"seed", "prediction_weight"}


@torch.no_grad()
def measure_estimates(
    network: TwoBranch, photographs: Sequence[Tensor], inputs: Mapping[str, Degradation], *, seed: int = 0
) -> dict[str, dict[str, dict[str, float]]]:
    """Measure how well the predictor of a two-branch network estimates the degradations of photographs.

    Args:
        network: The network.
        photographs: ``uint8`` tensors of shape ``(3, H, W)``.
        inputs: Name to degradation.
        seed: Seed of the degradations, which are those of `measure`.

    Returns:
        Input to degradation to ``{"accuracy", "error", "estimate"}``. These are the share of photographs in which the
        estimate is on the right side of one half, the mean absolute error, and the mean estimate, both in the units of
        `sr_zoo.degradations.STRENGTH_UNITS`. ``"all right"`` is the share in which every degradation was recognised.

    Example:
        >>> from sr_zoo.models import TwoBranch
        >>> from sr_zoo.degradations import evaluation_inputs
        >>> network = TwoBranch(num_feat=4, num_block=1, hidden=2, condition=2, predictor_feat=2)
        >>> table = measure_estimates(network, [torch.zeros(3, 32, 32, dtype=torch.uint8)], evaluation_inputs())
        >>> sorted(table["blur"])
        ['all right', 'blur', 'noise']
    """
    parameter = next(network.parameters())
    table: dict[str, dict[str, dict[str, float]]] = {}
    for name, degradation in inputs.items():
        estimates, truths = [], []
        for index, photograph in enumerate(photographs):
            degraded, _, strengths = traced_photograph(photograph, degradation, network.upscale, seed * 100_003 + index)
            estimates.append(network.estimate(network.predictor(degraded.to(parameter))).cpu().float())
            truths.append(wanted_estimates(network, strengths, 1))
        estimate, truth = torch.cat(estimates), torch.cat(truths)
        right = (estimate > 0.5) == (truth > 0.5)
        table[name] = {
            kind: {
                "accuracy": float(right[:, place].float().mean()),
                "error": float((estimate - truth)[:, place].abs().mean()),
                "estimate": float(estimate[:, place].mean()),
            }
            for place, kind in enumerate(network.predicts)
        }
        table[name]["all right"] = {"accuracy": float(right.all(1).float().mean())}
    return table


def compare(
    networks: Mapping[str, Sequence[str | Path]],
    folders: Mapping[str, Sequence[Tensor]],
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
    key: str | None = None,
) -> dict[str, Any]:
    """Measure several networks, each trained with one seed or more, on the same inputs.

    Args:
        networks: Label to weights, one for each seed, as `sr_zoo.pretrained.open_weights` opens them.
        folders: Name of a test set to its ``uint8`` photographs of shape ``(3, H, W)``.
        seed: Seed of the noise.
        device: Where to compute.
        progress: Show a progress bar in a terminal.
        key: As in `sr_zoo.pretrained.open_weights`, for all files that it can be said of.

    Returns:
        Plain values for JSON. ``"networks"`` maps labels to parameters, multiply-adds, stage, recipe and seeds.
        ``"differences"`` lists what the trainings differ in although they should not. ``"rows"`` maps labels to a list,
        for each file, of test set to input to PSNR and SSIM. ``"predictions"`` does the same for networks with two
        branches.

    Raises:
        SettingError: There is no network, or their scales or degradations differ.
        WeightsError: A file is unknown or of another kind.
        ImageError: A network does not map colours to colours.
    """
    if not networks or not all(networks.values()):
        raise SettingError("a comparison needs at least one network, with at least one file.")
    described = {
        label: [open_weights(file, key=key if key and takes_key(file) else None) for file in files]
        for label, files in networks.items()
    }
    loaded = {label: [one.network.to(device) for one in copies] for label, copies in described.items()}
    for copies in loaded.values():
        for network in copies:
            check_colour(network)
    scale, degradations = _common(loaded, described)
    inputs = evaluation_inputs(scale, degradations=degradations)
    result: dict[str, Any] = {
        "networks": {label: _facts(loaded[label][0], described[label]) for label in networks},
        "differences": _differences(described),
        "rows": {label: [] for label in networks},
        "predictions": {label: [] for label in networks if isinstance(loaded[label][0], TwoBranch)},
    }
    jobs = [(label, network) for label, copies in loaded.items() for network in copies]
    for label, network in tqdm(jobs, desc="comparing", unit="network", disable=None if progress else True):
        result["rows"][label].append(
            {name: measure(network, photographs, inputs, seed=seed) for name, photographs in folders.items()}
        )
        if isinstance(network, TwoBranch):
            result["predictions"][label].append(
                {
                    name: measure_estimates(network, photographs, inputs, seed=seed)
                    for name, photographs in folders.items()
                }
            )
    return result


def comparison_table(result: Mapping[str, Any]) -> str:
    """The comparison as Markdown: what was trained, PSNR and SSIM per input, and how well degradations were predicted.

    Args:
        result: What `compare` returned.

    Returns:
        Three tables; numbers are means over the seeds, with the standard deviation behind them where there are several.

    Example:
        >>> photographs = {"flat": [torch.zeros(3, 32, 32, dtype=torch.uint8)]}
        >>> result = compare({"small": ["srresnet_x2_f32b8_target"]}, photographs, progress=False)
        >>> print(comparison_table(result).splitlines()[2])
        | small (srresnet) | 195,971 | 225,504 | target | 12000 | 0 |
    """
    labels = list(result["networks"])
    lines = ["| network | parameters | multiply-adds a pixel | stage | iterations | seeds |", "| --- " * 6 + "|"]
    for label, facts in result["networks"].items():
        seeds = ", ".join(map(str, facts["seeds"]))
        lines.append(
            f"| {label} ({facts['architecture']}) | {facts['parameters']:,} | {facts['multiply_adds'] / 1024:,.0f} | "
            f"{facts['stage']} | {facts['recipe'].get('iterations', '?')} | {seeds} |"
        )
    lines += [
        "",
        f"Trained alike: {'yes' if not result['differences'] else 'no: ' + '; '.join(result['differences'])}.",
    ]
    lines += ["", "PSNR (dB) / SSIM on luma, the border of one scale left out:", ""]
    lines += ["| photographs | input | " + " | ".join(labels) + (" | difference |" if len(labels) == 2 else " |")]
    lines += ["| --- " * (2 + len(labels) + (len(labels) == 2)) + "|"]
    first = result["rows"][labels[0]][0]
    for folder, inputs in first.items():
        for name in inputs:
            values = {
                metric: [[row[folder][name][metric] for row in result["rows"][label]] for label in labels]
                for metric in ("psnr_luma", "ssim_luma")
            }
            pairs = zip(values["psnr_luma"], values["ssim_luma"], strict=True)
            cells = [f"{_mean(quality, 2)} / {_mean(likeness, 4)}" for quality, likeness in pairs]
            if len(labels) == 2:
                one, two = (statistics.fmean(seeds) for seeds in values["psnr_luma"])
                cells.append(f"{two - one:+.2f}")
            lines.append(f"| {folder} | {name} | " + " | ".join(cells) + " |")
    for label, seeds in result["predictions"].items():
        lines += [
            "",
            f"Degradations recognised by the predictor of {label}, share of photographs (mean absolute error):",
            "",
        ]
        lines += _prediction_lines(seeds)
    return "\n".join(lines) + "\n"


def _prediction_lines(seeds: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table of a predictor."""
    kinds = list(next(iter(next(iter(seeds[0].values())).values())))
    lines = ["| photographs | input | " + " | ".join(kinds) + " |", "| --- " * (2 + len(kinds)) + "|"]
    for folder, inputs in seeds[0].items():
        for name in inputs:
            cells = []
            for kind in kinds:
                found = [seed[folder][name][kind] for seed in seeds]
                error = f" ({_mean([one['error'] for one in found], 3)})" if "error" in found[0] else ""
                cells.append(f"{_mean([100 * one['accuracy'] for one in found], 1)}%{error}")
            lines.append(f"| {folder} | {name} | " + " | ".join(cells) + " |")
    return lines


def _mean(values: Sequence[float], digits: int) -> str:
    """Mean, and standard deviation if there are several."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({statistics.stdev(values):.{digits}f})"


def _facts(network: nn.Module, described: Sequence[OpenedWeights]) -> dict[str, Any]:
    """What a network is and how it was trained."""
    counted, provenance = cost(network), described[0].provenance
    recipe = {name: value for name, value in provenance.get("recipe", {}).items() if name != "seed"}
    return {
        "architecture": described[0].architecture,
        "parameters": counted.parameters,
        "multiply_adds": counted.multiply_adds,
        "stage": provenance.get("stage", "?"),
        "recipe": recipe,
        "seeds": [one.provenance.get("recipe", {}).get("seed", "?") for one in described],
    }


def _common(
    loaded: Mapping[str, Sequence[nn.Module]], described: Mapping[str, Sequence[OpenedWeights]]
) -> tuple[int, dict[str, Degradation]]:
    """Scale and degradations, which all networks must share."""
    scales = {int(network.upscale) for copies in loaded.values() for network in copies}  # type: ignore[arg-type]
    trained = [trained_on(one.provenance) for copies in described.values() for one in copies]
    if len(scales) > 1 or any(one != trained[0] for one in trained):
        names = {", ".join(spellings_of(one)) for one in trained}
        raise SettingError(
            f"networks must have the same scale and degradations to be compared; got scales {sorted(scales)} and "
            f"degradations {' and '.join(sorted(names))}."
        )
    return scales.pop(), trained[0]


def _differences(described: Mapping[str, Sequence[OpenedWeights]]) -> list[str]:
    """What the trainings differ in although a fair comparison has it equal."""
    every = [
        {"stage": one.provenance.get("stage"), "photographs": one.provenance.get("photographs")}
        | {name: value for name, value in one.provenance.get("recipe", {}).items() if name not in _FREE}
        for copies in described.values()
        for one in copies
    ]
    found = []
    for name in dict.fromkeys(key for one in every for key in one):
        values = list(dict.fromkeys(str(one.get(name)) for one in every))
        if len(values) > 1:
            found.append(f"{name} {' and '.join(values)}")
    return found
