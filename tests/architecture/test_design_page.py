"""The page about the design names every module of the library once, and none that is not there."""

from __future__ import annotations

import re

import pytest

from tests.architecture.test_imports import ALLOWED, MODULES, ROOT

PAGE = (ROOT / "docs" / "explanation" / "design.md").read_text()
NAMES = {str(path.relative_to(ROOT / "filterattr").with_suffix("")) for path in MODULES}
FOLDERS = {name.partition("/")[0] for name in NAMES if "/" in name}


def test_every_module_has_one_row() -> None:
    rows = re.findall(r"^\| `([\w/]+)` \|", PAGE, re.MULTILINE)
    missing, unknown = NAMES - set(rows), set(rows) - NAMES
    assert not missing, f"docs/explanation/design.md needs rows for {sorted(missing)}"
    assert not unknown, f"docs/explanation/design.md has rows for {sorted(unknown)}, which are not there"
    assert len(rows) == len(NAMES), "docs/explanation/design.md has two rows for one module"


def test_modules_in_its_text_are_there() -> None:
    named = {text for text in re.findall(r"`(\w+(?:/\w+)+)`", PAGE) if text.partition("/")[0] in FOLDERS}
    assert len(named) > len(FOLDERS)
    assert named <= NAMES, f"docs/explanation/design.md names {sorted(named - NAMES)}, which are not there"


@pytest.mark.parametrize("page", ["docs/explanation/design.md", "CONTRIBUTING.md"])
def test_its_order_is_that_of_the_imports(page: str) -> None:
    order = re.search(r"`errors\b.*?`__main__`|`errors,.*?__main__`", (ROOT / page).read_text(), re.DOTALL)
    assert order is not None
    folders = re.findall(r"\w+", order.group())
    assert sorted(folders) == sorted(ALLOWED)
    for place, folder in enumerate(folders):
        assert ALLOWED[folder] <= set(folders[:place]), f"{page}: {folder} imports what comes later"
