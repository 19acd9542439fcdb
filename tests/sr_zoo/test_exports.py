"""What the packages export, and what importing them costs."""

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import sr_zoo


@pytest.mark.parametrize("package", ["sr_zoo.degradations", "sr_zoo.models", "sr_zoo.training"])
def test_exports_exist_once(package):
    module = importlib.import_module(package)
    assert len(module.__all__) == len(set(module.__all__))
    assert all(hasattr(module, name) for name in module.__all__)


def test_importing_the_application_loads_no_plotting_library():
    modules = [
        found.name for found in pkgutil.walk_packages(sr_zoo.__path__, "sr_zoo.") if "__main__" not in found.name
    ]
    assert "sr_zoo.training" in modules
    code = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
        "heavy = {'matplotlib', 'captum', 'skimage', 'scipy', 'pandas'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(sr_zoo.__file__).parents[1], check=False
    )
    assert done.returncode == 0, done.stderr
