"""Names as programs look them up: in a container of every kind of network, on the node, and whoever is away."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from dnslib import RCODE, DNSRecord

from lab.cluster import MASTER
from tests.cluster import bed
from tests.cluster.bed import Cluster, Json, Tasks, eventually
from tests.cluster.traffic import PYTHON

NODES = ("n1", "n2")
KINDS = ("overlay", "bridge", "inner", "host", "pod")
Place = tuple[str, list[str]]  # a node, and what to execute there to be in a container
# What the resolver of the C library finds, in whatever it has for resolv.conf.
LOOK_UP = """
import json, socket, sys
def found(name):
    try:
        return sorted({entry[4][0] for entry in socket.getaddrinfo(name, None)})
    except OSError as error:
        return repr(error)
print(json.dumps({name: found(name) for name in sys.argv[1:]}))
"""
# What the container's own server answers to a packet, in hexadecimal digits.
ASK = """
import socket, sys
server = open("/etc/resolv.conf").read().split()[1]
with socket.socket(type=socket.SOCK_DGRAM) as sock:
    sock.settimeout(10)
    sock.sendto(bytes.fromhex(sys.argv[1]), (server, 53))
    print(sock.recv(4096).hex())
"""
# A new question every 10 ms, until stdin ends; what went wrong.
KEEP_ASKING = """
import json, select, socket, sys
wrong, count = [], 0
while not select.select([0], [], [], 0.01)[0]:
    count += 1
    try:
        socket.getaddrinfo(sys.argv[1], None)
    except OSError as error:
        wrong.append(repr(error))
print(json.dumps([count, wrong]))
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with bed.started(len(NODES), agents={name: {"TEPUI_AGENT_HOST_NETWORK": "true"} for name in NODES}) as cluster:
        inner = {"name": "inner", "subnets": ["100.112.0.0/16"], "internal": True}
        cluster.call("POST", "/api/v1/networks", json=inner)
        for kind in KINDS:
            cluster.call("POST", "/v2/pods" if kind == "pod" else "/v2/apps", json=sleeper(kind))
        cluster.run(bed.web(2, "/shop/web"))
        for kind in KINDS:
            eventually(partial(cluster.running, f"/client/{kind}"), f"the client on {kind} runs")
        eventually(lambda: len(cluster.backends("shopweb")) == 2, "/shop/web is served")
        yield cluster


def sleeper(kind: str) -> Json:
    if kind == "pod":
        container: Json = {"name": "main", "exec": {"command": {"shell": "exec sleep 3600"}}}
        container["resources"] = {"cpus": 0.05, "mem": 32}
        return {
            "id": "/client/pod",
            "containers": [container],
            "networks": [{"mode": "container", "name": "overlay"}],
            "scaling": {"kind": "fixed", "instances": 1},
        }
    network = {"mode": "host"} if kind == "host" else {"mode": "container", "name": kind}
    return bed.command(f"/client/{kind}", "exec sleep 3600", networks=[network])


def client(nodes: Cluster, kind: str) -> Place:
    (task,) = nodes.running(f"/client/{kind}").values()
    return task["node"], ["nsenter", "-t", str(task["pid"]), "-m", "-n"]


def look_up(nodes: Cluster, where: Place, *names: str) -> dict[str, Any]:
    node, inside = where
    done = nodes.lab.exec(node, [*inside, PYTHON, "-I", "-S", "-c", LOOK_UP, *names])
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def served(nodes: Cluster) -> tuple[list[str], list[str]]:
    """The VIP's addresses, and the tasks'."""
    vips = [vip["address"] for vip in nodes.get("/api/v1/vips")["vips"] if vip["name"].endswith("shopweb")]
    return sorted(vips), addresses(nodes.running("/shop/web"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_as_short_as_it_may_be(nodes: Cluster, kind: str) -> None:
    vips, tasks = served(nodes)
    four = [address for address in vips if ":" not in address]
    names = {
        "shopweb": vips,  # the VIP
        "web-shop": tasks,  # the app
        "web-shop.services.containerip.tepui.internal": tasks,
        "shopweb.marathon.l4lb.thisdcos.directory": vips,
        "web-shop.marathon.mesos": tasks,
        "leader.mesos": [str(nodes.lab.node(MASTER).address)],
    }
    found = look_up(nodes, client(nodes, kind), *names)
    assert set(four) <= set(found["shopweb"])
    assert found == names


def test_the_node_itself_may_ask(nodes: Cluster) -> None:
    vips, _ = served(nodes)
    question = DNSRecord.question("shopweb.services.l4lb.tepui.internal")
    said = nodes.lab.within("n2", lambda: DNSRecord.parse(question.send("127.0.0.84", timeout=5)))
    assert [str(rr.rdata) for rr in said.rr] == [address for address in vips if ":" not in address]


def test_what_is_not_the_clusters_is_not_asked_for_an_internal_network(nodes: Cluster) -> None:
    """Nobody answers in the lab, where nothing leads out: but one of them asks, and the other does not."""
    for kind, code in (("inner", RCODE.REFUSED), ("overlay", RCODE.SERVFAIL)):
        node, inside = client(nodes, kind)
        question = bytes(DNSRecord.question("example.com").pack()).hex()
        done = nodes.lab.exec(node, [*inside, PYTHON, "-I", "-S", "-c", ASK, question])
        assert DNSRecord.parse(bytes.fromhex(done.stdout.strip())).header.rcode == code, done.stderr


def test_who_is_gone_is_not_found_any_more(nodes: Cluster) -> None:
    nodes.run(bed.web(2, "/going"))
    before = nodes.await_running("/going", 2)
    where = client(nodes, "overlay")

    def found() -> Any:
        return look_up(nodes, where, "going.services.autoip.tepui.internal").popitem()[1]

    eventually(lambda: found() == addresses(before), "both are found")
    nodes.scale("/going", 1)
    assert found() == addresses(nodes.await_running("/going", 1))
    nodes.remove("/going")
    eventually(lambda: not nodes.running("/going"), "it is gone")
    eventually(lambda: "error" in found(), "so is its name")


def addresses(tasks: Tasks) -> list[str]:
    return sorted(address for task in tasks.values() for address in task["addresses"])


def await_agent(nodes: Cluster, node: str) -> None:
    """It was started again, which does not mean that it has found out yet what there is."""
    eventually(lambda: nodes.lab.status(node).daemons["agent"].pid is not None, "there is an agent")


def test_no_question_is_lost_while_agent_and_master_are_away(nodes: Cluster) -> None:
    vips, _ = served(nodes)
    node, inside = where = client(nodes, "overlay")
    argv = nodes.lab.command(node, [*inside, PYTHON, "-I", "-S", "-c", KEEP_ASKING, "shopweb"])
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as asking:
        nodes.lab.hold(MASTER, "master", signal.SIGKILL)
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            await_agent(nodes, node)
            nodes.lab.kill_daemon(node, "agent", number)
            assert look_up(nodes, where, "shopweb") == {"shopweb": vips}
        nodes.lab.release(MASTER, "master")
        eventually(lambda: nodes.connected() == set(NODES), "all are back")
        output, _ = asking.communicate("", timeout=30)
    count, wrong = json.loads(output)
    assert wrong == [] and count > 50
