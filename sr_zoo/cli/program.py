"""What the modules of the commands share."""

from __future__ import annotations

import argparse
import difflib
from typing import NoReturn, TypeAlias

import torch

from filterattr import SettingError

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


class Parser(argparse.ArgumentParser):
    """Refuses words in one sentence, as everything else is refused."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print below the usage.

        Args:
            message: What it found.

        Raises:
            SettingError: Always.
        """
        raise SettingError(f"{message.removeprefix('argument ').rstrip('.')} ({self.prog} --help explains it).")

    def refuse_unknown(self, words: list[str]) -> NoReturn:
        """Refuse words that no option is named, with the options that look like them.

        Args:
            words: The words.

        Raises:
            SettingError: Always.
        """
        options = [name for name in self._option_string_actions if name.startswith("--")]
        near = [name for word in words for name in difflib.get_close_matches(word.split("=")[0], options, n=1)]
        hint = f"; did you mean {', '.join(dict.fromkeys(near))}?" if near else ""
        self.error(f"there is nothing that takes {' '.join(words)}{hint}")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``; a GPU if there is one.

    Args:
        parser: The command's parser.
    """
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help="where to compute")


def device_of(options: argparse.Namespace) -> torch.device:
    """The device that was asked for.

    Args:
        options: The words of the command.

    Returns:
        A device that can be used.

    Raises:
        SettingError: PyTorch has no such device here, or one without numbers.
    """
    try:
        device = torch.zeros(1, device=options.device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # CPU builds of PyTorch assert
        raise SettingError(f"--device must be one that PyTorch has here; got {options.device!r}.") from error
    if device.type == "meta":
        raise SettingError("--device must be one that computes; 'meta' does not.")
    return device
