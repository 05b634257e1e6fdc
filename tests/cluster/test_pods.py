"""A pod of two, end to end: the example's web server asks its neighbour for the time, at a loopback that they share."""

from __future__ import annotations

import http.client
import json
import subprocess
from functools import partial
from typing import Any

import pytest

from lab.cluster import MASTER
from lab.daemons import TEPUI, admin_file
from tests.cluster import bed, traces
from tests.cluster.bed import Cluster, Json, Tasks, eventually
from tests.cluster.test_container_faults import kill

POD = bed.ROOT / "examples/pod.json"
DEADLINE_S = 30.0


@pytest.fixture
def pod(cluster: Cluster) -> Any:
    """Two instances of it, that run and are well."""
    cluster.call("POST", "/v2/pods", json=json.loads(POD.read_text()))
    settle(cluster)
    yield "/pod"
    cluster.call("DELETE", "/v2/pods/pod?force=true")
    eventually(lambda: not cluster.tasks(), "no task is left")


def status(cluster: Cluster) -> Json:
    return dict(cluster.get("/v2/pods/pod::status"))


def settle(cluster: Cluster, without: frozenset[str] = frozenset()) -> Tasks:
    """The tasks of both instances, when all is well and none of `without` is left."""

    def stable() -> bool:
        now = status(cluster)
        return now["status"] == "STABLE" and not without & {instance["id"] for instance in now["instances"]}

    eventually(stable, "the pod is stable")
    return cluster.await_running("/pod", 4)


def by_instance(tasks: Tasks) -> dict[str, dict[str, Json]]:
    """By the names of its containers."""
    found: dict[str, dict[str, Json]] = {}
    for name, task in tasks.items():
        found.setdefault(task["pod"], {})[name.rpartition(".")[2]] = task
    return found


def ask(target: tuple[str, int], path: str) -> str:
    connection = http.client.HTTPConnection(*target, timeout=bed.ANSWER_DEADLINE_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def test_its_virtual_address_leads_to_it_and_its_containers_to_each_other(cluster: Cluster, pod: str) -> None:
    instances = by_instance(cluster.tasks())
    assert len({task["node"] for task in cluster.tasks().values()}) == 2
    for containers in instances.values():
        assert containers["web"]["addresses"] == containers["clock"]["addresses"]
        assert containers["web"]["node"] == containers["clock"]["node"]
    servers = {containers["web"]["id"]: containers["web"] for containers in instances.values()}
    target = cluster.await_served("/pod", servers)
    for node in cluster.names:
        assert cluster.lab.within(node, partial(ask, target, "/time")).count(":") == 2
    address = next(iter(servers.values()))["addresses"][0]
    from_outside = f"import socket; socket.create_connection(({address!r}, 8081), 5)"
    assert "ConnectionRefusedError" in cluster.lab.exec("n1", ["/usr/bin/python3", "-c", from_outside]).stderr


@pytest.mark.parametrize("container", ["web", "clock"])
def test_an_instance_of_which_a_container_is_killed_is_replaced(cluster: Cluster, pod: str, container: str) -> None:
    before = by_instance(cluster.tasks())
    victim, other = sorted(before)
    kill(cluster, before[victim][container])
    after = by_instance(settle(cluster, frozenset({victim})))
    assert bed.same(before[other], after[other])
    assert f"{container}: failed: killed by SIGKILL" in status(cluster)["terminationHistory"][0]["message"]
    cluster.await_served("/pod", {each["web"]["id"]: each["web"] for each in after.values()})


def test_it_ends_as_a_whole_while_the_master_is_away(cluster: Cluster, pod: str) -> None:
    before = by_instance(cluster.tasks())
    victim, other = sorted(before)
    cluster.lab.hold(MASTER, "master")
    try:
        node = before[victim]["web"]["node"]
        containers = {each["container"] for each in records(cluster, node) if each["spec"]["pod"]["id"] == victim}
        kill(cluster, before[victim]["clock"])
        eventually(lambda: not containers & bundles(cluster, node), "nothing is left of it")
    finally:
        cluster.lab.release(MASTER, "master")
    after = by_instance(settle(cluster, frozenset({victim})))
    assert bed.same(before[other], after[other])


def test_it_outlives_a_kill_of_its_agents(cluster: Cluster, pod: str) -> None:
    before = cluster.tasks()
    for node in cluster.names:
        cluster.lab.kill_daemon(node, "agent")
    eventually(lambda: cluster.connected() == set(cluster.names), "the agents are back")
    assert bed.same(before, settle(cluster))


def test_a_task_of_it_that_is_killed_takes_its_instance_along(cluster: Cluster, pod: str) -> None:
    victim, other = sorted(by_instance(cluster.tasks()))
    cluster.call("DELETE", f"/api/v1/tasks/{victim}.clock")
    assert other in by_instance(settle(cluster, frozenset({victim})))


def test_a_person_sees_it(cluster: Cluster, pod: str) -> None:
    shown = tepui(cluster, "pod", "show", "/pod")
    assert "2/2 stable" in shown and all(instance in shown for instance in by_instance(cluster.tasks()))
    assert "web, clock" in tepui(cluster, "pod", "list")
    assert ".clock" in tepui(cluster, "task", "list")
    assert tepui(cluster, "pod", "run", str(POD)).startswith("/pod: version")


def records(cluster: Cluster, node: str) -> list[Json]:
    return [json.loads(path.read_text()) for path in (cluster.lab.node(node).state / "tasks").glob("*.json")]


def bundles(cluster: Cluster, node: str) -> set[str]:
    directory = traces.bundles(cluster.lab.node(node), cluster.lab.status(node).pid)
    return {path.name for path in directory.iterdir()}


def tepui(cluster: Cluster, *arguments: str) -> str:
    variables = {"TEPUI_ADMIN": str(admin_file(cluster.lab)), "COLUMNS": "250"}
    argv = cluster.lab.command(MASTER, [*TEPUI, *arguments], variables)
    return subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE_S, check=True).stdout
