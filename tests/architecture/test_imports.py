"""Imports point one way, nothing knows images that should not, and importing stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# each room of `filterattr`, with those below it that it may import from; modules inside of a folder know each other
ALLOWED = {
    "errors": set(),
    "names": set(),
    "model": {"errors", "names"},
    "loss": {"errors"},
    "files": {"errors", "model"},
    "units": {"errors", "names", "model"},
    "jobs": {"errors", "model", "files"},
    "results": {"errors", "names", "files", "units"},
    "integral": {"errors", "model", "loss", "units"},
    "estimators": {"errors", "model", "loss", "files", "units", "jobs", "results", "integral"},
    "activations": {"errors", "names", "model", "units", "jobs", "results", "integral"},
    "recorder": {"errors", "model"},
    "intervention": {"errors", "model", "results"},
}
ALLOWED["attribution"] = {*ALLOWED} - {"activations", "recorder", "intervention"}
ALLOWED["analysis"] = {*ALLOWED} - {"recorder"}
ALLOWED["display"] = {"errors", "files", "results", "intervention", "attribution", "activations", "analysis"}
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


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    room = path.relative_to(ROOT / "filterattr").parts[0].removesuffix(".py")
    assert room in ALLOWED, f"{path.name} lives in no room of the table"
    imported = {name for name in imports_of(path) if name.split(".")[0] == "filterattr"}
    rooms = {[*name.split("."), "__init__"][1] for name in imported} - {room}
    assert rooms <= ALLOWED[room], f"{path.name} imports {sorted(rooms - ALLOWED[room])}"


def test_every_room_is_there_and_imports_from_rooms_before_it_alone() -> None:
    rooms = {path.name.removesuffix(".py") for path in (ROOT / "filterattr").iterdir() if path.suffix in ("", ".py")}
    assert rooms - {"__init__", "__pycache__"} == set(ALLOWED)
    for place, (room, below) in enumerate(ALLOWED.items()):
        assert below <= set(list(ALLOWED)[:place]), f"{room} comes before {sorted(below)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_library_knows_nothing_of_images_nor_of_the_zoo(path: Path) -> None:
    tops = {name.split(".")[0] for name in imports_of(path)}
    assert not tops & (IMAGE_LIBRARIES | {"sr_zoo"})


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


def test_attributing_needs_torch_numpy_and_einops_alone() -> None:
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"safetensors", "tqdm", "matplotlib", "pandas", "captum", "PIL", "skimage"}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import torch
from torch import nn
from filterattr import FilterAttributor
base, target = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3)
result = FilterAttributor(base).attribute(base, target, lambda model: model(torch.ones(1, 1, 5, 5)).square().sum())
print(result.scores().top(1))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "FilterSelection(1 of 2 units in 1 parameters)"
