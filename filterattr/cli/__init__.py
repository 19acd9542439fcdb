"""The command line: ``python -m filterattr COMMAND --help`` explains each command.

What other programs of the same manner need is exported. Nothing here loads PyTorch before a command runs.
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
        The exit status: 0 when all went well, 2 when something the user gave cannot be used or the machine cannot do
        it (one sentence on the error stream says what), 130 when interrupted.

    Example:
        >>> main(["diff", "nowhere.safetensors", "nowhere.safetensors"])
        2
    """
    less_memory = "fewer or smaller samples, a smaller model, or coarser units"
    return run_program("filterattr", lambda: _run(arguments), less_memory=less_memory)


def _run(arguments: Sequence[str] | None) -> None:
    options = parsed(*make_parser(), arguments)
    importlib.import_module(options.module).run(options)
