"""VIPs: what a connection to one costs when there are many, and what changing one of many costs, by each back end.

Six routers, each a network namespace between a client and a server: one with 10 VIPs, one with 10,000, and one with the
10,000 as a flat list of rules; of iptables and of nftables. The connection is to the last VIP of each. Batches of
connections take turns, so that whatever else the machine does meets all alike. Everything is in namespaces of a child
process and goes with it.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from bench.report import Report, Row, from_json, percentile
from model.task import Protocol
from model.vip import Backend, Vip
from netns.vip.backend import Table
from netns.vip.iptables import IptablesVips
from netns.vip.nftables import NftVips

FEW, MANY = 10, 10_000
BATCHES, BATCH = 25, 40  # 1,000 connections a case
CHANGES = 30
POOL = IPv4Network("100.127.0.0/16")
CLUSTER = IPv4Network("100.64.0.0/11")
CLIENT, SERVER = IPv4Address("192.0.2.2"), IPv4Address("198.51.100.2")
PORT = 8080
CLONE_NEWNET = 0x40000000
RUN_DEADLINE_S = 300
CONNECT_DEADLINE_S = 2.0
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: no TIME_WAIT, so ports do not run out

ACCEPT = """
import selectors, socket, sys
ready = selectors.DefaultSelector()
for fd in map(int, sys.argv[1:]):
    ready.register(socket.socket(fileno=fd), selectors.EVENT_READ)
while True:
    for key, _ in ready.select():
        key.fileobj.accept()[0].close()
"""


@dataclass(frozen=True, slots=True)
class Route:
    """Client, router and server, as open files of their network namespaces."""

    client: int
    router: int
    server: int


def run() -> Report:
    # A child, because the one who measures moves between network namespaces.
    argv = [sys.executable, "-m", "bench.vip"]
    root = str(Path(__file__).resolve().parents[1])
    done = subprocess.run(argv, cwd=root, stdout=subprocess.PIPE, text=True, check=True, timeout=RUN_DEADLINE_S)
    return from_json(json.loads(done.stdout))


async def measure() -> Report:
    cases = [await _case(kind) for kind in (Iptables, Nft)]
    with _accepting([path for case in cases for path in (case.few, case.many, case.flat)]):
        connects = _connects(
            {path: count for case in cases for path, count in ((case.few, FEW), (case.many, MANY), (case.flat, MANY))}
        )
    rows = []
    for case in cases:
        name, many, few, flat = case.kind.name, *(connects[path] for path in (case.many, case.few, case.flat))
        ours, theirs = await _changes(case)
        rows += [
            _connect_row(f"connect_10000_vs_10_{name}", 50, many, few, "ours with 10 VIPs"),
            _connect_row(f"connect_10000_vs_10_{name}", 99, many, few, "ours with 10 VIPs"),
            _connect_row(f"connect_10000_vs_flat_{name}", 50, many, flat, "10,000 rules in one chain"),
            Row(f"change_10000_{name}_ms", "ms", percentile(ours, 50), percentile(theirs, 50), case.kind.peer),
            Row(f"change_10000_{name}_p99", "ms", percentile(ours, 99), percentile(theirs, 99), case.kind.peer),
            Row(f"cold_start_10000_{name}", "ms", case.cold, case.restored, case.kind.peer),
        ]
        await case.vips.close()
    return Report("vip", tuple(rows))


def _connect_row(what: str, percent: int, ours: list[float], peer: list[float], peer_name: str) -> Row:
    name = what if percent == 50 else f"{what}_p{percent}"
    return Row(name, "us", percentile(ours, percent), percentile(peer, percent), peer_name)


async def _case(kind: type[Iptables] | type[Nft]) -> Case:
    few, many, flat = (_path() for _ in range(3))
    with _inside(few.router):
        small = await kind.open()
    await small.apply(_table(FEW))
    await small.close()
    with _inside(many.router):
        vips = await kind.open()
    cold = await _timed_apply(vips, _table(MANY))
    kind.restore(flat.router, kind.flat())
    spare = _namespace()
    saved = kind.saved(many.router)
    return Case(kind, few, many, flat, vips, cold, kind.restore(spare, saved), spare, saved)


# Connections


def _connects(paths: Mapping[Route, int]) -> dict[Route, list[float]]:
    """Microseconds from each client to the last VIP of its router. The first batch of each only warms up."""
    samples: dict[Route, list[float]] = defaultdict(list)
    for number in range(BATCHES + 1):
        for path, count in paths.items():
            with _inside(path.client):
                batch = [_connect(str(POOL[count])) for _ in range(BATCH)]
            samples[path] += batch if number else []
    return samples


def _connect(address: str) -> float:
    with socket.socket() as connection:
        connection.settimeout(CONNECT_DEADLINE_S)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        started = time.perf_counter()
        connection.connect((address, 80))
        return (time.perf_counter() - started) * 1e6


@contextmanager
def _accepting(paths: list[Route]) -> Iterator[None]:
    """A process accepts and closes at every server: a thread here would hold up the clock."""
    sockets = []
    for path in paths:
        with _inside(path.server):
            sockets.append(socket.create_server(("0.0.0.0", PORT), backlog=1024))
    fds = [listening.fileno() for listening in sockets]
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", ACCEPT, *map(str, fds)], pass_fds=fds)
    try:
        yield
    finally:
        process.kill()
        process.wait()
        for listening in sockets:
            listening.close()


# Changes


async def _changes(case: Case) -> tuple[list[float], list[float]]:
    """Milliseconds to replace a backend of the last VIP, by turns: ours, and the peer's on the same rules."""
    ours, theirs = [], []
    for number in range(CHANGES):
        ours.append(await _timed_apply(case.vips, _table(MANY, 9000 + number)))
        theirs.append(case.kind.restore(case.spare, case.kind.change(case.saved, 9000 + number)))
    return ours, theirs


