"""Neighbours: which MAC address an IP address behind a link has. Ours are permanent, so nothing is ever asked (ARP,
neighbour discovery) and no answer of a container is ever believed.
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from ipaddress import ip_address
from typing import ClassVar

from pyroute2.netlink.rtnl.ndmsg import ndmsg

from model.network import Address
from netns.address import family
from netns.netlink import NLM_F_CREATE, NLM_F_REPLACE, IndexOf, Message, Netlink, Operation, dump, link_names, request

# linux/rtnetlink.h, linux/neighbour.h
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
NUD_PERMANENT = 0x80


@dataclass(frozen=True, slots=True)
class Neighbour:
    dev: str
    address: Address
    mac: str

    @property
    def key(self) -> object:
        return (self.dev, self.address)


def mac_of(address: Address) -> str:
    """The MAC address that whoever has `address` has: locally administered, and unique where addresses are."""
    return (b"\x02\x74" + address.packed[-4:]).hex(":")


async def read_neighbours(netlink: Netlink, dev: str | None = None) -> frozenset[Neighbour]:
    """The permanent neighbours behind a link, or behind any. What the kernel knows by itself (multicast) is not."""
    question = ndmsg()
    question["family"] = socket.AF_UNSPEC
    if dev is not None:
        question["attrs"] = [("NDA_IFINDEX", netlink.index_of(dev))]
    answer = await netlink.read(dump(question, RTM_GETNEIGH), f"neighbours of {dev or 'all links'}")
    names = link_names()
    return frozenset(
        Neighbour(names[message["ifindex"]], ip_address(message.get_attr("NDA_DST")), message.get_attr("NDA_LLADDR"))
        for message in answer
        if message["state"] & NUD_PERMANENT and message["ifindex"] in names
    )


@dataclass(frozen=True, slots=True)
class AddNeighbour(Operation):
    neighbour: Neighbour

    def describe(self) -> str:
        return f"add neighbour {self.neighbour.address} {self.neighbour.mac} to {self.neighbour.dev}"

    def message(self, index_of: IndexOf) -> Message:
        message = _message(self.neighbour, index_of)
        message["state"] = NUD_PERMANENT
        message["attrs"] = [("NDA_DST", str(self.neighbour.address)), ("NDA_LLADDR", self.neighbour.mac)]
        return request(message, RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE)


@dataclass(frozen=True, slots=True)
class RemoveNeighbour(Operation):
    neighbour: Neighbour
    tolerates: ClassVar[frozenset[int]] = frozenset({errno.ENOENT, errno.ENODEV})

    def describe(self) -> str:
        return f"remove neighbour {self.neighbour.address} from {self.neighbour.dev}"

    def message(self, index_of: IndexOf) -> Message:
        message = _message(self.neighbour, index_of)
        message["attrs"] = [("NDA_DST", str(self.neighbour.address))]
        return request(message, RTM_DELNEIGH, 0)


def _message(neighbour: Neighbour, index_of: IndexOf) -> Message:
    message = ndmsg()
    message["family"] = family(neighbour.address)
    message["ifindex"] = index_of(neighbour.dev)
    return message
