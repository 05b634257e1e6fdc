"""One link of a container: a veth pair whose one end is inside its network namespace, and whose other end is a link of
the node with the routes that lead to it.

The container has single addresses (/32, /128), and for each a route to the gateway, which is behind the link, and one
to everything else, which is behind the gateway. It knows the gateway's MAC address from the start, as the node knows
the container's, so nothing is asked (ARP, neighbour discovery). The node takes no packet from the link that has
another source than the container's IPv4 address; of IPv6 the firewall sees to that. All of it vanishes with the link,
and the link with the namespace.

By a second link, and any further one, the container reaches the network of that link and nothing else; but whoever
reached it there gets the answer from there, whatever its own routes say (`netns/rule.py`).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_network

from model.network import Address, Subnet
from netns.address import AddAddress, LinkAddress, read_addresses
from netns.gateway import GATEWAY_MAC
from netns.link import INTERFACES, CreateVeth, RemoveLink, SetDown, SetUp, veth_name, veth_names
from netns.namespace import run_inside
from netns.neighbour import AddNeighbour, Neighbour, mac_of, read_neighbours
from netns.netlink import Netlink, Operation, link_exists, link_index, link_is_up, open_socket
from netns.route import NETWORK_PROTOCOL, RT_TABLE_MAIN, AddRoute, Route, read_routes
from netns.rule import AddRule, RemoveRule
from netns.sysctl import Sysctl, forwarding, ipv6, quiet, write

VANISH_LOOKS, VANISH_INTERVAL_S = 20, 0.01
LOOPBACK = {"lo": 1}  # always: it is the first link of any namespace
DEFAULT: dict[int, Subnet] = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
FIRST_TABLE = 100  # of the answers of eth0, which needs none


@dataclass(frozen=True, slots=True)
class Reach:
    """An address of a container, and the gateway that it is reached by."""

    address: Address
    gateway: Address


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What `connect` makes: `container`'s link `interface` with an address of each version, and the way there and back.
    `subnets` are those of its network."""

    container: str
    interface: str
    reaches: tuple[Reach, ...]
    mtu: int
    subnets: tuple[Subnet, ...] = ()

    @property
    def veth(self) -> str:
        return veth_name(self.container, self.interface)

    @property
    def mac(self) -> str:
        return mac_of(self.reaches[0].address)

    @property
    def has_ipv6(self) -> bool:
        return any(reach.address.version == 6 for reach in self.reaches)


async def connect(host: Netlink, namespace: int, endpoint: Endpoint) -> None:
    """Connects the network namespace that `namespace` is a descriptor of. A half-made connection is made anew."""
    create = CreateVeth(endpoint.veth, GATEWAY_MAC, endpoint.mtu, endpoint.interface, endpoint.mac, namespace)
    if link_exists(endpoint.veth):
        await host.apply([RemoveLink(endpoint.veth)])
    await host.apply([create])
    for sysctl in node_end(endpoint):
        write(sysctl)
    sock, index = await run_inside(namespace, lambda: _enter(endpoint))
    async with Netlink(sock, {**LOOPBACK, endpoint.interface: index}.__getitem__) as inside:
        await inside.apply(list(_inside(endpoint)))
    await host.apply([SetUp(endpoint.veth, alias=endpoint.container), *way_there(endpoint)])


def way_there(endpoint: Endpoint) -> list[Operation]:
    """What the node has of a container beside the link."""
    operations: list[Operation] = [AddNeighbour(neighbour) for neighbour in neighbours(endpoint)]
    return [*operations, *(AddRoute(route) for route in routes(endpoint))]


def neighbours(endpoint: Endpoint) -> Iterator[Neighbour]:
    for reach in endpoint.reaches:
        yield Neighbour(endpoint.veth, reach.address, endpoint.mac)


def routes(endpoint: Endpoint) -> Iterator[Route]:
    for reach in endpoint.reaches:
        yield Route(endpoint.veth, ip_network(reach.address), source=reach.gateway)


def node_end(endpoint: Endpoint) -> tuple[Sysctl, ...]:
    """Settings of the link on the node, that must hold before it is up."""
    return (
        *quiet(endpoint.veth),
        *ipv6(endpoint.veth, endpoint.has_ipv6),
        Sysctl(f"ipv4/conf/{endpoint.veth}/rp_filter", "1"),  # ip-sysctl.rst: strict, RFC 3704
        *forwarding(endpoint.veth),
    )


