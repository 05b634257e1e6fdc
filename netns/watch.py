"""What became of our links, addresses, routes, neighbours, queues and nftables' tables, as the kernel tells it: whoever
took something of ours away, we hear of it at once.

Two netlink sockets of the namespace are read, without a library: most of what the kernel tells concerns nobody, and a
few bytes of each message say so (linux/rtnetlink.h, linux/netfilter/nfnetlink.h). What concerns us is collected until
it is quiet, so that a hundred deletions are mended once. When the kernel told more than the socket could hold,
everything may have changed.

What this process changed itself is told too. It is left out where the kernel says whose change it was: the port of the
socket, or the thread, that asked for it. Where it does not (links, forwarding entries), looking again finds nothing.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from netns.driver import NetworkError

# linux/rtnetlink.h
RTM_NEWLINK, RTM_DELLINK = 16, 17
RTM_DELADDR = 21
RTM_NEWROUTE, RTM_DELROUTE = 24, 25
RTM_NEWNEIGH, RTM_DELNEIGH = 28, 29
RTM_DELQDISC, RTM_DELTFILTER = 37, 45
# Groups, as bits: LINK, NEIGH, TC, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE
ROUTE_GROUPS = sum(1 << group - 1 for group in (1, 3, 4, 5, 7, 9, 11))
IFLA_IFNAME, RTA_OIF = 3, 4
IFF_UP = 1
NLM_F_REPLACE = 0x100
# linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
NETLINK_NETFILTER = 12
NFTABLES_GROUP = 1 << 7 - 1  # NFNLGRP_NFTABLES
NFNL_SUBSYS_NFTABLES = 10
NFT_MSG_NEWGEN = 15
NFT_REMOVALS = frozenset({2, 5, 8, 11, 14, 20, 24})  # NFT_MSG_DEL: TABLE, CHAIN, RULE, SET, SETELEM, OBJ, FLOWTABLE
NFTA_NAME_OF_TABLE = 1  # whatever the message is about
NFTA_GEN_PROC_PID = 2

HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, seq, pid
LINK = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
INDEX = struct.Struct("=4xi")  # where ifaddrmsg, ndmsg and tcmsg have the link
ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg: family, dst, src, tos, table, protocol, scope, type, flags
ATTRIBUTE = struct.Struct("=HH")
NFGENMSG_BYTES = 4
TYPE_MASK = 0x3FFF  # NLA_TYPE_MASK

SO_RCVBUFFORCE = 33
RECEIVE_BUFFER = 4 << 20  # some thousand changes, of a hundred containers that end at once
RECEIVE_BYTES = 1 << 16
READS_A_TURN = 32  # then others have theirs
QUIET_S, LONGEST_S = 0.1, 0.5


@dataclass(frozen=True, slots=True)
class Touched:
    """Links, and nftables' tables, of which something was removed or changed, by name. `everything`: any may be."""

    links: frozenset[str] = frozenset()
    tables: frozenset[str] = frozenset()
    everything: bool = False

    def link(self, *prefixes: str) -> bool:
        """Whether a link with one of these prefixes may have been touched."""
        return self.everything or any(name.startswith(prefixes) for name in self.links)

    def __or__(self, other: Touched) -> Touched:
        return Touched(self.links | other.links, self.tables | other.tables, self.everything or other.everything)

    def __bool__(self) -> bool:
        return bool(self.links or self.tables or self.everything)


