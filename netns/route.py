"""Routes: which of ours a link has, and adding and removing one.

Ours bear a protocol number of their own (`ip route show proto 84`), so that none of anybody else's is ever taken for
one. Routes to virtual addresses bear another (85), because they have another owner and come and go separately.
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import ClassVar

from pyroute2.netlink.rtnl.rtmsg import rtmsg

from model.network import Address, Subnet
from netns.address import family
from netns.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    IndexOf,
    Message,
    Netlink,
    Operation,
    dump,
    link_names,
    request,
)

# linux/rtnetlink.h; RTPROT_ numbers above RTPROT_STATIC are not interpreted by the kernel
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RT_TABLE_MAIN = 254
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 0, 253
RTN_UNICAST = 1
RTNH_F_ONLINK = 4
NETWORK_PROTOCOL, VIP_PROTOCOL = 84, 85
OURS = (NETWORK_PROTOCOL, VIP_PROTOCOL)
PROTOCOL_AT = 16 + 5  # of a message: after struct nlmsghdr, within struct rtmsg


@dataclass(frozen=True, slots=True)
class Route:
    """Without `via`, `destination` is directly behind `dev`. With it, `via` is taken to be behind `dev`, whatever the
    routing table says (onlink). `source` is what the node itself uses towards it."""

    dev: str
    destination: Subnet
    via: Address | None = None
    source: Address | None = None
    protocol: int = NETWORK_PROTOCOL
    table: int = RT_TABLE_MAIN

    @property
    def key(self) -> object:
        return (self.dev, self.destination, self.table)

    def describe(self) -> str:
        return f"{self.destination} {f'via {self.via} ' if self.via else ''}dev {self.dev}"


async def read_routes(netlink: Netlink, dev: str | None, protocol: int) -> frozenset[Route]:
    """The routes through `dev`, or through any link, that bear `protocol`."""
    question = rtmsg()
    question["family"] = socket.AF_UNSPEC
    question["table"] = RT_TABLE_MAIN
    question["proto"] = protocol
    if dev is not None:
        question["attrs"] = [("RTA_OIF", netlink.index_of(dev))]
    answer = await netlink.read(dump(question, RTM_GETROUTE), f"routes of {dev or 'all links'}")
    names = link_names()
    return frozenset(_route(names[oif], message) for message in answer if (oif := message.get_attr("RTA_OIF")) in names)


async def read_foreign_routes(netlink: Netlink) -> frozenset[Route]:
    """The routes of the node that are not ours, but for default routes: what it takes to be reached elsewhere."""
    question = rtmsg()
    question["family"] = socket.AF_UNSPEC
    question["table"] = RT_TABLE_MAIN
    # Of ours there may be thousands, so they are left out before they are decoded.
    answer = await netlink.read(dump(question, RTM_GETROUTE), "routes", lambda part: part[PROTOCOL_AT] not in OURS)
    names = link_names()
    found = (_route(names[oif], message) for message in answer if (oif := message.get_attr("RTA_OIF")) in names)
    return frozenset(route for route in found if route.destination.prefixlen and not _of_the_link(route.destination))


@dataclass(frozen=True, slots=True)
class AddRoute(Operation):
    """`replace` when ours to the same destination is there; else somebody's route to it is an error, not a prey."""

    route: Route
    replace: bool = False

    def describe(self) -> str:
        return f"add route {self.route.describe()}"

    def message(self, index_of: IndexOf) -> Message:
        flags = NLM_F_CREATE | (NLM_F_REPLACE if self.replace else NLM_F_EXCL)
        return request(_message(self.route, index_of), RTM_NEWROUTE, flags)


@dataclass(frozen=True, slots=True)
class RemoveRoute(Operation):
    route: Route
    tolerates: ClassVar[frozenset[int]] = frozenset({errno.ESRCH, errno.ENODEV})

    def describe(self) -> str:
        return f"remove route {self.route.describe()}"

    def message(self, index_of: IndexOf) -> Message:
        return request(_message(self.route, index_of), RTM_DELROUTE, 0)


def _of_the_link(subnet: Subnet) -> bool:
    """Link-local and multicast: every link may have routes to them."""
    return subnet.is_link_local or subnet.is_multicast


def _message(route: Route, index_of: IndexOf) -> Message:
    message = rtmsg()
    message["family"] = family(route.destination.network_address)
    message["dst_len"] = route.destination.prefixlen
    message["table"] = route.table
    message["proto"] = route.protocol
    message["type"] = RTN_UNICAST
    universe = route.via or route.destination.version == 6  # IPv6 knows no other
    message["scope"] = RT_SCOPE_UNIVERSE if universe else RT_SCOPE_LINK
    message["flags"] = RTNH_F_ONLINK if route.via else 0
    attributes: list[tuple[str, object]] = [("RTA_OIF", index_of(route.dev))]
    if route.destination.prefixlen:
        attributes.append(("RTA_DST", str(route.destination.network_address)))
    if route.via:
        attributes.append(("RTA_GATEWAY", str(route.via)))
    if route.source:
        attributes.append(("RTA_PREFSRC", str(route.source)))
    message["attrs"] = attributes
    return message


def _route(dev: str, message: Message) -> Route:
    destination = message.get_attr("RTA_DST") or ("0.0.0.0" if message["family"] == socket.AF_INET else "::")
    via, source = message.get_attr("RTA_GATEWAY"), message.get_attr("RTA_PREFSRC")
    return Route(
        dev,
        ip_network(f"{destination}/{message['dst_len']}"),
        ip_address(via) if via else None,
        ip_address(source) if source else None,
        message["proto"],
    )
