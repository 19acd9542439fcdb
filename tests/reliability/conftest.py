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
def _gradients_on() -> Iterator[None]:
    """Interrupted drafts leave them off; the next case must not suffer from that."""
    yield
    torch.set_grad_enabled(True)
