"""The command line: ``python -m filterattr COMMAND --help`` explains each command.

This package exports what other programs with the same rules need. It loads PyTorch only when a command runs.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from filterattr.cli.arguments import make_parser
from filterattr.cli.numbers import LARGEST_SEED, Refused, number, refuse_numbers, whole_number
from filterattr.cli.outputs import OutputError, check_file, check_folder
from filterattr.cli.parsing import Commands, Parser, device_of, parsed
from filterattr.cli.program import run_program

__all__ = [
    "LARGEST_SEED",
    "Commands",
    "OutputError",
    "Parser",
    "Refused",
    "check_file",
    "check_folder",
    "device_of",
    "main",
    "make_parser",
    "number",
    "parsed",
    "refuse_numbers",
    "run_program",
    "whole_number",
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The words after ``python -m filterattr``; ``None`` takes them from the command line.

    Returns:
        The exit status: 0 after success; 2 if an argument cannot be used or the machine refuses, with one sentence on
        the error stream that says why; 130 after an interrupt.

    Example:
        >>> main(["diff", "nowhere.safetensors", "nowhere.safetensors"])
        2
    """
    less_memory = "fewer or smaller samples, a smaller model, or coarser units"
    return run_program("filterattr", lambda: _run(arguments), less_memory=less_memory)


def _run(arguments: Sequence[str] | None) -> None:
    options = parsed(*make_parser(), arguments)
    importlib.import_module(options.module).run(options)
