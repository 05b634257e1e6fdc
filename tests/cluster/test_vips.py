"""Who reaches whom by a virtual address: every kind of network a server and a client may have, names and numbers, both
versions of IP, the same node and another, and on each of two nodes its own back end. Every answer names its task.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from tempfile import TemporaryDirectory

import pytest

from tests.cluster import bed
from tests.cluster.bed import Cluster, Json, eventually
from tests.cluster.traffic import PYTHON

BACK_ENDS = {"n1": "nftables", "n2": "iptables"}
SERVERS = ("overlay", "bridge", "host", "pod", "site")
CLIENTS = ("overlay", "bridge", "host", "pod", "site", "node")
# Nobody answers: a bridge is of one node, and neither its containers nor the site's have a way into networks of ours.
NO_WAY = {("bridge", "overlay"), ("bridge", "pod"), *(("site", kind) for kind in ("overlay", "bridge", "pod"))}
# The site's own network, by CNI: its routers know where each address is.
SITE = "10.88.0.0/24"
PORT = 8080

SERVE = """
import os, socket, socketserver, sys, threading
task, port = os.environ["MESOS_TASK_ID"].encode(), int(os.environ["PORT0"] if sys.argv[1] == "host" else sys.argv[2])
class Stream(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(task)
class Datagram(socketserver.BaseRequestHandler):
    def handle(self):
        self.request[1].sendto(task, self.client_address)
class Streams(socketserver.ThreadingTCPServer):
    address_family, allow_reuse_address, daemon_threads, request_queue_size = socket.AF_INET6, True, True, 128
# Who is asked at an address of several answers from just that one. Python's has no other way than to have only one.
own = os.environ["HOST"] if sys.argv[1] == "host" else "::"
class Datagrams(socketserver.UDPServer):
    address_family = socket.AF_INET6 if ":" in own else socket.AF_INET
threading.Thread(target=Datagrams((own, port), Datagram).serve_forever, daemon=True).start()
Streams(("::", port), Stream).serve_forever()
"""

# For each target all that answers, asked until all that should have done so have.
ASK = """
import json, socket, sys
def ask(kind, host, port):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM) as connection:
        connection.settimeout(2)
        connection.connect((host, port))
        if kind == "udp":
            connection.send(b"?")
        return connection.recv(100).decode()
seen = {}
for name, (kind, host, port, expected) in json.loads(sys.argv[1]).items():
    answers = set()
    for _ in range(60):
        try:
            answers.add(ask(kind, host, port))
        except OSError as error:
            answers.add(repr(error))
            break
        if answers >= set(expected):
            break
    seen[name] = sorted(answers)
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """On which tasks may have their node's network."""
    agents = {
        name: {"TEPUI_AGENT_VIP_BACKEND": back_end, "TEPUI_AGENT_HOST_NETWORK": "true"}
        for name, back_end in BACK_ENDS.items()
    }
    with bed.started(len(agents), agents=agents) as cluster, TemporaryDirectory(dir="/var/tmp") as directory:
        cluster.call("POST", "/api/v1/networks", json=site(directory))
        yield cluster


