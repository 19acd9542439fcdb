"""What the modules of the commands share."""

from __future__ import annotations

import argparse
from typing import TypeAlias

import torch

from filterattr import SettingError

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


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
        SettingError: PyTorch has no such device here.
    """
    try:
        return torch.empty(0, device=options.device).device
    except (RuntimeError, AssertionError) as error:  # CPU builds of PyTorch assert
        raise SettingError(f"--device must be one that PyTorch has here; got {options.device!r}.") from error
