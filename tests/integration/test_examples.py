"""Every example runs as it stands, with warnings as errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# `make docs` and `make test-all` run them: those that train a network on real data, or ask many questions of one
SLOW = {
    "plot_character_gpt",
    "plot_character_lm",
    "plot_deblurring_and_denoising",
    "plot_diffusion",
    "plot_digits_new_domain",
    "plot_evidence",
    "plot_lora",
    "plot_sensor_1d",
    "plot_tabular",
    "plot_transformer_text",
    "plot_unlearning",
}
EXAMPLES = [
    pytest.param(path, id=path.stem, marks=pytest.mark.slow if path.stem in SLOW else ())
    for path in sorted((ROOT / "examples").glob("plot_*.py"))
]


@pytest.mark.parametrize("path", EXAMPLES)
def test_example_runs(path: Path) -> None:
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)], capture_output=True, text=True, env=environment, timeout=250
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
