"""Every public name is in the reference, with arguments, returns, errors and an example; so is every error message."""

from __future__ import annotations

import ast
import builtins
import doctest
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

import filterattr
import filterattr.cli
import filterattr.errors
import sr_zoo.cli

ROOT = Path(__file__).parents[2]
REFERENCE = "\n".join(path.read_text() for path in sorted((ROOT / "docs" / "reference").glob("*.md")))
LISTED = set(re.findall(r"^\s+((?:filterattr|sr_zoo)[\w.]*)$", REFERENCE, re.MULTILINE))
LISTED |= {f"filterattr.{name}" for name in re.findall(r"\.\. autoexception:: (\w+)", REFERENCE)}

# packages whose modules are public as a whole; all others are no part of the interface
PUBLIC_PACKAGES = ("filterattr.analysis", "filterattr.display", "filterattr.export", "sr_zoo")
INSIDE = {"filterattr.display.page": "the parts of a report, which filterattr.display.report puts together"}
# tutorials, gallery and how-tos are run, by `make docs` and by the tests
RUN_PAGES = "\n".join(
    path.read_text()
    for folder, kind in (("docs/tutorials", "*.py"), ("examples", "*.py"), ("docs/howto", "*.md"))
    for path in sorted((ROOT / folder).glob(kind))
)
# too slow for a doctest, or nothing to show in one: what runs them instead
SHOWN_ELSEWHERE = {
    "sr_zoo.card.make_card": "tests/sr_zoo/test_training.py",
    "sr_zoo.cli.main": "docs/reference/command_line.md",
    "sr_zoo.demo.bundled_photographs": "docs/tutorials/which_filters_remove_blur.py",
    "sr_zoo.demo.draw_pictures": "tests/sr_zoo/test_demo.py",
    "sr_zoo.demo.find_and_mask": "tests/sr_zoo/test_demo.py",
    "sr_zoo.demo.table": "tests/sr_zoo/test_demo.py",
    "sr_zoo.study.make_plan": "tests/sr_zoo/test_study.py",
    "sr_zoo.study.open_archive": "tests/sr_zoo/test_study.py",
    "sr_zoo.study.open_subject": "tests/sr_zoo/test_study.py",
    "sr_zoo.study.run_study": "tests/sr_zoo/test_study.py",
    "filterattr.analysis.agreement.load_scipy": "it imports a package",
    "filterattr.analysis.record.Record": "its children show it",
}


def public_modules() -> list[str]:
    """The modules of the public packages; a package that says what it exports stands for the modules inside."""
    return [
        found.name
        for package in PUBLIC_PACKAGES
        for found in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}.")
        if not found.name.rpartition(".")[2].startswith("_") and found.name not in INSIDE
    ]


