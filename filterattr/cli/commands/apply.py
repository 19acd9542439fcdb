"""``apply``: apply a patch to base."""

from __future__ import annotations

import argparse

from filterattr.cli.answers import answer
from filterattr.cli.commands.merged import check_out
from filterattr.cli.commands.weights import weights_of
from filterattr.export import apply_patch, read_patch, write_checkpoint


def run(options: argparse.Namespace) -> None:
    """Check that the patch belongs to base, and write base with the patch."""
    check_out(options, options.base, [options.patch])
    patch = read_patch(options.patch)
    patched = apply_patch(weights_of(options.base, options.key), patch)
    write_checkpoint(patched, options.base, options.out, key=options.key)
    answer(options, f"{patch}\nwrote {options.out}", {"out": str(options.out), "weights": patch.count})
