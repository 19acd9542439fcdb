"""``attribute``: which kernels carry what one network can do and the other cannot."""

from __future__ import annotations

import argparse
import shlex
import sys
import textwrap
from pathlib import Path

from torch import nn

from filterattr import FilterAttribution, FilterAttributor, FilterSelection, SettingError
from filterattr.analysis import path_health
from filterattr.cli import check_folder, device_of
from filterattr.display import plot_layers, plot_path
from filterattr.files import replacing
from sr_zoo.cli.keys import keys_of
from sr_zoo.data import load_photographs
from sr_zoo.degradations import input_from
from sr_zoo.evaluation import check_colour
from sr_zoo.folder_lock import sole_run
from sr_zoo.models import TwoBranch
from sr_zoo.pair import concern_lines, concerns_are_shown, same_weights
from sr_zoo.pretrained import open_network
from sr_zoo.samples import draw_pairs, squared_error

_FILES = ("attribution.safetensors", "attribution.png")


def run(options: argparse.Namespace) -> None:
    """Attribute; a call that was killed is resumed."""
    check_folder("--out", options.out, _FILES, overwrite=options.overwrite)
    device = device_of(options)
    ends = (options.base, options.target)
    base, target = (
        open_network(name, key=key).to(device) for name, key in zip(ends, keys_of(options, ends), strict=True)
    )
    scale = int(target.upscale)  # type: ignore[arg-type]
    _check_pair(base, target, options)
    name, degradation = input_from(options.degradation, scale)
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
    sys.stdout.write(f"\n{_next(options)}\n")


def _next(options: argparse.Namespace) -> str:
    """The command that tests the kernels, in words to copy."""
    keys = ["--key", *options.key] if options.key else []
    ends = ["--base", str(options.base), "--target", str(options.target), *keys, "--search", str(options.images)]
    return "A high score is no proof. Test the kernels on other photographs:\n  " + shlex.join(
        ["python", "-m", "sr_zoo", "demo", *ends, "--test", "OTHER_PHOTOS"]
    )


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


def _table(attribution: FilterAttribution, selection: FilterSelection, degradation: str) -> str:
    """The attribution as text of at most 80 columns."""
    chosen = selection.per_layer()
    rows = sorted(attribution.per_layer(), key=lambda row: -row.share)
    lines = [
        f"{degradation} inputs: loss {attribution.loss_base:.4g} of base, {attribution.loss_target:.4g} of target",
        "    (sum of squared errors; target should be lower)",
        f"completeness error {attribution.completeness_error:.2%} (below 1%: the integral was resolved)",
        f"cosine of the weights {attribution.cosine:.3f} (near 1: target is close to base)",
        f"{selection.count} of {selection.n_units} kernels selected: those with the highest scores",
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
