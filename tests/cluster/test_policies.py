"""Policies for what does not simply come from one container to another: by virtual addresses and ports of nodes, and
from the nodes' own network. Who reaches whom otherwise is in `test_networks.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial

import pytest

from tests.cluster import bed
from tests.cluster.bed import Cluster, Json, ask, eventually
from tests.cluster.test_runtimes import configured
from tests.cluster.traffic import PYTHON

PORT, PUBLISHED = 8080, 8088
ASK = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=2).read().decode(), end='')"


@pytest.fixture
def guarded(cluster: Cluster) -> Iterator[Cluster]:
    """With an app /db, one task on each node, with a virtual address and a port of the node."""
    cluster.run(db())
    cluster.await_served("/db", cluster.await_running("/db", 3))
    yield cluster
    for policy in cluster.get("/api/v1/policies")["policies"]:
        cluster.call("DELETE", f"/api/v1/policies/{policy['name']}")


def db() -> Json:
    definition: Json = json.loads((bed.ROOT / "examples/published.json").read_text())
    definition["container"]["portMappings"][0] |= {"hostPort": PUBLISHED, "labels": {"VIP_0": "/db:80"}}
    return {**definition, "id": "/db", "instances": 3}


def let_in(cluster: Cluster, *sources: Json) -> None:
    rule = {"app": "/db", "from": list(sources), "ports": [{"protocol": "tcp", "port": PORT}]}
    cluster.call("PUT", "/api/v1/policies/db", json=rule)


def from_node(cluster: Cluster, node: str) -> set[str]:
    """On which nodes it reaches the tasks, at their own addresses, from its own network namespace."""
    tasks = cluster.running("/db").values()
    return {
        task["node"]
        for task in tasks
        if cluster.lab.within(node, partial(ask, (task["addresses"][0], PORT))) == task["id"]
    }


def from_container(cluster: Cluster, task: Json, address: str, port: int) -> str:
    """What answers; empty when nothing does."""
    argv = [PYTHON, "-I", "-S", "-c", ASK, f"http://{address}:{port}/"]
    enter = ["sh", "-c", '"$@" 2>/dev/null || true', "sh", "nsenter", "-t", str(task["pid"]), "-n"]
    return cluster.lab.exec(task["node"], [*enter, *argv]).stdout


def test_a_virtual_address_and_ports_of_nodes_lead_past_no_policy(guarded: Cluster) -> None:
    for app in "/friend", "/other":
        guarded.run(bed.command(app, "exec sleep 3600"))
    (friend,), (other,) = (guarded.await_running(app, 1).values() for app in ("/friend", "/other"))
    vip = guarded.vip("/db")
    tasks, nodes = guarded.running("/db"), guarded.nodes()
    let_in(guarded, {"app": "/friend"})

    def by_vip(task: Json) -> set[str]:
        return {from_container(guarded, task, vip["address"], vip["port"]) for _ in range(12)}

    eventually(lambda: by_vip(other) == {""}, "another app gets no answer")
    eventually(lambda: by_vip(friend) <= tasks.keys(), "the app that is named gets one every time")
    far = next(task for task in tasks.values() if task["node"] != other["node"])
    address = nodes[far["node"]]["address"]
    assert from_container(guarded, other, address, PUBLISHED) == ""
    let_in(guarded, {"app": "/friend"}, {"subnet": f"{nodes[other['node']]['address']}/32"})
    eventually(
        lambda: from_container(guarded, other, address, PUBLISHED) == far["id"],
        "the node's address is let in when asked",
    )


def test_to_name_an_app_of_the_nodes_network_lets_its_node_in_and_no_container_there(guarded: Cluster) -> None:
    everywhere = {"n1", "n2", "n3"}
    with configured(guarded, {"n1": "host_network = true"}):
        agent = bed.command("/agent", "exec sleep 3600")
        guarded.run({**agent, "networks": [{"mode": "host"}]})
        (task,) = guarded.await_running("/agent", 1).values()
        assert task["node"] == "n1"
        let_in(guarded)
        eventually(lambda: from_node(guarded, "n1") == {"n1"}, "nobody is let in but the task's own node")
        let_in(guarded, {"app": "/agent"})
        eventually(lambda: from_node(guarded, "n1") == everywhere, "the node that the app runs on is let in")
        assert from_node(guarded, "n2") == {"n2"}
        vip = guarded.vip("/db")
        answers = {guarded.lab.within("n1", partial(ask, (vip["address"], vip["port"]))) for _ in range(30)}
        assert answers == guarded.running("/db").keys()
        # Behind the address that it has among nodes are its containers too.
        address = guarded.nodes()["n2"]["address"]
        assert guarded.lab.within("n1", partial(ask, (address, PUBLISHED))) == ""
        guarded.remove("/agent")
        eventually(lambda: from_node(guarded, "n1") == {"n1"}, "the app is gone, and so is the way in")


def test_a_network_that_a_policy_names_stays(cluster: Cluster) -> None:
    cluster.call("POST", "/api/v1/networks", json={"name": "named"})
    cluster.call("PUT", "/api/v1/policies/db", json={"app": "/db", "from": [{"network": "named"}]})
    refused = cluster.request("DELETE", "/api/v1/networks/named")
    assert refused.status_code == 409 and "policy db" in refused.text
    assert cluster.get("/api/v1/networks/named")["network"]["policies"] == ["policy db"]
    cluster.call("DELETE", "/api/v1/policies/db")
    cluster.call("DELETE", "/api/v1/networks/named")
    missing = cluster.request("PUT", "/api/v1/policies/db", json={"app": "/db", "from": [{"network": "named"}]})
    assert missing.status_code == 422 and "network 'named' does not exist" in json.dumps(missing.json())
