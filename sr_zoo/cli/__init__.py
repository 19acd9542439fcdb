"""The command line of the reference application: ``python -m sr_zoo COMMAND --help`` explains each command."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, TextIO

from sr_zoo.cli.arguments import COMMANDS
from sr_zoo.cli.numbers import refuse_numbers
from sr_zoo.cli.program import Parser, WordsError

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
    try:
        options = _read(arguments)
    except WordsError as error:
        return _refuse(str(error))
    # only now torch is imported: help, version and wrong words are answered without it
    from filterattr import FilterAttrError  # noqa: PLC0415
    from filterattr.errors import is_out_of_memory  # noqa: PLC0415

    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show
            importlib.import_module(f"sr_zoo.cli.{options.command}").run(options)
    except FilterAttrError as error:  # the errors of sr_zoo are its children
        return _refuse(str(error))
    except BrokenPipeError:  # whoever read the output has gone; what is left must not fail again at the exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except OSError as error:
        return _refuse(_about_files(error))
    except KeyboardInterrupt:
        sys.stderr.write("python -m sr_zoo: interrupted\n")
        return 130
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _refuse(
            "there is not enough memory: use fewer or smaller crops, tiles or batches, or a smaller network "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__})."
        )
    return 0


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


def _read(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The words of a command, checked as far as words alone can be."""
    parser, commands = make_parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        commands[options.command].refuse_unknown(unknown)
    refuse_numbers(options)
    return options


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Say a warning of the library as the program says everything; others show where they come from."""
    from filterattr import FilterAttrWarning  # noqa: PLC0415 - imported already when there is a warning

    is_own = issubclass(category, FilterAttrWarning)
    text = (
        f"python -m sr_zoo: {message}\n"
        if is_own
        else warnings.formatwarning(message, category, filename, lineno, line)
    )
    (file or sys.stderr).write(text)


def _about_files(error: OSError) -> str:
    names = [f"'{name}'" for name in (error.filename, error.filename2) if name is not None]
    return (
        ": ".join([" and ".join(names), error.strerror or str(error)] if names else [error.strerror or str(error)])
        + "."
    )


def _refuse(message: str) -> int:
    sys.stderr.write(f"python -m sr_zoo: {message}\n")
    return 2