def described_by(name: str) -> Iterator[tuple[str, object]]:
    """The functions, classes and methods that the page of a listed name shows."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError:
        owner, _, last = name.rpartition(".")
        yield name, getattr(importlib.import_module(owner), last)
        return
    public = getattr(module, "__all__", None)
    for last, value in vars(module).items():
        is_own = getattr(value, "__module__", None) == name
        if isinstance(value, type | FunctionType) and (last in public if public else is_own and last[0] != "_"):
            yield f"{name}.{last}", value


def public_objects() -> list[tuple[str, object]]:
    top = [(f"filterattr.{name}", getattr(filterattr, name)) for name in filterattr.__all__ if name != "__version__"]
    found = dict(top)
    for name in sorted(LISTED):
        found |= dict(described_by(name))
    for name, value in list(found.items()):
        if isinstance(value, type):
            for last, method in vars(value).items():
                is_inherited = any(last in vars(parent) for parent in value.__mro__[1:])  # the parent says it
                if (
                    last[0] != "_"
                    and isinstance(method, FunctionType | classmethod | staticmethod)
                    and not is_inherited
                ):
                    found[f"{name}.{last}"] = getattr(method, "__func__", method)
    return sorted(found.items())


OBJECTS = public_objects()
TOPS = [(name, value) for name, value in OBJECTS if isinstance(value, FunctionType) and "." not in value.__qualname__]
TOPS += [(name, value) for name, value in OBJECTS if isinstance(value, type) and not issubclass(value, Exception)]


def test_every_public_name_of_the_library_is_in_the_reference() -> None:
    values = {name: getattr(filterattr, name) for name in filterattr.__all__ if name != "__version__"}
    places = {
        name: {f"filterattr.{name}", f"{value.__module__}.{name}", value.__module__} for name, value in values.items()
    }
    assert len(places) > 30
    assert not [name for name, known in places.items() if not known & LISTED]


def test_every_public_module_is_in_the_reference() -> None:
    def is_listed(name: str) -> bool:  # a module that has the name of a function in it is listed by what it holds
        return name in LISTED or any(listed.startswith(f"{name}.") for listed in LISTED)

    missing = [name for name in public_modules() if not is_listed(name)]
    assert not missing, f"add {missing} to a page in docs/reference"


def test_every_name_in_the_reference_exists() -> None:
    assert len(LISTED) > 90
    for name in sorted(LISTED):
        assert list(described_by(name)) or isinstance(importlib.import_module(name), ModuleType), name


def test_docstrings_say_what_a_caller_must_know() -> None:
    lacks = {name: missing for name, value in OBJECTS if (missing := missing_in(value))}
    assert len(OBJECTS) > 350
    assert not lacks


def missing_in(value: object) -> list[str]:
    """What a docstring must say and does not."""
    text = inspect.getdoc(value) or ""
    missing = [section for section in wanted_sections(value) if f"{section}:" not in text]
    if isinstance(value, FunctionType):
        missing += [f"argument {argument}" for argument in arguments_of(value) if not explained(argument, text)]
    return missing if text else ["docstring"]


def test_every_function_and_class_has_a_running_example() -> None:
    """Doctests run with `make test`."""
    assert len(TOPS) > 200
    assert not [name for name, value in TOPS if not has_example(name, value)]


def has_example(name: str, value: object) -> bool:
    is_used = re.search(rf"\b{name.rpartition('.')[2]}\b", RUN_PAGES) is not None
    if is_used or name in SHOWN_ELSEWHERE or is_record(value):  # records come out of functions that have examples
        return True
    texts = [inspect.getdoc(value) or ""]
    if isinstance(value, type):
        texts += [inspect.getdoc(method) or "" for method in vars(value).values()]
    return any(">>>" in text for text in texts)


def test_an_example_says_where_its_names_come_from() -> None:
    assert not {name: missing for name, value in OBJECTS if (missing := names_without_an_import(value))}


def names_without_an_import(value: object) -> set[str]:
    """Names of its page and what the reference takes for granted need no import; a doctest would find more."""
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(value) or "")
    used, bound = set(), {"torch", "nn", *filterattr.__all__, *dir(builtins)}
    for node in ast.walk(ast.parse("".join(one.source for one in examples))):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
    home = vars(inspect.getmodule(inspect.unwrap(value)))  # type: ignore[arg-type]
    bound |= {one for one, what in home.items() if getattr(what, "__module__", None) == home["__name__"]}
    return used - bound


def arguments_of(function: FunctionType) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [one.name for one in parameters if one.name not in ("self", "cls") and one.name[0] != "_"]


def explained(argument: str, text: str) -> bool:
    return re.search(rf"^\s+\*{{0,2}}{argument}\b.*:", text, re.MULTILINE) is not None


def is_record(value: object) -> bool:
    return isinstance(value, type) and bool(fields(value) if is_dataclass(value) else hasattr(value, "_fields"))


def wanted_sections(value: object) -> list[str]:
    if isinstance(value, type):
        if issubclass(value, Exception):
            return []
        return ["Attributes"] if is_record(value) and "Args:" not in (inspect.getdoc(value) or "") else []
    assert isinstance(value, FunctionType)
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(value))))
    wanted = ["Args"] if arguments_of(value) else []
    if any(isinstance(node, ast.Raise) and node.exc is not None for node in ast.walk(tree)):
        wanted.append("Raises")
    if any(isinstance(node, ast.Yield) for node in ast.walk(tree)):
        wanted.append("Yields")
    elif value.__annotations__.get("return") != "None" and arguments_of(value):
        wanted.append("Returns")
    return wanted


SOURCES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text())
    for package in ("filterattr", "sr_zoo")
    for path in (ROOT / package).rglob("*.py")
}
ERRORS = [name for name, value in vars(filterattr.errors).items() if name.endswith("Error") and name[0] != "_"]
ROWS = [  # the messages that the page of errors quotes; several in a row are parts of one, or stand for each other
    re.findall(r"`(.*?)`", row)
    for row in re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "reference" / "errors.md").read_text(), re.MULTILINE)
]


def text_of(node: ast.expr) -> str:
    """A message with `...` for what is filled in."""
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
    return str(node.value) if isinstance(node, ast.Constant) else "..."


def texts_in(tree: ast.Module) -> Iterator[str]:
    """Every text of a module that can become a part of a message: all but its docstrings."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) not in docstrings and isinstance(node, ast.JoinedStr | ast.Constant):
            yield text_of(node)


def errors_in(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Every error that a module makes: its class, and its message."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS:
            yield node.func.id, text_of(node.args[0])


def test_every_message_of_the_errors_page_is_one_of_the_library() -> None:
    known = "\n".join(text for tree in SOURCES.values() for text in texts_in(tree))
    assert len(ROWS) > 100
    assert not [text for row in ROWS for text in row if text not in known]


def test_every_class_of_errors_has_rows_on_the_errors_page() -> None:
    errors = [error for name, tree in SOURCES.items() if name.startswith("filterattr/") for error in errors_in(tree)]
    assert len(errors) > 200
    listed = {kind for kind, text in errors if any(all(part in text for part in row) for row in ROWS)}
    assert set(ERRORS) - listed == {"FilterAttrError"}  # the root, which is never raised itself


@pytest.mark.parametrize("module", ["analysis/outputs", "analysis/masks", "results/signed"])
def test_every_error_of_a_module_is_on_the_errors_page(module: str) -> None:
    messages = [text for _, text in errors_in(SOURCES[f"filterattr/{module}.py"])]
    assert len(messages) > 1
    assert not [text for text in messages if not any(all(part in text for part in row) for row in ROWS)]


def test_every_error_class_is_on_the_errors_page() -> None:
    page = (ROOT / "docs" / "reference" / "errors.md").read_text()
    classes = [name for name, value in vars(filterattr.errors).items() if name.endswith(("Error", "Warning"))]
    assert not [name for name in classes if f"autoexception:: {name}" not in page]


def test_the_zoo_is_a_package_of_the_reference() -> None:
    assert any(name.startswith(f"{sr_zoo.__name__}.") for name in LISTED)


def test_every_command_is_on_the_page_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "reference" / "command_line.md").read_text()
    for program, before, first in ((sr_zoo.cli, "", "demo"), (filterattr.cli, "filterattr ", "diff")):
        with pytest.raises(SystemExit, match="0"):
            program.main(["--help"])
        commands = re.findall(r"^    ([a-z]+)\b", capsys.readouterr().out, re.MULTILINE)
        assert first in commands
        assert not [name for name in commands if f"## {before}{name}\n" not in page]
