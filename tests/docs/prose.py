"""Check the prose of pages, docstrings, help texts and messages against the style page: `python -m tests.docs.prose`.

Words that `docs/contributing/style.md` replaces, and sentences longer than its limit, are printed with file and line.
Code, tables of numbers, formulas and addresses are left out; so are tests.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
STYLE = ROOT / "docs" / "contributing" / "style.md"
LONGEST = 35
# strings of code with fewer words are keys, labels and parts of sentences
FEWEST_IN_A_MESSAGE = 4

MARKDOWN = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**/*.md")
GALLERIES = ("docs/tutorials/*.py", "examples/*.py")
PACKAGES = ("filterattr/**/*.py", "sr_zoo/**/*.py")
MADE_BY_PROGRAMS = ("docs/_build", "docs/reference/generated", "docs/learn", "docs/gallery")

NOT_PROSE = (
    re.compile(r"\A---\n.*?\n---\n", re.DOTALL),  # front matter
    re.compile(r"<!--.*?-->", re.DOTALL),
    re.compile(r"^( *)(```+|~~~+).*?^\1\2 *$", re.DOTALL | re.MULTILINE),
    re.compile(r"\$\$.*?\$\$", re.DOTALL),
    re.compile(r"</?[a-z][^<>]*>"),
    re.compile(r"^ *:::.*$|^ *:[\w-]+:.*$", re.MULTILINE),
    re.compile(r"^ *(>>>|\.\.\. ?).*\n(?:^ *\S.*\n)*", re.MULTILINE),  # a doctest and what it prints
    re.compile(r"^ *\.\. [\w-]+::.*\n(?:^ *\n|^ +\S.*\n)*", re.MULTILINE),
)
# a role or a link counts as the words it shows, code and formulas as one word
LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)|:[\w:]+:`([^`<]*?)(?: <[^`]*>)?`|\{[\w:]+\}`([^`<]*?)(?: <[^`]*>)?`")
CODE = re.compile(r"``[^`]*``|`[^`]*`_?|\$[^$\n]+\$|\\\([^)]*\\\)|<?https?://\S+")
SENTENCE_END = re.compile(r"(?<=[.!?])[)*\"'”]*\s+|\n\s*\n")
WORD = re.compile(r"[^\W\d_][\w'-]*")
NUMBERS = (
    (re.compile(r"(?<![\w.\])*\\])\.\d"), "a zero before the decimal point"),
    (re.compile(r"\d %(?!\w)"), "1%, not 1 %"),
)


@dataclass(frozen=True)
class Passage:
    """A paragraph, an item of a list, a cell of a table or a message, and where it begins."""

    path: Path
    line: int
    text: str


@dataclass(frozen=True)
class Finding:
    """What the style page forbids, and where it stands."""

    path: Path
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}: {self.what}"


def replacements() -> dict[re.Pattern[str], str]:
    """The words of the table on the style page that are not used, and what to write instead."""
    rows = re.findall(r"^\| `([^`|]+)` \| ([^|]+) \|", STYLE.read_text(), re.MULTILINE)
    return {re.compile(rf"\b{re.escape(word)}\b", re.IGNORECASE): instead.strip() for word, instead in rows}


def blanked(text: str) -> str:
    """The text with everything that is no prose replaced by as many empty lines."""
    for pattern in NOT_PROSE:
        text = pattern.sub(lambda match: "\n" * match[0].count("\n"), text)
    return text


def readable(text: str) -> str:
    """The text as a reader sees it: the words of links, and `X` for code and formulas."""
    text = LINK.sub(lambda match: next((part for part in match.groups() if part), "X"), text)
    return CODE.sub("X", text)


def pieces(text: str) -> Iterator[tuple[int, str]]:
    """Paragraphs, items, headings and cells, each with its line counted from 0."""
    start, lines = 0, list[str]()
    for number, line in enumerate([*blanked(text).split("\n"), ""]):
        begins = re.match(r" *(?:[-*+] |\d+\. |#|\||:   ?|[\w`*, ]+: |=+$|-+$)", line)
        if lines and (begins or not line.strip()):
            yield start, "\n".join(lines)
            lines = []
        if re.match(r" *\|", line):
            yield from ((number, cell) for cell in line.split("|") if cell.strip())
        elif line.strip():
            start = start if lines else number
            lines.append(line)


def passages_of_text(path: Path, text: str, first_line: int) -> Iterator[Passage]:
    yield from (Passage(path, first_line + place, readable(piece)) for place, piece in pieces(text))


def docstrings(tree: ast.Module) -> dict[int, ast.Constant]:
    """Constants that are docstrings, by identity."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, kinds) and node.body]
    firsts = [body[0].value for body in bodies if isinstance(body[0], ast.Expr)]
    return {id(value): value for value in firsts if isinstance(value, ast.Constant) and isinstance(value.value, str)}


