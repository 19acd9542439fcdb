"""Imports point one way, nothing knows images that should not, and importing stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# what each room of `filterattr` may import from the library; engine modules know nothing of each other
SCORES = ("parameters", "scores")
ALLOWED = {
    "errors": set(),
    "pieces": set(),
    "names": set(),
    "layouts": {"errors"},
    "holdings": set(),
    "files": {"errors", "files"},
    "engine": {"errors", "pieces", "files", "holdings", "names", "layouts"},
    "parameters": {"errors", "engine"},
    "scores": {"errors", "engine", "names", "parameters"},
    "concerns": set(),
    "result": {"errors", "engine", "concerns", *SCORES},
    "intervention": {"errors", "engine", *SCORES},
    "rehearsal": {"engine"},
    "heads": {"errors", "engine", "layouts", "rehearsal"},
    "groups": {"errors", "engine", "heads", "layouts", "names", "rehearsal"},
    "loading": {"errors", "engine"},
    "recorder": {"errors", "engine"},
    "shortage": {"errors", "engine"},
    "pathloss": {"errors", "engine", "shortage"},
    "stackedloss": {"errors", "engine", "pathloss"},
    "walk": {"errors", "engine"},
    "estimates": {"errors", "engine", *SCORES, "result", "pathloss", "stackedloss", "estimates"},
    "attribution": {"errors", "concerns", "engine", "names", *SCORES, "result", "pathloss", "walk", "estimates"},
    "sweep": {"errors", "engine", *SCORES, "sweep"},
    "channels": {"errors", "engine", "names", *SCORES, "sweep"},
    "analysis": {"errors", "engine", *SCORES, "result", "intervention", "attribution", "channels", "analysis", "files"},
    "display": {
        "errors",
        "files",
        *SCORES,
        "result",
        "intervention",
        "attribution",
        "channels",
        "analysis",
        "display",
        "engine",
    },
}
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
    own = {name for name in imports_of(path) if name.split(".")[0] == "filterattr"}
    rooms = {[*name.split("."), "__init__"][1] for name in own}
    assert rooms <= ALLOWED[room], f"{path.name} imports {sorted(rooms - ALLOWED[room])}"


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
