"""``restore``: enlarge an image and undo what was done to it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from sr_zoo.cli.keys import add_key, keys_of
from sr_zoo.cli.numbers import whole_number
from sr_zoo.cli.outputs import OutputError, add_overwrite, check_file
from sr_zoo.cli.program import Commands, add_device, device_of
from sr_zoo.images import EXTENSIONS
from sr_zoo.pretrained import open_network
from sr_zoo.restoring import Picture, restore_picture

_LARGEST = {".webp": 16_383, ".jpg": 65_500, ".jpeg": 65_500}  # pixels that the format can count


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
    add_key(parser)
    parser.add_argument("--out", type=Path, help="file to write; NAME_restored.png beside the image if not given")
    add_overwrite(parser)
    parser.add_argument(
        "--tile",
        type=whole_number(16, 1_000_000),
        default=256,
        help="width of the tiles that a larger image is cut into",
    )
    add_device(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Restore tile by tile."""
    out = options.out or options.image.with_name(f"{options.image.stem}_restored.png")
    picture = Picture.read(options.image)
    check_file("--out", out, EXTENSIONS, overwrite=options.overwrite, inputs=[options.image])
    device = device_of(options)
    network = open_network(options.weights, key=keys_of(options, [options.weights])[0]).to(device)
    _check_format(picture, int(getattr(network, "upscale", 1)), out)
    with tqdm(desc=options.image.name, unit="tile", disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        restored = restore_picture(network, picture, tile=options.tile, progress=show)
    restored.write(out)
    height, width = restored.size
    sys.stdout.write(f"wrote {out} ({width}x{height})\n")


def _check_format(picture: Picture, scale: int, out: Path) -> None:
    """Refuse a format that cannot hold what will be restored."""
    kind, widest = out.suffix.lower(), scale * max(picture.size)
    if picture.alpha is not None and kind in (".jpg", ".jpeg"):
        raise OutputError(f"--out must hold transparency, as the image does, which JPEG cannot; got '{out}'. PNG can.")
    if widest > _LARGEST.get(kind, widest):
        raise OutputError(
            f"--out must hold {widest} pixels in a row, and {kind} holds at most {_LARGEST[kind]}; got '{out}'. PNG "
            "holds them."
        )
