"""Variables say what they hold: some names say nothing, and some belong to what they were called before."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator

from tests.architecture.test_imports import MODULES, ROOT

EMPTY = {"found", "one", "own", "whole"}  # of what?
FORMER = {"claim": "lock", "slots": "swap", "taps": "hooks"}
# how many there still are in a module; a module that has lost them leaves the table
STILL = {
    "attribution.py": 5,
    "estimators/base.py": 1,
    "integral/node.py": 2,
    "model/swap.py": 6,
}


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
    counts: Counter[str] = Counter()
    for path in MODULES:
        bound = Counter(bound_in(ast.parse(path.read_text())))
        counts[path.relative_to(ROOT / "filterattr").as_posix()] = sum(bound[name] for name in EMPTY | FORMER.keys())
    assert {name: count for name, count in counts.items() if count > STILL.get(name, 0)} == {}
    assert {name: count for name, count in STILL.items() if counts[name] < count} == {}, "make these numbers smaller"


def test_all_ways_to_bind_a_name_are_seen() -> None:
    source = "def f(own, *, found=1): one, whole = own; self._slots = [taps for taps in one]; lambda claim: claim"
    assert Counter(bound_in(ast.parse(source))) == Counter(["own", "found", "one", "whole", "slots", "taps", "claim"])
