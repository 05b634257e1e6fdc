"""A task of a service is resized and paused while it serves: the same process, and what the kernel enforces is new."""

from __future__ import annotations

import time
from functools import partial

import pytest

from lab.daemons import tepui
from lab.errors import LabError
from tests.cluster import bed
from tests.cluster.bed import Cluster, Json, ask, eventually

MIB = 1 << 20


def test_resized_in_place_paused_and_resumed(cluster: Cluster) -> None:
    cluster.run(bed.web(2))
    before = cluster.await_running("/web", 2)
    target = cluster.await_served("/web", before)
    name, task = min(before.items())
    after: Json = cluster.call("PATCH", f"/api/v1/tasks/{name}", json={"cpus": 0.2, "mem": 64, "pids": 99})["task"]
    assert (after["pid"], after["resources"]["mem"]) == (task["pid"], 64)
    assert after["limits"] == task["limits"] | {"cpus": 0.2, "mem_bytes": 64 * MIB, "pids": 99}

    paused = cluster.call("POST", f"/api/v1/tasks/{name}/pause")["task"]
    assert (paused["state"], paused["paused"], paused["pid"]) == ("RUNNING", True, task["pid"])
    (other,) = before.keys() - {name}
    assert cluster.backends("/web") == {other}
    for node in cluster.names:
        eventually(partial(only_answers, cluster, node, target, other), f"{node} is served by the other one")

    with pytest.raises(LabError, match="cpus"):
        tepui(cluster.lab, "task", "update", name, "--cpus", "1000")
    after["limits"]["pids"] = 55
    assert tepui(cluster.lab, "task", "update", name, "--pids", "55")["limits"] == after["limits"]

    cluster.lab.kill_daemon(task["node"], "agent")  # what is paused stays so, and what was changed is not changed back
    eventually(lambda: cluster.connected() == set(cluster.names), "its agent is back")
    seen = cluster.tasks()[name]
    assert (seen["paused"], seen["pid"], seen["limits"]) == (True, task["pid"], after["limits"])

    assert not cluster.call("POST", f"/api/v1/tasks/{name}/resume")["task"]["paused"]
    cluster.await_served("/web", before)
    assert bed.same(before, cluster.running("/web"))


def only_answers(cluster: Cluster, node: str, target: tuple[str, int], task: str) -> bool:
    return {cluster.lab.within(node, partial(ask, target)) for _ in range(10)} == {task}


def test_a_change_that_the_node_refuses_changes_nothing(cluster: Cluster) -> None:
    hold = "exec /usr/bin/python3 -c 'import time; x = bytearray(20 << 20); print(1, flush=True); time.sleep(3600)'"
    cluster.run(bed.command("/holds", hold, mem=64))
    (name,) = before = cluster.await_running("/holds", 1)
    eventually(lambda: cluster.log_of(name), "the memory is held")
    refused = cluster.request("PATCH", f"/api/v1/tasks/{name}", json={"mem": 8})
    assert refused.status_code == 409 and "memory limit 8 MiB" in refused.json()["message"]
    seen = cluster.tasks()[name]
    assert (seen["resources"], seen["limits"]) == (before[name]["resources"], before[name]["limits"])
    node = cluster.nodes()[seen["node"]]
    large = cluster.request("PATCH", f"/api/v1/tasks/{name}", json={"mem": int(node["resources"]["mem"]) + 1})
    assert large.status_code == 409 and large.json()["details"][0]["path"] == "/mem"


def test_a_paused_task_ends_when_its_service_is_removed(cluster: Cluster) -> None:
    cluster.run(bed.command("/stops", "trap 'exit 0' TERM; while :; do sleep 0.1; done", taskKillGracePeriodSeconds=20))
    (name,) = cluster.await_running("/stops", 1)
    assert cluster.call("POST", f"/api/v1/tasks/{name}/pause")["task"]["paused"]
    began = time.monotonic()
    cluster.remove("/stops")
    eventually(lambda: name not in cluster.tasks(), "it is gone")
    assert time.monotonic() - began < 20, "it saw SIGTERM"
