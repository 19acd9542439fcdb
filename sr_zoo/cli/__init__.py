"""The command line of the reference application: ``python -m sr_zoo COMMAND --help`` explains each command."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from filterattr.cli import Parser, parsed, run_program
from sr_zoo.cli.arguments import COMMANDS

_DESCRIPTION = (
    "Blind super-resolution, the reference application of filterattr: find the kernels that carry a function."
)
_EXAMPLES = """examples:
  python -m sr_zoo demo
  python -m sr_zoo attribute before.pth after.pth --images PHOTOS --degradation blur
  python -m sr_zoo restore picture.png
  python -m sr_zoo COMMAND --help"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The words after ``python -m sr_zoo``; ``None`` takes them from the command line.

    Returns:
        The exit status: 0 when all went well, 2 when something the user gave cannot be used or the machine cannot do
        it (one sentence on the error stream says what), 130 when interrupted.
    """
    less_memory = "fewer or smaller crops, tiles or batches, or a smaller network"
    return run_program("python -m sr_zoo", lambda: _run(arguments), less_memory=less_memory)


def make_parser() -> tuple[Parser, dict[str, Parser]]:
    """Make the parser of the program.

    Returns:
        It, and that of every command by name.

    Example:
        >>> sorted(make_parser()[1])
        ['attribute', 'card', 'compare', 'degrade', 'demo', 'report', 'restore', 'study', 'train']
    """
    parser = Parser(prog="python -m sr_zoo", description=_DESCRIPTION, epilog=_EXAMPLES)
    parser.add_argument("--version", action=_Version, help="print the versions of filterattr, torch and Python")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for add in COMMANDS:
        add(commands)
    return parser, dict(commands.choices)


class _Version(argparse.Action):
    """Print what a report of a fault should name; the only word that needs torch before the work."""

    def __init__(self, option_strings: Sequence[str], dest: str, **settings: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=settings["help"])

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print, and end."""
        import torch  # noqa: PLC0415 - on request

        import filterattr  # noqa: PLC0415

        python = ".".join(map(str, sys.version_info[:3]))
        sys.stdout.write(f"filterattr {filterattr.__version__}, torch {torch.__version__}, Python {python}\n")
        parser.exit()


def _run(arguments: Sequence[str] | None) -> None:
    options = parsed(*make_parser(), arguments)
    importlib.import_module(f"sr_zoo.cli.{options.command}").run(options)
