"""``card``: measure trained weights and describe them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from filterattr.files import replace_file
from sr_zoo.card import make_card, write_half
from sr_zoo.cli.keys import add_key, keys_of
from sr_zoo.cli.numbers import add_seed
from sr_zoo.cli.outputs import add_overwrite, check_file
from sr_zoo.cli.program import Commands
from sr_zoo.data import load_photographs
from sr_zoo.pretrained import find_weights


def add(commands: Commands) -> None:
    """Add the command to the program."""
    parser = commands.add_parser(
        "card",
        help="measure trained weights and write their card: PSNR and SSIM for clean, blurred, noisy and both inputs",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("weights", help="weights: a shipped name or a file")
    add_key(parser)
    parser.add_argument(
        "--images", type=Path, nargs="+", required=True, help="folders of photographs to evaluate on, such as set5"
    )
    parser.add_argument("--data", required=True, help="what the weights were trained on, with its licence")
    add_seed(parser, "the noise")
    parser.add_argument("--out", type=Path, help="file to write the card to; it is only printed if not given")
    parser.add_argument(
        "--half",
        type=Path,
        help="file to write the weights to in half precision, if that changes no PSNR by more than .01 dB; the card is "
        "then that of this file",
    )
    add_overwrite(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Measure, print, and write where asked."""
    path = find_weights(options.weights)
    (key,) = keys_of(options, [options.weights])
    if options.half is not None:
        check_file("--half", options.half, {".safetensors"}, overwrite=options.overwrite, inputs=[path])
    if options.out is not None:
        check_file("--out", options.out, {".md", ".txt"}, overwrite=options.overwrite)
    folders = {folder.name: load_photographs(folder) for folder in options.images}
    table = None
    if options.half is not None:
        table, path = write_half(path, options.half, folders, seed=options.seed, key=key), options.half
        key = None
        sys.stdout.write(f"wrote {path}\n\n")
    card = make_card(path, folders, data=options.data, seed=options.seed, table=table, key=key)
    sys.stdout.write(card)
    if options.out is not None:
        replace_file(options.out, [card.encode()])
        sys.stdout.write(f"\nwrote {options.out}\n")
