"""The overlay with IPv4, IPv6 and both inside, over IPv4 and IPv6: the same is asked of every mix."""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from model.network import VXLAN_OVERHEAD, Address, Vtep, paired, vtep_mac
from netns.driver import Attachment, NetworkError
from netns.link import gateway_name
from netns.networks import Networks
from tests.kernel.namespaces import Echo, NetnsProcess, echo, network_of
from tests.kernel.nodes import VERSIONS, VNI, Host, block_subnet, joined, network

pytestmark = pytest.mark.anyio

DEV = f"tx{VNI}"
GATEWAY = gateway_name("prod")
HEADERS = {4: 28, 6: 48}  # of IP and UDP
# linux/in.h, linux/in6.h
DO_NOT_FRAGMENT = {4: (socket.IPPROTO_IP, 10, 2), 6: (socket.IPPROTO_IPV6, 23, 2)}

Spawn = Callable[..., NetnsProcess]
Hosts = tuple[Host, Host]


@pytest.fixture(params=[f"{inside} over {below}" for below in ("v4", "v6") for inside in VERSIONS])
def hosts(request: pytest.FixtureRequest, spawn: Spawn, tmp_path: Path) -> Hosts:
    inside, _, below = request.param.partition(" over ")
    one, two = spawn(), spawn()
    addresses = joined(one, two, VERSIONS[below][0])
    made = [
        Host(number, process, addresses[number - 1], network(VERSIONS[inside]), tmp_path / f"n{number}")
        for number, process in enumerate((one, two), start=1)
    ]
    return made[0], made[1]


async def test_containers_and_nodes_reach_each_other_across(
    hosts: Hosts, spawn: Spawn, echo_server: Callable[[int], Echo]
) -> None:
    one, two = hosts
    client, server = spawn(), spawn()
    own = await one.attach("client", client, one.spec(two))
    addresses = await two.attach("server", server, two.spec(one))
    versions = [subnet.version for subnet in one.network.subnets]
    assert [address.version for address in addresses] == versions
    port = echo_server(server.pid).port
    for mine, address, block in zip(own, addresses, one.blocks, strict=True):
        assert echo(client.pid, address, port, size=500_000) == str(mine)
        assert echo(one.process.pid, address, port) == str(block.gateway)
        assert echo(server.pid, address, port) == str(address)
    assert [link["ifname"] for link in client.ip("link")] == ["lo", "eth0"]
    found = [(a["local"], a["prefixlen"]) for a in client.ip("addr", "show", "eth0")[0]["addr_info"]]
    assert found == [(str(address), address.max_prefixlen) for address in own]  # and none that IPv6 gave itself


async def test_both_addresses_are_one_lease(hosts: Hosts, spawn: Spawn) -> None:
    one, two = hosts
    addresses = await one.attach("web", spawn(), one.spec(two))
    if len(addresses) == 2:
        assert addresses[1] == paired(one.blocks[1], addresses[0])
    async with one.driver() as driver:  # which knows of no network yet
        assert driver.addresses("web") == addresses
        await driver.detach("web")
        assert driver.addresses("web") == ()
    assert not list((one.state / "leases" / "prod").glob("*[!d]"))  # but for what rests


async def test_largest_packet_fits(hosts: Hosts, spawn: Spawn) -> None:
    one, two = hosts
    client, server = spawn(), spawn()
    await one.attach("client", client, one.spec(two))
    addresses = await two.attach("server", server, two.spec(one))
    mtu = 1500 - VXLAN_OVERHEAD[one.underlay.version]
    assert client.ip("link", "show", "eth0")[0]["mtu"] == one.process.ip("link", "show", DEV)[0]["mtu"] == mtu
    for address in addresses:
        assert datagram_arrives(client.pid, server.pid, address, mtu - HEADERS[address.version])
        with pytest.raises(OSError, match="Message too long"):
            datagram_arrives(client.pid, server.pid, address, mtu - HEADERS[address.version] + 1)


def datagram_arrives(client: int, server: int, address: Address, size: int) -> bool:
    """Whether one UDP datagram with "do not fragment" gets from one namespace into another."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with network_of(server):
        receiver = socket.socket(family, socket.SOCK_DGRAM)
    with network_of(client):
        sender = socket.socket(family, socket.SOCK_DGRAM)
    with receiver, sender:
        receiver.settimeout(3.0)
        receiver.bind(("", 9000))
        sender.setsockopt(*DO_NOT_FRAGMENT[address.version])
        sender.sendto(b"x" * size, (str(address), 9000))
        return len(receiver.recv(65536)) == size


async def test_configure_again_does_nothing(hosts: Hosts, counted: list[str]) -> None:
    one, two = hosts
    for _ in range(2):
        async with one.driver(one.spec(two)) as driver:
            first, counted[:] = list(counted), []
            await driver.configure(one.spec(two))
            assert await driver.mend("prod") == []
            assert counted == [], first
    assert first == []  # by one that had just started


async def test_removed_leaves_nothing(hosts: Hosts, spawn: Spawn) -> None:
    one, two = hosts
    before = kernel(one)
    await one.attach("web", spawn(), one.spec(two))
    assert kernel(one) != before
    async with one.driver() as driver:
        await driver.detach("web")
        await driver.remove("prod")
    assert kernel(one) == before


def kernel(host: Host) -> object:
    """All that the node's kernel has of networks, but for what flickers."""
    links = [(link["ifname"], link["mtu"], link["address"]) for link in host.process.ip("link")]
    addresses = [a["local"] for link in host.process.ip("addr") for a in link["addr_info"]]
    routes = [(r["dst"], r["dev"]) for version in ("-4", "-6") for r in host.process.ip(version, "route")]
    routes = [route for route in routes if not route[0].startswith("fe80")]
    neighbours = [(n["dst"], n["dev"]) for n in host.process.ip("neigh", "show", "nud", "permanent")]
    fdb = [line for line in host.process.run("bridge", "fdb").split("\n") if " dst " in line]
    return sorted(links), sorted(addresses), sorted(routes), sorted(neighbours), sorted(fdb)


