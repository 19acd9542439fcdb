"""The parser of the program. It does not import torch, so ``--help`` and wrong arguments are answered at once."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from filterattr.cli.numbers import refuse_numbers
from filterattr.errors import SettingError

if TYPE_CHECKING:
    import torch

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
# as they are written, so that the number 0 is a default
_NO_DEFAULT = frozenset(map(repr, (None, False, "", [], argparse.SUPPRESS)))


class HelpFormatter(argparse.HelpFormatter):
    """Adds the defaults to the help texts, and keeps the lines of the examples at the end."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        default: Any = action.default
        if repr(default) in _NO_DEFAULT or not action.option_strings or "(default" in text:
            return text
        if isinstance(default, list | tuple):
            return f"{text} (default: {' '.join(map(str, default))})"
        return f"{text} (default: %(default)s)"

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return "\n".join(indent + line for line in text.splitlines())
        return super()._fill_text(text, width, indent)


class Parser(argparse.ArgumentParser):
    """Reports wrong arguments in one sentence, as all other errors."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"formatter_class": HelpFormatter, "allow_abbrev": True, **settings})

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print below the usage.

        Args:
            message: The message of argparse.

        Raises:
            SettingError: Always.
        """
        raise SettingError(f"{message.removeprefix('argument ').rstrip('.')} ({self.prog} --help explains it).")

    def refuse_unknown(self, words: list[str]) -> NoReturn:
        """Refuse unknown arguments, and name the options that resemble them.

        Args:
            words: The unknown arguments.

        Raises:
            SettingError: Always.
        """
        options = [name for name in self._option_string_actions if name.startswith("--")]
        near = [name for word in words for name in difflib.get_close_matches(word.split("=")[0], options, n=1)]
        hint = f"; did you mean {', '.join(dict.fromkeys(near))}?" if near else ""
        self.error(f"unknown argument{'s' if len(words) > 1 else ''}: {' '.join(words)}{hint}")


def parsed(parser: Parser, commands: Mapping[str, Parser], arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments of a command line.

    Args:
        parser: The parser of the program.
        commands: Name of each command to its parser.
        arguments: The arguments; ``None`` takes them from the command line.

    Returns:
        The options.

    Raises:
        SettingError: An argument is unknown or missing, or a number is out of range.

    Example:
        >>> parser = Parser(prog="program")
        >>> commands = parser.add_subparsers(dest="command", required=True)
        >>> commands.add_parser("say").add_argument("--word")
        _StoreAction(...)
        >>> parsed(parser, commands.choices, ["say", "--word", "hello"]).word
        'hello'
        >>> parsed(parser, commands.choices, ["say", "--wrd", "hello"])
        Traceback (most recent call last):
        ...
        filterattr.errors.SettingError: unknown arguments: --wrd hello; did you mean --word? ...
    """
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        commands[options.command].refuse_unknown(unknown)
    refuse_numbers(options)
    return options


def device_of(options: argparse.Namespace) -> torch.device:
    """Return the device that ``--device`` names; without it, a GPU if there is one, else the CPU.

    Args:
        options: The options of the command.

    Returns:
        The device.

    Raises:
        SettingError: PyTorch has no such device here, or the device does not compute.
    """
    import torch  # noqa: PLC0415 - words are understood before PyTorch is loaded

    wanted = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.zeros(1, device=wanted).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # CPU builds of PyTorch assert
        raise SettingError(f"--device must be one that PyTorch has here; got {wanted!r}.") from error
    if device.type == "meta":
        raise SettingError("--device must be one that computes; 'meta' does not.")
    return device
