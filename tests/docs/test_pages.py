"""The code on hand-written pages runs, and their pictures have alternatives."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from filterattr import FilterAttribution, FilterAttributor, blend, contrast, swapped

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").glob("*/*.md")), ROOT / "README.md"]
# a comment above a block says why it is not run here
BLOCK = re.compile(r"(<!-- not run:[^>]*-->\n)?```python\n(.*?)```", re.DOTALL)


def blocks(page: Path) -> list[str]:
    return [code for excuse, code in BLOCK.findall(page.read_text()) if not excuse]


def restored_error(model: nn.Module, sample: Any = None) -> torch.Tensor:
    degraded, reference = SAMPLES[0] if sample is None else sample
    return (model(degraded) - reference).square().sum()


def pair() -> tuple[nn.Module, nn.Module]:
    base, target = (
        nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.SiLU(), nn.Conv2d(6, 6, 3), nn.SiLU(), nn.Conv2d(6, 1, 3))
        for _ in range(2)
    )
    target.load_state_dict({name: value + 0.02 * torch.randn_like(value) for name, value in base.state_dict().items()})
    return base, target


SAMPLES = [(torch.rand(1, 1, 12, 12), torch.rand(1, 1, 8, 8)) for _ in range(4)]


def what_the_reader_has() -> dict[str, Any]:
    """The names that the pages take for granted."""
    base, target = pair()
    attribution = FilterAttributor(target).attribute(base, target, restored_error, SAMPLES, n_steps=8)
    return {
        "torch": torch,
        "nn": nn,
        "FilterAttributor": FilterAttributor,
        "FilterAttribution": FilterAttribution,
        "blend": blend,
        "contrast": contrast,
        "swapped": swapped,
        "model": target,
        "base": base.state_dict(),
        "target": {name: value.clone() for name, value in target.state_dict().items()},
        "loss": restored_error,
        "samples": SAMPLES,
        "attribution": attribution,
        "scores": attribution.scores(),
    }


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page)], ids=lambda page: str(page.relative_to(ROOT).with_suffix(""))
)
def test_code_blocks_run_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = what_the_reader_has()
    monkeypatch.chdir(tmp_path)
    torch.save(names["base"], "base.pt")
    torch.save({"state_dict": names["target"]}, "target.pt")
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(names["base"], "base.safetensors")
    safetensors.save_file(names["target"], "target.safetensors")
    for place, code in enumerate(blocks(page)):
        exec(compile(code, f"{page.name}, block {place + 1}", "exec"), names)


def test_pictures_have_an_alternative() -> None:
    for page in PAGES:
        text = page.read_text()
        assert not re.findall(r"!\[\s*\]\(", text), page
        figures = re.findall(r"```\{(?:image|figure)\}.*?```", text, re.DOTALL)
        assert all(":alt:" in figure for figure in figures), page


def test_files_of_the_repository_that_a_page_names_are_there() -> None:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        named = re.findall(r"(?<![\w/.])((?:filterattr|sr_zoo|tests|docs)/[\w/]+\.(?:py|md))\b", page.read_text())
        assert not [name for name in named if not (ROOT / name).exists()], page