def spoken(node: ast.expr) -> str:
    """A string or an f-string as a user may see it, with `X` for its values."""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def messages(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Strings of the code that are long enough to be read: errors, warnings, help, texts of reports."""
    known = docstrings(tree)
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)} - {0}
    for node in ast.walk(tree):
        is_part = id(node) in parts and not isinstance(node, ast.JoinedStr)
        if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in known and not is_part:
            text = spoken(node)
            if len(WORD.findall(text)) >= FEWEST_IN_A_MESSAGE:
                yield node.lineno, text


def passages_of_code(path: Path) -> Iterator[Passage]:
    tree = ast.parse(path.read_text())
    for value in docstrings(tree).values():
        yield from passages_of_text(path, str(value.value), value.lineno)
    for line, text in messages(tree):  # a line of a message ends a sentence
        yield from (passage for part in text.split("\n") for passage in passages_of_text(path, part, line))


def passages_of_gallery(path: Path) -> Iterator[Passage]:
    """The docstring and the comments of an example, which its page shows as text."""
    source = path.read_text()
    yield from passages_of_text(path, ast.get_docstring(ast.parse(source)) or "", 1)
    comments = [
        line[2:] if line.startswith("# ") and not line.startswith("# %%") else "" for line in source.split("\n")
    ]
    yield from passages_of_text(path, "\n".join(comments), 1)


def files(patterns: Iterable[str]) -> list[Path]:
    found = {path for pattern in patterns for path in ROOT.glob(pattern)}
    return sorted(path for path in found if not str(path.relative_to(ROOT)).startswith(MADE_BY_PROGRAMS))


def passages() -> Iterator[Passage]:
    """All prose of the repository that a user or a contributor reads."""
    for path in files(MARKDOWN):
        yield from passages_of_text(path, path.read_text(), 1)
    for path in files(GALLERIES):
        yield from passages_of_gallery(path)
    for path in files(PACKAGES):
        yield from passages_of_code(path)


def sentences(text: str) -> list[str]:
    return [" ".join(part.split()) for part in SENTENCE_END.split(text) if part.strip()]


def findings(passage: Passage, words: dict[re.Pattern[str], str]) -> Iterator[Finding]:
    """What is wrong with a passage."""
    text = " ".join(passage.text.split())
    for pattern, instead in words.items():
        if passage.path != STYLE and (match := pattern.search(text)):
            yield Finding(passage.path, passage.line, f"{match[0]!r}: write {instead}")
    for pattern, instead in NUMBERS:
        if match := pattern.search(text):
            yield Finding(passage.path, passage.line, f"{match[0]!r}: {instead}")
    for sentence in sentences(passage.text):
        if (length := len(WORD.findall(sentence))) > LONGEST:
            yield Finding(passage.path, passage.line, f"{length} words in a sentence, at most {LONGEST}: {sentence}")


def check() -> list[Finding]:
    words = replacements()
    return [finding for passage in passages() for finding in findings(passage, words)]


if __name__ == "__main__":
    wrong = check()
    sys.stdout.writelines(f"{finding}\n" for finding in wrong)
    sys.exit(f"{len(wrong)} places to mend; docs/contributing/style.md says how" if wrong else 0)
