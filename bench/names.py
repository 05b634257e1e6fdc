"""Names: what an answer costs, and how late one is, when 10,000 tasks have names.

The name server is the one of a node, told by the agent's own client; the peer is dnsmasq with the same names in a file,
which it keeps in memory. Each has one CPU to itself and whoever asks has the other. `answer` is the time for one when
as many as can be are asked for (64 at a time); then 5,000 a second are asked for, at even distances, whether answers
come or not. Names are drawn at random, so most of the answers of ours are not at hand. `change` is the time until one
name among the 10,000 has another address in an answer; the peer reads its file again.
"""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from dnslib import DNSRecord

from bench.apart import apart, report
from bench.report import Report, Row, percentile
from model.names import NamedTask
from netns.dns.client import NameServer
from netns.dns.table import NODE_ADDRESS, NameTable, Scope

NAMES = 10_000
ANSWERS, AT_ONCE = 40_000, 64
RATE, SECONDS = 5000, 4
ROUNDS = 3
CHANGES = 40
PROMISED_US, PROMISED_P99_MS = 1_000_000 / RATE, 5.0
PEER = "127.0.0.85"
NODES = IPv4Network("10.0.0.0/8")
OVERLAY = IPv4Network("100.64.0.0/11")
SERVER_CPU, CLIENT_CPU = 0, 1
RUN_DEADLINE_S = 300
DEADLINE_S, RETRY_S = 10.0, 0.2


def run() -> Report:
    return apart("bench.names", RUN_DEADLINE_S)


async def measure(directory: Path) -> Report:
    _begin()
    os.sched_setaffinity(0, {SERVER_CPU})  # what it starts inherits that
    names = NameServer(directory, "tepui.internal")
    try:
        await names.apply(_table())
        with _dnsmasq(directory) as peer:
            os.sched_setaffinity(0, {CLIENT_CPU})
            packets = [_question(number) for number in range(NAMES)]
            places = (str(NODE_ADDRESS), PEER)
            each: dict[str, list[float]] = {place: [] for place in places}
            late: dict[str, list[float]] = {place: [] for place in places}
            for _ in range(ROUNDS):
                for place in places:
                    each[place].append(_flood(place, packets))
                    late[place] += _steady(place, packets)
            changes = [await _change(names, number) for number in range(CHANGES)]
            theirs = [_change_peer(directory, peer, number) for number in range(CHANGES)]
    finally:
        await names.close(needed=False)
    ours, other = (min(each[place]) for place in places)
    rows = [
        Row("answer_us", "us", ours, other, "dnsmasq"),
        Row("answer_us_promised", "us", ours, PROMISED_US, "promised"),
    ]
    for percent in (50, 99):
        ours, other = (percentile(late[place], percent) for place in places)
        rows.append(Row(f"answer_5000_p{percent}", "ms", ours, other, "dnsmasq"))
    rows.append(Row("answer_5000_p99_promised", "ms", percentile(late[places[0]], 99), PROMISED_P99_MS, "promised"))
    for percent in (50, 99):
        row = f"change_10000_p{percent}"
        rows.append(Row(row, "ms", percentile(changes, percent), percentile(theirs, percent), "dnsmasq"))
    return Report("names", tuple(rows))


def _begin() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def _address(number: int, moved: int = 0) -> IPv4Address:
    return OVERLAY[1024 + number + moved]


def _task(number: int, moved: int = 0) -> NamedTask:
    own = (_address(number, moved),)
    return NamedTask(f"app-{number}.1", "services", f"/app-{number}", own, (NODES[1 + number % 200],))


def _table(changed: int = -1) -> NameTable:
    tasks = {f"name/{number}": TASKS[number] for number in range(NAMES)}
    if changed >= 0:
        tasks[f"name/{changed}"] = _task(changed, NAMES)
    return NameTable((NODE_ADDRESS,), (Scope((OVERLAY,), forwards=True),), tasks)


TASKS = [_task(number) for number in range(NAMES)]


