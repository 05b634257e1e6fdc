"""What a node's configuration decides: which runtime makes its containers, and what it permits their tasks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.cluster import bed
from tests.cluster.bed import Cluster, eventually

RUNTIMES = {"n1": "native", "n2": "runc", "n3": "crun"}
OPTIONS = [
    {"key": "cap-add", "value": "SYS_PTRACE"},
    {"key": "read-only", "value": "true"},
    {"key": "tmpfs", "value": "/scratch:size=8m"},
    {"key": "ulimit", "value": "nofile=512:1024"},
    {"key": "memory-swap", "value": "64m"},
]


@contextmanager
def configured(cluster: Cluster, lines: dict[str, str]) -> Iterator[None]:
    """The nodes' agents run with one more line of configuration each, until the block ends."""
    files = {name: cluster.lab.node(name).state / "agent.toml" for name in lines}
    before = {name: file.read_text() for name, file in files.items()}
    try:
        for name, line in lines.items():
            files[name].write_text(before[name] + line + "\n")
        restart(cluster, lines)
        yield
    finally:
        for name, text in before.items():
            files[name].write_text(text)
        restart(cluster, lines)


def restart(cluster: Cluster, names: dict[str, str]) -> None:
    for name in names:
        cluster.lab.hold(name, "agent")
    eventually(lambda: not cluster.connected() & names.keys(), "their sessions have ended")
    for name in names:
        cluster.lab.release(name, "agent")
    eventually(lambda: cluster.connected() >= names.keys(), "their agents are back")


def test_the_same_app_runs_by_every_runtime(cluster: Cluster) -> None:
    with configured(cluster, {name: f'runtime = "{runtime}"' for name, runtime in RUNTIMES.items()}):
        cluster.run(bed.web(6))
        tasks = cluster.await_running("/web", 6)
        assert {task["node"] for task in tasks.values()} == RUNTIMES.keys()
        cluster.await_served("/web", tasks)
        limits = {tuple(task["limits"].items()) for task in tasks.values()}
        assert len(limits) == 1
    # Their agents make containers natively again, and look after those that are there.
    cluster.await_served("/web", tasks)
    assert bed.same(tasks, cluster.running("/web"))


def app(**container: Any) -> bed.Json:
    script = "import os; print(os.path.ismount('/scratch'), flush=True); import time; time.sleep(3600)"
    return bed.app_json("/confined", args=["/usr/bin/python3", "-c", script], container=container)


def test_what_no_node_permits_is_waited_for_by_name(cluster: Cluster) -> None:
    cluster.run(app(docker={"parameters": OPTIONS}))
    (why,) = eventually(lambda: reasons(cluster), "it waits")
    assert why == "needs capability CAP_SYS_PTRACE: no node permits it, in its agent.toml"
    with configured(cluster, {"n2": 'capabilities = ["CAP_SYS_PTRACE"]'}):
        assert cluster.nodes()["n2"]["rights"] == ["capability CAP_SYS_PTRACE"]
        ((name, task),) = cluster.await_running("/confined", 1).items()
        assert task["node"] == "n2"
        assert eventually(lambda: cluster.log_of(name), "it looks around") == "True\n"
        cluster.remove("/confined")
        eventually(lambda: not cluster.tasks(), "it is gone")


def reasons(cluster: Cluster) -> list[str]:
    waiting: list[str] = cluster.get("/api/v1/services/confined")["waiting"]
    return [reason for reason in waiting if "permits" in reason]


@pytest.mark.parametrize(
    ("option", "path"),
    [
        ({"key": "cap-add", "value": "NONSENSE"}, "/container/docker/parameters(0)/value"),
        ({"key": "sysctl", "value": "kernel.core_pattern=|/x"}, "/container/docker/parameters(0)/value"),
        ({"key": "tmpfs", "value": "/proc"}, "/container/docker/parameters(0)/value"),
        ({"key": "privileged", "value": "true"}, "/container/docker/parameters(0)/key"),
    ],
)
def test_what_can_not_be_is_refused_with_its_place(cluster: Cluster, option: dict[str, str], path: str) -> None:
    answer = cluster.request("POST", "/v2/apps", json=app(docker={"parameters": [option]}))
    assert answer.status_code == 422 and [detail["path"] for detail in answer.json()["details"]] == [path]
    assert cluster.get("/v2/apps")["apps"] == []
