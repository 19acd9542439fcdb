"""Numbers on the command line: each option states its range, and one message refuses all numbers outside."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

from filterattr.errors import SettingError

# the generators of PyTorch take more, but seeds are multiplied, so that crops and noise have different ones
LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True)
class Refused:
    """Stands for a number that was refused, until all of these are known.

    Attributes:
        reason: What must hold, and what was given.
    """

    reason: str


def whole_number(least: int, most: int) -> Callable[[str], int | Refused]:
    """Make a converter for an option that takes whole numbers.

    Args:
        least: The smallest number.
        most: The largest number.

    Returns:
        A function for ``type=`` of an option. It returns the number or a `Refused`, which `refuse_numbers` reports.

    Example:
        >>> whole_number(1, 10)("7")
        7
        >>> whole_number(1, 10)("0").reason
        "must be a whole number from 1 to 10; got '0'"
    """

    def convert(word: str) -> int | Refused:
        try:
            value = int(word)
        except ValueError:
            value = least - 1
        return (
            value if least <= value <= most else Refused(f"must be a whole number from {least} to {most}; got {word!r}")
        )

    return convert


def number(least: float, most: float, *, open_ends: bool = False) -> Callable[[str], float | Refused]:
    """Make a converter for an option that takes numbers.

    Args:
        least: The smallest number.
        most: The largest number.
        open_ends: Whether these two numbers are refused as well.

    Returns:
        A function for ``type=`` of an option. It returns the number or a `Refused`, which `refuse_numbers` reports.

    Example:
        >>> number(0, 1, open_ends=True)("1").reason
        "must be a number between 0 and 1, both excluded; got '1'"
    """
    inside = f"between {least:g} and {most:g}" + (", both excluded" if open_ends else "")

    def convert(word: str) -> float | Refused:
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        fits = least < value < most if open_ends else least <= value <= most
        return value if fits else Refused(f"must be a number {inside}; got {word!r}")

    return convert


def refuse_numbers(options: argparse.Namespace) -> None:
    """Report all refused numbers in one message.

    Args:
        options: The options of the command.

    Raises:
        SettingError: A number was refused.
    """
    findings = [
        f"--{name.replace('_', '-')} {value.reason}"
        for name, value in vars(options).items()
        if isinstance(value, Refused)
    ]
    if findings:
        raise SettingError("; ".join(findings) + ".")
