"""Clients from outside of the cluster: through the nodes that let them in, to the services that are for them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lab.cluster import MASTER
from tests.cluster import bed
from tests.cluster.bed import Cluster, Json, eventually

OPEN, CLOSED = ("n1", "n2"), "n3"
BACK_ENDS = {"n1": "nftables", "n2": "iptables", "n3": "nftables"}
POOL = "100.127.0.0/16"
DEADLINE_S = 5.0
# Answers with the id of its task and the address of who asks.
SERVE = """
import os, socketserver
class Stream(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(f"{os.environ['MESOS_TASK_ID']} {self.client_address[0]}".encode())
socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer(("", 8080), Stream).serve_forever()
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    agents = {
        name: {"TEPUI_AGENT_VIP_BACKEND": back_end, "TEPUI_AGENT_EXTERNAL": str(name in OPEN).lower()}
        for name, back_end in BACK_ENDS.items()
    }
    with bed.started(len(agents), agents=agents) as cluster:
        for name, labels in (("shop", {"tepui/external": "true"}), ("inner", {})):
            cluster.run(server(name, labels))
        for name in ("shop", "inner"):
            tasks = cluster.await_running(f"/{name}", len(BACK_ENDS))
            assert {task["node"] for task in tasks.values()} == BACK_ENDS.keys()
            cluster.await_listening(f"/{name}", tasks)
        cluster.await_vips()
        yield cluster


def server(name: str, labels: Json) -> Json:
    mapping = {"containerPort": 8080, "labels": {"VIP_0": f"/{name}:80", **labels}}
    argv = ["/usr/bin/python3", "-I", "-S", "-c", SERVE]
    container = {"type": "MESOS", "portMappings": [mapping]}
    return bed.app_json(f"/{name}", args=argv, instances=len(BACK_ENDS), container=container, mem=48)


@contextmanager
def way(nodes: Cluster, through: str) -> Iterator[None]:
    """The client is on the master's node, which is no part of the networks of containers, and is led to a node as the
    site's routers would do it."""
    via = str(nodes.lab.node(through).address)
    nodes.lab.exec(MASTER, ["ip", "route", "replace", POOL, "via", via])
    try:
        yield
    finally:
        nodes.lab.exec(MASTER, ["ip", "route", "del", POOL])


def ask(nodes: Cluster, app: str) -> list[str]:
    """What it answers, or what went wrong."""
    vip = nodes.vip(app)

    def asked() -> str:
        try:
            with socket.create_connection((vip["address"], vip["port"]), DEADLINE_S) as connection:
                return connection.recv(200).decode()
        except OSError as error:
            return type(error).__name__

    return nodes.lab.within(MASTER, asked).split()


@pytest.mark.parametrize("node", OPEN)
def test_who_is_let_in_reaches_every_backend(nodes: Cluster, node: str) -> None:
    tasks = nodes.running("/shop")
    client = str(nodes.lab.node(MASTER).address)
    seen: dict[str, str] = {}

    def all_seen() -> bool:
        task, source = ask(nodes, "/shop")
        seen[task] = source
        return seen.keys() >= tasks.keys()

    with way(nodes, node):
        eventually(all_seen, "all answer")
        for _ in range(30):
            task, source = ask(nodes, "/shop")
            assert source == (client if tasks[task]["node"] == node else seen[task])
    (own,) = (seen[task] for task in tasks if tasks[task]["node"] == node)
    assert own == client  # no port of the node is used up, and logs have who it was
    assert {seen[task] for task in tasks if tasks[task]["node"] != node} != {client}


@pytest.mark.parametrize(("node", "app"), [(CLOSED, "/shop"), ("n1", "/inner"), ("n2", "/inner")])
def test_others_are_refused_at_once(nodes: Cluster, node: str, app: str) -> None:
    with way(nodes, node):
        assert {*(answer for _ in range(20) for answer in ask(nodes, app))} == {"ConnectionRefusedError"}


def test_who_is_inside_reaches_both(nodes: Cluster) -> None:
    for app in ("/shop", "/inner"):
        vip = nodes.vip(app)
        for node in nodes.names:
            target = vip["address"], vip["port"]
            answer = nodes.lab.within(node, lambda target=target: socket.create_connection(target).recv(200))  # type: ignore[misc]
            assert answer.decode().split()[0] in nodes.running(app)


def test_a_service_that_is_closed_again_is_closed(nodes: Cluster) -> None:
    with way(nodes, "n1"):
        assert ask(nodes, "/shop")[0] in nodes.running("/shop")
        nodes.remove("/shop")
        eventually(lambda: not nodes.running("/shop"), "it is gone")
        nodes.run(server("shop", {}))
        eventually(lambda: len(nodes.backends("/shop")) == len(BACK_ENDS), "it is served")
        assert ask(nodes, "/shop") == ["ConnectionRefusedError"]
