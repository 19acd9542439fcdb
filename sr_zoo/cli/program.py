"""The parser of the program, without torch: ``--help`` and wrong words are answered at once."""

from __future__ import annotations

import argparse
import difflib
from typing import Any, NoReturn, TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
_NO_DEFAULT = (None, False, [], argparse.SUPPRESS)


class WordsError(ValueError):
    """The words of a command line cannot be used; the message says which, and why."""


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
            WordsError: Always.
        """
        raise WordsError(f"{message.removeprefix('argument ').rstrip('.')} ({self.prog} --help explains it).")

    def refuse_unknown(self, words: list[str]) -> NoReturn:
        """Refuse words that no option is named, with the options that look like them.

        Args:
            words: The words.

        Raises:
            WordsError: Always.
        """
        options = [name for name in self._option_string_actions if name.startswith("--")]
        near = [name for word in words for name in difflib.get_close_matches(word.split("=")[0], options, n=1)]
        hint = f"; did you mean {', '.join(dict.fromkeys(near))}?" if near else ""
        self.error(f"there is nothing that takes {' '.join(words)}{hint}")
