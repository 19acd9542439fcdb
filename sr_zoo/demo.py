"""The demo on real photographs: find the 1% of the kernels that remove blur, and noise, and compare with chance."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from tqdm import tqdm

from filterattr import (
    FilterAttribution,
    FilterAttributor,
    FilterSelection,
    SettingError,
    blend,
    contrast,
    swapped,
)
from filterattr.analysis import Masking, Outputs, choose, p_value
from filterattr.display import plot_layers, plot_path
from filterattr.files import replace_file, replacing
from sr_zoo.degradations import evaluation_inputs
from sr_zoo.evaluation import check_colour
from sr_zoo.images import ImageError, read_image, to_float
from sr_zoo.metrics import psnr
from sr_zoo.models import TwoBranch
from sr_zoo.pair import concern_lines, concerns_are_shown, same_weights
from sr_zoo.samples import Pair, draw_pairs, restored, squared_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FUNCTIONS = ("blur", "noise")
NAMES = {"blur": "deblurring", "noise": "denoising"}
FILES = ("restorations.png", "layers.png", "path.png", "table.json")
PRICES = (1.0, 2.0, 4.0, 8.0)  # of collateral, that are tried for a signed set
_SHOWN = 192


@dataclass(frozen=True)
class DemoRow:
    """One masked network.

    Attributes:
        label: The masked set.
        removed: Function to the removed share (0 intact, 1 gone); means over draws for the random rows.
        spread: Function to standard deviation over draws; empty for a single set.
        psnr: Input to PSNR in dB on RGB, mean over the test crops; the first draw for the random rows.
    """

    label: str
    removed: dict[str, float]
    spread: dict[str, float]
    psnr: dict[str, float]


@dataclass(frozen=True)
class DemoOutputs:
    """The outputs of one masked network.

    Attributes:
        label: The masked set.
        reverted: Reverted share of its function; 1 is base.
        moved: Every other input to its moved share; 0 is target.
    """

    label: str
    reverted: float
    moved: dict[str, float]


@dataclass(frozen=True)
class DemoResult:
    """The results of the demo.

    Attributes:
        rows: The table, from target to base.
        outputs: The outputs of every set, in the order of the table.
        selections: Function to the kernels that carry it: its signed set, or the set of the strict contrast if target
            has not learned it.
        n_kernels: Size of the sets of absolute scores.
        attributions: Function to its attribution on the search crops.
        p_values: Function to null (``"random"``, ``"layer-matched"``) to the p-value of its reverted share.
        nulls: Function to null to the shares that its random sets revert, one number per draw.
        seconds: Duration of the attribution and of the complete demo.
    """

    rows: list[DemoRow]
    outputs: list[DemoOutputs]
    selections: dict[str, FilterSelection]
    n_kernels: int
    attributions: dict[str, FilterAttribution]
    p_values: dict[str, dict[str, float]]
    nulls: dict[str, dict[str, list[float]]]
    seconds: dict[str, float]


def bundled_photographs() -> tuple[list[Tensor], list[Tensor]]:
    """Photographs that come inside scikit-image: some to search on, others to test on.

    Returns:
        ``uint8`` tensors of shape ``(3, H, W)``: coffee, cat and motorcycle to search on; astronaut and rocket to
        test on.

    Raises:
        ImageError: scikit-image is not installed.
    """
    try:
        import skimage  # noqa: PLC0415 - only its photographs are needed, and only here
    except ImportError as error:
        raise ImageError(
            "the demo's photographs come inside scikit-image: pip install scikit-image, or name folders of your own "
            "with --search and --test."
        ) from error
    folder = Path(skimage.__file__).parent / "data"
    search, test = ("coffee.png", "chelsea.png", "motorcycle_left.png"), ("astronaut.png", "rocket.jpg")
    return [read_image(folder / name) for name in search], [read_image(folder / name) for name in test]


def find_and_mask(
    base: nn.Module,
    target: nn.Module,
    search: Sequence[Tensor],
    test: Sequence[Tensor],
    *,
    fraction: float = 0.01,
    crops: int = 12,
    draws: int = 30,
    n_steps: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> DemoResult:
    """Find the kernels of deblurring and denoising on some photographs and mask them on others.

    Args:
        base: Network trained on clean inputs.
        target: The same network, fine-tuned on blurred and noisy inputs.
        search: ``uint8`` photographs of shape ``(3, H, W)`` to attribute on.
        test: Other photographs to mask on.
        fraction: Share of all kernels in each set.
        crops: Number of crops of 128x128 pixels, for the search and for the test each.
        draws: Random sets of every null.
        n_steps: Gauss-Legendre nodes of the integral.
        seed: Seed of crops, noise and random sets.
        progress: Show progress bars in a terminal.

    Returns:
        The result.

    Raises:
        SettingError: A number is out of range, or the networks differ in scale; all findings are in one message.
        ImageError: A network does not map colours to colours.
    """
    _check_settings(base, target, fraction, crops, draws, n_steps)
    started = time.monotonic()
    scale = int(target.upscale)  # type: ignore[arg-type]
    inputs = {name: one for name, one in evaluation_inputs(scale).items() if name != "both"}
    size, margin = 128 // scale * scale, 8 * scale
    found = draw_pairs(search, inputs, count=crops, size=size, scale=scale, seed=seed, margin=margin)
    tested = draw_pairs(test, inputs, count=crops, size=size, scale=scale, seed=seed + 1, margin=margin)
    attributor = FilterAttributor(target)
    with concerns_are_shown():  # the result says them all
        attributions = {
            name: attributor.attribute(
                base,
                target,
                squared_error,
                found[name],
                n_steps=n_steps,
                allow_unused=target.unused_in_restoring if isinstance(target, TwoBranch) else (),
                progress=None if progress else False,
            )
            for name in inputs
        }
    attributed = time.monotonic()
    guarded, attributions = attributions, {name: attributions[name] for name in FUNCTIONS}
    scores = {name: attribution.scores() for name, attribution in attributions.items()}
    # what target has not learnt has no signed set
    learnt = [name for name in FUNCTIONS if guarded[name].loss_target < guarded[name].loss_base]
    # noise has larger scores altogether: on the published scale its set fills up with kernels that serve both functions
    strict = {name: contrast(scores, name, scale="strict").top(fraction) for name in FUNCTIONS}
    published = {name: contrast(scores, name).top(fraction) for name in FUNCTIONS}
    selections = {**strict, **_signed(target, base, found, guarded, learnt, fraction, progress=progress)}
    batches = {name: _batch(tested[name]) for name in ("blur", "noise", "clean")}
    masking = Masking(target, base, target, squared_error, {name: [batches[name]] for name in FUNCTIONS})

    def row(label: str, state: Mapping[str, Tensor]) -> DemoRow:
        losses = masking.losses_of(state)
        removed = {name: masking.share_removed(name, losses[name]) for name in FUNCTIONS}
        return DemoRow(label, removed, {}, _psnr(masking.model, state, batches, scale))

    sets = {f"{NAMES[name]} kernels": (name, chosen) for name, chosen in selections.items()}
    sets |= {f"{NAMES[name]}, strict": (name, chosen) for name, chosen in strict.items()}
    sets |= {f"{NAMES[name]}, equation 7": (name, chosen) for name, chosen in published.items()}
    rows = [row("nothing (target)", masking.target)]
    rows += [row(label, masking.masked(chosen)) for label, (_, chosen) in sets.items()]
    outputs = Outputs(target, base, target, restored, {name: [batch] for name, batch in batches.items()})
    measured = [_measured(outputs, label, *chosen) for label, chosen in sets.items()]
    generator = torch.Generator().manual_seed(seed)
    nulls: dict[str, dict[str, list[float]]] = {name: {} for name in FUNCTIONS}
    with tqdm(total=4 * draws, desc="random sets", unit="set", disable=None if progress else True) as bar:
        for null, matched in (("random", False), ("layer-matched", True)):
            for name in FUNCTIONS:
                drawn = [selections[name].random(generator, layer_matched=matched) for _ in range(draws)]
                removed, nulls[name][null] = [], []
                for selection in drawn:
                    removed.append(masking.removed(selection))
                    nulls[name][null].append(outputs.shares(selection, (name,))[0][name])
                    bar.update()
                rows.append(
                    DemoRow(
                        f"like {NAMES[name]}, shuffled" if matched else f"random, {selections[name].count} kernels",
                        {other: statistics.fmean(value[other] for value in removed) for other in FUNCTIONS},
                        {other: statistics.stdev(value[other] for value in removed) for other in FUNCTIONS},
                        _psnr(masking.model, masking.masked(drawn[0]), batches, scale),
                    )
                )
    rows.append(row("everything (base)", masking.base))
    p_values = {
        name: {null: p_value(line.reverted, values) for null, values in nulls[name].items()}
        for name, line in zip(FUNCTIONS, measured, strict=False)
    }
    seconds = {"attribution": attributed - started, "whole": time.monotonic() - started}
    return DemoResult(rows, measured, selections, strict["blur"].count, attributions, p_values, nulls, seconds)


def find_to_show(photographs: Sequence[Tensor]) -> Tensor:
    """Find a photograph that is large enough for `draw_pictures`.

    Args:
        photographs: ``uint8`` tensors of shape ``(3, H, W)``.

    Returns:
        The first photograph that is large enough.

    Raises:
        ImageError: No photograph is large enough.

    Example:
        >>> find_to_show([torch.zeros(3, 20, 900), torch.zeros(3, 200, 300)]).shape
        torch.Size([3, 200, 300])
    """
    for photograph in photographs:
        if min(photograph.shape[-2:]) >= _SHOWN:
            return photograph
    raise ImageError(
        f"one of the photographs to test on is shown, and must be at least {_SHOWN}x{_SHOWN} pixels; none of "
        f"{len(photographs)} is."
    )


def table(result: DemoResult) -> str:
    """The result as text of at most 80 columns.

    Args:
        result: The result of `find_and_mask`.

    Returns:
        Several lines.
    """
    sizes = result.selections
    counts = " and ".join(f"{sizes[name].count} for {NAMES[name]}" for name in FUNCTIONS)
    lines = [
        f"Each row is target with some of {sizes['blur'].n_units} kernels set back to base:",
        f"{counts},",
        f"chosen on the photographs that were searched; {result.n_kernels} in the rows",
        "'strict' and 'equation 7'.",
        "Function removed: 0 intact, 1 gone, above 1 worse than base; +- is the sd of the",
        "random sets.",
        "PSNR in dB: quality of the restored image, from blurred, noisy and clean inputs;",
        "higher is better.",
        "",
        f"{'':<26}{'function removed':>24}{'PSNR (dB)':>23}",
        f"{'masked':<26}{'deblurring':>13}{'denoising':>13}{'blur':>9}{'noise':>7}{'clean':>7}",
    ]
    for row in result.rows:
        first, second = (
            f"{row.removed[name]:.2f}" + (f" +- {row.spread[name]:.2f}" if row.spread else "") for name in FUNCTIONS
        )
        blur, noise, clean = (row.psnr[name] for name in ("blur", "noise", "clean"))
        lines.append(f"{row.label:<26}{first:>13}{second:>13}{blur:>9.2f}{noise:>7.2f}{clean:>7.2f}")
    lines += [
        "",
        "The first two sets keep the sign of the scores, with a price for what a kernel",
        "does to other and clean inputs. Equation 7: absolute scores and the contrast of",
        "the paper. Strict: the same, with shares of all scores compared as well.",
        "Shuffled: random kernels, as many in each layer as the set has.",
        "",
        "Reverted: how far the outputs come back to base (1: all the way). Moved: how far",
        "others leave target (0: not at all).",
        "",
        f"{'masked':<26}{'reverted':>13}{'moved: other':>16}{'moved: clean':>16}",
    ]
    for measured in result.outputs:
        most = max(share for name, share in measured.moved.items() if name != "clean")
        lines.append(f"{measured.label:<26}{measured.reverted:>13.2f}{most:>16.2f}{measured.moved['clean']:>16.2f}")
    lines.append("")
    for name, measured in zip(FUNCTIONS, result.outputs, strict=False):
        own = next(row for row in result.rows if row.label == measured.label)
        other = next(function for function in FUNCTIONS if function != name)
        attribution, best = result.attributions[name], result.nulls[name]
        lines += [
            f"{NAMES[name]} kernels remove {own.removed[name]:.2f} of {NAMES[name]} and "
            f"{own.removed[other]:.2f} of {NAMES[other]}",
            f"    outputs     {measured.reverted:.2f} of the way back to base",
            f"    the best    of {len(best['random'])} random sets {max(best['random']):.2f}, of as many shuffled ones "
            f"{max(best['layer-matched']):.2f}",
            f"    chance      p = {result.p_values[name]['random']:.3f} against random sets, "
            f"{result.p_values[name]['layer-matched']:.3f} against shuffled ones",
            f"    integral    completeness error {attribution.completeness_error:.1%} (below 1% is good)",
            f"    path        barrier {attribution.barrier / attribution.loss_base:.1%} of the loss of base (good: 0)",
            f"    weights     cosine {attribution.cosine:.3f} (near 1: target is close to base)",
            *concern_lines(attribution, "    "),
        ]
    lines += [
        f"{sum(a.n_passes for a in result.attributions.values())} forward-backward passes; attribution took "
        f"{result.seconds['attribution']:.0f} s of {result.seconds['whole']:.0f} s"
    ]
    return "\n".join(lines)


def draw_pictures(
    base: nn.Module, target: nn.Module, result: DemoResult, photograph: Tensor, folder: str | Path, seed: int = 0
) -> list[Path]:
    """Draw restorations side by side, where the kernels sit, and the losses along the path.

    Args:
        base: The base network.
        target: The target network.
        result: The result of `find_and_mask`.
        photograph: ``uint8`` of shape ``(3, H, W)``, at least 192x192; its upper middle is shown.
        folder: Where to write ``restorations.png``, ``layers.png``, ``path.png`` and ``table.json``.
        seed: Seed of the noise.

    Returns:
        The files.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / name for name in FILES]
    scale = int(target.upscale)  # type: ignore[arg-type]
    crop = _upper_middle(photograph, _SHOWN)
    figure = Figure(figsize=(12, 5.4), layout="constrained")
    axes = figure.subplots(2, 5)
    networks = {
        "target restores": target.state_dict(),
        "without deblurring kernels": blend(target, base, result.selections["blur"]),
        "without denoising kernels": blend(target, base, result.selections["noise"]),
    }
    inputs = evaluation_inputs(scale)
    for line, name in zip(axes, FUNCTIONS, strict=True):
        reference = to_float(crop[None])
        degraded = inputs[name](reference, torch.Generator().manual_seed(seed))
        enlarged = nn.functional.interpolate(degraded, scale_factor=scale, mode="nearest")
        shown = {f"input ({name})": enlarged}
        for label, state in networks.items():
            with swapped(target, state) as network, torch.no_grad():
                shown[label] = network(degraded).clamp(0, 1)
        shown["original"] = reference
        for axis, (label, image) in zip(line, shown.items(), strict=True):
            quality = psnr(image, reference, border=scale).item()
            axis.imshow(image[0].permute(1, 2, 0).numpy())
            axis.set_title(label if label == "original" else f"{label}\n{quality:.1f} dB", fontsize=10)
            axis.set_axis_off()
    _write(figure, files[0], 110)

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axis = figure.subplots()
    labels = {f"{NAMES[name]} kernels": selection for name, selection in result.selections.items()}
    plot_layers(labels, axis)
    axis.set_title("Where the kernels of each function sit (dashed: spread evenly)", fontsize=11)
    _write(figure, files[1], 120)

    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axis = figure.subplots()
    plot_path({f"{name} inputs": attribution for name, attribution in result.attributions.items()}, axis)
    axis.set_title("Loss along the path from base to target", fontsize=11)
    _write(figure, files[2], 120)

    content = {
        "rows": [vars(row) for row in result.rows],
        "outputs": [vars(one) for one in result.outputs],
        "p_values": result.p_values,
        "nulls": result.nulls,
        "seconds": result.seconds,
        "kernels_per_layer": {name: selection.per_layer() for name, selection in result.selections.items()},
    }
    replace_file(files[3], [f"{json.dumps(content, indent=1)}\n".encode()])
    return files