async def test_a_peer_comes_moves_and_goes(hosts: Hosts, counted: list[str]) -> None:
    """By what was applied last: nothing is read, and nothing else is touched. Somebody who reads finds it so."""
    one, two = hosts
    others = [replace(two, number=number, underlay=two.underlay + number) for number in range(3, 20)]
    cost = 1 + 2 * len(one.blocks)
    async with one.driver(one.spec(*others)) as driver:
        counted.clear()
        await driver.configure(one.spec(two, *others))
        assert len(counted) == cost and counted[-1].startswith(f"add route {two.blocks[-1].subnet} via")
        counted.clear()
        await driver.configure(one.spec(replace(two, underlay=two.underlay + 77), *others))
        assert counted == [f"add forwarding entry {two.vtep.mac} at {two.underlay + 77} dev {DEV}"]
        counted.clear()
        await driver.configure(one.spec(*others[1:]))
        assert len(counted) == 2 * cost and counted[0].startswith("remove route")
    async with one.driver(one.spec(*others[1:])) as driver:
        counted.clear()
        assert await driver.mend("prod") == counted == []


async def test_what_was_applied_last_is_gone(hosts: Hosts, spawn: Spawn, echo_server: Callable[[int], Echo]) -> None:
    """A change of a peer finds no device: then the kernel is read, and all of it made anew."""
    one, two = hosts
    server = spawn()
    addresses = await two.attach("server", server, two.spec(one))
    async with one.driver(one.spec()) as driver:
        one.process.run("ip", "link", "del", DEV)
        await driver.configure(one.spec(two))
        port = echo_server(server.pid).port
        assert [echo(None, address, port) for address in addresses] == [str(block.gateway) for block in one.blocks]


async def test_a_single_address_is_where_its_container_is(
    hosts: Hosts, spawn: Spawn, echo_server: Callable[[int], Echo]
) -> None:
    one, two = hosts
    client, server = spawn(), spawn()
    single = one.network.subnets[0].network_address + 77
    with_single = replace(two.spec(one), singles=(single,))
    async with two.driver(with_single) as driver:
        addresses = await driver.attach(Attachment("server", "prod", server.pid, address=single))
        assert addresses[0] == single == driver.addresses("server")[0]
        with pytest.raises(NetworkError, match=f"address {single} is held by server"):
            await driver.attach(Attachment("other", "prod", client.pid, address=single))
        with pytest.raises(NetworkError, match=f"server has {single} already"):
            await driver.attach(Attachment("server", "prod", server.pid, address=two.blocks[0].subnet[9]))
    peer = replace(two.vtep, singles=(single,))
    own = await one.attach("client", client, replace(one.spec(), peers=(peer,)))
    assert echo(client.pid, single, echo_server(server.pid).port, size=100_000) == str(own[0])


async def test_several_blocks(hosts: Hosts, spawn: Spawn, echo_server: Callable[[int], Echo]) -> None:
    """Of a retiring block nothing is leased any more; what was keeps its address and its way until it is detached."""
    one, two = hosts
    client, old, new = spawn(), spawn(), spawn()
    version = one.network.subnets[0].version
    more = two.block(version, 200)
    spec = replace(two.spec(one), blocks=(*two.blocks, more))
    async with two.driver(two.spec(one)) as driver:
        before = await driver.attach(Attachment("old", "prod", old.pid))
        await driver.configure(spec)
        assert driver.released() == ()
        retiring = replace(spec, retiring=two.blocks[:1])
        await driver.configure(retiring)
        assert driver.released() == ()
        after = await driver.attach(Attachment("new", "prod", new.pid))
        assert after[0] in more.subnet and driver.addresses("old") == before
        assert await driver.attach(Attachment("old", "prod", old.pid)) == before
    peer = replace(two.vtep, blocks=(*two.blocks, more))
    own = await one.attach("client", client, replace(one.spec(), peers=(peer,)))
    for server, address in ((old, before[0]), (new, after[0])):
        assert echo(client.pid, address, echo_server(server.pid).port) == str(own[0])
    async with two.driver(retiring) as driver:
        await driver.detach("old")
        assert driver.released() == two.blocks[:1]


