"""The node's name server: who may ask what, and the sockets by which they do.

Whoever is on one of the node's networks, or is the node itself, may ask for the cluster's names. Others' names are
asked for on behalf of the node and of networks that lead out of the cluster: what an internal network may not send, it
may not send in the shape of a question either (CVE-2024-29018). Anybody else is refused. Who asks is told by the source
address, which the node's firewall vouches for.

An answer of the cluster's own names is kept as it was sent, for the same question in the same words: most are. All of
them are forgotten with the next change of the names.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from dnslib import RCODE

from model.network import Address
from netns.dns import answer
from netns.dns.answer import Malformed, Query
from netns.dns.forward import Forwarder
from netns.dns.table import Scope
from netns.dns.zone import REVERSE, Zone

MOST_READY, MOST_SOURCES = 10_000, 4096
BURST = 64  # packets, before somebody else gets a turn
MOST_WAITING, MOST_WAITING_OF_ONE = 512, 64  # questions over UDP that are being forwarded; of one source
MOST_CONNECTIONS, MOST_OF_ONE = 128, 16
IDLE_S = 10.0
LENGTH = struct.Struct("!H")
LONGEST_QUESTION = 4096  # octets over UDP
Source = tuple[Any, ...]  # as the kernel says it: host, port, and more of IPv6


@dataclass(slots=True)
class Ready:
    """Answers that differ in their order, each in its turn."""

    wanted: int
    packets: list[bytes] = field(default_factory=list)
    turn: int = 0


class Server:
    def __init__(self, zone: Zone, forwarder: Forwarder) -> None:
        self._zone = zone
        self._forwarder = forwarder
        self._scopes: tuple[Scope, ...] = ()
        self._may: dict[str, bool | None] = {}  # by source: whether it may have others' names; None: nothing
        self._ready: dict[tuple[bool, bytes], Ready] = {}
        self._udp: dict[Address, socket.socket] = {}
        self._tcp: dict[Address, socket.socket] = {}
        self._waiting: set[asyncio.Task[None]] = set()
        self._connected: Counter[str] = Counter()
        self._asking: Counter[str] = Counter()

    @property
    def listening(self) -> tuple[Address, ...]:
        return tuple(self._udp)

    def configure(self, scopes: tuple[Scope, ...]) -> None:
        self._scopes = scopes
        self._may.clear()

    def names_changed(self) -> None:
        self._ready.clear()

    def listen(self, address: Address, udp: socket.socket, tcp: socket.socket) -> None:
        """On sockets that are bound."""
        self.silence(address)
        loop = asyncio.get_running_loop()
        for sock in (udp, tcp):
            sock.setblocking(False)
        self._udp[address], self._tcp[address] = udp, tcp
        loop.add_reader(udp, self._read, udp)
        loop.add_reader(tcp, self._accept, tcp)
        self._forwarder.ourselves = frozenset(self._udp)

    def silence(self, address: Address) -> None:
        loop = asyncio.get_running_loop()
        if address in self._udp:
            self._read(self._udp[address])  # what had come is answered
        for sock in filter(None, (self._udp.pop(address, None), self._tcp.pop(address, None))):
            loop.remove_reader(sock)
            sock.close()
        self._forwarder.ourselves = frozenset(self._udp)

    def _read(self, sock: socket.socket) -> None:
        for _ in range(BURST):
            try:
                packet, source = sock.recvfrom(LONGEST_QUESTION)
            except BlockingIOError:
                return
            except OSError:  # what came back of an answer that nobody took
                continue
            said = self._at_once(packet, source[0], tcp=False)
            if isinstance(said, bytes):
                _send(sock, said, source)
            elif said is not None and self._has_patience(source[0]):
                self._begin(self._forward_udp(sock, source, said))

    def _has_patience(self, source: str) -> bool:
        """What is too much is lost, as any packet may be. Nobody takes the others' share."""
        return len(self._waiting) < MOST_WAITING and self._asking[source] < MOST_WAITING_OF_ONE

    def _at_once(self, packet: bytes, source: str, *, tcp: bool) -> bytes | Query | None:
        """What to say; a Query: others have to be asked first; None: nothing, for it is no question."""
        ready = self._ready.get((tcp, packet[2:]))
        if ready is not None and len(ready.packets) == ready.wanted and self._allowed(source) is not None:
            ready.turn = (ready.turn + 1) % ready.wanted
            return packet[:2] + ready.packets[ready.turn]
        try:
            query = answer.parse(packet)
        except Malformed:
            return None
        return self._decide(query, packet, source, tcp=tcp)

    def _decide(self, query: Query, packet: bytes, source: str, *, tcp: bool) -> bytes | Query:
        allowed = self._allowed(source)
        if allowed is None:
            return answer.pack(query, answer.reply(query, RCODE.REFUSED), tcp=tcp)
        if query.refused:
            return answer.pack(query, answer.reply(query, query.refused), tcp=tcp)
        if self._own(query.name):
            found = answer.local(query, self._zone)
            said = answer.pack(query, found, tcp=tcp)
            self._keep((tcp, packet[2:]), said[2:], answer.variants(found))
            return said
        if not allowed:
            return answer.pack(query, answer.reply(query, RCODE.REFUSED), tcp=tcp)
        known = self._forwarder.known(query)
        return query if known is None else answer.pack(query, known, tcp=tcp)

    def _own(self, name: str) -> bool:
        """The cluster's; also a name without a dot, which nobody else is to hear of, and its own addresses'."""
        if self._zone.owns(name) or "." not in name:
            return True
        return name.endswith(REVERSE) and (self._zone.exists(name) or self._of_ours(name))

    def _of_ours(self, reverse: str) -> bool:
        address = _address_of(reverse)
        return address is not None and any(address in subnet for scope in self._scopes for subnet in scope.subnets)

    def _keep(self, key: tuple[bool, bytes], said: bytes, wanted: int) -> None:
        if len(self._ready) >= MOST_READY:
            self._ready.clear()
        ready = self._ready.setdefault(key, Ready(max(1, wanted)))
        ready.packets.append(said)

    def _allowed(self, source: str) -> bool | None:
        if source not in self._may:
            if len(self._may) >= MOST_SOURCES:
                self._may.clear()
            self._may[source] = self._judge(ip_address(source.partition("%")[0]))
        return self._may[source]

    def _judge(self, source: Address) -> bool | None:
        if source.is_loopback:
            return True
        of = [scope for scope in self._scopes if any(source in subnet for subnet in scope.subnets)]
        return all(scope.forwards for scope in of) if of else None

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def _forward_udp(self, sock: socket.socket, source: Source, query: Query) -> None:
        self._asking[source[0]] += 1
        try:
            found = await self._forwarder.ask(query, tcp=False)
        finally:
            self._asking -= Counter((source[0],))
        _send(sock, answer.pack(query, found, tcp=False), source)

    def _accept(self, sock: socket.socket) -> None:
        try:
            connection, source = sock.accept()
        except OSError:
            return
        connection.setblocking(False)
        if self._connected.total() >= MOST_CONNECTIONS or self._connected[source[0]] >= MOST_OF_ONE:
            connection.close()
            return
        self._begin(self._serve(connection, source[0]))

    async def _serve(self, connection: socket.socket, source: str) -> None:
        """RFC 7766: any number of questions, one after the other."""
        self._connected[source] += 1
        try:
            reader, writer = await asyncio.open_connection(sock=connection)
            with suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                while True:
                    async with asyncio.timeout(IDLE_S):
                        (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
                        packet = await reader.readexactly(length)
                    if (said := await self._answer_tcp(packet, source)) is None:
                        break
                    writer.write(LENGTH.pack(len(said)) + said)
                    async with asyncio.timeout(IDLE_S):
                        await writer.drain()
            writer.close()
        finally:
            self._connected -= Counter((source,))

    async def _answer_tcp(self, packet: bytes, source: str) -> bytes | None:
        said = self._at_once(packet, source, tcp=True)
        if isinstance(said, Query):
            return answer.pack(said, await self._forwarder.ask(said, tcp=True), tcp=True)
        return said


def _send(sock: socket.socket, packet: bytes, source: Source) -> None:
    """One that the kernel does not take is lost, as any may be."""
    with suppress(OSError):
        sock.sendto(packet, source)


def _address_of(reverse: str) -> Address | None:
    """RFC 1035 section 3.5, RFC 3596 section 2.5."""
    labels = reverse.split(".")[:-2][::-1]
    try:
        if reverse.endswith(REVERSE[0]):
            return ip_address(".".join(labels))
        digits = "".join(labels)
        return ip_address(":".join(digits[place : place + 4] for place in range(0, len(digits), 4)))
    except ValueError:
        return None
