"""Addresses of links: which a link has, and giving and taking one."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from ipaddress import ip_address
from typing import ClassVar

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg

from model.network import Address, Subnet
from netns.netlink import NLM_F_CREATE, NLM_F_REPLACE, IndexOf, Message, Netlink, Operation, dump, request

# linux/rtnetlink.h
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
# linux/if_addr.h: usable at once, instead of after a second in which nobody said that it has it too (RFC 4862)
IFA_F_NODAD = 0x02


@dataclass(frozen=True, slots=True)
class LinkAddress:
    """One address of a link, always a single one (/32, /128): what is behind the link is said by routes."""

    dev: str
    address: Address


def family(address: Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


async def read_addresses(netlink: Netlink, dev: str) -> frozenset[LinkAddress]:
    """The addresses of a link, but for the one that IPv6 gives to every link."""
    question = ifaddrmsg()
    question["family"] = socket.AF_UNSPEC
    question["index"] = netlink.index_of(dev)
    answer = await netlink.read(dump(question, RTM_GETADDR), f"addresses of {dev}")
    # An address of IPv6 has no IFA_LOCAL when it has no peer.
    found = (ip_address(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")) for message in answer)
    return frozenset(LinkAddress(dev, address) for address in found if not address.is_link_local)


async def link_with(netlink: Netlink, address: Address) -> int | None:
    """The index of the link that has `address`; None when no link of this namespace has."""
    question = ifaddrmsg()
    question["family"] = family(address)
    wanted = str(address)
    for message in await netlink.read(dump(question, RTM_GETADDR), "addresses"):
        if wanted in (message.get_attr("IFA_LOCAL"), message.get_attr("IFA_ADDRESS")):
            return int(message["index"])
    return None


async def addresses_within(netlink: Netlink, subnet: Subnet) -> tuple[Address, ...]:
    """Of any link of this namespace, in order, those that are in `subnet`."""
    question = ifaddrmsg()
    question["family"] = family(subnet.network_address)
    answer = await netlink.read(dump(question, RTM_GETADDR), "addresses")
    found = {ip_address(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")) for message in answer}
    return tuple(sorted((address for address in found if address in subnet), key=int))


@dataclass(frozen=True, slots=True)
class AddAddress(Operation):
    address: LinkAddress

    def describe(self) -> str:
        return f"add address {self.address.address} to {self.address.dev}"

    def message(self, index_of: IndexOf) -> Message:
        return request(_message(self.address, index_of), RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE)


@dataclass(frozen=True, slots=True)
class RemoveAddress(Operation):
    address: LinkAddress
    tolerates: ClassVar[frozenset[int]] = frozenset({errno.EADDRNOTAVAIL, errno.ENODEV})

    def describe(self) -> str:
        return f"remove address {self.address.address} from {self.address.dev}"

    def message(self, index_of: IndexOf) -> Message:
        return request(_message(self.address, index_of), RTM_DELADDR, 0)


def _message(address: LinkAddress, index_of: IndexOf) -> Message:
    message = ifaddrmsg()
    message["family"] = family(address.address)
    message["index"] = index_of(address.dev)
    message["prefixlen"] = address.address.max_prefixlen
    message["flags"] = IFA_F_NODAD if address.address.version == 6 else 0
    message["attrs"] = [("IFA_LOCAL", str(address.address)), ("IFA_ADDRESS", str(address.address))]
    return message
