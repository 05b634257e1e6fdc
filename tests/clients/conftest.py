"""A real cluster, and clients that other people wrote, unmodified."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients import environment
from tests.cluster import bed
from tests.cluster.bed import Cluster

NODES = 3


@pytest.fixture(scope="session")
def shared() -> Iterator[Cluster]:
    with bed.started(NODES) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared: Cluster) -> Iterator[Cluster]:
    """Nothing runs on it before the test. Afterwards everything is removed, and must be gone to the last trace."""
    yield shared
    for kind in "pods", "apps":
        answer = shared.get(f"/v2/{kind}")
        for each in answer["apps"] if kind == "apps" else answer:
            shared.call("DELETE", f"/v2/{kind}{each['id']}?force=true")
    # Those that depend on others, of which there is one row at the most, before these.
    for job in sorted(shared.get("/v1/jobs"), key=lambda job: not job.get("dependencies")):
        shared.call("DELETE", f"/v1/jobs/{job['id']}?stopCurrentJobRuns=true")
    shared.await_empty()


@pytest.fixture(scope="session")
def authority(shared: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Who vouches for the master, as a file: what clients know of its certificate."""
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    path.write_text(bed.admin(shared.lab)["ca"])
    return path


@pytest.fixture(scope="session")
def python() -> Path:
    return environment.python()
