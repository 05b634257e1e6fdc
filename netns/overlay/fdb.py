"""The forwarding database of a VXLAN device: behind which underlay address the VTEP with a MAC address is (RFC 7348
section 4.2).
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from ipaddress import ip_address
from typing import ClassVar

from pyroute2.netlink.rtnl.ndmsg import ndmsg

from model.network import Address
from netns.neighbour import NUD_PERMANENT, RTM_DELNEIGH, RTM_GETNEIGH, RTM_NEWNEIGH
from netns.netlink import NLM_F_CREATE, NLM_F_REPLACE, IndexOf, Message, Netlink, Operation, dump, request

# linux/neighbour.h
NTF_SELF = 0x02


@dataclass(frozen=True, slots=True)
class FdbEntry:
    """The VTEP with `mac` is at `underlay`, as VXLAN device `dev` has it."""

    dev: str
    mac: str
    underlay: Address

    @property
    def key(self) -> object:
        return (self.dev, self.mac)

    def describe(self) -> str:
        return f"{self.mac} at {self.underlay} dev {self.dev}"


async def read_fdb(netlink: Netlink, dev: str) -> frozenset[FdbEntry]:
    """The entries of a VXLAN device."""
    question = ndmsg()
    question["family"] = socket.AF_BRIDGE
    question["ifindex"] = netlink.index_of(dev)
    answer = await netlink.read(dump(question, RTM_GETNEIGH), f"forwarding database of {dev}")
    return frozenset(
        FdbEntry(dev, message.get_attr("NDA_LLADDR"), ip_address(message.get_attr("NDA_DST")))
        for message in answer
        if message["flags"] & NTF_SELF and message.get_attr("NDA_DST")
    )


@dataclass(frozen=True, slots=True)
class AddFdb(Operation):
    entry: FdbEntry

    def describe(self) -> str:
        return f"add forwarding entry {self.entry.describe()}"

    def message(self, index_of: IndexOf) -> Message:
        message = _message(self.entry, index_of)
        message["state"] = NUD_PERMANENT
        return request(message, RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE)


@dataclass(frozen=True, slots=True)
class RemoveFdb(Operation):
    entry: FdbEntry
    tolerates: ClassVar[frozenset[int]] = frozenset({errno.ENOENT, errno.ENODEV})

    def describe(self) -> str:
        return f"remove forwarding entry {self.entry.describe()}"

    def message(self, index_of: IndexOf) -> Message:
        return request(_message(self.entry, index_of), RTM_DELNEIGH, 0)


def _message(entry: FdbEntry, index_of: IndexOf) -> Message:
    message = ndmsg()
    message["family"] = socket.AF_BRIDGE
    message["ifindex"] = index_of(entry.dev)
    message["flags"] = NTF_SELF
    message["attrs"] = [("NDA_LLADDR", entry.mac), ("NDA_DST", str(entry.underlay))]
    return message
