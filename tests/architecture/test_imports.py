"""Imports point one way, nothing knows images that should not, and importing stays light."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]

# each folder or module of `filterattr`, with those below that it may import; modules of one folder know each other
ALLOWED = {
    "errors": set(),
    "names": set(),
    "memory": set(),
    "renamed": {"errors"},
    "model": {"errors"},
    "loss": {"errors", "memory"},
    "files": {"errors", "model"},
    "units": {"errors", "names", "model"},
    "jobs": {"errors", "model", "files"},
    "results": {"errors", "names", "files", "units"},
    "integral": {"errors", "model", "loss", "units"},
    "estimators": {"errors", "model", "loss", "files", "units", "jobs", "results", "integral"},
    "activations": {"errors", "names", "renamed", "model", "units", "jobs", "results", "integral"},
    "recorder": {"errors", "model"},
    "intervention": {"errors", "model", "results"},
}
ALLOWED["attribution"] = {*ALLOWED} - {"activations", "recorder", "intervention"}
ALLOWED["analysis"] = {*ALLOWED} - {"recorder"}
ALLOWED["export"] = {"errors", "names", "model", "files", "units", "results", "intervention", "attribution", "analysis"}
ALLOWED["benchmarks"] = {
    "errors", "names", "model", "files", "units", "jobs", "results", "intervention", "attribution", "analysis",
    "export",
}  # fmt: skip
ALLOWED["display"] = {"errors", "files", "jobs", "results", "intervention", "attribution", "activations", "analysis"}
ALLOWED["callbacks"] = {"errors", "model", "results", "recorder", "attribution"}
ALLOWED["cli"] = {*ALLOWED} - {"activations", "recorder", "benchmarks", "callbacks"}
ALLOWED["__main__"] = {"cli"}
IMAGE_LIBRARIES = {"PIL", "skimage", "cv2", "imageio", "torchvision"}


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
    return names


MODULES = sorted(path for path in (ROOT / "filterattr").rglob("*.py") if path.name != "__init__.py")


def test_imports_point_one_way() -> None:
    for path in MODULES:
        folder = path.relative_to(ROOT / "filterattr").parts[0].removesuffix(".py")
        assert folder in ALLOWED, f"{path.name} lives in no folder of the table"
        imported = {name for name in imports_of(path) if name.split(".")[0] == "filterattr"}
        folders = {[*name.split("."), "__init__"][1] for name in imported} - {folder}
        assert folders <= ALLOWED[folder], f"{path.name} imports {sorted(folders - ALLOWED[folder])}"


def test_every_folder_is_there_and_imports_from_those_before_it_alone() -> None:
    folders = {path.name.removesuffix(".py") for path in (ROOT / "filterattr").iterdir() if path.suffix in ("", ".py")}
    assert folders - {"__init__", "__pycache__"} == set(ALLOWED)
    for place, (folder, below) in enumerate(ALLOWED.items()):
        assert below <= set(list(ALLOWED)[:place]), f"{folder} comes before {sorted(below)}"


def test_the_library_knows_nothing_of_images_nor_of_the_zoo() -> None:
    tops = {path: {name.split(".")[0] for name in imports_of(path)} for path in MODULES}
    assert not [path for path, names in tops.items() if names & (IMAGE_LIBRARIES | {"sr_zoo"})]


# what those who use the library import from: its names, and the packages that say what they export
PUBLIC = (
    "filterattr",
    "filterattr.analysis",
    "filterattr.benchmarks",
    "filterattr.callbacks",
    "filterattr.cli",
    "filterattr.display",
    "filterattr.display.page",
    "filterattr.errors",
    "filterattr.export",
    "filterattr.files",
    "filterattr.memory",
)
METHOD = ROOT / "filterattr" / "integral" / "__init__.py"  # shows the inside of the library on purpose
PYTHON_BLOCKS = re.compile(r"```python\n(.*?)```", re.DOTALL)


def sources_of_users() -> dict[str, str]:
    """What uses the library: the zoo, examples, tutorials, pages, and the examples in docstrings."""
    modules = [*(ROOT / "sr_zoo").rglob("*.py"), *(ROOT / "examples").glob("*.py")]
    # not what `make docs` leaves in docs/learn and docs/gallery
    modules += [path for folder in ("tutorials", "_pictures", "_ext") for path in (ROOT / "docs" / folder).glob("*.py")]
    sources = {str(path.relative_to(ROOT)): path.read_text() for path in sorted(modules)}
    for path in [ROOT / "README.md", ROOT / "docs" / "index.md", *sorted((ROOT / "docs").glob("*/*.md"))]:
        sources[str(path.relative_to(ROOT))] = "\n".join(PYTHON_BLOCKS.findall(path.read_text()))
    for path in sorted({*(ROOT / "filterattr").rglob("*.py"), *(ROOT / "sr_zoo").rglob("*.py")} - {METHOD}):
        shown = re.findall(r"^ *>>> ((?:from|import) (?:filterattr|sr_zoo).*)$", path.read_text(), re.MULTILINE)
        sources[f"docstrings of {path.relative_to(ROOT)}"] = "\n".join(shown)
    return {name: source for name, source in sources.items() if "filterattr" in source}


def misplaced(source: str) -> list[str]:
    """What is imported from inside of the library, or not exported by the package that it is imported from."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.startswith("filterattr.")]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "filterattr":
            package = importlib.import_module(str(node.module))
            exported = getattr(package, "__all__", vars(package)) if node.module in PUBLIC else ()
            found += [f"{node.module}.{alias.name}" for alias in node.names if alias.name not in exported]
    return found


