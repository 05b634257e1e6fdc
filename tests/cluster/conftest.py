"""A real master and real agents in a lab: one cluster for all tests that leave it as they found it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster import bed
from tests.cluster.bed import Cluster

NODES = 3
IPTABLES = "n2"  # has the other back end of VIPs


@pytest.fixture(scope="session")
def shared() -> Iterator[Cluster]:
    with bed.started(NODES, agents={IPTABLES: {"TEPUI_AGENT_VIP_BACKEND": "iptables"}}) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared: Cluster) -> Iterator[Cluster]:
    """Nothing runs on it before the test. Afterwards everything is removed, and must be gone to the last trace."""
    yield shared
    shared.await_empty()
