"""The version is the same wherever it is written, and the changelog has a dated section for it."""

from __future__ import annotations

import re
from pathlib import Path

import filterattr

ROOT = Path(__file__).parents[2]
VERSION = filterattr.__version__
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
SECTIONS = re.findall(r"^## (\S+) \((\d{4}-\d\d-\d\d)\)$", CHANGELOG, re.MULTILINE)


def test_the_changelog_begins_with_this_version() -> None:
    assert SECTIONS[0][0] == VERSION
    assert re.findall(r"^## (\S+)", CHANGELOG, re.MULTILINE) == ["Unreleased", *(version for version, _ in SECTIONS)]


def test_versions_and_dates_descend() -> None:
    order = [(tuple(map(int, version.split("."))), date) for version, date in SECTIONS]
    assert order == sorted(order, reverse=True)
    assert len(dict(order)) == len(order)


def test_citations_name_this_version_and_its_date() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {VERSION}\n" in citation
    assert f"\ndate-released: {SECTIONS[0][1]}\n" in citation
    assert f"version = {{{VERSION}}}" in (ROOT / "docs" / "howto" / "cite.md").read_text()
