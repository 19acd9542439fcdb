"""Inventories for cross-references into other projects, from text files: a build never asks the network.

A line of ``docs/inventories/<project>.txt`` is a line of a Sphinx inventory, ``name domain:role priority place title``;
``$`` stands for the name and ``-`` for the name as the title. The first line is the address of that project's pages.
"""

from __future__ import annotations

import zlib
from pathlib import Path


def write_inventories(source: Path, folder: Path) -> dict[str, tuple[str, str]]:
    """Write one ``objects.inv`` for each text file and return the setting ``intersphinx_mapping``."""
    folder.mkdir(parents=True, exist_ok=True)
    mapping = {}
    for path in sorted(source.glob("*.txt")):
        address, *entries = path.read_text().splitlines()
        header = (
            f"# Sphinx inventory version 2\n# Project: {path.stem}\n# Version: \n"
            "# The remainder of this file is compressed using zlib.\n"
        )
        inventory = folder / f"{path.stem}.inv"
        inventory.write_bytes(header.encode() + zlib.compress("".join(f"{line}\n" for line in entries).encode()))
        mapping[path.stem] = (address, str(inventory))
    return mapping
