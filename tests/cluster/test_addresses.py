"""Addresses and ports that services ask for, and what becomes of a node's addresses when it is gone; and that what is
taken from the node's network by somebody else is back soon.
"""

from __future__ import annotations

import json
from functools import partial
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from netns.link import vxlan_name
from tests.cluster import bed
from tests.cluster.bed import Cluster, Json, ask, eventually

PUBLISHED = json.loads((bed.ROOT / "examples/published.json").read_text())
STATIC = ip_network("100.95.0.0/16")  # of the default overlay
MENDED_WITHIN_S = 1.0
OVERLAY = vxlan_name(1024)
SHOW_FDB = f"bridge fdb show dev {OVERLAY}"


def serving(app: str, port: int, instances: int = 1, address: str = "") -> Json:
    """Its tasks answer on their own port 8080 and on `port` of the node with their ids."""
    mapping = {"containerPort": 8080, "hostPort": port}
    labels = {"tepui/address": address} if address else {}
    return {
        **PUBLISHED,
        "id": app,
        "instances": instances,
        "networks": [{"mode": "container", "name": "overlay", "labels": labels}],
        "container": {"type": "MESOS", "portMappings": [mapping]},
    }


def waiting(cluster: Cluster, app: str) -> str:
    return json.dumps(cluster.get(f"/api/v1/services{app}")["waiting"])


def answers(cluster: Cluster, node: str, address: str, port: int, task: str) -> None:
    """From the node's own network namespace."""
    reached = partial(ask, (address, port))
    eventually(lambda: cluster.lab.within(node, reached) == task, f"{task} answers {node} at {address}:{port}")


def test_an_address_that_is_kept_goes_with_the_service_wherever_it_runs(cluster: Cluster) -> None:
    cluster.run(serving("/kept", 0, address="keep"))
    (first,) = cluster.await_running("/kept", 1).values()
    address = first["addresses"][0]
    assert ip_address(address) in STATIC and len(first["addresses"]) == 2
    for node in cluster.names:
        answers(cluster, node, address, 8080, first["id"])
    for _ in range(3):
        before = set(cluster.running("/kept"))
        cluster.call("DELETE", f"/api/v1/tasks/{next(iter(before))}")
        (again,) = cluster.await_replaced("/kept", before, 1).values()
        assert again["addresses"][0] == address
        for node in cluster.names:
            answers(cluster, node, address, 8080, again["id"])
    network = cluster.get("/api/v1/networks/overlay")["network"]
    assert network["kept"] == [{"address": address, "owner": "/kept", "framework": "services"}]
    cluster.remove("/kept")
    eventually(lambda: cluster.get("/api/v1/networks/overlay")["network"]["kept"] == [], "nobody keeps it any more")


def test_an_address_that_is_taken_is_waited_for_and_its_holder_named(cluster: Cluster) -> None:
    asked = "100.95.7.7"
    cluster.run(serving("/first", 0, address=asked))
    (first,) = cluster.await_running("/first", 1).values()
    assert first["addresses"][0] == asked
    cluster.run(serving("/second", 0, address=asked))
    eventually(
        lambda: f"{asked} of network overlay is taken by task {first['id']}" in waiting(cluster, "/second"), "why"
    )
    cluster.remove("/first")
    (second,) = cluster.await_running("/second", 1).values()
    for node in cluster.names:
        answers(cluster, node, asked, 8080, second["id"])


def test_a_port_of_the_node_leads_to_its_task_and_to_one_only(cluster: Cluster) -> None:
    cluster.run(serving("/web", 8088, 3))
    tasks = cluster.await_running("/web", 3)
    assert {task["node"] for task in tasks.values()} == set(cluster.names)  # each node has the port once
    nodes = cluster.nodes()
    for task in tasks.values():
        for node in cluster.names:
            if node != task["node"]:
                answers(cluster, node, nodes[task["node"]]["address"], 8088, task["id"])
    cluster.run(serving("/late", 8088))
    eventually(lambda: "needs host port 8088/tcp: taken by" in waiting(cluster, "/late"), "it says what it waits for")
    assert all(task in waiting(cluster, "/late") for task in tasks)
    cluster.run(serving("/any", 0, 2))
    for task in cluster.await_running("/any", 2).values():
        told = cluster.get("/v2/apps/any/tasks")["tasks"]
        (port,) = next(each["ports"] for each in told if each["id"] == task["id"])
        other = next(name for name in cluster.names if name != task["node"])
        answers(cluster, other, nodes[task["node"]]["address"], port, task["id"])


