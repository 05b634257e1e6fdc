"""What went through the node's links: all of them in one dump (RTM_GETSTATS, linux/if_link.h), read without a library.

pyroute2 would decode some hundred attributes of each link to get at these eight numbers, once a second.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from netns.driver import NetworkError

# linux/rtnetlink.h, linux/netlink.h, linux/if_link.h
RTM_GETSTATS, RTM_NEWSTATS = 94, 92
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
IFLA_STATS_LINK_64 = 1
HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
QUESTION = struct.Struct("=BxxxII")  # struct if_stats_msg: family, link, which statistics
ATTRIBUTE = struct.Struct("=HH")  # struct rtattr
# The first of struct rtnl_link_stats64: packets, bytes, errors, dropped; received and sent of each.
COUNTS = struct.Struct("=8Q")
RECEIVE_BYTES = 1 << 16
DEADLINE_S = 5.0


@dataclass(frozen=True, slots=True)
class Traffic:
    """As the node sees it: what it received from a container's link is what the container sent."""

    received_packets: int
    sent_packets: int
    received_bytes: int
    sent_bytes: int
    received_dropped: int
    sent_dropped: int


def read_traffic() -> dict[str, Traffic]:
    """By name, of every link in the network namespace of the calling thread. Raises NetworkError."""
    try:
        by_index = dict(_dump())
        return {name: by_index[index] for index, name in socket.if_nameindex() if index in by_index}
    except OSError as error:
        raise NetworkError(f"read statistics of links: {error}") from error


def _dump() -> Iterator[tuple[int, Traffic]]:
    question = QUESTION.pack(socket.AF_UNSPEC, 0, 1 << IFLA_STATS_LINK_64 - 1)
    header = HEADER.pack(HEADER.size + len(question), RTM_GETSTATS, NLM_F_REQUEST | NLM_F_DUMP, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.settimeout(DEADLINE_S)
        netlink.bind((0, 0))
        netlink.send(header + question)
        done = False
        while not done:
            for kind, body in _messages(netlink.recv(RECEIVE_BYTES)):
                if kind == NLMSG_ERROR:
                    (number,) = struct.unpack_from("=i", body)
                    raise OSError(-number, os.strerror(-number))
                if kind == RTM_NEWSTATS:
                    yield QUESTION.unpack_from(body)[1], _traffic(body[QUESTION.size + ATTRIBUTE.size :])
                done = done or kind == NLMSG_DONE


def _messages(packet: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and body of each. They begin at multiples of four bytes."""
    position = 0
    while position < len(packet):
        length, kind, *_ = HEADER.unpack_from(packet, position)
        yield kind, packet[position + HEADER.size : position + length]
        position += length + 3 & ~3


def _traffic(statistics: bytes) -> Traffic:
    """The only attribute that was asked for."""
    packets_in, packets_out, bytes_in, bytes_out, _, _, dropped_in, dropped_out = COUNTS.unpack_from(statistics)
    return Traffic(packets_in, packets_out, bytes_in, bytes_out, dropped_in, dropped_out)
