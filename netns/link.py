"""Links (bridge, vxlan, veth): what one is, how it is read, made, changed and removed.

A `Link` is both what the node should have and what it has, so that the two can be compared. Names are at most 15 bytes
and deterministic: whoever knows the container or the network knows the link, also after a restart.
"""

from __future__ import annotations

import errno
import hashlib
import socket
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, ClassVar

from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from model.network import VXLAN_PORT, Address
from netns.netlink import NLM_F_CREATE, NLM_F_EXCL, IndexOf, Message, Netlink, Operation, request

VETH_PREFIX, GATEWAY_PREFIX, VXLAN_PREFIX = "tv", "tg", "tx"
# What a container's links may be called: as many as it can have. Whoever knows the container knows them all.
INTERFACES = tuple(f"eth{number}" for number in range(8))

# linux/rtnetlink.h, linux/if.h
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
IFF_UP = 1


@dataclass(frozen=True, slots=True)
class Link:
    """A bridge, or with `vni` and `local` a VXLAN device. `kind` is the kernel's word for it."""

    name: str
    kind: str
    mac: str
    mtu: int
    up: bool = True
    vni: int | None = None
    local: Address | None = None
    port: int | None = None

    @property
    def fixed(self) -> tuple[object, ...]:
        """What can only be changed by making the link anew."""
        return (self.kind, self.vni, self.local, self.port)


def veth_name(container: str, interface: str = "eth0") -> str:
    """The node's end of a container's veth pair. 52 bits of the hash, so that two containers never meet in practice."""
    whose = container if interface == "eth0" else f"{container}\0{interface}"
    return VETH_PREFIX + hashlib.sha256(whose.encode()).hexdigest()[:13]


def veth_names(container: str) -> frozenset[str]:
    """Of all links that the container may have."""
    return frozenset(veth_name(container, interface) for interface in INTERFACES)


def gateway_name(network: str) -> str:
    """The link that has the gateway's address: a bridge without ports."""
    return GATEWAY_PREFIX + hashlib.sha256(network.encode()).hexdigest()[:10]


def vxlan_name(vni: int) -> str:
    return f"{VXLAN_PREFIX}{vni}"


def vxlan(vni: int, local: Address, mac: str, mtu: int) -> Link:
    return Link(vxlan_name(vni), "vxlan", mac, mtu, vni=vni, local=local, port=VXLAN_PORT)


async def read_link(netlink: Netlink, name: str) -> Link | None:
    question = ifinfmsg()
    question["attrs"] = [("IFLA_IFNAME", name)]
    answer = await netlink.read(request(question, RTM_GETLINK, 0), f"link {name}")
    return _link(answer[0]) if answer else None


def read_names(prefix: str) -> frozenset[str]:
    """The names of all links of this network namespace that begin with `prefix`. Not by a dump, which has all about
    each of them: for a hundred that takes a quarter of a second to read."""
    return frozenset(name for _, name in socket.if_nameindex() if name.startswith(prefix))


@dataclass(frozen=True, slots=True)
class CreateLink(Operation):
    """Makes it, down: settings that must hold from its first packet come before `SetUp`."""

    link: Link

    def describe(self) -> str:
        return f"create {self.link.kind} {self.link.name}"

    def message(self, index_of: IndexOf) -> Message:
        message = ifinfmsg()
        message["attrs"] = [
            ("IFLA_IFNAME", self.link.name),
            ("IFLA_ADDRESS", self.link.mac),
            ("IFLA_LINKINFO", _info(self.link.kind, _vxlan_data(self.link) if self.link.kind == "vxlan" else [])),
        ]
        return request(message, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL)


@dataclass(frozen=True, slots=True)
class CreateVeth(Operation):
    """Makes a pair, down: `name` here, `peer` in the network namespace that `netns_fd` is a descriptor of."""

    name: str
    mac: str
    mtu: int
    peer: str
    peer_mac: str
    netns_fd: int

    def describe(self) -> str:
        return f"create veth {self.name} to {self.peer}"

    def message(self, index_of: IndexOf) -> Message:
        peer = [
            ("IFLA_IFNAME", self.peer),
            ("IFLA_ADDRESS", self.peer_mac),
            ("IFLA_MTU", self.mtu),
            ("IFLA_NET_NS_FD", self.netns_fd),
        ]
        message = ifinfmsg()
        message["attrs"] = [
            ("IFLA_IFNAME", self.name),
            ("IFLA_ADDRESS", self.mac),
            ("IFLA_MTU", self.mtu),
            ("IFLA_LINKINFO", _info("veth", [("VETH_INFO_PEER", {"attrs": peer})])),
        ]
        return request(message, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL)


