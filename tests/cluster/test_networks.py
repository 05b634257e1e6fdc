"""Networks that are made while the cluster runs, and who reaches whom on them: every pair of containers, in both
directions, by TCP and UDP, by IPv4 and IPv6, on one node and across two.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import pytest

from lab.cluster import MASTER
from lab.daemons import TEPUI, admin_file
from tests.cluster import bed
from tests.cluster.bed import Cluster, Json, eventually
from tests.cluster.traffic import PYTHON

PORT, OTHER_PORT = 8080, 8081
FRONT = {"name": "front", "subnets": ["100.112.0.0/16", "fd01:f::/64"]}
BACK = {"name": "back", "subnets": ["100.113.0.0/16", "fd01:e::/64"]}

# Answers with the id of its task, on both ports, by TCP and UDP, IPv4 and IPv6.
SERVER = """
import asyncio, os
ME = os.environ["MESOS_TASK_ID"].encode()
class Udp(asyncio.DatagramProtocol):
    def connection_made(self, transport): self.transport = transport
    def datagram_received(self, data, peer): self.transport.sendto(ME, peer)
async def tcp(reader, writer):
    writer.write(ME)
    writer.close()
async def main():
    loop = asyncio.get_running_loop()
    for port in (8080, 8081):
        for address in ("0.0.0.0", "::"):
            await asyncio.start_server(tcp, address, port)
        await loop.create_datagram_endpoint(Udp, ("::", port))  # of both versions
    print("ready", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""

# Which of the targets answer, and with what: a line of JSON. What is refused is refused at once.
PROBE = """
import asyncio, json, sys
class Udp(asyncio.DatagramProtocol):
    def __init__(self): self.answer = asyncio.get_running_loop().create_future()
    def datagram_received(self, data, peer): self.answer.done() or self.answer.set_result(data.decode())
    def error_received(self, error): self.answer.done() or self.answer.set_exception(error)
async def tcp(address, port):
    reader, writer = await asyncio.open_connection(address, port)
    try: return (await reader.read()).decode()
    finally: writer.close()
async def udp(address, port):
    make = asyncio.get_running_loop().create_datagram_endpoint(Udp, remote_addr=(address, port))
    transport, protocol = await make
    try:
        transport.sendto(b"?")
        return await protocol.answer
    finally: transport.close()
async def ask(protocol, address, port):
    try: return await asyncio.wait_for({"tcp": tcp, "udp": udp}[protocol](address, port), 2)
    except (OSError, asyncio.TimeoutError): return ""
async def main():
    print(json.dumps(await asyncio.gather(*(ask(*target) for target in json.loads(sys.argv[1])))))
asyncio.run(main())
"""


@dataclass(frozen=True, slots=True)
class Host:
    """A task that serves. `addresses` are of both versions."""

    id: str
    app: str
    network: str
    node: str
    pid: int
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True, order=True)
class Way:
    source: str
    target: str
    protocol: str
    version: int
    port: int


Rule = Callable[[Host, Host, str, int], bool]  # from, to, protocol, port


@pytest.fixture
def networks(cluster: Cluster) -> Iterator[Cluster]:
    """With the networks `front` and `back`, which are gone afterwards, with all policies."""
    for network in FRONT, BACK:
        cluster.call("POST", "/api/v1/networks", json=network)
    yield cluster
    for policy in cluster.get("/api/v1/policies")["policies"]:
        cluster.call("DELETE", f"/api/v1/policies/{policy['name']}")
    for app in cluster.get("/v2/apps")["apps"]:
        cluster.remove(app["id"])
    eventually(lambda: not cluster.tasks(), "no task is left")
    for network in FRONT, BACK:
        cluster.call("DELETE", f"/api/v1/networks/{network['name']}")


def serve(cluster: Cluster, app: str, network: str, instances: int = 2) -> list[Host]:
    definition = bed.app_json(
        app,
        args=["/usr/bin/python3", "-c", SERVER],
        networks=[{"mode": "container", "name": network}],
        instances=instances,
        mem=64,
    )
    cluster.run(definition)
    tasks = cluster.await_running(app, instances)
    for task in tasks:
        eventually(lambda task=task: "ready" in cluster.log_of(task), f"{task} listens")  # type: ignore[misc]
    return [host(task, network) for _, task in sorted(tasks.items())]


