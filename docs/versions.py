"""Build the site of every tagged version, and of the last commit as ``dev``, side by side: ``make versions``.

A version that was built before is kept, so that a release costs one build. Every version is built from its own files by
the packages that are installed now. Nothing is published: copy the folder to where it shall be read.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

from version_list import write_versions  # noqa: E402 - needs the path

DEV = "dev"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "_build" / "versions", help="folder of all versions")
    parser.add_argument("--repository", type=Path, default=HERE.parent, help="a git checkout")
    parser.add_argument(
        "--url", default=os.environ.get("DOCS_URL", ""), help="where --out will be read, for social cards"
    )
    given = parser.parse_args()
    tags = tags_with_docs(given.repository)
    for tag in tags:
        if not (given.out / tag / "index.html").exists():
            build(given.repository, tag, tag, given.out, given.url)
    build(given.repository, "HEAD", DEV, given.out, given.url)
    list_versions(given.out, [DEV, *tags], newest=tags[0] if tags else DEV)


def tags_with_docs(repository: Path) -> list[str]:
    """The tags like ``v0.1.0`` that have a site, the newest version first."""
    tags = git(repository, "tag", "--list", "v*", "--sort=-version:refname").decode().split()
    return [tag for tag in tags if git(repository, "ls-tree", tag, "docs/conf.py")]


def build(repository: Path, commit: str, name: str, out: Path, url: str) -> None:
    """Build the files of a commit into ``out/name``, which is replaced only if all went well."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(git(repository, "archive", commit))) as archive:
            archive.extractall(folder, filter="data")
        docs, site = Path(folder, "docs"), Path(folder, "docs", "_build", "html")
        environment = {**os.environ, "PYTHONPATH": folder, "DOCS_VERSION": name}
        environment["DOCS_URL"] = f"{url.rstrip('/')}/{name}/" if url else ""
        command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(docs), str(site)]
        subprocess.run(command, check=True, env=environment, cwd=folder)
        shutil.rmtree(out / name, ignore_errors=True)
        shutil.copytree(site, out / name, ignore=shutil.ignore_patterns(".doctrees"))


def list_versions(out: Path, names: list[str], *, newest: str) -> None:
    """Write the list into every version, ``versions.json`` for other programs, and a front door to the newest one."""
    pages = {name: {path.relative_to(out / name).as_posix() for path in (out / name).rglob("*.html")} for name in names}
    for current in names:
        if not (out / current / "_static" / "version_switcher.js").exists():
            continue  # older than the list; it can be reached and cannot show it
        versions = [{"name": name, "lacks": sorted(pages[current] - pages[name])} for name in names]
        write_versions(out / current, current, versions)
    entries = [{"name": name, "url": f"{name}/", "newest": name == newest} for name in names]
    (out / "versions.json").write_text(json.dumps(entries, indent=2) + "\n")
    (out / "index.html").write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>filterattr</title>'
        f'<meta http-equiv="refresh" content="0; url={newest}/index.html">'
        f'<p><a href="{newest}/index.html">filterattr {newest}</a></p></html>\n'
    )


def git(repository: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", "-C", str(repository), *arguments], check=True, capture_output=True).stdout


if __name__ == "__main__":
    main()
