"""``completion``: a script that completes commands and options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from filterattr.cli.arguments import make_parser

_SCRIPT = """_filterattr() {{
  local words
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  if [[ $COMP_CWORD -eq 1 ]]; then words="{commands}"; fi
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _filterattr filterattr
"""


def run(options: argparse.Namespace) -> None:  # noqa: ARG001 - as all commands
    """Print a script for bash, which zsh understands after ``bashcompinit``."""
    commands = make_parser()[1]
    cases = "\n".join(f'    {name}) words="{" ".join(_words(parser))}" ;;' for name, parser in commands.items())
    sys.stdout.write(_SCRIPT.format(cases=cases, commands=" ".join(commands)))


def _words(parser: argparse.ArgumentParser) -> list[str]:
    """The words that can follow a command: its options and forms."""
    return list(dict.fromkeys(_all_words(parser)))


def _all_words(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from (name for name in action.option_strings if name.startswith("--"))
        if isinstance(action, argparse._SubParsersAction):
            for form, inner in action.choices.items():
                yield form
                yield from _all_words(inner)
