"""Variables say what they hold: some names say nothing, and some belong to what they were called before."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator

from tests.architecture.test_imports import MODULES, ROOT

EMPTY = {"found", "one", "own", "whole"}  # of what?
FORMER = {"claim": "lock", "slots": "swap", "taps": "hooks"}


def bound_in(tree: ast.AST) -> Iterator[str]:
    """Names that are assigned, taken as arguments, or put on an object."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr.strip("_")


def test_variables_say_what_they_hold() -> None:
    for path in MODULES:
        misleading = set(bound_in(ast.parse(path.read_text()))) & (EMPTY | FORMER.keys())
        assert not misleading, f"{path.relative_to(ROOT)} has variables called {sorted(misleading)}"


def test_all_ways_to_bind_a_name_are_seen() -> None:
    source = "def f(own, *, found=1): one, whole = own; self._slots = [taps for taps in one]; lambda claim: claim"
    assert Counter(bound_in(ast.parse(source))) == Counter(["own", "found", "one", "whole", "slots", "taps", "claim"])
