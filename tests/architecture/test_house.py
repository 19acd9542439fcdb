"""The way of one default call is short: few files, few changes between them, few frames above the loss."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import filterattr
from filterattr import FilterAttributor

HOUSE = Path(filterattr.__file__).parent


@dataclass
class Way:
    """What one call passes through."""

    visits: list[str] = field(default_factory=list)  # one for every change of file
    n_frames: int = 0

    def follow(self, call: Callable[[], object]) -> None:
        """Follow a call."""

        def look(frame: FrameType, event: str, _argument: Any) -> None:
            name = frame.f_code.co_filename
            if event == "call" and is_ours(name) and self.visits[-1:] != [name]:
                self.visits.append(name)

        before = sys.getprofile()
        sys.setprofile(look)
        try:
            call()
        finally:
            sys.setprofile(before)

    def count_frames(self) -> None:
        """Count the frames of the library around the present one."""
        frame: FrameType | None = sys._getframe()
        count = 0
        while frame is not None:
            count += is_ours(frame.f_code.co_filename)
            frame = frame.f_back
        self.n_frames = max(self.n_frames, count)


def is_ours(name: str) -> bool:
    return Path(name).is_relative_to(HOUSE)


@pytest.fixture(scope="module")
def way() -> Way:
    way, image = Way(), torch.rand(1, 1, 8, 8)

    def loss(model: nn.Module) -> Tensor:
        way.count_frames()
        value: Tensor = model(image).square().sum()
        return value

    torch.manual_seed(0)
    base, target = (nn.Sequential(nn.Conv2d(1, 4, 3), nn.SiLU(), nn.Conv2d(4, 1, 3)) for _ in range(2))
    attributor = FilterAttributor(base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "active_count", lambda: 1)  # other tests may have left threads, which take turns
        way.follow(lambda: attributor.attribute(base, target, loss, progress=False))
    return way


def test_few_files_lie_on_the_way(way: Way) -> None:
    assert "integral/node.py" in {Path(name).relative_to(HOUSE).as_posix() for name in way.visits}  # it is followed
    files = sorted({Path(name).relative_to(HOUSE).as_posix() for name in way.visits})
    assert len(files) <= 20, files


def test_the_way_changes_files_rarely(way: Way) -> None:
    assert 100 < len(way.visits) <= 450


def test_few_frames_lie_between_the_caller_and_the_loss(way: Way) -> None:
    assert 0 < way.n_frames <= 12


def test_the_method_is_short() -> None:
    lines = sum(len(path.read_text().splitlines()) for path in (HOUSE / "integral").rglob("*.py"))
    assert 0 < lines <= 1200