async def cut_off(host: Netlink, container: str) -> frozenset[str]:
    """From now on nothing gets to the container or away from it, by any of its links. Returns those that are there."""
    there = frozenset(name for name in veth_names(container) if link_exists(name))
    await host.apply([SetDown(name) for name in sorted(there)])
    return there


async def vanish(host: Netlink, links: Iterable[str]) -> None:
    """Returns when they are gone. The links of a container that has ended go with its network namespace, together with
    those of others that ended, while a removal by name takes 20 ms. Should somebody keep the namespace, they are
    removed."""
    for _ in range(VANISH_LOOKS):
        if not any(map(link_exists, links)):
            return
        await asyncio.sleep(VANISH_INTERVAL_S)
    await host.apply([RemoveLink(name) for name in sorted(links)])


async def forget_rules(namespace: int, interface: str) -> None:
    """Those that `connect` made for an interface in a namespace that goes on."""
    if interface == INTERFACES[0]:
        return
    table = FIRST_TABLE + INTERFACES.index(interface)
    async with Netlink(await run_inside(namespace, open_socket), LOOPBACK.__getitem__) as inside:
        await inside.apply([RemoveRule(version, table) for version in DEFAULT])


async def lacking_inside(namespace: int, endpoint: Endpoint) -> list[str]:
    """What `connect` made in the namespace and somebody took away, in words."""
    return await run_inside(namespace, lambda: asyncio.run(_lacking(endpoint)))


async def loopback_only(namespace: int) -> None:
    async with Netlink(await run_inside(namespace, open_socket), LOOPBACK.__getitem__) as inside:
        await inside.apply([SetUp("lo")])


def _enter(endpoint: Endpoint) -> tuple[socket.socket, int]:
    """Run inside, in a thread: settings that must hold before the link is up, and what the event loop needs."""
    dev = endpoint.interface
    for sysctl in (*quiet(dev), Sysctl("ipv4/conf/all/accept_redirects", "0")):
        write(sysctl)
    if endpoint.has_ipv6:
        for sysctl in ipv6(dev, True):
            write(sysctl)
    return open_socket(), link_index(dev)


async def _lacking(endpoint: Endpoint) -> list[str]:
    """Run inside, in a thread of its own: names of links are those of where it runs."""
    dev = endpoint.interface
    if not link_exists(dev):
        return [f"link {dev} is gone"]
    async with Netlink() as inside:
        addresses = await read_addresses(inside, dev)
        neighbours = await read_neighbours(inside, dev)
        routes = await read_routes(inside, dev, NETWORK_PROTOCOL)
    made: list[Operation] = []
    for operation in _inside(endpoint):
        match operation:
            case SetUp(name) if not link_is_up(name):
                made.append(operation)
            case AddAddress(address) if address not in addresses:
                made.append(operation)
            case AddNeighbour(neighbour) if neighbour not in neighbours:
                made.append(operation)
            case AddRoute(route) if route.table == RT_TABLE_MAIN and route not in routes:
                made.append(operation)
    return [f"inside: {operation.describe()}" for operation in made]


def _inside(endpoint: Endpoint) -> Iterator[Operation]:
    dev = endpoint.interface
    yield from (SetUp("lo"), SetUp(dev))
    for reach in endpoint.reaches:
        yield AddAddress(LinkAddress(dev, reach.address))
        yield AddNeighbour(Neighbour(dev, reach.gateway, GATEWAY_MAC))
        yield AddRoute(Route(dev, ip_network(reach.gateway)))
        yield from _onwards(endpoint, reach)


def _onwards(endpoint: Endpoint, reach: Reach) -> Iterator[Operation]:
    dev, version = endpoint.interface, reach.address.version
    if dev == INTERFACES[0]:
        yield AddRoute(Route(dev, DEFAULT[version], via=reach.gateway))
        return
    table = FIRST_TABLE + INTERFACES.index(dev)
    for subnet in endpoint.subnets:
        if subnet.version == version:
            yield AddRoute(Route(dev, subnet, via=reach.gateway))
    yield AddRoute(Route(dev, DEFAULT[version], via=reach.gateway, table=table))
    # A rule does not vanish with the link: that of an address it had before may be there.
    yield RemoveRule(version, table)
    yield AddRule(reach.address, table)
