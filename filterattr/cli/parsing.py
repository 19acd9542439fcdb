"""The parser of the program, without torch: ``--help`` and wrong words are answered at once."""

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
_NO_DEFAULT: tuple[Any, ...] = (None, False, [], argparse.SUPPRESS)


class HelpFormatter(argparse.HelpFormatter):
    """Names defaults where there are any, and keeps the lines of the examples at the end."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        default: Any = action.default
        if default in _NO_DEFAULT or not action.option_strings or "(default" in text:
            return text
        if isinstance(default, list | tuple):
            return f"{text} (default: {' '.join(map(str, default))})"
        return f"{text} (default: %(default)s)"

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return "\n".join(indent + line for line in text.splitlines())
        return super()._fill_text(text, width, indent)


class Parser(argparse.ArgumentParser):
    """Refuses words in one sentence, as everything else is refused."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"formatter_class": HelpFormatter, "allow_abbrev": True, **settings})

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print below the usage.

        Args:
            message: What it found.

        Raises:
            SettingError: Always.
        """
        raise SettingError(f"{message.removeprefix('argument ').rstrip('.')} ({self.prog} --help explains it).")

    def refuse_unknown(self, words: list[str]) -> NoReturn:
        """Refuse words that no option is named, with the options that look like them.

        Args:
            words: The words.

        Raises:
            SettingError: Always.
        """
        options = [name for name in self._option_string_actions if name.startswith("--")]
        near = [name for word in words for name in difflib.get_close_matches(word.split("=")[0], options, n=1)]
        hint = f"; did you mean {', '.join(dict.fromkeys(near))}?" if near else ""
        self.error(f"there is nothing that takes {' '.join(words)}{hint}")


def parsed(parser: Parser, commands: Mapping[str, Parser], arguments: Sequence[str] | None) -> argparse.Namespace:
    """Understand the words of a command line, or refuse them.

    Args:
        parser: The parser of the program.
        commands: Name of each command to its parser.
        arguments: The words; ``None`` takes them from the command line.

    Returns:
        The options.

    Raises:
        SettingError: A word is unknown, missing or no number that can be.

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
        filterattr.errors.SettingError: there is nothing that takes --wrd hello; did you mean --word? ...
    """
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        commands[options.command].refuse_unknown(unknown)
    refuse_numbers(options)
    return options


def device_of(options: argparse.Namespace) -> torch.device:
    """The device that was asked for; a GPU if none was and there is one.

    Args:
        options: The words of the command.

    Returns:
        A device that can be used.

    Raises:
        SettingError: PyTorch has no such device here, or one without numbers.
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
