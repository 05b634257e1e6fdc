"""One container's veth pair: the end inside its network namespace, and the node's end with the route that leads to it.

The container has a single address (/32) and two routes: the gateway is behind its link, and everything else behind
the gateway. It knows the gateway's MAC address from the start, as the node knows the container's, so nothing is asked
(ARP). The node takes no packet from the link that has another source than the container's address. All of it
vanishes with the link, and the link with the namespace.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from ipaddress import ip_network

from model.network import Address, Subnet
from netns.address import AddAddress, LinkAddress
from netns.gateway import GATEWAY_MAC
from netns.link import CreateVeth, RemoveLink, SetUp, read_link, veth_name
from netns.namespace import run_inside
from netns.neighbour import AddNeighbour, Neighbour, mac_of, read_neighbours
from netns.netlink import Netlink, Operation, link_exists, link_index, open_socket
from netns.route import NETWORK_PROTOCOL, AddRoute, Route, read_routes
from netns.sysctl import Sysctl, forwarding, quiet, write

VANISH_LOOKS, VANISH_INTERVAL_S = 20, 0.01
LOOPBACK = {"lo": 1}  # always: it is the first link of any namespace
DEFAULT: dict[int, Subnet] = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What `connect` makes: `container`'s link `interface` with `address`, and the way there and back."""

    container: str
    interface: str
    address: Address
    gateway: Address
    mtu: int


async def connect(host: Netlink, namespace: int, endpoint: Endpoint) -> None:
    """Connects the network namespace that `namespace` is a descriptor of. A half-made connection is made anew."""
    veth = veth_name(endpoint.container)
    create = CreateVeth(veth, GATEWAY_MAC, endpoint.mtu, endpoint.interface, mac_of(endpoint.address), namespace)
    await disconnect(host, endpoint.container)
    await host.apply([create])
    for sysctl in _node_end(veth):
        write(sysctl)
    sock, index = await run_inside(namespace, lambda: _enter(endpoint.interface))
    async with Netlink(sock, {**LOOPBACK, endpoint.interface: index}.__getitem__) as inside:
        await inside.apply(_inside(endpoint))
    await host.apply(_outside(veth, endpoint))


async def mend_outside(host: Netlink, endpoint: Endpoint) -> list[str]:
    """Puts back what the node's end has lost. Returns what was done, in words. A link that is gone is not made."""
    veth = veth_name(endpoint.container)
    link = await read_link(host, veth)
    if link is None:
        return []
    there: set[object] = {*await read_neighbours(host, veth), *await read_routes(host, veth, NETWORK_PROTOCOL)}
    lost = [operation for operation in _outside(veth, endpoint) if not _is_done(operation, link.up, there)]
    await host.apply(lost)
    return [operation.describe() for operation in lost]


async def disconnect(host: Netlink, container: str) -> None:
    """Undoes `connect`, in part or whole."""
    veth = veth_name(container)
    if link_exists(veth):
        await host.apply([RemoveLink(veth)])


async def vanish(host: Netlink, container: str) -> None:
    """As `disconnect`, for a container that has ended: the link goes with its network namespace, together with those of
    others that ended, while a removal by name takes 20 ms in which nobody else can change a link. Should somebody keep
    the namespace, the link is removed."""
    veth = veth_name(container)
    for _ in range(VANISH_LOOKS):
        if not link_exists(veth):
            return
        await asyncio.sleep(VANISH_INTERVAL_S)
    await disconnect(host, container)


async def loopback_only(namespace: int) -> None:
    async with Netlink(await run_inside(namespace, open_socket), LOOPBACK.__getitem__) as inside:
        await inside.apply([SetUp("lo")])


def _node_end(veth: str) -> tuple[Sysctl, ...]:
    return (
        Sysctl(f"ipv6/conf/{veth}/disable_ipv6", "1"),  # nobody talks to this end itself
        Sysctl(f"ipv4/conf/{veth}/rp_filter", "1"),  # ip-sysctl.rst: strict, RFC 3704
        *forwarding(veth),
    )


def _enter(interface: str) -> tuple[socket.socket, int]:
    """Run inside, in a thread: settings that must hold before the link is up, and what the event loop needs."""
    for sysctl in (*quiet(interface), Sysctl("ipv4/conf/all/accept_redirects", "0")):
        write(sysctl)
    return open_socket(), link_index(interface)


def _inside(endpoint: Endpoint) -> list[Operation]:
    dev = endpoint.interface
    return [
        SetUp("lo"),
        SetUp(dev),
        AddAddress(LinkAddress(dev, endpoint.address)),
        AddNeighbour(Neighbour(dev, endpoint.gateway, GATEWAY_MAC)),
        AddRoute(Route(dev, ip_network(endpoint.gateway))),
        AddRoute(Route(dev, DEFAULT[endpoint.gateway.version], via=endpoint.gateway)),
    ]


def _outside(veth: str, endpoint: Endpoint) -> list[Operation]:
    return [
        SetUp(veth, alias=endpoint.container),
        AddNeighbour(Neighbour(veth, endpoint.address, mac_of(endpoint.address))),
        AddRoute(Route(veth, ip_network(endpoint.address), source=endpoint.gateway)),
    ]


def _is_done(operation: Operation, up: bool, there: set[object]) -> bool:
    match operation:
        case AddNeighbour(neighbour):
            return neighbour in there
        case AddRoute(route):
            return route in there
        case _:
            return up
