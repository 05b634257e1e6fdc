"""Persistent volumes: what a task has written is there for the one that replaces it, whatever happened in between,
until somebody says that it is to go."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.cluster import MASTER
from lab.daemons import tepui
from tests.cluster import bed
from tests.cluster.bed import Cluster, Json, Tasks, eventually

# Long enough for an agent to start again, on a machine that has much to do.
SETTINGS = {"TEPUI_MASTER_UNREACHABLE_AFTER_S": "1", "TEPUI_MASTER_LOST_AFTER_S": "10"}
COUNTER: Json = json.loads((bed.ROOT / "examples/counter.json").read_text())
APP = "/counter"


@pytest.fixture(scope="module")
def impatient() -> Iterator[Cluster]:
    with bed.started(2, SETTINGS) as cluster:
        yield cluster


@pytest.fixture
def counting(impatient: Cluster) -> Iterator[Cluster]:
    """A cluster that runs the example, whose first task has counted. Afterwards nothing of it is left on any node."""
    impatient.run({**COUNTER, "taskKillGracePeriodSeconds": 1, "backoffSeconds": 0.1})
    counted(impatient, impatient.await_running(APP, 1), 1)
    yield impatient
    impatient.await_empty()
    eventually(lambda: not volumes(impatient), "no volume is left")
    for node in impatient.names:
        assert on_disk(impatient, node) == []


def test_every_task_goes_on_where_the_last_one_stopped(counting: Cluster) -> None:
    cluster = counting
    (first,) = cluster.running(APP).values()
    home = first["node"]
    (volume,) = volumes(cluster)
    assert (volume["node"], volume["task"], volume["owner"]) == (home, first["id"], APP)
    assert tepui(cluster.lab, "volume", "list") == [volume] == [tepui(cluster.lab, "volume", "show", volume["id"][:20])]
    again = replaced(cluster, kill(cluster))
    counted(cluster, again, 2)
    cluster.lab.kill_daemon(home, "agent")
    eventually(lambda: home in cluster.connected(), "the next agent is there")
    third = replaced(cluster, kill(cluster))
    counted(cluster, third, 3)
    (before,) = third
    cluster.lab.power_off(home)
    eventually(lambda: f"its volume is on node {home}" in waiting(cluster), "it waits for its node, and says so")
    cluster.lab.boot(home)
    fourth = replaced(cluster, before)
    counted(cluster, fourth, 4)
    assert {task["node"] for tasks in (again, third, fourth) for task in tasks.values()} == {home}
    assert [each["id"] for each in volumes(cluster)] == [volume["id"]]


def test_the_master_forgets_no_volume(counting: Cluster) -> None:
    cluster = counting
    before = volumes(cluster)
    cluster.lab.hold(MASTER, "master", signal.SIGKILL)
    cluster.lab.release(MASTER, "master")
    eventually(lambda: cluster.connected() == set(cluster.names), "the nodes are connected again")
    counted(cluster, replaced(cluster, kill(cluster)), 2)
    assert [each["id"] for each in volumes(cluster)] == [each["id"] for each in before]


def test_scaled_down_and_up_again(counting: Cluster) -> None:
    cluster = counting
    cluster.scale(APP, 3)
    cluster.await_running(APP, 3)
    known = {each["id"]: each["node"] for each in volumes(cluster)}
    cluster.scale(APP, 0)
    eventually(lambda: not cluster.tasks(), "all have ended")
    assert {each["id"]: each["node"] for each in volumes(cluster)} == known
    assert {each["state"] for each in volumes(cluster)} == {"free"}
    cluster.scale(APP, 3)
    counted(cluster, cluster.await_running(APP, 3), 2)
    assert {each["id"]: each["node"] for each in volumes(cluster)} == known


def test_wiped_with_its_task(counting: Cluster) -> None:
    cluster = counting
    (old,) = volumes(cluster)
    counted(cluster, replaced(cluster, kill(cluster, wipe="true")), 1)
    eventually(lambda: [each["id"] for each in volumes(cluster)] != [old["id"]], "it is another volume")
    eventually(lambda: old["id"] not in on_disk(cluster, old["node"]), "the old one is gone")


def test_given_up_while_its_node_is_away(counting: Cluster) -> None:
    cluster = counting
    ((before, task),) = cluster.running(APP).items()
    home, (volume,) = task["node"], volumes(cluster)
    refused = cluster.request("DELETE", f"/api/v1/volumes/{volume['id']}")
    assert refused.status_code == 409 and "in use" in refused.json()["message"]
    cluster.lab.power_off(home)
    eventually(lambda: f"its volume is on node {home}" in waiting(cluster), "it waits for its node")
    assert tepui(cluster.lab, "volume", "remove", volume["id"])["state"] == "destroying"
    after = replaced(cluster, before)
    counted(cluster, after, 1)
    assert home not in {task["node"] for task in after.values()}
    cluster.lab.boot(home)
    eventually(lambda: len(volumes(cluster)) == 1, "the node has destroyed it when it was back")
    assert on_disk(cluster, home) == []


def test_host_paths_that_no_node_permits(counting: Cluster) -> None:
    cluster = counting
    host = {"containerPath": "/data", "hostPath": "/srv/data", "mode": "RW"}
    app = cluster.run(bed.command("/host", "true", container={"volumes": [host]}))
    said = "needs volume /srv/data:rw: no node permits it, in its agent.toml"
    eventually(lambda: said in cluster.get(f"/api/v1/services{app}")["waiting"], "it says what it lacks")


@pytest.mark.parametrize("destination", ["/proc", "/sys/fs", "/dev/shm", "/"])
def test_nothing_over_the_kernels_files(counting: Cluster, destination: str) -> None:
    volume = {"containerPath": destination, "mode": "RW", "persistent": {"size": 1}}
    definition = bed.command("/over", "true", container={"volumes": [volume]})
    refused = counting.request("POST", "/v2/apps", json=definition)
    assert refused.status_code == 422
    assert [detail["path"] for detail in refused.json()["details"]] == ["/container/volumes(0)"]


def volumes(cluster: Cluster) -> list[Json]:
    return list(cluster.get("/api/v1/volumes")["volumes"])


def on_disk(cluster: Cluster, node: str) -> list[str]:
    directory: Path = cluster.lab.node(node).state / "volumes"
    return [path.name for path in directory.iterdir()] if directory.is_dir() else []


def waiting(cluster: Cluster) -> list[str]:
    return list(cluster.get(f"/api/v1/services{APP}")["waiting"])


def kill(cluster: Cluster, **query: str) -> str:
    """Which task it was."""
    (task,) = cluster.running(APP)
    cluster.call("DELETE", f"/v2/apps{APP}/tasks/{task}", params=query)
    return task


def replaced(cluster: Cluster, victim: str) -> Tasks:
    return cluster.await_replaced(APP, {victim}, 1)


def counted(cluster: Cluster, tasks: Tasks, number: int) -> None:
    """All of the tasks have, up to here."""
    for task in tasks:
        eventually(lambda task=task: cluster.log_of(task) == f"start {number}\n", f"it has counted to {number}")  # type: ignore[misc]
