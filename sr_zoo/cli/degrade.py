"""``degrade``: a contact sheet of all degradations."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sr_zoo.cli.numbers import add_seed, whole_number
from sr_zoo.cli.outputs import add_overwrite, check_file
from sr_zoo.cli.program import Commands
from sr_zoo.contact_sheet import draw_contact_sheet
from sr_zoo.images import read_image

_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".pdf", ".svg"}


def add(commands: Commands) -> None:
    """Add the command to the program."""
    parser = commands.add_parser(
        "degrade",
        help="show what every degradation does to a photograph, on one sheet",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("photograph", type=Path, help="an image file of at least 96x96 pixels; its middle is shown")
    parser.add_argument(
        "--size", type=whole_number(96, 16_384), default=144, help="width of the piece that is shown, in pixels"
    )
    add_seed(parser, "everything that is drawn")
    parser.add_argument("--out", type=Path, default=Path("degradations.png"), help="the picture to write")
    add_overwrite(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Draw the sheet."""
    check_file("--out", options.out, _ENDINGS, overwrite=options.overwrite, inputs=[options.photograph])
    draw_contact_sheet(read_image(options.photograph), options.out, size=options.size, seed=options.seed)
    sys.stdout.write(f"wrote {options.out}\n")
