"""``demo``: the main job on photographs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sr_zoo.cli.keys import add_key, keys_of
from sr_zoo.cli.numbers import add_seed, number, whole_number
from sr_zoo.cli.outputs import add_overwrite, check_folder
from sr_zoo.cli.program import Commands
from sr_zoo.data import load_photographs
from sr_zoo.demo import FILES, bundled_photographs, draw_pictures, find_and_mask, find_to_show, table
from sr_zoo.folder_lock import sole_run
from sr_zoo.images import ImageError
from sr_zoo.pretrained import open_network


def add(commands: Commands) -> None:
    """Add the command to the program."""
    parser = commands.add_parser(
        "demo",
        help="find the 1%% of the kernels that remove blur, and those that remove noise, and mask them",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--base", default="srresnet_x2_f32b8_base", help="weights: a shipped name or a file")
    parser.add_argument("--target", default="srresnet_x2_f32b8_target", help="weights: a shipped name or a file")
    add_key(parser, of_pair=True)
    parser.add_argument("--search", type=Path, help="folder of photographs to find the kernels on")
    parser.add_argument("--test", type=Path, help="folder of other photographs to mask them on")
    parser.add_argument(
        "--crops", type=whole_number(1, 100_000), default=12, help="128x128 crops for searching, and for testing"
    )
    parser.add_argument("--draws", type=whole_number(2, 100_000), default=30, help="random sets of every null")
    parser.add_argument(
        "--fraction", type=number(0, 1, open_ends=True), default=0.01, help="share of all kernels in a set"
    )
    parser.add_argument("--steps", type=whole_number(1, 1024), default=16, help="nodes of the integral")
    add_seed(parser, "crops, noise and random sets")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="folder for the pictures")
    add_overwrite(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Find, mask, draw."""
    if (options.search is None) != (options.test is None):
        raise ImageError("--search and --test belong together: name both folders, or none of them.")
    if options.search is not None and options.search.resolve() == options.test.resolve():
        raise ImageError("--search and --test must be different folders: kernels are judged on other photographs.")
    check_folder("--out", options.out, FILES, overwrite=options.overwrite)
    ends = (options.base, options.target)
    base, target = (open_network(name, key=key) for name, key in zip(ends, keys_of(options, ends), strict=True))
    if options.search is None:
        search, test = bundled_photographs()
    else:
        search, test = load_photographs(options.search), load_photographs(options.test)
    shown = find_to_show(test)
    with sole_run(options.out):
        result = find_and_mask(
            base,
            target,
            search,
            test,
            fraction=options.fraction,
            crops=options.crops,
            draws=options.draws,
            n_steps=options.steps,
            seed=options.seed,
        )
        files = draw_pictures(base, target, result, shown, options.out, options.seed)
    sys.stdout.write(f"\n{table(result)}\n\n" + "".join(f"wrote {file}\n" for file in files))
