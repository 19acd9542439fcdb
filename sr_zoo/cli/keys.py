"""``--key``: where in a checkpoint the weights are."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from filterattr import SettingError
from sr_zoo.pretrained import takes_key


def keys_of(options: argparse.Namespace, files: Sequence[str]) -> list[str | None]:
    """The key of every file; one key is for all files that may hold more than one network.

    Args:
        options: The options of the command.
        files: What was named as weights.

    Returns:
        As many keys as files.

    Raises:
        SettingError: There are more keys than files, or a key is for a file that takes none.
    """
    if options.key is None:
        return [None] * len(files)
    count = len(options.key)
    if count > 1 and count != len(files):
        raise SettingError(f"--key takes one key, or one for base and one for target; got {count}.")
    takers = [takes_key(file) for file in files]
    if not any(takers):
        raise SettingError("--key is for checkpoints that hold several networks; these files hold one each.")
    if count > 1:
        if not all(takers):
            single = files[takers.index(False)]
            raise SettingError(f"'{single}' holds one network and takes no key; give the key of the other file alone.")
        return list(options.key)
    return [options.key[0] if takes else None for takes in takers]
