"""``degrade``: a contact sheet of all degradations."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sr_zoo.cli.program import Commands
from sr_zoo.contact_sheet import draw_contact_sheet
from sr_zoo.images import read_image


def add(commands: Commands) -> None:
    """Add the command to the program."""
    parser = commands.add_parser(
        "degrade",
        help="show what every degradation does to a photograph, on one sheet",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("photograph", type=Path, help="an image file of at least 96x96 pixels; its middle is shown")
    parser.add_argument("--size", type=int, default=144, help="width of the piece that is shown, in pixels")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything that is drawn")
    parser.add_argument("--out", type=Path, default=Path("degradations.png"), help="the picture to write")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Draw the sheet."""
    draw_contact_sheet(read_image(options.photograph), options.out, size=options.size, seed=options.seed)
    sys.stdout.write(f"wrote {options.out}\n")
