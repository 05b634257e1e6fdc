"""Questions and answers, packet by packet."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from dnslib import EDNS0, QTYPE, RCODE, RR, SOA, A, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from model.names import NamedTask
from model.task import Port
from netns.dns import answer
from netns.dns.cache import Cache, aged, lifetime
from netns.dns.dcos import Domains
from netns.dns.zone import Zone

APP = "web.services.containerip.tepui.internal"


def zone(tasks: int = 1) -> Zone:
    made = Zone(Domains("tepui.internal"))
    for number in range(tasks):
        own = (ip_address(f"100.64.{number // 250}.{number % 250 + 2}"),)
        port = Port(80, "http")
        made.put(str(number), NamedTask(f"web.{number}", "services", "/web", own, (ip_address("192.0.2.1"),), (port,)))
    return made


def question(name: str, kind: str = "A", edns: int = 0, **header: int) -> bytes:
    record = DNSRecord.question(name, kind)
    record.header.id = 4711
    for key, value in header.items():
        setattr(record.header, key, value)
    if edns:
        record.add_ar(EDNS0(udp_len=edns))
    return bytes(record.pack())


def ask(names: Zone, packet: bytes, *, tcp: bool = False) -> Any:
    query = answer.parse(packet)
    said = answer.reply(query, query.refused) if query.refused else answer.local(query, names)
    return DNSRecord.parse(answer.pack(query, said, tcp=tcp))


def test_an_answer_repeats_the_question_as_it_was_written() -> None:
    said = ask(zone(), question("WeB.services.containerip.TEPUI.internal"))
    assert str(said.q.qname) == "WeB.services.containerip.TEPUI.internal."
    assert (said.header.id, said.header.qr, said.header.aa, said.header.ra) == (4711, 1, 1, 1)
    assert [(str(rr.rname), str(rr.rdata), rr.ttl) for rr in said.rr] == [(str(said.q.qname), "100.64.0.2", 5)]
    assert said.ar == []


def test_every_task_is_named_in_any_order() -> None:
    firsts = {str(ask(zone(4), question(APP)).rr[0].rdata) for _ in range(100)}
    assert len(firsts) == 4


def test_what_is_not_there_is_known_not_to_be_for_a_while() -> None:
    said = ask(zone(), question("moon.services.autoip.tepui.internal"))
    assert said.header.rcode == RCODE.NXDOMAIN and said.rr == []
    assert (str(said.auth[0].rname), said.auth[0].rdata.times[4]) == ("tepui.internal.", 5)
    assert lifetime(said) == 5
    for name, kind in ((APP, "AAAA"), ("services.autoip.tepui.internal", "A"), (APP, "MX")):
        said = ask(zone(), question(name, kind))
        assert (said.header.rcode, said.rr, len(said.auth)) == (RCODE.NOERROR, [], 1)


def test_srv_comes_with_addresses() -> None:
    said = ask(zone(2), question(f"_http._tcp.{APP}", "SRV", edns=1232))
    targets = {str(rr.rdata.target) for rr in said.rr}
    assert targets == {f"web-{number}.{APP}." for number in (0, 1)}
    assert {str(rr.rname) for rr in said.ar if rr.rtype == QTYPE.A} == targets


@pytest.mark.parametrize(("edns", "most"), [(0, 512), (100, 512), (800, 800), (4096, 1232)])
def test_what_does_not_fit_is_cut_short_and_whole_by_tcp(edns: int, most: int) -> None:
    names = zone(200)
    packet = question(APP, edns=edns)
    query = answer.parse(packet)
    cut = answer.pack(query, answer.local(query, names), tcp=False)
    assert len(cut) <= most
    said = DNSRecord.parse(cut)
    assert said.header.tc and said.rr == [] and str(said.q.qname) == f"{APP}."
    whole = ask(names, packet, tcp=True)
    assert not whole.header.tc and len(whole.rr) == 200
    assert [rr.rtype for rr in whole.ar] == ([QTYPE.OPT] if edns else [])


def test_additional_records_are_the_first_to_go() -> None:
    names, packet = zone(6), question(f"_http._tcp.{APP}", "SRV")
    cut, whole = ask(names, packet), ask(names, packet, tcp=True)
    assert not cut.header.tc and len(cut.rr) == len(whole.rr) == 6
    assert cut.ar == [] and len(whole.ar) == 6


@pytest.mark.parametrize(
    ("packet", "code"),
    [
        (question(APP, "ANY"), RCODE.NOTIMP),
        (question(APP, "AXFR"), RCODE.NOTIMP),
        (question(APP, opcode=4), RCODE.NOTIMP),
        (question(APP, opcode=5), RCODE.NOTIMP),
        (question(APP)[:-2] + b"\0\3", RCODE.REFUSED),  # the class CH
        (question(APP)[:4] + b"\0\0" + b"\0" * 6, RCODE.FORMERR),  # no question
    ],
)
def test_what_nobody_answers(packet: bytes, code: int) -> None:
    said = ask(zone(), packet)
    assert (said.header.rcode, said.rr) == (code, [])


STRANGE = question(APP).replace(b"web", b"w\x80b", 1)


@pytest.mark.parametrize("packet", [b"", b"\0" * 11, question(APP)[:20], question(APP, qr=1), STRANGE])
def test_what_is_no_question_gets_no_answer(packet: bytes) -> None:
    with pytest.raises(answer.Malformed):
        answer.parse(packet)


@given(st.binary(max_size=80), st.integers(0, 60), st.booleans())
def test_no_packet_breaks_it(noise: bytes, at: int, tcp: bool) -> None:
    good = question(f"_http._tcp.{APP}", "SRV", edns=1400)
    try:
        query = answer.parse(good[:at] + noise + good[at + len(noise) :])
    except answer.Malformed:
        return
    said = answer.reply(query, query.refused) if query.refused else answer.local(query, zone(3))
    assert answer.pack(query, said, tcp=tcp)


def from_upstream(ttl: int, *, soa: tuple[int, int] | None = None, **header: int) -> Any:
    record = DNSRecord.question("example.com").reply()
    if ttl:
        record.add_answer(RR("example.com", QTYPE.A, ttl=ttl, rdata=A("192.0.2.80")))
    if soa:
        record.add_auth(RR("com", QTYPE.SOA, ttl=soa[0], rdata=SOA("ns.com", "a.com", (1, 2, 3, 4, soa[1]))))
    for key, value in header.items():
        setattr(record.header, key, value)
    return record


@pytest.mark.parametrize(
    ("record", "seconds"),
    [
        (from_upstream(60), 60),
        (from_upstream(999_999), 3600),
        (from_upstream(0), 0),
        (from_upstream(60, tc=1), 0),
        (from_upstream(60, rcode=RCODE.SERVFAIL), 0),
        (from_upstream(0, soa=(30, 60), rcode=RCODE.NXDOMAIN), 30),
        (from_upstream(0, soa=(30, 20)), 20),
        (from_upstream(0, soa=(9999, 9999)), 300),
        (from_upstream(0, rcode=RCODE.NXDOMAIN), 0),
    ],
)
def test_answers_of_others_are_kept_as_long_as_they_say(record: Any, seconds: int) -> None:
    assert lifetime(record) == seconds


def test_of_many_answers_the_least_used_goes() -> None:
    cache = Cache(most=2)
    for name in "ab":
        cache.put((name, 1, False, False), from_upstream(60))
    assert cache.get(("a", 1, False, False)) is not None
    cache.put(("c", 1, False, False), from_upstream(60))
    assert [cache.get((name, 1, False, False)) is not None for name in "abc"] == [True, False, True]
    assert len(cache) == 2 and [rr.ttl for rr in aged(from_upstream(60).rr, 70)] == [0]
