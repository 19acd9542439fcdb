"""``card``: measure trained weights and describe them."""

from __future__ import annotations

import argparse
import sys

from filterattr.cli import check_file
from filterattr.files import replace_file
from sr_zoo.card import make_card, write_half
from sr_zoo.cli.keys import keys_of
from sr_zoo.data import load_photographs
from sr_zoo.pretrained import find_weights


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
