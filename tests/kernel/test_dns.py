"""The node's name server, a process of its own: who is told what, by which transport, and what happens when somebody
ends or does not answer."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from dnslib import EDNS0, QTYPE, RCODE, RR, A, DNSRecord

from model.names import NamedTask
from model.task import Port
from netns.dns.client import NameServer
from netns.dns.table import NODE_ADDRESS, NameTable, Scope
from netns.dns.zone import NamedVip
from netns.driver import NetworkError
from tests.kernel.namespaces import run
from tests.kernel.sandbox import until

pytestmark = pytest.mark.anyio

OPEN, CLOSED, STRANGE = "10.1.0.1", "10.2.0.1", "192.0.2.9"
SCOPES = (
    Scope((ip_network("10.1.0.0/24"),), forwards=True),
    Scope((ip_network("10.2.0.0/24"), ip_network("fd00:2::/64")), forwards=False),
)
UPSTREAMS = ("127.0.0.10", "127.0.0.11")
WEB = "web.services.containerip.tepui.internal"
DEADLINE_S = 5.0
Answer = Callable[[Any], Any]


def table(*addresses: str) -> NameTable:
    tasks = {
        f"name/web.{number}": NamedTask(
            f"web.{number}", "services", "/web", (ip_address(each),), (ip_address("192.0.2.1"),), (Port(80, "http"),)
        )
        for number, each in enumerate(addresses)
    }
    vip = {"vip/100.127.0.1:80/tcp": NamedVip("services/web", ip_address("100.127.0.1"))}
    listen = (NODE_ADDRESS, ip_address(OPEN), ip_address(CLOSED), ip_address("fd00:2::1"))
    return NameTable(listen, SCOPES, {**vip, **tasks})


@pytest.fixture
def node() -> None:
    for address in (f"{OPEN}/24", f"{CLOSED}/24", f"{STRANGE}/24"):
        run("ip", "address", "add", address, "dev", "lo")
    run("ip", "address", "add", "fd00:2::1/64", "dev", "lo", "nodad")


def server(directory: Path, **settings: Any) -> NameServer:
    return NameServer(directory, "tepui.internal", upstreams=tuple(map(ip_address, UPSTREAMS)), **settings)


def question(name: str, kind: str = "A") -> Any:
    record = DNSRecord.question(name, kind)
    record.add_ar(EDNS0(udp_len=1232))
    return record


def ask(name: str, kind: str = "A", at: str = str(NODE_ADDRESS), source: str = "", *, tcp: bool = False) -> Any:
    """The answer; None: there was none."""
    asked = question(name, kind)
    family = socket.AF_INET6 if ":" in at else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as sock:
        sock.settimeout(DEADLINE_S)
        if source:
            sock.bind((source, 0))
        try:
            sock.connect((at, 53))
            packet = bytes(asked.pack())
            sock.sendall(len(packet).to_bytes(2, "big") + packet if tcp else packet)
            answer = _stream(sock) if tcp else sock.recv(65_535)
        except (TimeoutError, ConnectionError):
            return None
    if not answer:
        return None
    said = DNSRecord.parse(answer)
    assert said.header.id == asked.header.id
    return said


def _stream(sock: socket.socket) -> bytes:
    with sock.makefile("rb") as stream:
        return stream.read(int.from_bytes(stream.read(2), "big"))


def values(said: Any) -> set[str]:
    return {str(rr.rdata) for rr in said.rr} if said is not None else set()


async def asked(name: str, *arguments: Any, **options: Any) -> Any:
    return await asyncio.to_thread(lambda: ask(name, *arguments, **options))


@contextmanager
def upstream(address: str, answer: Answer) -> Iterator[list[str]]:
    """A name server that is not ours. Yields the names that it was asked for, by UDP or TCP."""
    seen: list[str] = []

    def said(packet: bytes) -> bytes:
        record = DNSRecord.parse(packet)
        seen.append(str(record.q.qname))
        found = answer(record)
        return b"" if found is None else bytes(found.pack())

    udp, tcp = socket.socket(type=socket.SOCK_DGRAM), socket.socket()
    for sock in (udp, tcp):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, 53))
    tcp.listen()

    def datagrams() -> None:
        while True:
            packet, client = udp.recvfrom(4096)
            if not packet:
                return
            if found := said(packet):
                udp.sendto(found, client)

    def streams() -> None:
        while True:
            connection, _ = tcp.accept()
            with connection:
                packet = _stream(connection)
                if not packet:
                    return
                found = said(packet)
                connection.sendall(len(found).to_bytes(2, "big") + found)

    threads = [threading.Thread(target=each) for each in (datagrams, streams)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        with socket.socket(type=socket.SOCK_DGRAM) as end:
            end.sendto(b"", (address, 53))
        socket.create_connection((address, 53)).close()
        for thread in threads:
            thread.join(DEADLINE_S)
        udp.close()
        tcp.close()


def says(address: str, ttl: int = 60, **header: int) -> Answer:
    def answer(asked: Any) -> Any:
        said = asked.reply()
        said.add_answer(RR(asked.q.qname, QTYPE.A, ttl=ttl, rdata=A(address)))
        for key, value in header.items():
            setattr(said.header, key, value)
        return said

    return answer


def processes() -> list[int]:
    """Name servers whose network namespace is this test's."""
    own, found = os.stat("/proc/thread-self/ns/net").st_ino, []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "comm").read_text() == "tepui-names\n" and os.stat(path / "ns/net").st_ino == own:
                found.append(int(path.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def status_of(pid: int) -> dict[str, list[str]]:
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {words[0].rstrip(":"): words[1:] for words in lines if words}


async def ended(pid: int) -> None:
    await until(lambda: pid not in processes(), f"process {pid} has ended")


async def test_names_are_answered_by_udp_and_tcp_at_each_address(node: None, tmp_path: Path) -> None:
    names = server(tmp_path)
    await names.apply(table("10.1.0.2", "10.1.0.3"))
    try:
        for at in (str(NODE_ADDRESS), OPEN, CLOSED, "fd00:2::1"):
            for tcp in (False, True):
                assert values(await asked(WEB, at=at, tcp=tcp)) == {"10.1.0.2", "10.1.0.3"}
        assert values(await asked("web.services.l4lb.tepui.internal")) == {"100.127.0.1"}
        assert values(await asked("2.0.1.10.in-addr.arpa", "PTR")) == {f"web-0.{WEB}."}
        for name in ("moon.tepui.internal", "web", "9.0.1.10.in-addr.arpa"):
            assert (await asked(name)).header.rcode == RCODE.NXDOMAIN
    finally:
        await names.close(needed=False)


async def test_many_answers_come_by_tcp(node: None, tmp_path: Path) -> None:
    names = server(tmp_path)
    everyone = [f"10.1.{number // 250}.{number % 250 + 1}" for number in range(1000)]
    await names.apply(table(*everyone))
    try:
        cut = await asked(WEB)
        assert cut.header.tc and cut.rr == []
        assert values(await asked(WEB, tcp=True)) == set(everyone)
    finally:
        await names.close(needed=False)


async def test_a_change_is_answered_when_it_is_applied(node: None, tmp_path: Path) -> None:
    names = server(tmp_path)
    await names.apply(table("10.1.0.2"))
    try:
        for number in range(3, 40):
            assert values(await asked(WEB)) == {f"10.1.0.{number - 1}"}  # so it is at hand
            await names.apply(table(f"10.1.0.{number}"))
            assert values(await asked(WEB)) == {f"10.1.0.{number}"}
        await names.apply(table())
        assert (await asked(WEB)).header.rcode == RCODE.NXDOMAIN
    finally:
        await names.close(needed=False)


async def test_who_may_ask_for_what(node: None, tmp_path: Path) -> None:
    """CVE-2024-29018: what is not to leave the cluster does not leave it as a question."""
    names = server(tmp_path)
    await names.apply(table("10.1.0.2"))
    try:
        with upstream(UPSTREAMS[0], says("198.51.100.7")) as seen:
            for at in (OPEN, CLOSED, str(NODE_ADDRESS)):  # whichever of the node's addresses is asked
                for tcp in (False, True):
                    for source in (CLOSED, OPEN, "127.0.0.1"):
                        if source.startswith("127.") and not at.startswith("127."):
                            continue  # no such packet
                        assert values(await asked(WEB, at=at, source=source, tcp=tcp)) == {"10.1.0.2"}
                    refused = await asked("secret.example.com", at=at, source=CLOSED, tcp=tcp)
                    assert (refused.header.rcode, refused.rr) == (RCODE.REFUSED, [])
                    assert (await asked(WEB, at=at, source=STRANGE, tcp=tcp)).header.rcode == RCODE.REFUSED
            assert seen == []
            assert values(await asked("example.com", at=OPEN, source=OPEN)) == {"198.51.100.7"}
            assert values(await asked("example.com")) == {"198.51.100.7"}
            assert seen == ["example.com."]  # the second time it was known
            refused = await asked("example.com", at=CLOSED, source=CLOSED)
            assert refused.header.rcode == RCODE.REFUSED  # known or not
            for name in ("moon.services.l4lb.tepui.internal", "web.marathon.mesos", "web"):
                await asked(name)
            assert seen == ["example.com."]
    finally:
        await names.close(needed=False)


async def test_names_of_others_are_asked_of_the_next_server_and_kept_for_their_time(node: None, tmp_path: Path) -> None:
    names = server(tmp_path)
    await names.apply(table())
    try:
        assert (await asked("nobody.example.com")).header.rcode == RCODE.SERVFAIL
        with upstream(UPSTREAMS[0], lambda _: None), upstream(UPSTREAMS[1], says("198.51.100.7", ttl=1)) as second:
            assert values(await asked("example.com")) == {"198.51.100.7"}
            began = time.monotonic()
            assert values(await asked("other.example.com")) == {"198.51.100.7"}
            assert time.monotonic() - began < 0.5  # who answered is asked first
            await until(lambda: ask("example.com") and second.count("example.com.") == 2, "it was asked for again")
        with (
            upstream(UPSTREAMS[0], says("198.51.100.8", rcode=RCODE.SERVFAIL)),
            upstream(UPSTREAMS[1], says("1.2.3.4")),
        ):
            assert values(await asked("third.example.com")) == {"1.2.3.4"}
    finally:
        await names.close(needed=False)


async def test_what_is_cut_short_is_asked_for_by_tcp(node: None, tmp_path: Path) -> None:
    names = server(tmp_path)
    await names.apply(table())
    try:
        with upstream(UPSTREAMS[0], says("198.51.100.7", tc=1)):
            cut = await asked("example.com")
            assert cut.header.tc
        with upstream(UPSTREAMS[0], says("198.51.100.7")):
            assert values(await asked("example.com", tcp=True)) == {"198.51.100.7"}
    finally:
        await names.close(needed=False)


async def test_who_asks_too_much_takes_nobodys_share(node: None, tmp_path: Path) -> None:
    def only_good(asked: Any) -> Any:
        return says("198.51.100.7")(asked) if str(asked.q.qname) == "good.example.com." else None

    names = server(tmp_path)
    await names.apply(table())
    try:
        with upstream(UPSTREAMS[0], only_good), socket.socket(type=socket.SOCK_DGRAM) as greedy:
            greedy.bind((OPEN, 0))
            for number in range(400):
                greedy.sendto(bytes(question(f"slow{number}.example.com").pack()), (OPEN, 53))
            assert values(await asked("good.example.com")) == {"198.51.100.7"}
    finally:
        await names.close(needed=False)


async def test_an_answer_to_another_question_is_not_taken(node: None, tmp_path: Path) -> None:
    """RFC 5452: whoever guesses has to guess the id too, and the name."""

    def forged(asked: Any) -> Any:
        said = says("203.0.113.66")(asked)
        said.header.id ^= 1
        return said

    def other(asked: Any) -> Any:
        said = says("203.0.113.66")(DNSRecord.question("evil.example.com"))
        said.header.id = asked.header.id
        return said

    names = server(tmp_path)
    await names.apply(table())
    try:
        for name, lie in (("one.example.com", forged), ("two.example.com", other)):
            with upstream(UPSTREAMS[0], lie), upstream(UPSTREAMS[1], says("198.51.100.7")):
                assert values(await asked(name)) == {"198.51.100.7"}
    finally:
        await names.close(needed=False)


async def test_the_process_has_no_rights(node: None, tmp_path: Path) -> None:
    names = server(tmp_path)
    await names.apply(table())
    try:
        (pid,) = processes()
        status = status_of(pid)
        assert status["Uid"] == status["Gid"] == ["65534"] * 4 and status["Groups"] == []
        assert {int(status[kind][0], 16) for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
        assert status["NoNewPrivs"] == ["1"]
    finally:
        await names.close(needed=False)


async def test_one_that_ends_is_replaced(node: None, tmp_path: Path) -> None:
    names = server(tmp_path)
    keeping = asyncio.create_task(names.keep())
    await names.apply(table("10.1.0.2"))
    try:
        (pid,) = processes()
        os.kill(pid, signal.SIGKILL)
        await until(lambda: values(ask(WEB)) == {"10.1.0.2"}, "names are answered again")
        assert pid not in processes() and len(processes()) == 1
        await names.apply(table("10.1.0.3"))
        assert values(await asked(WEB)) == {"10.1.0.3"}
    finally:
        keeping.cancel()
        await names.close(needed=False)


async def test_one_that_answers_no_more_is_replaced(
    node: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = server(tmp_path)
    keeping = asyncio.create_task(names.keep())
    await names.apply(table("10.1.0.2"))
    try:
        (pid,) = processes()
        os.kill(pid, signal.SIGSTOP)
        with monkeypatch.context() as impatient:
            impatient.setattr("netns.dns.client.ANSWER_DEADLINE_S", 0.5)
            with pytest.raises(NetworkError, match="no answer"):
                await names.apply(table("10.1.0.3"))
        await until(lambda: pid not in processes(), "it is gone")
        await until(lambda: values(ask(WEB)) == {"10.1.0.3"}, "names are answered")
    finally:
        keeping.cancel()
        await names.close(needed=False)


async def test_what_was_given_up_in_the_middle_leaves_nothing(node: None, tmp_path: Path) -> None:
    names = server(tmp_path)
    await names.apply(table("10.1.0.2"))
    try:
        for number in range(20):
            applying = asyncio.create_task(names.apply(table("10.1.0.2", *(f"10.1.1.{n}" for n in range(1, 200)))))
            for _ in range(number):
                await asyncio.sleep(0)
            applying.cancel()
            await asyncio.gather(applying, return_exceptions=True)
            await names.apply(table("10.1.0.2"))
            assert values(await asked(WEB, tcp=True)) == {"10.1.0.2"}
    finally:
        await names.close(needed=False)


async def test_names_are_answered_while_no_agent_is_here_and_the_next_one_goes_on(node: None, tmp_path: Path) -> None:
    first = server(tmp_path)
    await first.apply(table("10.1.0.2", "10.1.0.3"))
    (pid,) = processes()
    await first.close(needed=True)
    assert values(await asked(WEB)) == {"10.1.0.2", "10.1.0.3"}
    second = server(tmp_path)
    await second.apply(table("10.1.0.3"))
    try:
        assert processes() == [pid]
        assert values(await asked(WEB, at=OPEN)) == {"10.1.0.3"}  # also what nobody has said is gone
        (again,) = {rr.rdata.label for rr in (await asked("3.0.1.10.in-addr.arpa", "PTR")).rr}
        assert str(again) == f"web-0.{WEB}."
        less = table("10.1.0.3")
        await second.apply(NameTable(less.listen[:1], less.scopes, less.things))
        assert await asked(WEB, at=OPEN) is None
    finally:
        await second.close(needed=False)
    await ended(pid)


async def test_one_of_another_version_makes_place_without_a_gap(node: None, tmp_path: Path) -> None:
    first = server(tmp_path)
    await first.apply(table("10.1.0.2"))
    (pid,) = processes()
    await first.close(needed=True)
    over, lost = threading.Event(), 0

    def keep_asking() -> None:
        nonlocal lost
        while not over.is_set():
            lost += values(ask(WEB)) != {"10.1.0.2"}

    asking = threading.Thread(target=keep_asking)
    asking.start()
    second = server(tmp_path, compat=False)
    try:
        await second.apply(table("10.1.0.2"))
        await ended(pid)
        assert len(processes()) == 1
        assert (await asked("web.marathon.mesos")).header.rcode != RCODE.NOERROR
    finally:
        over.set()
        asking.join(DEADLINE_S)
        await second.close(needed=False)
    assert lost == 0


async def test_a_port_that_is_taken_costs_its_address_alone(
    node: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = socket.socket(type=socket.SOCK_DGRAM)
    taken.bind((OPEN, 53))
    names = server(tmp_path)
    keeping = asyncio.create_task(names.keep())
    try:
        await names.apply(table("10.1.0.2"))
        assert values(await asked(WEB, at=CLOSED)) == {"10.1.0.2"}
        assert OPEN in capsys.readouterr().out
        taken.close()
        await until(lambda: values(ask(WEB, at=OPEN)) == {"10.1.0.2"}, "it is answered there too")
    finally:
        keeping.cancel()
        await names.close(needed=False)


async def test_without_a_process_there_is_an_error_and_another_attempt(node: None, tmp_path: Path) -> None:
    directory = tmp_path / "not yet"
    names = server(directory)
    keeping = asyncio.create_task(names.keep())
    with pytest.raises(NetworkError, match="name server"):
        await names.apply(table("10.1.0.2"))
    directory.mkdir()
    try:
        await until(lambda: values(ask(WEB)) == {"10.1.0.2"}, "names are answered")
    finally:
        keeping.cancel()
        await names.close(needed=False)


async def test_noise_and_idlers_keep_nobody_from_answers(node: None, tmp_path: Path) -> None:
    names = server(tmp_path)
    await names.apply(table("10.1.0.2"))
    idle = [socket.create_connection((str(NODE_ADDRESS), 53)) for _ in range(40)]
    try:
        with socket.socket(type=socket.SOCK_DGRAM) as noise:
            for size in range(0, 2000, 7):
                noise.sendto(os.urandom(size), (str(NODE_ADDRESS), 53))
        assert values(await asked(WEB)) == {"10.1.0.2"}
        assert values(await asked(WEB, source="127.0.0.1", tcp=True)) in ({"10.1.0.2"}, set())
        assert values(await asked(WEB, at=OPEN, source=OPEN, tcp=True)) == {"10.1.0.2"}
        assert len(processes()) == 1
    finally:
        for connection in idle:
            connection.close()
        await names.close(needed=False)
