"""``restore``: enlarge an image and undo what was done to it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from sr_zoo.cli.program import Commands, add_device, device_of
from sr_zoo.pretrained import open_network
from sr_zoo.restoring import Picture, restore_picture


def add(commands: Commands) -> None:
    """Add the command to the program."""
    parser = commands.add_parser(
        "restore",
        help="enlarge an image of any size and undo what was done to it",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("image", type=Path, help="an 8-bit image file; gray stays gray, transparency is kept")
    parser.add_argument(
        "--weights",
        default="srresnet_x2_f32b8_target",
        help="a shipped name, a file of this program, or a checkpoint in the layout of BasicSR (.pth)",
    )
    parser.add_argument("--out", type=Path, help="file to write; NAME_restored.png beside the image if not given")
    parser.add_argument("--tile", type=int, default=256, help="width of the tiles that a larger image is cut into")
    add_device(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Restore tile by tile."""
    out = options.out or options.image.with_name(f"{options.image.stem}_restored.png")
    picture = Picture.read(options.image)
    network = open_network(options.weights).to(device_of(options))
    with tqdm(desc=options.image.name, unit="tile") as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        restored = restore_picture(network, picture, tile=options.tile, progress=show)
    restored.write(out)
    height, width = restored.size
    sys.stdout.write(f"wrote {out} ({width}x{height})\n")