async def test_an_exhausted_node_says_so(hosts: Hosts, spawn: Spawn) -> None:
    one, two = hosts
    async with one.driver(replace(one.spec(two), retiring=one.blocks)) as driver:
        with pytest.raises(NetworkError, match="no address left: this node has no block to lease from"):
            await driver.attach(Attachment("web", "prod", spawn().pid))


async def test_mtu_of_the_network(hosts: Hosts, spawn: Spawn) -> None:
    one, two = hosts
    carried = 1500 - VXLAN_OVERHEAD[one.underlay.version]
    before = kernel(one)
    least = 1280 if 6 in [subnet.version for subnet in one.network.subnets] else 68
    for mtu, problem in ((carried + 1, f"{carried + 1} is more than the {carried}"), (least - 1, "is less than")):
        async with one.driver() as driver:
            with pytest.raises(NetworkError, match=f'"prod".* mtu: .*{problem}'):
                await driver.configure(replace(one.spec(two), network=replace(one.network, mtu=mtu)))
    assert kernel(one) == before
    container = spawn()
    await one.attach("web", container, replace(one.spec(two), network=replace(one.network, mtu=1300)))
    assert container.ip("link", "show", "eth0")[0]["mtu"] == 1300
    one.process.run("ip", "link", "set", "card", "mtu", "1280")
    if least == 1280:
        async with one.driver() as driver:
            with pytest.raises(NetworkError, match="mtu: the underlay carries .* need 1280"):
                await driver.configure(one.spec(two))


async def test_a_peer_of_the_other_version_of_ip_is_refused(hosts: Hosts) -> None:
    one, two = hosts
    other = ip_address("2001:db8::9" if one.underlay.version == 4 else "192.0.2.9")
    async with one.driver() as driver:
        with pytest.raises(NetworkError, match=f"peers: {other} can not be reached from {one.underlay}"):
            await driver.configure(one.spec(replace(two, underlay=other)))


async def test_bad_blocks_and_singles_are_refused_by_name(hosts: Hosts) -> None:
    one, two = hosts
    version = one.network.subnets[0].version
    good, block = one.spec(two), one.blocks[0]
    longest = {4: 30, 6: 96}[version]
    small = replace(block, subnet=ip_network(f"{block.subnet.network_address}/{longest + 1}"))
    single = one.network.subnets[0].network_address + 77
    homeless = Vtep("prod", "n9", two.underlay + 9, vtep_mac("n9", VNI), (), (single,))
    for problem, spec in {
        f"blocks: {small.subnet} is too small: /{longest}": replace(good, blocks=(small,)),
        f"retiring: {block_subnet(version, 9)} is not one": replace(good, retiring=(one.block(version, 9),)),
        "singles: 198.51.100.1 is not part of": replace(good, singles=(ip_address("198.51.100.1"),)),
        f"singles: {block.gateway} is in a block": replace(good, singles=(block.gateway,)),
        f"peers: {single}: n9 has no block of IPv{version}": replace(good, peers=(homeless,)),
    }.items():
        async with one.driver() as driver:
            with pytest.raises(NetworkError, match=problem):
                await driver.configure(spec)


async def test_checksums_are_not_left_to_the_card_where_it_gets_them_wrong(
    hosts: Hosts, spawn: Spawn, echo_server: Callable[[int], Echo]
) -> None:
    one, two = hosts
    server, client = spawn(), spawn()
    addresses = await two.attach("server", server, two.spec(one))
    for wanted in (True, False, True, False):
        with one.inside():
            async with Networks(one.state, "n1", "boot-1", one.underlay, checksum_offload=wanted) as driver:
                await driver.configure(one.spec(two))
                assert computed_by_the_card() is wanted
                set_checksum_offload(not wanted)
                state = "on" if wanted else "off"
                assert await driver.mend("prod") == [f"switch {state} checksum offload of {DEV}"]
                assert computed_by_the_card() is wanted
                own = await driver.attach(Attachment("client", "prod", client.pid))
    port = echo_server(server.pid).port
    for mine, address in zip(own, addresses, strict=True):
        assert echo(client.pid, address, port, size=500_000) == str(mine)


def computed_by_the_card() -> bool:
    """As the kernel has it in the list of the device's features (linux/ethtool.h: ETHTOOL_GFEATURES), of which
    NETIF_F_HW_CSUM (linux/netdev_features.h) is the fourth bit."""
    answer = ioctl_ethtool(struct.pack("=II", 0x3A, 2) + bytes(2 * 16))
    (active,) = struct.unpack_from("=I", answer, 8 + 8)
    return bool(active & 1 << 3)


def set_checksum_offload(wanted: bool) -> None:
    ioctl_ethtool(struct.pack("=IIIIII", 0x3B, 2, 1 << 3, wanted << 3, 0, 0))


def ioctl_ethtool(command: bytes) -> bytes:
    buffer = ctypes.create_string_buffer(command, len(command))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        fcntl.ioctl(asking, 0x8946, struct.pack("16sP16x", DEV.encode(), ctypes.addressof(buffer)))
    return buffer.raw
