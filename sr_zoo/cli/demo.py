"""``demo``: the main job on photographs."""

from __future__ import annotations

import argparse
import sys

from filterattr.cli import check_folder
from sr_zoo.cli.keys import keys_of
from sr_zoo.data import load_photographs
from sr_zoo.demo import FILES, bundled_photographs, draw_pictures, find_and_mask, find_to_show, table
from sr_zoo.folder_lock import sole_run
from sr_zoo.images import ImageError
from sr_zoo.pretrained import open_network


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
