"""Which names a user means: exact ones, then globs; each is compiled once, and what fits nothing is told."""

from __future__ import annotations

import re
import sys
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from fnmatch import translate

_LAST = chr(sys.maxunicode)  # stands after everything that a name can go on with
_ESCAPED = re.compile(r"\[([*?[])\]")
_BEGINNING, _END = re.compile(r"[^*?[]*"), re.compile(r"[^*?\]]*\Z")


class Names:
    """Names that texts choose from: a text that is one of them means it alone, every other is a glob.

    Names with brackets are found as they are written, therefore, and also as `glob.escape` writes them.

    Args:
        names: Every name that can be meant.

    Example:
        >>> names = Names(["conv[3x3].weight", "conv3.weight", "head.weight"])
        >>> names.like("conv[3x3].weight"), names.like("conv*"), names.like("haed.weight")
        (['conv[3x3].weight'], ['conv[3x3].weight', 'conv3.weight'], [])
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {name: place for place, name in enumerate(dict.fromkeys(names))}
        self._sorted = sorted(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def like(self, text: str) -> list[str]:
        """List the names that a text means, in their order.

        Args:
            text: A name or a glob.

        Returns:
            The names; none if nothing fits.
        """
        if text in self._names:
            return [text]
        if not any(sign in _ESCAPED.sub("", text) for sign in "*?["):
            exact = _ESCAPED.sub(r"\1", text)
            return [exact] if exact in self._names else []
        start, end = _BEGINNING.match(text)[0], _END.search(text)[0]  # type: ignore[index]
        fits = re.compile(translate(text)).match
        places = slice(bisect_left(self._sorted, start), bisect_left(self._sorted, start + _LAST))
        fitting = [name for name in self._sorted[places] if name.endswith(end) and fits(name)]
        return sorted(fitting, key=self._names.__getitem__)

    def first_of(self, texts: Iterable[str]) -> dict[str, str]:
        """Find for every name the first text that means it.

        Args:
            texts: Names and globs.

        Returns:
            Name to text; names that no text means are left out.

        Example:
            >>> Names(["a.weight", "b.weight"]).first_of(["b.*", "*"])
            {'b.weight': 'b.*', 'a.weight': '*'}
        """
        chosen: dict[str, str] = {}
        for text in texts:
            for name in self.like(text):
                chosen.setdefault(name, text)
        return chosen

    def unknown(self, texts: Iterable[str]) -> list[str]:
        """List the texts that mean nothing, each once.

        Args:
            texts: Names and globs.

        Returns:
            Those that fit no name.
        """
        return [text for text in dict.fromkeys(texts) if not self.like(text)]

    def describe(self, text: str) -> str:
        """Name a text that fits nothing, and the names that are nearest to it.

        Args:
            text: A name or a glob.

        Returns:
            For a message.

        Example:
            >>> Names(["head.weight", "head.bias", "body.weight"]).describe("haed.weight")
            "'haed.weight' (nearest: 'head.weight', 'body.weight')"
            >>> Names(["model.encoder.layer.11.attention.self.query"]).describe("*.q_proj")
            "'*.q_proj' (nearest: '*.query')"
        """
        near = (
            get_close_matches(text, self._names, n=3, cutoff=0.6)
            or get_close_matches(text, self._names, n=3, cutoff=0.3)
            or self._near_ends(text)
        )
        listed = ", ".join(repr(name) for name in near)
        return f"{text!r} (nearest: {listed})" if near else repr(text)

    def _near_ends(self, text: str) -> list[str]:
        """Globs of the last parts of names, for a glob whose last part fits none: names may be long, and ends short."""
        ends = dict.fromkeys(name.rpartition(".")[2] for name in self._names)
        return [f"*.{end}" for end in get_close_matches(text.rpartition(".")[2].strip("*"), ends, n=3, cutoff=0.3)]

    def describe_some(self, texts: Iterable[str], limit: int = 5) -> str:
        """Describe at most ``limit`` texts that fit nothing, and count the rest.

        Args:
            texts: Names and globs.
            limit: How many to spell out.

        Returns:
            For a message.
        """
        texts = list(texts)
        listed = ", ".join(self.describe(text) for text in texts[:limit])
        return f"{listed} and {len(texts) - limit} more" if len(texts) > limit else listed
