"""The overlay, between two hosts in namespaces of their own that are joined by a cable."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from model.network import Address, Block, Network, NetworkKind, Vtep, vtep_mac
from netns.driver import Attachment, NetworkError, NetworkSpec
from netns.link import gateway_name, veth_name
from netns.networks import Networks
from tests.kernel.namespaces import Echo, NetnsProcess, echo, network_of

pytestmark = pytest.mark.anyio

VNI = 1024
DEV = f"tx{VNI}"
NETWORK = Network("prod", NetworkKind.OVERLAY, (ip_network("100.64.0.0/11"),), vni=VNI)
GATEWAY = gateway_name("prod")

# linux/in.h
IP_MTU_DISCOVER, IP_PMTUDISC_DO = 10, 2

Spawn = Callable[[], NetnsProcess]


@dataclass(frozen=True, slots=True)
class Host:
    name: str
    process: NetnsProcess
    underlay: Address
    block: Block
    state: Path

    @property
    def vtep(self) -> Vtep:
        return Vtep("prod", self.name, self.underlay, vtep_mac(self.name, VNI), (self.block,))

    def spec(self, *peers: Host) -> NetworkSpec:
        return NetworkSpec(NETWORK, (self.block,), tuple(peer.vtep for peer in peers))

    @contextmanager
    def inside(self) -> Iterator[None]:
        with network_of(self.process.pid):
            yield

    async def configure(self, *peers: Host) -> None:
        await self.apply(self.spec(*peers))

    async def apply(self, spec: NetworkSpec) -> None:
        """As an agent does that has just started."""
        with self.inside():
            async with Networks(self.state, self.name, "boot-1", self.underlay) as driver:
                await driver.configure(spec)

    async def attach(self, name: str, container: NetnsProcess, *peers: Host) -> Address:
        with self.inside():
            async with Networks(self.state, self.name, "boot-1", self.underlay) as driver:
                await driver.configure(self.spec(*peers))
                [address] = await driver.attach(Attachment(name, "prod", container.pid))
                return address


@pytest.fixture
def hosts(spawn: Spawn, tmp_path: Path) -> tuple[Host, Host]:
    one, two = spawn(), spawn()
    one.run("ip", "link", "add", "card", "type", "veth", "peer", "card", "netns", str(two.pid))
    for number, process in enumerate((one, two), start=1):
        process.run("ip", "addr", "add", f"192.0.2.{number}/24", "dev", "card")
        process.run("ip", "link", "set", "card", "up")
        process.run("ip", "link", "set", "lo", "up")
    return _host("n1", one, 1, tmp_path), _host("n2", two, 2, tmp_path)


def _host(name: str, process: NetnsProcess, number: int, state: Path) -> Host:
    block = Block("prod", name, ip_network(f"100.64.{number}.0/24"))
    return Host(name, process, ip_address(f"192.0.2.{number}"), block, state / name)


async def test_device_and_entries_are_what_the_kernel_has(hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    await one.configure(two)
    [device] = one.process.ip("addr", "show", "dev", DEV)
    data = device["linkinfo"]["info_data"]
    assert (data["id"], data["local"], data["port"], data["learning"]) == (VNI, "192.0.2.1", 4789, False)
    assert device["address"] == vtep_mac("n1", VNI)
    assert [(a["local"], a["prefixlen"]) for a in device["addr_info"]] == [("100.64.1.0", 32)]
    assert device["mtu"] == one.process.ip("link", "show", GATEWAY)[0]["mtu"] == 1450
    [neighbour] = one.process.ip("neigh", "show", "dev", DEV)
    assert (neighbour["dst"], neighbour["lladdr"]) == ("100.64.2.0", vtep_mac("n2", VNI))
    assert neighbour["state"] == ["PERMANENT"]
    fdb = one.process.run("bridge", "fdb", "show", "dev", DEV).split("\n")
    assert [line.split()[:3] for line in fdb if line] == [[vtep_mac("n2", VNI), "dst", "192.0.2.2"]]
    [route] = one.process.ip("route", "show", "dev", DEV)
    assert (route["dst"], route["gateway"], route["prefsrc"]) == ("100.64.2.0/24", "100.64.2.0", "100.64.1.1")
    assert "onlink" in route["flags"]


async def test_containers_and_nodes_reach_each_other_across(
    hosts: tuple[Host, Host], spawn: Spawn, echo_server: Callable[[int], Echo]
) -> None:
    one, two = hosts
    client, server = spawn(), spawn()
    own = await one.attach("client", client, two)
    address = await two.attach("server", server, one)
    listening = echo_server(server.pid)
    assert client.ip("link", "show", "eth0")[0]["mtu"] == 1450
    assert echo(client.pid, address, listening.port, size=500_000) == str(own)
    assert echo(one.process.pid, address, listening.port, size=500_000) == "100.64.1.1"
    assert echo(two.process.pid, address, listening.port) == "100.64.2.1"
    assert echo(client.pid, address, listening.port) == str(own)


async def test_largest_packet_fits_without_fragments(hosts: tuple[Host, Host], spawn: Spawn) -> None:
    """1450 bytes inside with "do not fragment" outside too would not pass if the overhead were counted wrongly."""
    one, two = hosts
    client, server = spawn(), spawn()
    await one.attach("client", client, two)
    address = await two.attach("server", server, one)
    before = _fragments(one)
    assert _datagram_arrives(client.pid, server.pid, address, 1450 - 28)
    assert _fragments(one) == before
    with pytest.raises(OSError, match="Message too long"):
        _datagram_arrives(client.pid, server.pid, address, 1451 - 28)


def _datagram_arrives(client: int, server: int, address: Address, size: int) -> bool:
    """Whether one UDP datagram with "do not fragment" gets from one namespace into another."""
    with network_of(server):
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with network_of(client):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with receiver, sender:
        receiver.settimeout(3.0)
        receiver.bind(("", 9000))
        sender.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        sender.sendto(b"x" * size, (str(address), 9000))
        return len(receiver.recv(65536)) == size


def _fragments(host: Host) -> str:
    names, values = map(str.split, host.process.run("cat", "/proc/net/snmp").split("\n")[:2])
    return dict(zip(names, values, strict=True))["FragCreates"]


async def test_small_underlay_makes_small_packets(
    hosts: tuple[Host, Host], spawn: Spawn, echo_server: Callable[[int], Echo]
) -> None:
    one, two = hosts
    for host in hosts:
        host.process.run("ip", "link", "set", "card", "mtu", "1280")
    client, server = spawn(), spawn()
    await one.attach("client", client, two)
    address = await two.attach("server", server, one)
    assert client.ip("link", "show", "eth0")[0]["mtu"] == 1230
    assert echo(client.pid, address, echo_server(server.pid).port, size=100_000)


async def test_configure_again_does_nothing(hosts: tuple[Host, Host], counted: list[str]) -> None:
    one, two = hosts
    await one.configure(two)
    first, counted[:] = list(counted), []
    await one.configure(two)
    assert counted == [], first


async def test_one_peer_costs_three_operations(hosts: tuple[Host, Host], counted: list[str]) -> None:
    one, two = hosts
    peers = [replace(two, block=replace(two.block, subnet=ip_network(f"100.65.{n}.0/24"))) for n in range(50)]
    peers = [replace(peer, name=f"p{n}", underlay=ip_address(f"192.0.2.{n + 3}")) for n, peer in enumerate(peers)]
    await one.configure(*peers[:-1])
    counted.clear()
    await one.configure(*peers)
    assert len(counted) == 3 and counted[-1].startswith("add route 100.65.49.0/24 via 100.65.49.0 dev tx1024")
    counted.clear()
    await one.configure(*peers[1:])
    assert len(counted) == 3 and counted[0].startswith("remove route 100.65.0.0/24")


async def test_peer_that_moved_is_replaced_without_a_gap(hosts: tuple[Host, Host], counted: list[str]) -> None:
    one, two = hosts
    await one.configure(two)
    counted.clear()
    await one.configure(replace(two, underlay=ip_address("192.0.2.77")))
    assert counted == [f"add forwarding entry {vtep_mac('n2', VNI)} at 192.0.2.77 dev {DEV}"]
    fdb = one.process.run("bridge", "fdb", "show", "dev", DEV)
    assert "192.0.2.77" in fdb and "192.0.2.2 " not in fdb


async def test_removed_peer_leaves_no_entry(hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    await one.configure(two)
    await one.configure()
    assert one.process.ip("neigh", "show", "dev", DEV) == []
    assert one.process.run("bridge", "fdb", "show", "dev", DEV) == ""
    assert one.process.ip("route", "show", "dev", DEV) == []


async def test_new_underlay_or_vni_makes_the_device_anew(hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    await one.configure(two)
    one.process.run("ip", "addr", "add", "192.0.2.9/24", "dev", "card")
    await replace(one, underlay=ip_address("192.0.2.9")).configure(two)
    [device] = one.process.ip("link", "show", DEV)
    assert device["linkinfo"]["info_data"]["local"] == "192.0.2.9"
    assert len(one.process.ip("route", "show", "dev", DEV)) == 1
    await one.apply(replace(one.spec(two), network=replace(NETWORK, vni=2000)))
    names = [link["ifname"] for link in one.process.ip("link") if link["ifname"].startswith("tx")]
    assert names == ["tx2000"]


async def test_remove_after_a_restart_leaves_nothing(hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    before = _kernel(one)
    await one.configure(two)
    with one.inside():
        async with Networks(one.state, one.name, "boot-1", one.underlay) as driver:
            assert driver.known() == {"prod"}
            await driver.remove("prod")
            await driver.remove("prod")
            assert driver.known() == frozenset()
    assert _kernel(one) == before


def _kernel(host: Host) -> object:
    """All that the kernel has of networks, but for what flickers."""
    links = [(link["ifname"], link["mtu"], link["address"]) for link in host.process.ip("link")]
    addresses = [a["local"] for link in host.process.ip("-4", "addr") for a in link["addr_info"]]
    routes = [(r["dst"], r.get("gateway"), r["dev"], r.get("prefsrc")) for r in host.process.ip("route")]
    neighbours = [(n["dst"], n["dev"], n.get("lladdr")) for n in host.process.ip("neigh", "show", "nud", "permanent")]
    fdb = [line for line in host.process.run("bridge", "fdb").split("\n") if " dst " in line]
    return sorted(links), sorted(addresses), sorted(map(repr, routes)), sorted(map(repr, neighbours)), sorted(fdb)


async def test_node_reaches_virtual_addresses_with_its_gateways_address(
    hosts: tuple[Host, Host], spawn: Spawn, echo_server: Callable[[int], Echo]
) -> None:
    """A VIP is translated after routing: without a route nothing would get there. The backend is on the other node,
    and this one has no container at all."""
    one, two = hosts
    server = spawn()
    address = await two.attach("server", server, one)
    port = echo_server(server.pid).port
    pools = (ip_network("100.127.0.0/16"),)
    with one.inside():
        async with Networks(one.state, one.name, "boot-1", one.underlay) as driver:
            await driver.configure_vip_route(pools)
            await driver.configure(one.spec(two))
            rule = f"OUTPUT -d 100.127.0.1 -p tcp -j DNAT --to-destination {address}"
            one.process.run("iptables-legacy", "-t", "nat", "-A", *rule.split())
            assert echo(one.process.pid, "100.127.0.1", port) == "100.64.1.1"
            await driver.configure_vip_route(pools)
            await driver.configure_vip_route(())
            assert one.process.ip("route", "show", "100.127.0.0/16") == []


async def test_the_next_agent_leaves_the_way_to_virtual_addresses_until_it_knows_better(
    hosts: tuple[Host, Host],
) -> None:
    one, _ = hosts
    pools = (ip_network("100.127.0.0/16"),)
    lan = Network("lan", NetworkKind.BRIDGE, (ip_network("10.9.0.0/16"),))

    def ways() -> list[tuple[str, str]]:
        return [(route["dev"], route["prefsrc"]) for route in one.process.ip("route", "show", "100.127.0.0/16")]

    with one.inside():
        for _ in ("the first", "the next"):
            async with Networks(one.state, one.name, "boot-1", one.underlay) as driver:
                await driver.configure_vip_route(pools)
                await driver.configure(NetworkSpec(lan, (Block("lan", one.name, ip_network("10.9.1.0/24")),)))
                between = ways()
                await driver.configure(one.spec())
                assert ways() == [(GATEWAY, "100.64.1.1")]
        assert between == [(GATEWAY, "100.64.1.1")]
        async with Networks(one.state, one.name, "boot-1", one.underlay) as driver:
            await driver.configure_vip_route(pools)
            await driver.configure(NetworkSpec(lan, (Block("lan", one.name, ip_network("10.9.1.0/24")),)))
            await driver.remove("prod")
            assert ways() == [(gateway_name("lan"), "10.9.1.1")]


async def test_container_finds_virtual_addresses_through_its_gateway(
    hosts: tuple[Host, Host], spawn: Spawn, echo_server: Callable[[int], Echo]
) -> None:
    """Client and backend are neighbours on one node: the answer passes the node, so that it is translated back."""
    one, two = hosts
    client, server = spawn(), spawn()
    own = await one.attach("client", client, two)
    address = await one.attach("server", server, two)
    rule = f"PREROUTING -d 100.127.0.1 -p tcp -j DNAT --to-destination {address}"
    one.process.run("iptables-legacy", "-t", "nat", "-A", *rule.split())
    assert echo(client.pid, "100.127.0.1", echo_server(server.pid).port) == str(own)


async def test_untranslated_virtual_address_goes_nowhere(hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    with one.inside():
        async with Networks(one.state, one.name, "boot-1", one.underlay) as driver:
            await driver.configure(one.spec(two))
            await driver.configure_vip_route((ip_network("100.127.0.0/16"),))
    one.process.run("ip", "route", "add", "default", "via", "192.0.2.2")
    with pytest.raises(OSError):
        echo(one.process.pid, "100.127.9.9", 80, deadline_s=0.3)
    assert one.process.ip("-4", "neigh", "show", "dev", "card") == []  # nothing was ever to be sent there


async def test_bad_specifications_are_refused_by_field(hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    before = _kernel(one)
    foreign = replace(one.block, node="n9")
    small = replace(one.block, subnet=ip_network("100.64.1.0/31"))
    outside = replace(one.block, subnet=ip_network("10.0.0.0/24"))
    good = one.spec(two)
    for field, spec in {
        "vni": replace(good, network=replace(NETWORK, vni=None)),
        "name": replace(good, network=replace(NETWORK, name="../x")),
        "cni: is missing": replace(good, network=replace(NETWORK, kind=NetworkKind.CNI)),
        "blocks: this node has none": replace(good, blocks=()),
        "blocks: 100.64.1.0/24 is of": replace(good, blocks=(foreign,)),
        "blocks: 100.64.1.0/31 is too small": replace(good, blocks=(small,)),
        "blocks: 10.0.0.0/24 is not part of": replace(good, blocks=(outside,)),
        "peers: n1 at 192.0.2.1 is this node": one.spec(one),
        "peers: .* overlap": one.spec(two, replace(two, name="n3")),
    }.items():
        with pytest.raises(NetworkError, match=field):
            await one.apply(spec)
    assert _kernel(one) == before


async def test_detached_container_is_gone_from_the_node(hosts: tuple[Host, Host], spawn: Spawn) -> None:
    one, two = hosts
    await one.configure(two)
    before = _kernel(one)
    container = spawn()
    await one.attach("web", container, two)
    assert veth_name("web") in str(_kernel(one))
    with one.inside():
        async with Networks(one.state, one.name, "boot-1", one.underlay) as driver:
            await driver.detach("web")
    assert _kernel(one) == before