class Watch:
    """Watches the network namespace of the thread that makes it, from then on. `prefixes` are those of our links; of
    links with `steady` ones any change counts, others come and go and count when they go or are down. `protocols` are
    those of our routes, `own` gives the ports of this process's sockets. Use as an asynchronous context manager."""

    def __init__(
        self,
        prefixes: tuple[str, ...],
        steady: tuple[str, ...] = (),
        protocols: Collection[int] = (),
        tables: Collection[str] = (),
        own: Callable[[], Collection[int]] = tuple,
    ) -> None:
        self._prefixes = prefixes + steady
        self._steady = steady
        self._protocols = frozenset(protocols)
        self._tables = frozenset(tables)
        self._own = own
        self._sockets = {
            _open(socket.NETLINK_ROUTE, ROUTE_GROUPS): self._take_route,
            _open(NETLINK_NETFILTER, NFTABLES_GROUP): self._take_table,
        }
        self._names: dict[int, str] = {}
        self._transaction: set[str] = set()  # tables from which the transaction that is being told removed something
        self._pending = Touched()
        self._heard = asyncio.Event()
        self.messages = 0  # that were looked at

    async def __aenter__(self) -> Self:
        self._names = dict(socket.if_nameindex())
        for sock, take in self._sockets.items():
            asyncio.get_running_loop().add_reader(sock, self._read, sock, take)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sock in self._sockets:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()

    async def touched(self) -> Touched:
        """Waits for the next change and what comes with it: until nothing more of ours came for QUIET_S, LONGEST_S at
        most."""
        if not self._pending:  # else an earlier wait for it was given up
            await self._heard.wait()
        loop = asyncio.get_running_loop()
        end = loop.time() + LONGEST_S
        while loop.time() < end:
            self._heard.clear()
            try:
                async with asyncio.timeout_at(min(end, loop.time() + QUIET_S)):
                    await self._heard.wait()
            except TimeoutError:
                break
        self._heard.clear()
        touched, self._pending = self._pending, Touched()
        return touched

    def _read(self, sock: socket.socket, take: Callable[[int, int, int, memoryview], None]) -> None:
        for _ in range(READS_A_TURN):
            try:
                packet = sock.recv(RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._names = dict(socket.if_nameindex())
                self._tell(Touched(everything=True))
                return
            for kind, flags, port, body in _messages(memoryview(packet)):
                self.messages += 1
                take(kind, flags, port, body)

    def _tell(self, touched: Touched) -> None:
        self._pending |= touched
        self._heard.set()

    def _tell_link(self, name: str) -> None:
        if name not in self._pending.links:
            self._pending |= Touched(frozenset({name}))
        self._heard.set()

    def _take_route(self, kind: int, flags: int, port: int, body: memoryview) -> None:
        if kind in (RTM_NEWLINK, RTM_DELLINK):
            self._take_link(kind, port, body)
        elif kind in (RTM_DELADDR, RTM_NEWNEIGH, RTM_DELNEIGH, RTM_DELQDISC, RTM_DELTFILTER):
            self._take_entry(port, INDEX.unpack_from(body)[0])
        elif kind == RTM_DELROUTE or (kind == RTM_NEWROUTE and flags & NLM_F_REPLACE):
            index = _attribute(body[ROUTE.size :], RTA_OIF)
            if index is not None:
                self._take_entry(port, struct.unpack("=i", index)[0])
            elif ROUTE.unpack_from(body)[5] in self._protocols:
                self._tell(Touched(everything=True))

    def _take_link(self, kind: int, port: int, body: memoryview) -> None:
        family, _, index, flags, _ = LINK.unpack_from(body)
        if family == socket.AF_BRIDGE:  # about a bridge's port, which stays a link
            return
        text = _attribute(body[LINK.size :], IFLA_IFNAME)
        name = bytes(text).rstrip(b"\0").decode(errors="replace") if text is not None else ""
        before = self._names.get(index)
        if kind == RTM_DELLINK:
            self._names.pop(index, None)
        else:
            self._names[index] = name
        if before is not None and before != name and before.startswith(self._prefixes):
            self._tell_link(before)  # it was renamed
        changed = kind == RTM_DELLINK or not flags & IFF_UP or name.startswith(self._steady)
        if changed and name.startswith(self._prefixes) and port not in self._own():
            self._tell_link(name)

    def _take_entry(self, port: int, index: int) -> None:
        name = self._names.get(index, "")
        if name.startswith(self._prefixes) and port not in self._own():
            self._tell_link(name)

    def _take_table(self, kind: int, flags: int, port: int, body: memoryview) -> None:
        """The message about a generation ends a transaction, and says who made it."""
        if kind >> 8 != NFNL_SUBSYS_NFTABLES:
            return
        attributes = body[NFGENMSG_BYTES:]
        if kind & 0xFF in NFT_REMOVALS:
            name = _attribute(attributes, NFTA_NAME_OF_TABLE)
            self._transaction.add(bytes(name or b"").rstrip(b"\0").decode(errors="replace"))
        elif kind & 0xFF == NFT_MSG_NEWGEN:
            ours, self._transaction = self._transaction & self._tables, set()
            process = _attribute(attributes, NFTA_GEN_PROC_PID)
            if ours and not (process is not None and _is_own_thread(struct.unpack("!I", process)[0])):
                self._tell(Touched(tables=frozenset(ours)))


def _open(protocol: int, groups: int) -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        sock.bind((0, groups))
    except OSError as error:
        sock.close()
        raise NetworkError(f"watch for changes of links and tables: {error.strerror}") from error
    return sock


def _messages(packet: memoryview) -> Iterator[tuple[int, int, int, memoryview]]:
    """Type, flags, port of who asked for the change, and body of each. They begin at multiples of four bytes."""
    position = 0
    while position + HEADER.size <= len(packet):
        length, kind, flags, _, port = HEADER.unpack_from(packet, position)
        yield kind, flags, port, packet[position + HEADER.size : position + length]
        position += max(length, HEADER.size) + 3 & ~3


def _attribute(attributes: memoryview, wanted: int) -> memoryview | None:
    position = 0
    while position + ATTRIBUTE.size <= len(attributes):
        length, kind = ATTRIBUTE.unpack_from(attributes, position)
        if kind & TYPE_MASK == wanted:
            return attributes[position + ATTRIBUTE.size : position + length]
        position += max(length, ATTRIBUTE.size) + 3 & ~3
    return None


def _is_own_thread(number: int) -> bool:
    return Path(f"/proc/{os.getpid()}/task/{number}").exists()
