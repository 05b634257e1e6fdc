"""What the tests of all suites share."""

from __future__ import annotations

import signal

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says more of what else the machine does than of us.
settings.register_profile("tepui", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tepui")

# Who runs the tests in the background of a shell ignores these, and so would all that the tests start.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
