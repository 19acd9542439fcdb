"""Versions beside each other: two tags and the last commit, built, listed, and read in a browser from the disk."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.browser import content_of

DOCS = Path(__file__).parents[2] / "docs"
# the parts of the real site that versions and cards are made of, without its pages
CONF = """
import os, sys
sys.path.insert(0, {ext!r})
project = "small"
extensions = ["sphinxext.opengraph", "version_list", "absolute_addresses"]
html_theme = "furo"
html_static_path = [{static!r}]
templates_path = [{templates!r}]
html_context = {{"docs_version": os.environ.get("DOCS_VERSION", "0.3.0")}}
html_sidebars = {{"**": ["sidebar/brand.html", "sidebar/versions.html"]}}
DOCS_URL = os.environ.get("DOCS_URL", "").rstrip("/")
ogp_site_url = f"{{DOCS_URL}}/" if DOCS_URL else ""
ogp_social_cards = {{"enable": False}}
"""

pytestmark = [pytest.mark.site, pytest.mark.timeout(900)]


def git(repository: Path, *arguments: str) -> None:
    who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(repository), *who, *arguments], check=True, capture_output=True)


def commit(repository: Path, tag: str | None, pages: dict[str, str]) -> None:
    docs = repository / "docs"
    shutil.rmtree(docs, ignore_errors=True)
    docs.mkdir()
    content = CONF.format(ext=str(DOCS / "_ext"), static=str(DOCS / "_static"), templates=str(DOCS / "_templates"))
    (docs / "conf.py").write_text(content)
    contents = "\n".join(f"   {name}" for name in pages)
    (docs / "index.rst").write_text(f"Small\n=====\n\nWords of {tag}.\n\n.. toctree::\n\n{contents}\n")
    for name, text in pages.items():
        (docs / f"{name}.rst").write_text(f"{name}\n{'=' * len(name)}\n\n{text}\n")
    git(repository, "add", "docs")
    git(repository, "commit", "-m", f"the site of {tag}")
    if tag:
        git(repository, "tag", tag)


def build(repository: Path, out: Path, *options: str) -> None:
    command = [sys.executable, str(DOCS / "versions.py"), "--repository", str(repository), "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "DOCS_URL": ""})
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository, out = tmp_path_factory.mktemp("repository"), tmp_path_factory.mktemp("site")
    git(repository, "init", "-q")
    commit(repository, "v0.2.0", {"old": "Words.", "both": "Words."})
    commit(repository, "v0.10.0", {"both": "Words.", "new": "Words."})
    commit(repository, None, {"both": "Words.", "newer": "Words."})
    build(repository, out, "--url", "https://example.org/docs")
    return out


def shown_links(page: Path, profile: Path) -> dict[str, str]:
    """The names and goals of the versions that a browser shows on a page from the disk, and no error."""
    nav = re.search(r'<nav class="versions".*?</nav>', content_of(page.as_uri(), profile), re.DOTALL)
    assert nav
    return {name: goal for goal, name in re.findall(r'<a href="([^"]*)"[^>]*>([^<]*)</a>', nav[0])}


def test_every_tag_and_the_last_commit_have_a_folder(site: Path) -> None:
    listed = json.loads((site / "versions.json").read_text())
    assert [one["name"] for one in listed] == ["dev", "v0.10.0", "v0.2.0"]
    assert [one["name"] for one in listed if one["newest"]] == ["v0.10.0"]
    assert all((site / one["url"] / "index.html").exists() for one in listed)
    assert "v0.10.0/index.html" in (site / "index.html").read_text()


def test_every_page_links_to_itself_in_the_other_versions(site: Path, tmp_path: Path) -> None:
    links = shown_links(site / "v0.10.0" / "both.html", tmp_path)
    assert links == {
        "dev": "./../dev/both.html",
        "v0.10.0": "./../v0.10.0/both.html",
        "v0.2.0": "./../v0.2.0/both.html",
    }


def test_a_page_that_others_lack_links_to_their_front_page(site: Path, tmp_path: Path) -> None:
    links = shown_links(site / "v0.2.0" / "old.html", tmp_path)
    assert links["v0.10.0"] == "./../v0.10.0/index.html"
    assert links["v0.2.0"] == "./../v0.2.0/old.html"


def test_addresses_of_published_pages_are_absolute(site: Path) -> None:
    page = (site / "v0.2.0" / "old.html").read_text()
    assert 'property="og:url" content="https://example.org/docs/v0.2.0/old.html"' in page


def test_a_build_by_itself_shows_its_version_and_no_list(tmp_path: Path) -> None:
    source, alone = tmp_path / "docs", tmp_path / "html"
    source.mkdir()
    content = CONF.format(ext=str(DOCS / "_ext"), static=str(DOCS / "_static"), templates=str(DOCS / "_templates"))
    (source / "conf.py").write_text(content)
    (source / "index.rst").write_text("Small\n=====\n\nWords.\n")
    environment = {name: value for name, value in os.environ.items() if name not in ("DOCS_URL", "DOCS_VERSION")}
    subprocess.run([sys.executable, "-m", "sphinx", "-W", "-q", str(source), str(alone)], check=True, env=environment)
    page = (alone / "index.html").read_text()
    assert "Version 0.3.0" in page
    assert 'property="og:url"' not in page
    assert shown_links(alone / "index.html", tmp_path / "profile") == {}
