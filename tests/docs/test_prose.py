"""The prose of the project keeps to its style page, and the check finds what it should."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.prose import (
    LONGEST,
    check,
    findings,
    passages_of_code,
    passages_of_gallery,
    passages_of_text,
    replacements,
)

PAGE = Path("page.md")


def found(text: str) -> list[str]:
    words = replacements()
    return [one.what for passage in passages_of_text(PAGE, text, 1) for one in findings(passage, words)]


def test_all_prose_keeps_to_the_style_page() -> None:
    assert not [str(one) for one in check()]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("Wrappers are looked through.", "'looked through': write unwrapped"),
        ("Weights of\nsomebody else.", "'somebody else'"),
        ("Masking removes .4 of it.", "a zero before the decimal point"),
        ("Above 1 % there is a warning.", "1%, not 1 %"),
        ("A cell | 1.00/.03 |", "a zero before the decimal point"),
        (" ".join(["word"] * (LONGEST + 1)) + ".", f"{LONGEST + 1} words in a sentence"),
        ("- an item\n- " + " ".join(["word"] * (LONGEST + 1)), f"{LONGEST + 1} words in a sentence"),
        ("[" + "word " * LONGEST + "](https://a.b) end", f"{LONGEST + 1} words in a sentence"),
    ],
)
def test_what_is_found(text: str, part: str) -> None:
    assert any(part in what for what in found(text)), found(text)


@pytest.mark.parametrize(
    "text",
    [
        " ".join(["word"] * LONGEST) + ". " + " ".join(["word"] * LONGEST) + ".",
        "```python\nx = .5  # looked through, as ever\n```\n",
        "Call `torch.nn.functional` with `.5`, $\\lambda = .5$ and 0.5; 100% of `1 %`.",
        ">>> value\n.5 very very\n\nText.",
        "<!-- somebody else -->\nText.",
        "| " + " | ".join(["word"] * (LONGEST + 5)) + " |",
    ],
)
def test_what_is_no_prose_or_right(text: str) -> None:
    assert not found(text)


def test_code_is_read_where_users_read_it(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        'def f():\n    """Looked through.\n\n    Args:\n        x: As ever.\n    """\n'
        "    # a comment of somebody else\n    raise ValueError(f'files of somebody else; got {1} of them')\n"
    )
    words = replacements()
    lines = [(one.line, one.what[:10]) for passage in passages_of_code(path) for one in findings(passage, words)]
    assert sorted(lines) == [(2, "'Looked th"), (5, "'As ever':"), (8, "'somebody ")]


def test_the_text_of_an_example_is_its_docstring_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "plot_a.py"
    path.write_text('"""\nTitle\n=====\n\nText very.\n"""\n\n# %%\n# As ever, text.\nx = "as ever"\n')
    words = replacements()
    assert len([one for passage in passages_of_gallery(path) for one in findings(passage, words)]) == 2
