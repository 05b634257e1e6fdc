"""The link that has the node's address among nodes: what the overlay is sent through, and what leads outside."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from model.network import Address
from netns.address import link_with
from netns.driver import NetworkError
from netns.link import read_link
from netns.netlink import Netlink

MAX_MTU = 65535  # of a veth; lo has more


@dataclass(frozen=True, slots=True)
class Underlay:
    name: str
    mtu: int


async def read_underlay(netlink: Netlink, address: Address) -> Underlay:
    """Raises NetworkError when no link has `address`."""
    index = await link_with(netlink, address)
    if index is None:
        raise NetworkError(f"no link of this node has the underlay address {address}")
    link = await read_link(netlink, socket.if_indextoname(index))
    if link is None:
        raise NetworkError(f"the link with the underlay address {address} is gone")
    return Underlay(link.name, min(link.mtu, MAX_MTU))
