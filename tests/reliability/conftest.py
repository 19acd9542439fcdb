"""The implementation that a case is run against: the library, unless the scoreboard chooses a draft."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.reliability.drafts import FILTERATTR, Implementation


@pytest.fixture
def attribute(request: pytest.FixtureRequest) -> Implementation:
    return getattr(request.config, "implementation", FILTERATTR)


@pytest.fixture(autouse=True)
def _tidy() -> Iterator[None]:
    """Small networks are faster with one thread; and interrupted drafts leave gradients off, which is not to spread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_grad_enabled(True)
