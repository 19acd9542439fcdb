"""Where a command computes."""

from __future__ import annotations

import argparse

import torch

from filterattr import SettingError


def device_of(options: argparse.Namespace) -> torch.device:
    """The device that was asked for; a GPU if none was and there is one.

    Args:
        options: The words of the command.

    Returns:
        A device that can be used.

    Raises:
        SettingError: PyTorch has no such device here, or one without numbers.
    """
    wanted = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.zeros(1, device=wanted).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # CPU builds of PyTorch assert
        raise SettingError(f"--device must be one that PyTorch has here; got {wanted!r}.") from error
    if device.type == "meta":
        raise SettingError("--device must be one that computes; 'meta' does not.")
    return device
