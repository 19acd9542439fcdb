"""Tiny photographs from a seeded generator, and one thread, which small tensors are faster with."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(20_211)


def make_photograph(height: int, width: int, seed: int) -> Tensor:
    """Smooth shades, edges and grain, ``uint8`` of shape ``(3, height, width)``."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 6, 6, generator=generator)
    shades = functional.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)[0]
    edges = 0.3 * (torch.arange(width) // 7 % 2) * (torch.arange(height)[:, None] // 11 % 2)
    grain = 0.03 * torch.randn(3, height, width, generator=generator)
    return ((shades * 0.7 + edges + grain) * 255).round().clamp(0, 255).to(torch.uint8)


@pytest.fixture
def photographs() -> list[Tensor]:
    """Three small photographs of different sizes."""
    return [make_photograph(72, 96, 1), make_photograph(64, 64, 2), make_photograph(85, 67, 3)]
