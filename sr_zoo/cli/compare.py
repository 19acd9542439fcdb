"""``compare``: one branch or two? Networks side by side."""

from __future__ import annotations

import argparse
import json
import sys

from filterattr import SettingError
from filterattr.cli import check_file, device_of
from filterattr.files import replace_file
from sr_zoo.cli.keys import keys_of
from sr_zoo.comparison import compare, comparison_table
from sr_zoo.data import load_photographs


def run(options: argparse.Namespace) -> None:
    """Measure and print."""
    labels = [words[0] for words in options.networks]
    if len(set(labels)) < len(labels):
        raise SettingError(f"every --network needs a label of its own; got {', '.join(labels)}.")
    if options.out is not None:
        check_file("--out", options.out, {".md", ".txt"}, overwrite=options.overwrite)
        check_file("--out", options.out.with_suffix(".json"), {".json"}, overwrite=options.overwrite)
    networks = {words[0]: words[1:] for words in options.networks}
    folders = {folder.name: load_photographs(folder) for folder in options.images}
    keys_of(options, [file for files in networks.values() for file in files])
    key = None if options.key is None else options.key[0]
    result = compare(networks, folders, seed=options.seed, device=device_of(options), key=key)
    table = comparison_table(result)
    sys.stdout.write(table)
    if options.out is not None:
        replace_file(options.out, [table.encode()])
        replace_file(options.out.with_suffix(".json"), [f"{json.dumps(result, indent=1)}\n".encode()])
        sys.stdout.write(f"\nwrote {options.out} and {options.out.with_suffix('.json').name}\n")