@pytest.mark.parametrize(
    ("deed", "look"),
    [
        (f"ip route flush dev {OVERLAY}", "ip route"),
        (f"bridge fdb show dev {OVERLAY} | while read mac rest; do bridge fdb del $mac dev {OVERLAY}; done", SHOW_FDB),
        (f"ip link del {OVERLAY}", "ip -br link"),
        ("nft delete table inet tepui", "nft -s list table inet tepui"),
    ],
    ids=["routes", "fdb", "link", "firewall"],
)
def test_what_somebody_takes_away_is_back_at_once_and_said_once(cluster: Cluster, deed: str, look: str) -> None:
    cluster.run(serving("/web", 0, 3))
    tasks = cluster.await_running("/web", 3)
    remote = next(task for task in tasks.values() if task["node"] != "n1")
    answers(cluster, "n1", remote["addresses"][0], 8080, remote["id"])

    def seen() -> str:
        return cluster.lab.exec("n1", ["sh", "-c", f"{look} | sort"]).stdout

    before, log = seen(), cluster.lab.node("n1").log("agent")
    said = log.read_text().count("mended")
    cluster.lab.exec("n1", ["sh", "-c", deed])
    eventually(lambda: seen() == before, "all is as it was", MENDED_WITHIN_S)
    answers(cluster, "n1", remote["addresses"][0], 8080, remote["id"])
    eventually(lambda: log.read_text().count("mended") > said, "it is said")


def test_a_node_that_is_removed_leaves_its_addresses_to_others(cluster: Cluster) -> None:
    def owners() -> dict[str, list[str]]:
        nodes = cluster.get("/api/v1/networks/overlay")["network"]["nodes"]
        return {each["node"]: each["blocks"] for each in nodes}

    had = owners()["n3"]
    refused = cluster.request("DELETE", "/api/v1/nodes/n3")
    assert refused.status_code == 409 and "stop its agent first" in refused.text
    cluster.lab.power_off("n3")
    eventually(lambda: "n3" not in cluster.connected(), "its session is over")
    cluster.call("DELETE", "/api/v1/nodes/n3")
    assert "n3" not in cluster.nodes() and "n3" not in owners()

    def routes(node: str) -> str:
        return cluster.lab.exec(node, ["ip", "route"]).stdout

    eventually(lambda: had[0] not in routes("n1") and had[0] not in routes("n2"), "its peers forget it", 1.0)
    cluster.lab.boot("n3")
    eventually(lambda: "n3" in cluster.connected(), "it is there as a new node")
    eventually(lambda: owners()["n3"][0] in routes("n1"), "its peers know it")
    cluster.run(serving("/web", 0, 3))
    for task in cluster.await_running("/web", 3).values():
        for node in cluster.names:
            answers(cluster, node, task["addresses"][0], 8080, task["id"])


def test_blocks_come_when_they_are_needed_and_go_when_they_are_not(cluster: Cluster) -> None:
    """Of 13 addresses each; so are the spare sandboxes of the node."""
    small: dict[str, Any] = {"name": "blocks", "subnets": ["100.115.0.0/25"], "block_prefix": 28}
    cluster.call("POST", "/api/v1/networks", json=small)
    try:
        networks = [{"mode": "container", "name": "blocks"}]
        cluster.run(bed.command("/many", "sleep 3600", 48, networks=networks, cpus=0.01))
        tasks = cluster.await_running("/many", 48, 60.0)
        assert len({address for task in tasks.values() for address in task["addresses"]}) == 48

        def blocks() -> int:
            nodes = cluster.get("/api/v1/networks/blocks")["network"]["nodes"]
            return sum(len(each["blocks"]) for each in nodes)

        assert blocks() >= 4
        cluster.scale("/many", 0)
        eventually(lambda: blocks() == 3, "one block is left to each node")
    finally:
        cluster.remove("/many")
        eventually(lambda: not cluster.tasks(), "no task is left")
        cluster.call("DELETE", "/api/v1/networks/blocks")
