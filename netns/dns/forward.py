"""Questions about names that are not the cluster's: asked of the node's own name servers.

Each goes out with an id and from a port that nobody can guess, and only an answer to it, from whom was asked, is taken
(RFC 5452). A server that does not answer, or can not, makes place for the next; the one that did is asked first the
next time. One question at a time is asked once, whoever asks it meanwhile.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import struct
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from pathlib import Path

from dnslib import EDNS0, RCODE, DNSError, DNSHeader, DNSQuestion, DNSRecord

from model.network import Address
from netns.dns.answer import TCP_MOST, UDP_MOST, Query, reply
from netns.dns.cache import Cache, Key, aged

PORT = 53
RESOLV_CONF = Path("/etc/resolv.conf")
MOST_SERVERS = 3  # as resolv.conf(5)
TRY_S, DEADLINE_S = 1.0, 4.0  # who asked us waits for 5 s, as a rule
MOST_ASKED = 256  # questions at a time
UNABLE = (RCODE.SERVFAIL, RCODE.REFUSED, RCODE.NOTIMP)
LENGTH = struct.Struct("!H")


class Forwarder:
    def __init__(self, servers: Sequence[Address] = (), resolv_conf: Path = RESOLV_CONF, port: int = PORT) -> None:
        """Without `servers` they are those of `resolv_conf`, as it is when a question comes."""
        self._given = tuple(servers)
        self._resolv_conf = resolv_conf
        self._port = port
        self._read: tuple[float, tuple[Address, ...]] = (-1.0, ())
        self._last: Address | None = None  # that answered
        self._cache = Cache()
        self._asked: dict[tuple[Key, bool], asyncio.Task[DNSRecord | None]] = {}
        self.ourselves: frozenset[Address] = frozenset()  # where nothing is to be asked

    def known(self, query: Query) -> DNSRecord | None:
        kept = self._cache.get(_key(query))
        return _relayed(query, *kept) if kept else None

    async def ask(self, query: Query, *, tcp: bool) -> DNSRecord:
        """An answer to `query`, if only that there is none. What is cut short is not asked for again: whoever wants
        all of it comes back by TCP."""
        key = _key(query)
        task = self._asked.get((key, tcp))
        if task is None:
            if len(self._asked) >= MOST_ASKED:
                return reply(query, RCODE.SERVFAIL)
            task = asyncio.create_task(self._resolve(query, tcp))
            self._asked[key, tcp] = task
            task.add_done_callback(lambda _: self._asked.pop((key, tcp), None))
        answer = await asyncio.shield(task)
        return reply(query, RCODE.SERVFAIL) if answer is None else _relayed(query, answer, 0)

    async def _resolve(self, query: Query, tcp: bool) -> DNSRecord | None:
        unable: DNSRecord | None = None
        try:
            async with asyncio.timeout(DEADLINE_S):
                for server in 2 * self._servers():
                    answer = await self._try(server, query, tcp)
                    if answer is not None and answer.header.rcode not in UNABLE:
                        self._last = server
                        self._cache.put(_key(query), answer)
                        return answer
                    unable = answer or unable
        except TimeoutError:
            pass
        return unable

    def _servers(self) -> list[Address]:
        servers = [server for server in self._given or self._configured() if server not in self.ourselves]
        return sorted(servers[:MOST_SERVERS], key=lambda server: server != self._last)

    def _configured(self) -> tuple[Address, ...]:
        try:
            changed = self._resolv_conf.stat().st_mtime
            if changed != self._read[0]:
                self._read = changed, tuple(name_servers(self._resolv_conf.read_text(errors="replace")))
        except OSError:
            return ()
        return self._read[1]

    async def _try(self, server: Address, query: Query, tcp: bool) -> DNSRecord | None:
        number = secrets.randbelow(1 << 16)
        question = _question(number, query)
        exchange = _exchange_tcp if tcp else _exchange_udp
        try:
            async with asyncio.timeout(TRY_S):
                return await exchange((str(server), self._port), question, number, query)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            return None


def name_servers(resolv_conf: str) -> Iterable[Address]:
    for line in resolv_conf.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                yield ip_address(words[1])
            except ValueError:
                continue


async def _exchange_udp(target: tuple[str, int], question: bytes, number: int, query: Query) -> DNSRecord:
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        await loop.sock_connect(sock, target)  # then the kernel takes answers from there alone
        await loop.sock_sendall(sock, question)
        while True:
            answer = _accepted(await loop.sock_recv(sock, TCP_MOST), number, query)
            if answer is not None:
                return answer


async def _exchange_tcp(target: tuple[str, int], question: bytes, number: int, query: Query) -> DNSRecord | None:
    reader, writer = await asyncio.open_connection(*target)
    try:
        writer.write(LENGTH.pack(len(question)) + question)
        (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
        return _accepted(await reader.readexactly(length), number, query)
    finally:
        writer.close()


def _question(number: int, query: Query) -> bytes:
    asked = query.record.q
    question = DNSRecord(DNSHeader(id=number, rd=1), questions=[DNSQuestion(asked.qname, asked.qtype, asked.qclass)])
    question.header.cd = query.record.header.cd
    question.add_ar(EDNS0(udp_len=UDP_MOST, flags="do" if query.dnssec else ""))
    return bytes(question.pack())


def _accepted(packet: bytes, number: int, query: Query) -> DNSRecord | None:
    """None: it is no answer to this question."""
    try:
        answer = DNSRecord.parse(packet)
    except (DNSError, ValueError, IndexError, UnicodeError, RecursionError):
        return None
    header, questions = answer.header, answer.questions
    if not header.qr or header.id != number or len(questions) != 1:
        return None
    name = str(questions[0].qname).lower().removesuffix(".")
    return answer if (name, questions[0].qtype) == (query.name, query.type) else None


def _relayed(query: Query, found: DNSRecord, age: int) -> DNSRecord:
    answer = reply(query, found.header.rcode)
    answer.header.tc, answer.header.ad = found.header.tc, found.header.ad
    answer.rr, answer.auth, answer.ar = (aged(part, age) for part in (found.rr, found.auth, found.ar))
    return answer


def _key(query: Query) -> Key:
    return query.name, query.type, query.dnssec, bool(query.record.header.cd)