def _write(figure: Figure, path: Path, dpi: int) -> None:
    with replacing(path) as stream:
        figure.savefig(stream, dpi=dpi, format="png")


def _batch(pairs: Sequence[Pair]) -> Pair:
    """All crops at once: masking needs no per-sample numbers."""
    return torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs])


def _signed(
    target: nn.Module,
    base: nn.Module,
    found: Mapping[str, Sequence[Pair]],
    attributions: Mapping[str, FilterAttribution],
    learnt: Sequence[str],
    fraction: float,
    *,
    progress: bool,
) -> dict[str, FilterSelection]:
    """The signed sets, their price and size measured on the crops of the search."""
    batches = {name: [_batch(pairs)] for name, pairs in found.items()}
    outputs = Outputs(target, base, target, restored, batches)
    sets = {}
    for name in learnt:
        masking = Masking(target, base, target, squared_error, {name: batches[name]})
        with concerns_are_shown():
            sets[name] = choose(
                outputs,
                attributions,
                name,
                masking=masking,
                amount=fraction,
                prices=PRICES,
                progress=None if progress else False,
            ).selection
    return sets


def _measured(outputs: Outputs, label: str, function: str, chosen: FilterSelection) -> DemoOutputs:
    """Where the outputs of a set go, on the crops to test on."""
    reverted, moved = outputs.shares(chosen)
    others = {name: share for name, share in moved.items() if name != function}
    return DemoOutputs(label, reverted[function], others)


