"""The built site: links and anchors, sizes, and every page in a browser, on a desk and on a phone, light and dark."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import threading
import time
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.browser import command, content_of

ROOT = Path(__file__).parents[2]
SITE = Path(os.environ.get("FILTERATTR_SITE", ROOT / "docs" / "_build" / "html"))
WIDTHS = (1280, 375)
PATIENCE = 90.0  # seconds from one page to the next

pytestmark = [
    pytest.mark.site,
    pytest.mark.timeout(1800),  # of the browser's walk through all pages on a busy machine; half a minute on a free one
    pytest.mark.skipif(not (SITE / "index.html").exists(), reason="the site is not built; `make docs` builds it"),
]


class Page(HTMLParser):
    """What a page links to, loads, and can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.without_alternative: list[str] = []
        self.addresses: dict[str, str] = {}
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {value for key in ("id", "name") if (value := given.get(key))}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"] or "")
        if tag in ("img", "script", "source") and given.get("src"):
            self.loads.append(given["src"] or "")
        if tag == "link" and given.get("rel") in ("stylesheet", "icon"):
            self.loads.append(given.get("href") or "")
        if tag == "meta" and given.get("property") in ("og:url", "og:image"):
            self.addresses[given["property"] or ""] = given.get("content") or ""
        source = given.get("src") or ""
        # a thumbnail stands beside its title: an empty alternative keeps readers of screens from hearing it twice
        if tag == "img" and not (
            given.get("alt") or ("alt" in given and source.endswith(("_thumb.png", "_thumb.webp")))
        ):
            self.without_alternative.append(source)


@pytest.fixture(scope="module")
def pages() -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(SITE.rglob("*.html")) if "_static" not in path.parts}


def test_links_and_anchors_lead_somewhere(pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        for link in {*page.links, *page.loads}:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            goal = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = pages.get(goal)
            if not goal.exists() or (parts.fragment and known and unquote(parts.fragment) not in known.anchors):
                broken.append(f"{path.relative_to(SITE)}: {link}")
    assert not broken


def test_pages_load_nothing_from_elsewhere(pages: dict[Path, Page]) -> None:
    assert not [(path.name, load) for path, page in pages.items() for load in page.loads if urlsplit(load).netloc]


def test_addresses_for_other_sites_are_absolute_and_their_pictures_exist(pages: dict[Path, Page]) -> None:
    """``DOCS_URL`` says where the site will live; without it no page names an address of its own."""
    named = [(path.name, name, value) for path, page in pages.items() for name, value in page.addresses.items()]
    assert not [one for one in named if not one[2].startswith(("https://", "http://"))]
    cards = [value for _, name, value in named if name == "og:image"]
    assert all((SITE / "_static" / card.rpartition("/_static/")[2]).exists() for card in cards)
    assert bool(cards) == bool(named)


def test_pictures_have_an_alternative(pages: dict[Path, Page]) -> None:
    assert not {path.name: page.without_alternative for path, page in pages.items() if page.without_alternative}


def test_pages_are_under_one_megabyte_with_their_pictures(pages: dict[Path, Page]) -> None:
    weights = {}
    for path, page in pages.items():
        files = {path} | {(path.parent / unquote(urlsplit(load).path)).resolve() for load in page.loads}
        weights[path.relative_to(SITE)] = sum(file.stat().st_size for file in files if file.exists())
    assert not {str(path): weight for path, weight in weights.items() if weight > 1_000_000}


def examples() -> list[Path]:
    """The pages that sphinx-gallery made of tutorials and examples."""
    return [path for folder in ("learn", "gallery") for path in SITE.glob(f"{folder}/*.html") if path.stem != "index"]


def test_every_example_says_its_run_time_and_is_a_notebook(pages: dict[Path, Page]) -> None:
    for path in examples():
        assert re.search(r"Runs in \d+ (second|minute)s? on one core", path.read_text()), path
        (notebook,) = {link for link in pages[path].links if link.endswith(".ipynb")}
        cells = json.loads((path.parent / unquote(notebook)).resolve().read_text())["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        compile("\n".join(code), str(path), "exec")
        assert len(cells) > len(code) > 0


def test_thumbnails_differ() -> None:
    thumbnails = sorted((SITE / "_images").glob("sphx_glr_*_thumb.*"))
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in thumbnails}
    assert len(digests) == len(thumbnails) >= len(examples())


# opens every page in a frame of each width and reports what it measured to the server that it came from
DRIVER = """<!doctype html><meta charset="utf-8"><title>driver</title><body style="margin:0"><script>
const rgba = colour => [...colour.match(/[0-9.]+/g).map(Number), 1].slice(0, 4);
const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
const light = colour => [0.2126, 0.7152, 0.0722].map((weight, i) => {
  const value = colour[i] / 255;
  return weight * (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
}).reduce((sum, part) => sum + part);
// text of less contrast than WCAG 2 asks for (4.5), each pair of colours once
function pale(inside) {
  const seen = {}, texts = inside.document.createTreeWalker(inside.document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement, size = element.getBoundingClientRect();
    const style = inside.getComputedStyle(element);
    if (!texts.currentNode.data.trim() || !size.width || style.visibility === 'hidden') continue;
    if (element.closest('svg, script, style, noscript')) continue;
    const stack = [];
    for (let at = element; at; at = at.parentElement) stack.push(rgba(inside.getComputedStyle(at).backgroundColor));
    const ground = stack.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
    const bright = [light(over(rgba(style.color), ground)), light(ground)].sort((a, b) => b - a);
    const contrast = (bright[0] + 0.05) / (bright[1] + 0.05);
    const words = texts.currentNode.data.trim().slice(0, 40);
    if (contrast < 4.5) seen[`${style.color} on ${ground}`] = `${contrast.toFixed(1)} ${words}`;
  }
  return seen;
}
const wait = time => new Promise(done => setTimeout(done, time));
async function look(page, width) {
  const frame = document.createElement('iframe');
  frame.style = `width:${width}px;height:900px;border:0`;
  const errors = [];
  frame.src = page;
  document.body.append(frame);
  await new Promise(done => frame.addEventListener('load', done));
  const inside = frame.contentWindow, root = frame.contentDocument.documentElement;
  inside.addEventListener('error', event => errors.push(String(event.message)), true);
  await wait(60);
  const broken = [...frame.contentDocument.images]
    .filter(image => image.complete && !image.naturalWidth).map(image => image.src);
  // lines of code to copy fit the column as they are; everything else may wrap
  const code = [...frame.contentDocument.querySelectorAll('.highlight-python pre, .highlight-Python pre')];
  for (const block of code) block.style.whiteSpace = 'pre';
  const cut = code.filter(block => block.scrollWidth > block.clientWidth + 1).map(block => block.innerText);
  const pales = {};
  for (const theme of ['light', 'dark']) {
    frame.contentDocument.body.dataset.theme = theme;
    pales[theme] = pale(inside);
  }
  const result = {page, width, scroll: root.scrollWidth, client: root.clientWidth, broken, errors, cut, pales};
  frame.remove();
  return result;
}
(async () => {
  const results = [];
  for (const page of PAGES) {
    for (const width of WIDTHS) results.push(await look(page, width));
    await fetch('/seen', {method: 'POST', body: JSON.stringify(page)});
  }
  await fetch('/done', {method: 'POST', body: JSON.stringify(results)});
})();
</script>"""


class Server(SimpleHTTPRequestHandler):
    """The site, a page that walks through it, and a place to report to."""

    driver = ""
    report: list[dict[str, Any]] | None = None
    last_sign = 0.0
    is_done = threading.Event()

    def do_GET(self) -> None:
        if self.path != "/driver":
            super().do_GET()
            return
        content = Server.driver.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        Server.last_sign = time.monotonic()
        if self.path == "/done":
            Server.report = content
            Server.is_done.set()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def visit(pages: dict[Path, Page], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], str]:
    profile = tmp_path_factory.mktemp("profile")
    start = command(profile, "--window-size=1300,950")
    names = [f"/{path.relative_to(SITE).as_posix()}" for path in pages]
    Server.driver = DRIVER.replace("PAGES)", f"{json.dumps(names)})").replace("WIDTHS)", f"{json.dumps(WIDTHS)})")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    log = profile / "log"
    with log.open("w") as stream:
        browser = subprocess.Popen(
            [*start, f"http://127.0.0.1:{server.server_port}/driver"],
            stdout=subprocess.DEVNULL,
            stderr=stream,
        )
        Server.last_sign = time.monotonic()
        try:
            # a busy machine may be slow, a browser that hangs sees no further page
            while not (finished := Server.is_done.wait(1)) and time.monotonic() - Server.last_sign < PATIENCE:
                pass
        finally:
            browser.terminate()
            browser.wait(20)
            server.shutdown()
            server.server_close()
    assert finished, f"the browser did not finish: {log.read_text()[-2000:]}"
    assert Server.report is not None
    return Server.report, log.read_text()


