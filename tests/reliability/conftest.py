"""The implementation that a case is run against: the library, unless the scoreboard chooses a draft."""

from __future__ import annotations

import pytest

from tests.reliability.drafts import FILTERATTR, Implementation


@pytest.fixture
def attribute(request: pytest.FixtureRequest) -> Implementation:
    return getattr(request.config, "implementation", FILTERATTR)