def host(task: Json, network: str) -> Host:
    return Host(task["id"], task["owner"], network, task["node"], task["pid"], tuple(task["addresses"]))


def ways(source: Host, hosts: list[Host]) -> list[tuple[Way, tuple[str, str, int]]]:
    return [
        (Way(source.id, target.id, protocol, ip_address(address).version, port), (protocol, address, port))
        for target in hosts
        for address in target.addresses
        for protocol in ("tcp", "udp")
        for port in (PORT, OTHER_PORT)
    ]


def probed(cluster: Cluster, source: Host, hosts: list[Host]) -> dict[Way, str]:
    """Who answers, from inside the network namespace of `source`."""
    asked = ways(source, hosts)
    enter = ["nsenter", "-t", str(source.pid), "-n", PYTHON, "-I", "-S", "-c", PROBE]
    result = cluster.lab.exec(source.node, [*enter, json.dumps([target for _, target in asked])])
    return dict(zip((way for way, _ in asked), json.loads(result.stdout), strict=True))


def differences(cluster: Cluster, hosts: list[Host], allowed: Rule) -> list[str]:
    """Where it is not as it should be: of every pair, in both directions."""
    by_id = {host.id: host for host in hosts}
    with ThreadPoolExecutor(4) as threads:
        answers = threads.map(partial(probed, cluster, hosts=hosts), hosts)
    found = []
    for way, answer in sorted((way, answer) for some in answers for way, answer in some.items()):
        wanted = allowed(by_id[way.source], by_id[way.target], way.protocol, way.port)
        if answer != (way.target if wanted else ""):
            found.append(f"{way}: {answer!r}, wanted {'an answer' if wanted else 'none'}")
    return found


def holds(cluster: Cluster, hosts: list[Host], allowed: Rule, what: str) -> None:
    def true() -> bool:
        if found := differences(cluster, hosts, allowed):
            raise bed.Unlike(f"{len(found)} differ, like {found[:4]}")
        return True

    eventually(true, what)


def within(source: Host, target: Host, protocol: str, port: int) -> bool:
    return source.network == target.network


def test_every_pair_reaches_just_what_networks_and_policies_let_it(networks: Cluster) -> None:
    hosts = [*serve(networks, "/a", "front"), *serve(networks, "/b", "back"), *serve(networks, "/c", "back")]
    assert all(len(host.addresses) == 2 for host in hosts)
    assert len({host.node for host in hosts}) > 1
    holds(networks, hosts, within, "networks do not reach each other")

    rule = {"network": "back", "from": [{"network": "front"}], "ports": [{"protocol": "tcp", "port": PORT}]}
    networks.call("PUT", "/api/v1/policies/front-to-back", json=rule)

    def front_to_back(source: Host, target: Host, protocol: str, port: int) -> bool:
        let_in = (source.network, target.network) == ("front", "back") and (protocol, port) == ("tcp", PORT)
        return within(source, target, protocol, port) or let_in

    holds(networks, hosts, front_to_back, "front reaches one port of back")

    rule = {"app": "/b", "from": [{"app": "/a"}], "ports": [{"protocol": "udp", "port": OTHER_PORT}]}
    networks.call("PUT", "/api/v1/policies/only-a", json=rule)

    def only_a(source: Host, target: Host, protocol: str, port: int) -> bool:
        if source.id == target.id:
            return True  # it does not leave its own namespace
        if target.app == "/b":
            return source.app == "/a" and (protocol, port) == ("udp", OTHER_PORT)
        return front_to_back(source, target, protocol, port)

    holds(networks, hosts, only_a, "only /a reaches one port of /b")

    networks.scale("/a", 3)
    more = [host(task, "front") for task in networks.await_running("/a", 3).values()]
    for each in more:
        eventually(partial(_ready, networks, each.id), f"{each.id} listens")
    holds(networks, [*more, *hosts[2:]], only_a, "a new member of /a reaches what the others do")

    for name in ("only-a", "front-to-back"):
        networks.call("DELETE", f"/api/v1/policies/{name}")
    holds(networks, hosts, within, "without policies all is as before")


def _ready(cluster: Cluster, task: str) -> bool:
    return "ready" in cluster.log_of(task)