def test_no_page_scrolls_sideways(visit: tuple[list[Any], str]) -> None:
    wide = [f"{one['page']} at {one['width']}: {one['scroll']}" for one in visit[0] if one["scroll"] > one["client"]]
    assert not wide


def test_no_line_of_code_is_cut_on_a_desk(visit: tuple[list[Any], str]) -> None:
    assert not {one["page"]: one["cut"] for one in visit[0] if one["cut"] and one["width"] == max(WIDTHS)}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(visit: tuple[list[Any], str], theme: str) -> None:
    assert not {one["page"]: one["pales"][theme] for one in visit[0] if one["pales"][theme]}


def test_every_picture_loads(visit: tuple[list[Any], str]) -> None:
    assert not [(one["page"], one["broken"]) for one in visit[0] if one["broken"]]


def test_the_console_stays_empty(visit: tuple[list[Any], str]) -> None:
    lines = [line for line in visit[1].splitlines() if "CONSOLE" in line]
    assert not lines
    assert not [(one["page"], one["errors"]) for one in visit[0] if one["errors"]]


def test_both_widths_of_every_page_were_seen(visit: tuple[list[Any], str], pages: dict[Path, Page]) -> None:
    assert len(visit[0]) == len(WIDTHS) * len(pages)


def test_the_search_finds_pages_without_a_server(tmp_path: Path) -> None:
    address = f"{(SITE / 'search.html').as_uri()}?q=completeness"
    found = content_of(address, tmp_path, "--virtual-time-budget=20000")
    assert 'href="explanation/completeness.html' in found
    assert "finished, found" in found


def test_code_can_be_copied(tmp_path: Path) -> None:
    assert "copybtn" in content_of((SITE / "index.html").as_uri(), tmp_path)