def _name(number: int) -> str:
    return f"app-{number}.services.containerip.tepui.internal"


def _question(number: int) -> bytes:
    record = DNSRecord.question(_name(number))
    record.header.id = 0
    return bytes(record.pack())


def _client(place: str) -> socket.socket:
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    sock.connect((place, 53))
    sock.setblocking(False)
    return sock


def _flood(place: str, packets: list[bytes]) -> float:
    """Microseconds an answer."""
    chosen = random.choices(packets, k=ANSWERS)
    sent = came = 0
    with _client(place) as sock:
        began = time.monotonic()
        while came < ANSWERS:
            while sent < ANSWERS and sent - came < AT_ONCE:
                sock.send(chosen[sent])
                sent += 1
            if not select.select([sock], [], [], DEADLINE_S)[0]:
                raise RuntimeError(f"{place}: {sent - came} answers did not come")
            came += _received(sock)
        return (time.monotonic() - began) * 1e6 / ANSWERS


def _received(sock: socket.socket) -> int:
    count = 0
    try:
        while True:
            sock.recv(2048)
            count += 1
    except BlockingIOError:
        return count


def _steady(place: str, packets: list[bytes]) -> list[float]:
    """Milliseconds from when each was due. An answer is told from others by the id of its question."""
    total = RATE * SECONDS
    chosen = [number.to_bytes(2, "big") + random.choice(packets)[2:] for number in range(total)]
    came = [0.0] * total
    with _client(place) as sock:
        began = time.monotonic()
        sent = left = 0
        left = total
        while left:
            now = time.monotonic() - began
            while sent < total and sent / RATE <= now:
                sock.send(chosen[sent])
                sent += 1
            try:
                while True:
                    number = int.from_bytes(sock.recv(2048)[:2], "big")
                    came[number] = time.monotonic() - began - number / RATE
                    left -= 1
            except BlockingIOError:
                pass
            if now > SECONDS + DEADLINE_S:
                raise RuntimeError(f"{place}: {left} answers did not come")
    return [1000 * seconds for seconds in came]


async def _change(names: NameServer, number: int) -> float:
    """Milliseconds. The table as it is without the change comes before, and is not counted."""
    await names.apply(_table())
    table, wanted = _table(number), str(_address(number, NAMES))
    began = time.monotonic()
    await names.apply(table)
    _until(str(NODE_ADDRESS), number, wanted)
    return 1000 * (time.monotonic() - began)


def _change_peer(directory: Path, peer: subprocess.Popen[bytes], number: int) -> float:
    _hosts(directory, number)
    began = time.monotonic()
    peer.send_signal(signal.SIGHUP)
    _until(PEER, number, str(_address(number, NAMES)))
    return 1000 * (time.monotonic() - began)


def _until(place: str, number: int, address: str) -> None:
    question = DNSRecord.question(_name(number))
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        with suppress(OSError):  # it is not there yet
            said = DNSRecord.parse(question.send(place, timeout=RETRY_S))
            if [str(rr.rdata) for rr in said.rr] == [address]:
                return
    raise RuntimeError(f"{place}: {_name(number)} is not {address}")


def _hosts(directory: Path, changed: int = -1) -> None:
    lines = (f"{_address(number, NAMES if number == changed else 0)} {_name(number)}" for number in range(NAMES))
    (directory / "hosts").write_text("\n".join(lines) + "\n")


@contextmanager
def _dnsmasq(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    directory.chmod(0o755)
    _hosts(directory)
    argv = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root"]
    argv += [f"--listen-address={PEER}", "--bind-interfaces", f"--addn-hosts={directory / 'hosts'}", "--local-ttl=5"]
    with subprocess.Popen([*argv, "--pid-file", "--log-facility=-"], stderr=subprocess.DEVNULL) as process:
        try:
            _until(PEER, 0, str(_address(0)))
            yield process
        finally:
            process.terminate()


if __name__ == "__main__":
    report(measure)
