"""What is answered to a question about the cluster's own names, and how an answer is fitted into its packet. Pure.

Sources: RFC 1035; RFC 2308 (negative answers), RFC 6891 (EDNS), RFC 8482 (no ANY), RFC 8020 (names between names).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, cast

from dnslib import (
    AAAA,
    CLASS,
    EDNS0,
    OPCODE,
    PTR,
    QTYPE,
    RCODE,
    RR,
    SOA,
    SRV,
    A,
    DNSError,
    DNSHeader,
    DNSLabel,
    DNSRecord,
)

from netns.dns import zone
from netns.dns.zone import Service, Value, Zone

TTL_S = 5
PLAIN_MOST = 512  # octets over UDP without EDNS
UDP_MOST = 1232  # that no link breaks into fragments: dnsflagday.net/2020
TCP_MOST = 65_535
DNSSEC_OK = 0x8000
WANTED = {QTYPE.A: zone.A, QTYPE.AAAA: zone.AAAA, QTYPE.SRV: zone.SRV, QTYPE.PTR: zone.PTR}


class Malformed(Exception):
    """Not a question that could be answered: not even with an error."""


@dataclass(frozen=True, slots=True)
class Query:
    """`name` is in lower case and without the last dot. `most` is how long an answer over UDP may be."""

    record: DNSRecord
    name: str
    type: int
    most: int
    edns: bool
    dnssec: bool

    @property
    def refused(self) -> int:
        """The code of what can be said without looking at the name; 0: it is to be looked at."""
        header = self.record.header
        if header.opcode != OPCODE.QUERY:
            return int(RCODE.NOTIMP)
        if len(self.record.questions) != 1 or self.record.rr:
            return int(RCODE.FORMERR)
        if self.record.q.qclass != CLASS.IN:
            return int(RCODE.REFUSED)
        return int(RCODE.NOTIMP) if self.type in (QTYPE.AXFR, QTYPE.IXFR, QTYPE.ANY) else 0


def parse(packet: bytes) -> Query:
    """Raises Malformed."""
    try:
        record = DNSRecord.parse(packet)
        name = str(record.q.qname).lower().removesuffix(".") if record.questions else ""
        if "\\" in name:  # octets that are no letters: not all of them can be written into an answer again
            DNSLabel(name)
    except (DNSError, ValueError, IndexError, UnicodeError, RecursionError) as error:
        raise Malformed(str(error)) from error
    if record.header.qr:
        raise Malformed("an answer")
    options = [each for each in record.ar if each.rtype == QTYPE.OPT]
    most = min(max(options[0].rclass, PLAIN_MOST), UDP_MOST) if options else PLAIN_MOST
    dnssec = bool(options and options[0].ttl & DNSSEC_OK)
    return Query(record, name, record.q.qtype if record.questions else 0, most, bool(options), dnssec)


def local(query: Query, names: Zone) -> DNSRecord:
    """The cluster knows, and nobody else. Addresses come in any order, so that who takes the first spreads."""
    answer = reply(query)
    answer.header.aa = 1
    found = names.find(query.name, WANTED.get(query.type, ""))
    random.shuffle(found)
    for value in found:
        answer.add_answer(_rr(query.record.q.qname, value))
    for target in {value.target for value in found if isinstance(value, Service)}:
        for kind in (zone.A, zone.AAAA):
            for address in names.find(target, kind):
                answer.add_ar(_rr(target, address))
    if not found:
        answer.header.rcode = RCODE.NOERROR if names.exists(query.name) else RCODE.NXDOMAIN
        answer.add_auth(_soa(names.apex(query.name)))
    return answer


def reply(query: Query, code: int = 0) -> DNSRecord:
    """With nothing in it yet."""
    header = query.record.header
    said = DNSHeader(id=header.id, qr=1, opcode=header.opcode, rd=header.rd, ra=1, rcode=code)
    said.cd = header.cd
    return DNSRecord(said, questions=query.record.questions[:1])


def pack(query: Query, answer: DNSRecord, *, tcp: bool) -> bytes:
    """With what EDNS asks for. What does not fit is left out: additional records first and in silence."""
    most = TCP_MOST if tcp else query.most
    additional, answer.ar = answer.ar, []
    options = [EDNS0(udp_len=UDP_MOST, flags="do" if query.dnssec else "")] if query.edns else []
    for wanted in (additional + options, options):
        answer.ar = wanted
        packet = bytes(answer.pack())
        if len(packet) <= most:
            return packet
    answer.header.tc = 1
    answer.rr, answer.auth = [], []
    return bytes(answer.pack())


def variants(answer: DNSRecord) -> int:
    """In how many orders it is worth giving."""
    return min(len(answer.rr), 8)


def _rr(name: object, value: Value) -> RR:
    if isinstance(value, Service):
        return RR(name, QTYPE.SRV, ttl=TTL_S, rdata=SRV(0, 0, value.port, value.target))
    if isinstance(value, str):
        return RR(name, QTYPE.PTR, ttl=TTL_S, rdata=PTR(value))
    if value.version == 4:
        return RR(name, QTYPE.A, ttl=TTL_S, rdata=A(str(value)))
    return RR(name, QTYPE.AAAA, ttl=TTL_S, rdata=cast(Any, AAAA)(tuple(value.packed)))


def _soa(apex: str) -> RR:
    """Its last number is for how long a name that is not there is known not to be."""
    times = (1, 3600, 600, 86_400, TTL_S)
    return RR(apex, QTYPE.SOA, ttl=TTL_S, rdata=SOA(f"ns.{apex}", f"hostmaster.{apex}", times))
