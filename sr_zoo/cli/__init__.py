"""The command line of the reference application: ``python -m sr_zoo COMMAND --help`` explains each command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from filterattr.errors import FilterAttrError
from sr_zoo.cli import attribute, card, compare, degrade, demo, report, restore, study, train

# each module has add(commands), which also says what to run
COMMANDS = (demo, degrade, train, restore, attribute, study, report, card, compare)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The words after ``python -m sr_zoo``; ``None`` takes them from the command line.

    Returns:
        The exit status: 0 when all went well, 2 when something the user gave cannot be used, 130 when interrupted.
    """
    parser = argparse.ArgumentParser(prog="python -m sr_zoo", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except FilterAttrError as error:  # the errors of sr_zoo are its children
        sys.stderr.write(f"python -m sr_zoo: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("python -m sr_zoo: interrupted\n")
        return 130
    return 0
