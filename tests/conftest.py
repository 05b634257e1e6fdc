"""What the tests of all suites share."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says more of what else the machine does than of us.
settings.register_profile("tepui", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tepui")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