@dataclass(frozen=True, slots=True)
class SetLink(Operation):
    """Changes what can be changed in place: the MAC address and the MTU."""

    link: Link

    def describe(self) -> str:
        return f"set {self.link.name} address {self.link.mac} mtu {self.link.mtu}"

    def message(self, index_of: IndexOf) -> Message:
        message = ifinfmsg()
        message["attrs"] = [
            ("IFLA_IFNAME", self.link.name),
            ("IFLA_ADDRESS", self.link.mac),
            ("IFLA_MTU", self.link.mtu),
        ]
        return request(message, RTM_NEWLINK, 0)


@dataclass(frozen=True, slots=True)
class SetUp(Operation):
    """`alias` is for people: `ip link` shows it."""

    name: str
    alias: str = ""

    def describe(self) -> str:
        return f"set {self.name} up"

    def message(self, index_of: IndexOf) -> Message:
        message = ifinfmsg()
        message["attrs"] = [("IFLA_IFNAME", self.name), *([("IFLA_IFALIAS", self.alias)] if self.alias else [])]
        message["flags"] = message["change"] = IFF_UP
        return request(message, RTM_NEWLINK, 0)


@dataclass(frozen=True, slots=True)
class SetDown(Operation):
    """Takes the link's routes and neighbours with it, and nothing passes it any more. A hundredth of the time that it
    takes the kernel to remove it."""

    name: str
    tolerates: ClassVar[frozenset[int]] = frozenset({errno.ENODEV})

    def describe(self) -> str:
        return f"set {self.name} down"

    def message(self, index_of: IndexOf) -> Message:
        message = ifinfmsg()
        message["attrs"] = [("IFLA_IFNAME", self.name)]
        message["flags"], message["change"] = 0, IFF_UP
        return request(message, RTM_NEWLINK, 0)


@dataclass(frozen=True, slots=True)
class RemoveLink(Operation):
    """Takes its addresses, routes, neighbours and forwarding entries along."""

    name: str
    tolerates: ClassVar[frozenset[int]] = frozenset({errno.ENODEV})
    slow: ClassVar[bool] = True

    def describe(self) -> str:
        return f"remove link {self.name}"

    def message(self, index_of: IndexOf) -> Message:
        message = ifinfmsg()
        message["attrs"] = [("IFLA_IFNAME", self.name)]
        return request(message, RTM_DELLINK, 0)


def _link(message: Message) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    kind = (info.get_attr("IFLA_INFO_KIND") if info else None) or ""
    link = Link(
        name=message.get_attr("IFLA_IFNAME"),
        kind=kind,
        mac=message.get_attr("IFLA_ADDRESS"),
        mtu=message.get_attr("IFLA_MTU"),
        up=bool(message["flags"] & IFF_UP),
    )
    return _with_vxlan(link, info.get_attr("IFLA_INFO_DATA")) if kind == "vxlan" else link


def _with_vxlan(link: Link, data: Message) -> Link:
    local = data.get_attr("IFLA_VXLAN_LOCAL") or data.get_attr("IFLA_VXLAN_LOCAL6")
    return Link(
        link.name,
        link.kind,
        link.mac,
        link.mtu,
        link.up,
        vni=data.get_attr("IFLA_VXLAN_ID"),
        local=ip_address(local) if local else None,
        port=data.get_attr("IFLA_VXLAN_PORT"),
    )


def _info(kind: str, data: list[tuple[str, Any]]) -> dict[str, Any]:
    attributes: list[tuple[str, Any]] = [("IFLA_INFO_KIND", kind)]
    return {"attrs": attributes + ([("IFLA_INFO_DATA", {"attrs": data})] if data else [])}


def _vxlan_data(link: Link) -> list[tuple[str, Any]]:
    assert link.local is not None
    return [
        ("IFLA_VXLAN_ID", link.vni),
        ("IFLA_VXLAN_LOCAL" if link.local.version == 4 else "IFLA_VXLAN_LOCAL6", str(link.local)),
        ("IFLA_VXLAN_PORT", link.port),
        # Every MAC address is known beforehand; what comes in must not be able to move one.
        ("IFLA_VXLAN_LEARNING", 0),
    ]
