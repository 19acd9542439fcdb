"""``attribute``: which kernels carry what one network can do and the other cannot."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from filterattr import FilterAttribution, FilterAttributor, FilterSelection, SettingError
from filterattr.analysis import path_health
from filterattr.display import plot_layers, plot_path
from filterattr.files import replacing
from sr_zoo.cli.keys import add_key, keys_of
from sr_zoo.cli.numbers import add_seed, number, whole_number
from sr_zoo.cli.outputs import add_overwrite, check_folder
from sr_zoo.cli.program import Commands, add_device, device_of
from sr_zoo.data import load_photographs
from sr_zoo.degradations import SPELLING, Degradation, clean_inputs, degradations_from, evaluation_inputs
from sr_zoo.evaluation import check_colour
from sr_zoo.folder_lock import sole_run
from sr_zoo.models import TwoBranch
from sr_zoo.pair import concern_lines, concerns_are_shown, same_weights
from sr_zoo.pretrained import open_network
from sr_zoo.samples import draw_pairs, squared_error

_FILES = ("attribution.safetensors", "attribution.png")


def add(commands: Commands) -> None:
    """Add the command to the program."""
    parser = commands.add_parser(
        "attribute",
        help="score every kernel of two checkpoints on a folder of photographs, for one degradation",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("base", help="weights that lack the function: a shipped name, a file, or a .pth checkpoint")
    parser.add_argument("target", help="weights of the same network that have it")
    add_key(parser, of_pair=True)
    parser.add_argument("--images", type=Path, required=True, help="folder of photographs")
    parser.add_argument(
        "--degradation",
        nargs="+",
        default=["blur"],
        metavar="DEGRADATION",
        help=f"what is done to the photographs, all of it at once: clean, {SPELLING}",
    )
    parser.add_argument("--crops", type=whole_number(1, 100_000), default=12, help="number of crops")
    parser.add_argument("--size", type=whole_number(16, 16_384), default=128, help="width of a crop in pixels")
    parser.add_argument("--steps", type=whole_number(1, 1024), default=16, help="nodes of the integral")
    parser.add_argument(
        "--fraction",
        type=number(0, 1, open_ends=True),
        default=0.01,
        help="share of all kernels in the printed selection",
    )
    add_seed(parser, "crops and noise")
    add_device(parser)
    parser.add_argument("--out", type=Path, default=Path("attribution"), help="folder for the file and the picture")
    add_overwrite(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Attribute; a call that was killed goes on where it was."""
    check_folder("--out", options.out, _FILES, overwrite=options.overwrite)
    device = device_of(options)
    ends = (options.base, options.target)
    base, target = (
        open_network(name, key=key).to(device) for name, key in zip(ends, keys_of(options, ends), strict=True)
    )
    scale = int(target.upscale)  # type: ignore[arg-type]
    _check_pair(base, target, options)
    name, degradation = _input(options.degradation, scale)
    pairs = draw_pairs(
        load_photographs(options.images),
        {name: degradation},
        count=options.crops,
        size=options.size,
        scale=scale,
        seed=options.seed,
        margin=8 * scale,
    )[name]
    data = [(degraded.to(device), reference.to(device)) for degraded, reference in pairs]
    files = [options.out / file for file in _FILES]
    with sole_run(options.out):
        with concerns_are_shown():  # the table says them all
            attribution = FilterAttributor(target).attribute(
                base,
                target,
                squared_error,
                data,
                n_steps=options.steps,
                allow_unused=target.unused_in_restoring if isinstance(target, TwoBranch) else (),
                checkpoint=options.out / "unfinished.safetensors",
            )
        selection = attribution.scores().top(options.fraction)
        attribution.save(files[0])
        _draw(attribution, selection, name, files[1])
        (options.out / "unfinished.safetensors").unlink()
    sys.stdout.write(f"\n{_table(attribution, selection, name)}\n\n")
    sys.stdout.write("".join(f"wrote {file}\n" for file in files))


def _check_pair(base: nn.Module, target: nn.Module, options: argparse.Namespace) -> None:
    """Refuse what no attribution can come of."""
    check_colour(base)
    check_colour(target)
    if same_weights(base, target):
        raise SettingError(
            f"base and target must differ; '{options.base}' and '{options.target}' hold the same weights."
        )
    if options.size % int(target.upscale):  # type: ignore[arg-type]
        raise SettingError(f"--size must be a multiple of the scale {target.upscale}; got {options.size}.")


def _input(spellings: Sequence[str], scale: int) -> tuple[str, Degradation]:
    """Name of what is done to the photographs, and how it is done."""
    if list(spellings) == ["clean"]:
        return "clean", clean_inputs(scale)
    parts = degradations_from(spellings)
    name, degradation = list(evaluation_inputs(scale, degradations=parts).items())[-1]
    if len(parts) > 1 and name in parts:
        raise SettingError(
            f"of several degradations none may shrink the image, as they follow one another; got {', '.join(parts)}."
        )
    return name if name in parts else "+".join(parts), degradation


def _table(attribution: FilterAttribution, selection: FilterSelection, degradation: str) -> str:
    """The attribution as text of at most 80 columns."""
    chosen = selection.per_layer()
    rows = sorted(attribution.per_layer(), key=lambda row: -row.share)
    lines = [
        f"{degradation} inputs: loss {attribution.loss_base:.4g} of base, {attribution.loss_target:.4g} of target",
        f"completeness error {attribution.completeness_error:.2%}, cosine of the weights {attribution.cosine:.3f}",
        f"{selection.count} of {selection.n_units} kernels selected",
        "",
        f"{'layer':<40}{'kernels':>10}{'selected':>10}{'share of scores':>18}",
    ]
    lines += [f"{row.name:<40}{row.n_units:>10}{chosen[row.name]:>10}{row.share:>17.1%}" for row in rows[:10]]
    if len(rows) > 10:
        lines.append(f"... and {len(rows) - 10} more layers")
    doubts = concern_lines(attribution) or textwrap.wrap(str(path_health(attribution)), 80)
    return "\n".join([*lines, "", *doubts])


def _draw(attribution: FilterAttribution, selection: FilterSelection, degradation: str, path: Path) -> None:
    """Where the selected kernels sit, and the loss along the path."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import

    figure = Figure(figsize=(12, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    plot_layers({f"{degradation}: {selection.count} kernels": selection}, left)
    left.set_title("Where the kernels with the largest scores sit (dashed: spread evenly)", fontsize=11)
    plot_path({f"{degradation} inputs": attribution}, right)
    right.set_title("Loss along the path from base to target", fontsize=11)
    with replacing(path) as stream:
        figure.savefig(stream, dpi=120, format="png")