async def _timed_apply(vips: IptablesVips | NftVips, table: Table) -> float:
    started = time.perf_counter()
    await vips.apply(table)
    return (time.perf_counter() - started) * 1e3


def _timed(namespace: int, argv: list[str], text: str) -> float:
    with _inside(namespace):
        started = time.perf_counter()
        subprocess.run(argv, input=text, text=True, check=True)
        return (time.perf_counter() - started) * 1e3


def _said(namespace: int, argv: list[str]) -> str:
    with _inside(namespace):
        return subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout


class Iptables:
    name, peer = "iptables", "iptables-legacy-restore --noflush"

    @staticmethod
    async def open() -> IptablesVips:
        """Its worker stays in the namespace in which it was started."""
        vips = IptablesVips()
        await vips.installed()
        return vips

    @staticmethod
    def restore(namespace: int, rules: str) -> float:
        return _timed(namespace, ["iptables-legacy-restore", "--noflush"], rules)

    @staticmethod
    def saved(namespace: int) -> str:
        return _said(namespace, ["iptables-legacy-save"])

    @staticmethod
    def change(saved: str, port: int) -> str:
        chain = next(line.split()[1] for line in saved.splitlines() if f"--to-destination {SERVER}:{PORT}" in line)
        rule = f"-A {chain} -p tcp -m tcp --dport 80 -j DNAT --to-destination {SERVER}:{port}"
        return f"*nat\n:{chain} - [0:0]\n{rule}\nCOMMIT\n"

    @staticmethod
    def flat() -> str:
        rule = "-A PREROUTING -d {}/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination {}:{}"
        return "\n".join(["*nat", *_flat(rule), "COMMIT", ""])


class Nft:
    name, peer = "nftables", "nft -f"

    @staticmethod
    async def open() -> NftVips:
        vips = NftVips()
        await vips.installed()
        return vips

    @staticmethod
    def restore(namespace: int, rules: str) -> float:
        return _timed(namespace, ["nft", "-f", "-"], rules)

    @staticmethod
    def saved(namespace: int) -> str:
        return _said(namespace, ["nft", "list", "ruleset"])

    @staticmethod
    def change(_: str, port: int) -> str:
        slot = f"inet tepui-vips tcp4 {{ {POOL[MANY]} . 80 . 0"
        return f"delete element {slot} }}\nadd element {slot} : {SERVER} . {port} }}\n"

    @staticmethod
    def flat() -> str:
        base = "table ip flat {\nchain pre {\ntype nat hook prerouting priority dstnat;"
        return "\n".join([base, *_flat("ip daddr {} tcp dport 80 dnat to {}:{}"), "}\n}\n"])


@dataclass(frozen=True, slots=True)
class Case:
    kind: type[Iptables] | type[Nft]
    few: Route
    many: Route
    flat: Route
    vips: IptablesVips | NftVips
    cold: float  # ms
    restored: float  # ms
    spare: int  # a namespace with the rules of `many`
    saved: str


# Tables


def _row(number: int, *backends: IPv4Address, port: int = PORT) -> Vip:
    tasks = tuple(Backend(f"task-{address}", "node", address, port) for address in backends)
    return Vip(POOL[number], 80, Protocol.TCP, f"/app-{number}", tasks)


_ROWS = {number: _row(number, CLUSTER[2 * number], CLUSTER[2 * number + 1]) for number in range(1, MANY)}


def _table(count: int, port: int = PORT) -> Table:
    """The last row leads to the server. Only that one is new from call to call, as when one VIP of many changes."""
    rows = [*(_ROWS[number] for number in range(1, count)), _row(count, SERVER, port=port)]
    return Table({row.key: row for row in rows}, (POOL,), (), (CLUSTER,))


def _flat(rule: str) -> list[str]:
    """As kube-proxy writes them."""
    rules = [rule.format(POOL[number], _ROWS[number].backends[0].address, PORT) for number in range(1, MANY)]
    return [*rules, rule.format(POOL[MANY], SERVER, PORT)]


# Namespaces

_libc = ctypes.CDLL(None, use_errno=True)


def _path() -> Route:
    path = Route(_namespace(), _namespace(), _namespace())
    for link, end, address in (("client", path.client, CLIENT), ("server", path.server, SERVER)):
        _link(path.router, link, end, address)
    with _inside(path.router):
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    return path


def _namespace() -> int:
    before = _here()
    _checked("unshare", _libc.unshare(CLONE_NEWNET))
    _ip("link set lo up")
    made = _here()
    _checked("setns", _libc.setns(before, CLONE_NEWNET))
    os.close(before)
    return made


def _link(router: int, link: str, end: int, address: IPv4Address) -> None:
    with _inside(router):
        _ip(f"link add {link} type veth peer name eth0 netns /proc/{os.getpid()}/fd/{end}")
        _ip(f"address add {address - 1}/24 dev {link}")
        _ip(f"link set {link} up")
    with _inside(end):
        _ip(f"address add {address}/24 dev eth0")
        _ip("link set eth0 up")
        _ip(f"route add default via {address - 1}")


@contextmanager
def _inside(namespace: int) -> Iterator[None]:
    before = _here()
    _checked("setns", _libc.setns(namespace, CLONE_NEWNET))
    try:
        yield
    finally:
        _checked("setns", _libc.setns(before, CLONE_NEWNET))
        os.close(before)


def _here() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True)


def _checked(operation: str, result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{operation}: {os.strerror(code)}")


if __name__ == "__main__":
    _checked("unshare", _libc.unshare(CLONE_NEWNET))
    print(json.dumps(asyncio.run(measure()).to_json()))