SOURCES = sources_of_users()


def test_users_import_public_names_alone() -> None:
    assert len(SOURCES) > 80
    assert not {name: inside for name, source in SOURCES.items() if (inside := misplaced(source))}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from filterattr import Unit", []),
        ("from filterattr.analysis import Masking, stability", []),
        ("from filterattr.analysis.masking import Masking", ["filterattr.analysis.masking.Masking"]),
        ("from filterattr.analysis import _nothing", ["filterattr.analysis._nothing"]),
        ("import filterattr.model.swap", ["filterattr.model.swap"]),
    ],
)
def test_imports_from_inside_are_seen(source: str, expected: list[str]) -> None:
    assert misplaced(source) == expected


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_package_exports_what_it_says(name: str) -> None:
    """A function stands before the module of its name, whichever was imported first."""
    package = importlib.import_module(name)
    exported = getattr(package, "__all__", [])
    assert len(set(exported)) == len(exported)
    assert not [one for one in exported if isinstance(getattr(package, one), ModuleType)]


def test_there_is_no_import_cycle() -> None:
    graph = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): {
            name for name in imports_of(path) if name.startswith(("filterattr.", "sr_zoo."))
        }
        for package in ("filterattr", "sr_zoo")
        for path in (ROOT / package).rglob("*.py")
    }
    done: set[str] = set()

    def walk(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for other in graph.get(name, ()):
                walk(other, (*trail, name))
            done.add(name)

    for name in graph:
        walk(name, ())


def test_importing_the_library_loads_no_heavy_package() -> None:
    heavy = ("matplotlib", "captum", "PIL", "pandas", "skimage", "safetensors", "tqdm", "sr_zoo")
    code = (
        "import sys; import torch; before = set(sys.modules); import filterattr; "
        f"print([n for n in {heavy!r} if n in set(sys.modules) - before])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_importing_the_library_loads_neither_analysis_nor_reports() -> None:
    """They take as long to load as everything else; `filterattr.report` brings them on first use."""
    code = """
import sys, torch
before = set(sys.modules)
import filterattr
loaded = set(sys.modules) - before
print(sorted(name for name in loaded if name.startswith(("filterattr.analysis", "filterattr.display"))))
print(len(loaded))
from filterattr import report
print(report.__module__, filterattr.report is report, "filterattr.analysis" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    rooms, count, function = done.stdout.splitlines()
    assert rooms == "[]"
    assert int(count) <= 110
    assert function == "filterattr.display.report True True"


def test_attributing_needs_torch_numpy_and_einops_alone() -> None:
    code = """
import sys
import tomllib
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"safetensors", "tqdm", "matplotlib", "pandas", "captum", "PIL", "skimage"}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import torch
from torch import nn
from filterattr import FilterAttributor
base = nn.Conv2d(1, 2, 3)
target = {name: value / 2 for name, value in base.state_dict().items()}
result = FilterAttributor(base).attribute(base, target, lambda model: model(torch.ones(1, 1, 5, 5)).square().sum())
print(repr(result.scores().top(1)))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "FilterSelection(1 of 2 units in 1 parameters)"


def test_names_of_the_library_are_found_where_they_are_defined() -> None:
    """`import filterattr` loads no PyTorch; its names come on first use, as type checkers see them."""
    import filterattr

    tree = ast.parse((ROOT / "filterattr" / "__init__.py").read_text())
    seen = {
        alias.name: (node.module or "").removeprefix("filterattr.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("filterattr.")
        for alias in node.names
    }
    assert {name: place for name, place in seen.items() if place != "errors"} == filterattr._PLACES
    assert {*seen, "__version__"} == set(filterattr.__all__)
    assert all(getattr(filterattr, name).__name__ == name for name in filterattr._PLACES)
    assert set(filterattr.__all__) <= set(dir(filterattr))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = filterattr.nothing
    code = "import sys, filterattr; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


def test_the_console_script_is_the_module() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["filterattr"].partition(":")
    assert getattr(importlib.import_module(module), name)(["--json"]) == 2