def site(directory: str) -> Json:
    """Addresses are given by one for all nodes, as a site's IPAM does it."""
    ipam = {
        "type": "host-local",
        "dataDir": directory,
        "ranges": [[{"subnet": SITE}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    plugins = [{"type": "ptp", "ipam": ipam}]
    return {"name": "site", "kind": "cni", "cni": {"cniVersion": "1.0.0", "name": "site", "plugins": plugins}}


def labels(kind: str) -> Json:
    number = SERVERS.index(kind) + 1
    return {
        "VIP_0": f"/{kind}:80",
        "VIP_1": f"100.127.200.{number}:80",
        "VIP_2": f"[fd01:c::f0{number}]:80",
    }


def server(kind: str) -> Json:
    """One task on each node."""
    argv = ["/usr/bin/python3", "-c", SERVE, kind, str(PORT)]
    common: Json = {"cpus": 0.05, "mem": 48}
    if kind == "pod":
        endpoint = {"name": "http", "containerPort": PORT, "protocol": ["tcp", "udp"], "labels": labels(kind)}
        container = {"name": "web", "exec": {"command": {"argv": argv}}, "resources": common, "endpoints": [endpoint]}
        network = {"mode": "container", "name": "overlay"}
        return {
            "id": "/pod",
            "containers": [container],
            "networks": [network],
            "scaling": {"kind": "fixed", "instances": len(BACK_ENDS)},
        }
    definition = {"id": f"/{kind}", "args": argv, "instances": len(BACK_ENDS), **common}
    if kind == "host":
        port = {"port": 0, "name": "web", "protocol": "tcp,udp", "labels": labels(kind)}
        return {**definition, "networks": [{"mode": "host"}], "portDefinitions": [port]}
    mapping: Json = {"containerPort": PORT, "protocol": "tcp,udp", "labels": labels(kind)}
    if kind == "bridge":
        mapping["hostPort"] = 0
    networks = [{"mode": "container", "name": kind}]
    return {**definition, "networks": networks, "container": {"type": "MESOS", "portMappings": [mapping]}}


@pytest.fixture(scope="module")
def served(nodes: Cluster) -> dict[str, dict[str, Json]]:
    """The tasks of each kind."""
    for app in ("overlay", "bridge"):
        rule = {"network": app, "from": [{"network": name} for name in ("overlay", "bridge")]}
        nodes.call("PUT", f"/api/v1/policies/{app}", json=rule)
    for kind in SERVERS:
        nodes.call("POST", "/v2/pods" if kind == "pod" else "/v2/apps", json=server(kind))
    found = {}
    for kind in SERVERS:
        eventually(partial(_served, nodes, kind), f"{kind} is served")
        found[kind] = {each: task for each, task in nodes.tasks().items() if each in nodes.backends(f"/{kind}")}
        assert {task["node"] for task in found[kind].values()} == BACK_ENDS.keys()
    nodes.await_vips()
    for task in found["site"].values():
        (other,) = BACK_ENDS.keys() - {task["node"]}
        via = str(nodes.lab.node(task["node"]).address)
        nodes.lab.exec(other, ["ip", "route", "add", task["addresses"][0], "via", via])
    return found


@pytest.mark.parametrize("node", BACK_ENDS)
@pytest.mark.parametrize("client", CLIENTS)
def test_every_server_answers_every_client(
    nodes: Cluster, served: dict[str, dict[str, Json]], client: str, node: str
) -> None:
    targets = {}
    for row in nodes.get("/api/v1/vips")["vips"]:
        tasks = {backend["task_id"] for backend in row["backends"]}
        (kind,) = (kind for kind in SERVERS if tasks & served[kind].keys()) if tasks else ("",)
        if not kind or (client, kind) in NO_WAY:
            continue
        if kind == "site" and ":" in row["address"]:
            continue
        if kind == "bridge" and ":" in row["address"]:  # nodes have addresses of IPv4, so no other publishes it
            tasks = {each for each in tasks if served[kind][each]["node"] == node}
        name = f"{row['name'] or row['address']} {row['protocol']} {row['address']}"
        targets[name] = (row["protocol"], row["address"], row["port"], sorted(tasks))
    names = {kind for kind in SERVERS if (client, kind) not in NO_WAY}
    six = sum(":" in address for _, address, _, _ in targets.values())
    assert six == 4 * len(names - {"host", "site"})  # a name and a number, TCP and UDP
    assert len(targets) - six == 4 * len(names)
    inside = [] if client == "node" else ["nsenter", "-t", str(pid(served[client], node)), "-n"]
    said = nodes.lab.exec(node, [*inside, PYTHON, "-I", "-S", "-c", ASK, json.dumps(targets)])
    assert said.returncode == 0, said.stderr
    wrong = {name: seen for name, seen in json.loads(said.stdout).items() if seen != targets[name][-1]}
    assert wrong == {}


def _served(nodes: Cluster, kind: str) -> bool:
    return len(nodes.backends(f"/{kind}")) == len(BACK_ENDS)


def pid(tasks: dict[str, Json], node: str) -> int:
    return next(int(task["pid"]) for task in tasks.values() if task["node"] == node)
