"""The two questions and the one request that we have for netfilter beside nftables' own language.

The generation of nftables says whether anybody changed anything since the last look. Who is connected to a container is
known to the node that it runs on, for it looks after all connections. And flows that were led to a
container are led there for as long as they are known, also when it is gone, or the port has become another's: with UDP,
and a client that goes on sending, for ever. So they are forgotten. linux/netfilter/nfnetlink_conntrack.h names the
attributes.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from model.network import Address
from netns.driver import NetworkError

NETLINK_NETFILTER = 12  # linux/netlink.h
NFNL_SUBSYS_CTNETLINK = 1
IPCTNL_MSG_CT_GET, IPCTNL_MSG_CT_DELETE = 1, 2
CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_PROTOINFO, CTA_ID = 1, 2, 4, 12
CTA_TUPLE_IP, CTA_TUPLE_PROTO = 1, 2
FROM, TO = (1, 3), (2, 4)  # CTA_IP_V4_SRC, CTA_IP_V6_SRC; CTA_IP_V4_DST, CTA_IP_V6_DST
CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT = 1, 2, 3
CTA_PROTOINFO_TCP, CTA_PROTOINFO_TCP_STATE = 1, 1
TCP_SYN_SENT, TCP_CLOSE_WAIT = 1, 5  # nf_conntrack_tcp.h: from the first to the last in which something may come
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 1, 4, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLA_TYPE_MASK = 0x3FFF
HEADER = struct.Struct("=IHHII")  # linux/netlink.h: nlmsghdr
GENERIC = struct.Struct("=BBH")  # linux/netfilter/nfnetlink.h: nfgenmsg
NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN, NFTA_GEN_ID = 10, 16, 1
RECEIVED = 1 << 18
DEADLINE_S = 5.0
TCP = frozenset({socket.IPPROTO_TCP})
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


@dataclass(frozen=True, slots=True)
class Flow:
    """What was sent to `to`, and is answered by `by`. `protocol` is IP's number."""

    protocol: int
    to: tuple[Address, int]
    by: tuple[Address, int]


class Netfilter:
    """A netlink socket in the calling thread's network namespace."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        self._socket.settimeout(DEADLINE_S)
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def generation(self) -> int:
        """Counts the transactions of everybody's in nftables."""
        [answer] = self._ask(NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN, socket.AF_UNSPEC, b"", 0)
        return int.from_bytes(_attributes(answer)[NFTA_GEN_ID], "big")

    def forget(self, versions: Iterable[int], protocols: Iterable[int], unwanted: Callable[[Flow], bool]) -> int:
        """Of these versions of IP, and protocols by IP's numbers. Returns how many there were. The kernel looks through
        all flows of all namespaces: 20 ms when there are none. Raises NetworkError, and OSError when it could not
        look."""
        forgotten, wanted = 0, frozenset(protocols)
        for family in map(FAMILIES.__getitem__, versions):
            for entry in self._ask(NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET, family, b"", NLM_F_DUMP):
                attributes = _attributes(entry)
                flow = _flow(attributes, wanted)
                if flow is not None and unwanted(flow):
                    self._delete(family, attributes)
                    forgotten += 1
        return forgotten

    def connected(self) -> Counter[tuple[Address, int]]:
        """How many connections of TCP are open, of both versions of IP, by who answers. Raises OSError."""
        found: Counter[tuple[Address, int]] = Counter()
        for family in FAMILIES.values():
            for entry in self._ask(NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET, family, b"", NLM_F_DUMP):
                attributes = _attributes(entry)
                flow = _flow(attributes, TCP)
                if flow is not None and TCP_SYN_SENT <= _tcp_state(attributes) <= TCP_CLOSE_WAIT:
                    found[flow.by] += 1
        return found

    def _delete(self, family: int, attributes: dict[int, bytes]) -> None:
        payload = b"".join(_attribute(kind, attributes[kind]) for kind in (CTA_TUPLE_ORIG, CTA_ID))
        try:
            self._ask(NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE, family, payload, NLM_F_ACK)
        except OSError as error:
            if error.errno != errno.ENOENT:  # it ended by itself
                raise NetworkError(f"forget a connection: {error.strerror}") from error

    def _ask(self, subsystem: int, verb: int, family: int, payload: bytes, flags: int) -> list[bytes]:
        """The answers' payloads, after nfgenmsg. Raises OSError."""
        self._sequence += 1
        body = GENERIC.pack(family, 0, 0) + payload
        kind = subsystem << 8 | verb
        head = HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST | flags, self._sequence, 0)
        self._socket.send(head + body)
        answers: list[bytes] = []
        while True:
            for kind, sequence, answer in _messages(self._socket.recv(RECEIVED)):
                if sequence != self._sequence:
                    continue  # of a question that was given up
                if kind == NLMSG_DONE or (kind == NLMSG_ERROR and _code(answer) == 0):
                    return answers
                if kind == NLMSG_ERROR:
                    raise OSError(_code(answer), os.strerror(_code(answer)))
                answers.append(answer[GENERIC.size :])
            if not flags:
                return answers


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    while len(data) >= HEADER.size:
        length, kind, _, sequence, _ = HEADER.unpack_from(data)
        yield kind, sequence, data[HEADER.size : length]
        data = data[length + 3 & ~3 :]


def _code(answer: bytes) -> int:
    return -int(struct.unpack_from("=i", answer)[0])


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        found[kind & NLA_TYPE_MASK] = data[4:length]
        data = data[max(length, 4) + 3 & ~3 :]
    return found


def _attribute(kind: int, value: bytes) -> bytes:
    nested = 0x8000 if kind == CTA_TUPLE_ORIG else 0  # NLA_F_NESTED
    return struct.pack("=HH", len(value) + 4, kind | nested) + value + bytes(-len(value) % 4)


def _flow(entry: dict[int, bytes], protocols: frozenset[int]) -> Flow | None:
    """None for another protocol, or one without ports."""
    asked = _attributes(entry[CTA_TUPLE_ORIG])
    asked_at = _attributes(asked[CTA_TUPLE_PROTO])
    if asked_at[CTA_PROTO_NUM][0] not in protocols:
        return None
    answering = _attributes(entry[CTA_TUPLE_REPLY])
    answers_from = _attributes(answering[CTA_TUPLE_PROTO])
    if CTA_PROTO_DST_PORT not in asked_at or CTA_PROTO_SRC_PORT not in answers_from:
        return None
    return Flow(
        asked_at[CTA_PROTO_NUM][0],
        (_address(asked, *TO), int.from_bytes(asked_at[CTA_PROTO_DST_PORT], "big")),
        (_address(answering, *FROM), int.from_bytes(answers_from[CTA_PROTO_SRC_PORT], "big")),
    )


def _tcp_state(entry: dict[int, bytes]) -> int:
    """0: unknown, as is that of one which has just ended."""
    of_tcp = _attributes(_attributes(entry.get(CTA_PROTOINFO, b"")).get(CTA_PROTOINFO_TCP, b""))
    return of_tcp.get(CTA_PROTOINFO_TCP_STATE, b"\0")[0]


def _address(end: dict[int, bytes], four: int, six: int) -> Address:
    addresses = _attributes(end[CTA_TUPLE_IP])
    return ip_address(addresses.get(four) or addresses[six])