def _check_settings(base: nn.Module, target: nn.Module, fraction: float, crops: int, draws: int, n_steps: int) -> None:
    """Find everything wrong before the first pass."""
    check_colour(base)
    check_colour(target)
    findings = []
    if not 0 < fraction < 1:
        findings.append(f"fraction must lie between 0 and 1 (one per cent is 0.01); got {fraction}")
    if crops < 1:
        findings.append(f"crops must be at least 1; got {crops}")
    if draws < 2:
        findings.append(f"draws must be at least 2; got {draws}")
    if n_steps < 1:
        findings.append(f"n_steps must be at least 1; got {n_steps}")
    if base.upscale != target.upscale:
        findings.append(f"base and target must have the same scale; got {base.upscale} and {target.upscale}")
    elif same_weights(base, target):
        findings.append("base and target must differ; they hold the same weights")
    if findings:
        raise SettingError("; ".join(findings) + ".")


@torch.no_grad()
def _psnr(model: nn.Module, state: Mapping[str, Tensor], batches: Mapping[str, Pair], border: int) -> dict[str, float]:
    with swapped(model, state) as network:
        return {
            name: float(psnr(network(degraded).clamp(0, 1), reference, border=border).mean())
            for name, (degraded, reference) in batches.items()
        }


def _upper_middle(photograph: Tensor, size: int) -> Tensor:
    """Cut a square where photographers put faces."""
    height, width = photograph.shape[-2:]
    top, left = (height - size) // 8, (width - size) // 2
    return photograph[:, top : top + size, left : left + size]
