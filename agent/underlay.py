"""Which of a node's addresses is its own among nodes: packets of overlays come to it and leave with it."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

from model.network import Address, Subnet
from netns.address import addresses_within
from netns.driver import NetworkError
from netns.netlink import Netlink


class NoUnderlay(Exception):
    """It can not be told. The text says what to set."""


async def underlay_address(wanted: Address | Subnet | None, master: str) -> Address:
    """`wanted`, or the one in that subnet, or the one that leads to `master` (host:port). Raises NoUnderlay."""
    if isinstance(wanted, IPv4Address | IPv6Address):
        return wanted
    return _towards(master) if wanted is None else await _within(wanted)


async def _within(subnet: Subnet) -> Address:
    try:
        async with Netlink() as netlink:
            found = await addresses_within(netlink, subnet)
    except NetworkError as error:
        raise NoUnderlay(f"address: {error}") from error
    if not found:
        raise NoUnderlay(f"address: this node has none in {subnet}")
    if len(found) > 1:
        raise NoUnderlay(f"address: this node has several in {subnet}: {', '.join(map(str, found))}: set one of them")
    return found[0]


def _towards(master: str) -> Address:
    try:
        address = source_address(master)
    except OSError as error:
        raise NoUnderlay(f"no route to the master {master}: {error.strerror}: set address = ...") from error
    if address.is_loopback:
        raise NoUnderlay(
            f"the master {master} is on this node, and no other node can reach {address}: set address to this node's"
            " address, or to a subnet that it is in"
        )
    return address


def source_address(master: str) -> Address:
    """The address of this node that leads to `master`. Connecting a datagram socket sends nothing."""
    host, _, port = master.rpartition(":")
    family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)
        return ip_address(str(probe.getsockname()[0]).partition("%")[0])