def test_a_network_in_use_can_not_be_removed_and_says_by_what(networks: Cluster) -> None:
    (task,) = serve(networks, "/user", "front", 1)
    refused = networks.request("DELETE", "/api/v1/networks/front")
    assert refused.status_code == 409
    assert task.id in refused.text


def test_a_network_that_overlaps_another_is_refused(networks: Cluster) -> None:
    refused = networks.request("POST", "/api/v1/networks", json={"name": "third", "subnets": ["100.112.4.0/22"]})
    assert refused.status_code in (409, 422)
    assert "front" in refused.text and "100.112.0.0/16" in refused.text


def test_what_one_node_has_a_route_to_is_a_network_nowhere(cluster: Cluster) -> None:
    for line in (
        "ip link add site type veth peer site-end",
        "ip addr add 10.66.3.1/24 dev site",
        "ip link set site up",
        "ip link set site-end up",
    ):
        cluster.lab.exec("n2", line.split())
    try:
        refused = cluster.request("POST", "/api/v1/networks", json={"name": "clash", "subnets": ["10.66.0.0/16"]})
        assert refused.status_code == 409
        assert "node n2" in refused.text and "10.66.3.0/24 dev site" in refused.text
        known = [network["name"] for network in cluster.get("/api/v1/networks")["networks"]]
        assert known == ["bridge", "host", "none", "overlay"]
        eventually(lambda: not any(node["errors"] for node in cluster.nodes().values()), "nobody has errors")
    finally:
        cluster.lab.exec("n2", ["ip", "link", "del", "site"])
    cluster.call("POST", "/api/v1/networks", json={"name": "clash", "subnets": ["10.66.0.0/16"]})
    cluster.call("DELETE", "/api/v1/networks/clash")


def test_networks_by_command(cluster: Cluster, tmp_path: Path) -> None:
    def tepui(*arguments: str, code: int = 0) -> str:
        environment = {"TEPUI_ADMIN": str(admin_file(cluster.lab)), "COLUMNS": "200"}
        argv = cluster.lab.command(MASTER, [*TEPUI, *arguments], environment)
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    made = tepui("network", "create", "shop", "--subnet", "10.88.0.0/24", "--subnet", "fd88::/64", "--mtu", "1300")
    assert "subnets    10.88.0.0/24 fd88::/64" in made and "static     10.88.0.240/28" in made
    assert "10.88.0.0/28 fd88::/80" in made and "n3" in made
    json.loads(tepui("network", "show", "shop", "--json"))
    (line,) = (line for line in tepui("network", "list").splitlines() if line.startswith("shop"))
    assert line.split()[:4] == ["shop", "overlay", "10.88.0.0/24", "fd88::/64"]
    refused = tepui("network", "create", "other", "--subnet", "10.88.0.0/16", code=1)
    assert "10.88.0.0/16 overlaps 10.88.0.0/24 of network" in " ".join(refused.split())
    plugins = tmp_path / "site.conflist"
    plugins.write_text(json.dumps({"cniVersion": "1.0.0", "name": "site", "plugins": [{"type": "no-such-plug-in"}]}))
    assert "no-such-plug-in" in tepui("network", "create", "site", "--cni", str(plugins), code=1)
    assert tepui("network", "remove", "shop") == "shop: removed\n"
    assert "shop" not in tepui("network", "list") and "site" not in tepui("network", "list")
    assert "is connected: stop its agent first" in " ".join(tepui("node", "remove", "n1", code=1).split())


def test_a_full_network_makes_a_task_wait_and_says_so(cluster: Cluster) -> None:
    small = {"name": "small", "subnets": ["100.114.0.0/29"], "block_prefix": 30, "static": []}
    cluster.call("POST", "/api/v1/networks", json=small)
    app = bed.command("/many", "sleep 3600", 4, networks=[{"mode": "container", "name": "small"}])
    cluster.run(app)
    eventually(lambda: len(cluster.running("/many")) == 2, "as many tasks run as there are addresses")

    def told() -> bool:
        return 'address of network "small"' in " ".join(cluster.get("/api/v1/services/many")["waiting"])

    eventually(told, "the others wait for an address")
    cluster.remove("/many")
    eventually(lambda: not cluster.tasks(), "no task is left")
    cluster.call("DELETE", "/api/v1/networks/small")
