"""How fast a container may send and receive, measured with TCP, and that nothing of the limits is left behind."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from isolators.base import Container, Holder, Sandbox
from isolators.network import NetworkIsolator
from model.network import Address, Block, Network, NetworkKind
from model.pod import Pod
from model.resources import Resources
from model.task import Bandwidth, TaskSpec
from netns.bandwidth import burst, limit, remove_strays, shaper_name
from netns.driver import Attachment, NetworkError, NetworkSpec
from netns.firewall.nftables import NftFirewall
from netns.link import veth_name
from netns.netlink import Netlink
from netns.networks import Networks
from netns.queue import RECEIVED, SENT
from netns.traffic import read_traffic
from tests.kernel.namespaces import NetnsProcess, ip, network_of, run

pytestmark = pytest.mark.anyio

SPEC = NetworkSpec(
    Network("local", NetworkKind.BRIDGE, (ip_network("10.9.0.0/16"),)),
    (Block("local", "n1", ip_network("10.9.0.0/24")),),
)
MBIT = 1_000_000
PORT = 8080
DEADLINE_S = 30.0
NAME = "web"
IFBS = {shaper_name(NAME, SENT), shaper_name(NAME, RECEIVED)}

# Reads a size from each connection, then sends as many bytes ("<") or takes as many and says so (">").
SERVER = """
import socketserver, sys
class Bulk(socketserver.StreamRequestHandler):
    def handle(self):
        line = self.rfile.readline().decode()
        left = int(line[1:])
        if line[0] == "<":
            while left > 0:
                self.wfile.write(bytes(min(left, 65536)))
                left -= 65536
        else:
            while left > 0:
                left -= len(self.rfile.read1(65536))
            self.wfile.write(b"!")
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
with Server(("0.0.0.0", int(sys.argv[1])), Bulk) as server:
    print("ready", flush=True)
    server.serve_forever()
"""

Spawn = Callable[..., NetnsProcess]
Serve = Callable[[NetnsProcess], None]


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as stack:

        def start(container: NetnsProcess) -> None:
            argv = ["nsenter", "-t", str(container.pid), "-n", sys.executable, "-I", "-S", "-c", SERVER, str(PORT)]
            process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
            stack.callback(process.wait, DEADLINE_S)
            stack.callback(process.kill)
            assert process.stdout is not None
            stack.callback(process.stdout.close)
            assert process.stdout.readline() == "ready\n"

        yield start


@asynccontextmanager
async def networks(state: Path) -> AsyncIterator[Networks]:
    run("ip", "link", "add", "card", "type", "veth", "peer", "wire")
    run("ip", "addr", "add", "192.0.2.1/24", "dev", "card")
    async with Networks(state, "n1", "boot-1", ip_address("192.0.2.1")) as driver:
        await driver.configure(SPEC)
        yield driver


async def attached(driver: Networks, container: NetnsProcess, name: str = NAME) -> Address:
    [address] = await driver.attach(Attachment(name, "local", container.pid))
    return address


def moved(address: Address, direction: str, size: int, pid: int | None = None) -> float:
    """How long it took to get `size` bytes from ("<") or to (">") the server at `address`."""
    if pid is not None:
        with network_of(pid):
            return moved(address, direction, size)
    with socket.create_connection((str(address), PORT), timeout=DEADLINE_S) as connection:
        began = time.monotonic()
        connection.sendall(f"{direction}{size}\n".encode())
        if direction == ">":
            connection.sendall(bytes(size))
        left = size if direction == "<" else 1
        while left > 0:
            data = connection.recv(65536)
            assert data, "the server gave up"
            left -= len(data)
        return time.monotonic() - began


async def rate(address: Address, direction: str, size: int = 5_000_000) -> float:
    """Bits a second, beside the event loop."""
    return 8 * size / await asyncio.to_thread(moved, address, direction, size)


def queues(dev: str) -> set[str]:
    return {row["kind"] for row in ip_tc("qdisc", "show", "dev", dev)} - {"noqueue"}


def ip_tc(*argv: str) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = json.loads(run("tc", "-j", *argv) or "[]")
    return rows


def ifbs() -> set[str]:
    return {link["ifname"] for link in ip("link") if link["ifname"][:2] in ("ti", "te")}


async def test_throughput_is_what_was_asked_for_and_changes_in_place(
    host_netns: None, tmp_path: Path, spawn: Spawn, serve: Serve
) -> None:
    web = spawn()
    async with networks(tmp_path) as driver:
        address = await attached(driver, web)
        serve(web)
        for way in "<>":
            assert await rate(address, way, 50_000_000) > 200 * MBIT
        await driver.limit(NAME, Bandwidth(ingress=20 * MBIT, egress=40 * MBIT))
        assert await rate(address, ">") == pytest.approx(20 * MBIT, rel=0.2)
        assert await rate(address, "<", 8_000_000) == pytest.approx(40 * MBIT, rel=0.2)
        await driver.limit(NAME, Bandwidth(ingress=40 * MBIT))
        assert await rate(address, ">", 8_000_000) == pytest.approx(40 * MBIT, rel=0.2)
        assert await rate(address, "<", 50_000_000) > 200 * MBIT
        await driver.limit(NAME, None)
        for way in "<>":
            assert await rate(address, way, 50_000_000) > 200 * MBIT
    assert (queues(veth_name(NAME)), ifbs()) == (set(), set())


async def test_a_connection_gets_faster_while_it_flows(
    host_netns: None, tmp_path: Path, spawn: Spawn, serve: Serve
) -> None:
    """At 4 Mbit/s the data would take 20 s."""
    web = spawn()
    async with networks(tmp_path) as driver:
        address = await attached(driver, web)
        serve(web)
        await driver.limit(NAME, Bandwidth(egress=4 * MBIT))
        transfer = asyncio.create_task(asyncio.to_thread(moved, address, "<", 10_000_000))
        ifb = shaper_name(NAME, RECEIVED)
        deadline = time.monotonic() + DEADLINE_S
        while read_traffic()[ifb].sent_bytes < 200_000:
            assert time.monotonic() < deadline, "nothing flows"
            await asyncio.sleep(0.02)
        await driver.limit(NAME, Bandwidth(egress=80 * MBIT))
        assert await transfer < 8.0


async def test_nothing_is_done_twice_and_what_is_wrong_is_mended(
    host_netns: None, tmp_path: Path, spawn: Spawn, serve: Serve, counted: list[str]
) -> None:
    web = spawn()
    limits = Bandwidth(20 * MBIT, 20 * MBIT)
    async with networks(tmp_path) as driver:
        address = await attached(driver, web)
        serve(web)
        await driver.limit(NAME, limits)
        counted.clear()
        await driver.limit(NAME, limits)
        assert counted == []
        run("ip", "link", "del", shaper_name(NAME, RECEIVED))  # now what the container sends is lost
        await driver.limit(NAME, limits)
        assert await rate(address, "<") == pytest.approx(20 * MBIT, rel=0.2)
        run("tc", "qdisc", "del", "dev", veth_name(NAME), "clsact")
        run("tc", "qdisc", "del", "dev", shaper_name(NAME, SENT), "root")
        await driver.limit(NAME, limits)
        assert await rate(address, ">") == pytest.approx(20 * MBIT, rel=0.2)
        counted.clear()
        await driver.limit(NAME, limits)
        assert counted == []


async def test_links_of_a_container_share_their_limit(
    host_netns: None, tmp_path: Path, spawn: Spawn, serve: Serve
) -> None:
    one, two = spawn(), spawn()
    async with networks(tmp_path) as driver:
        addresses = [await attached(driver, one, "one"), await attached(driver, two, "two")]
        serve(one)
        serve(two)
        async with Netlink() as host:
            await limit(host, NAME, [veth_name("one"), veth_name("two")], Bandwidth(20 * MBIT, 20 * MBIT))
        for way in "<>":
            assert sum(await asyncio.gather(*(rate(each, way) for each in addresses))) == pytest.approx(
                20 * MBIT, rel=0.25
            )


async def test_containers_reach_each_other_at_the_lower_limit(
    host_netns: None, tmp_path: Path, spawn: Spawn, serve: Serve
) -> None:
    one, two = spawn(), spawn()
    async with networks(tmp_path) as driver:
        await attached(driver, one, "one")
        address = await attached(driver, two, "two")
        serve(two)
        await driver.limit("one", Bandwidth(egress=20 * MBIT))
        await driver.limit("two", Bandwidth(ingress=60 * MBIT))
        took = await asyncio.to_thread(moved, address, ">", 5_000_000, one.pid)
        assert 8 * 5_000_000 / took == pytest.approx(20 * MBIT, rel=0.2)


async def test_nothing_is_left(host_netns: None, tmp_path: Path, spawn: Spawn) -> None:
    run("ip", "link", "add", "tinker", "type", "ifb")  # somebody else's
    web, gone = spawn(), spawn()
    async with networks(tmp_path) as driver:
        for name, container in (("web", web), ("gone", gone)):
            await attached(driver, container, name)
            await driver.limit(name, Bandwidth(MBIT, MBIT))
        assert len(ifbs()) == 5 and queues(veth_name("gone")) == {"clsact"}
        gone.stop()
        await driver.gc(frozenset({"web"}))
        assert ifbs() == IFBS | {"tinker"}
        await driver.detach("web")
        assert ifbs() == {"tinker"}
        await driver.detach("web")
        async with Netlink() as host:  # as if the agent had died between the link's end and the ifb's
            await remove_strays(host, frozenset())
    assert ifbs() == {"tinker"}


@pytest.mark.parametrize(
    ("bandwidth", "problem"),
    [
        (Bandwidth(ingress=0), "bandwidth.ingress: 0 bit/s"),
        (Bandwidth(egress=8 * 2**32), "bandwidth.egress: 34359738368 bit/s"),
    ],
)
async def test_what_can_not_be_is_refused(
    host_netns: None, tmp_path: Path, spawn: Spawn, bandwidth: Bandwidth, problem: str
) -> None:
    async with networks(tmp_path) as driver:
        await attached(driver, spawn())
        with pytest.raises(NetworkError, match=f"limit bandwidth of web: {problem}"):
            await driver.limit(NAME, bandwidth)
        with pytest.raises(NetworkError, match="limit bandwidth of other: it is not attached"):
            await driver.limit("other", Bandwidth(MBIT))
    assert (queues(veth_name(NAME)), ifbs()) == (set(), set())


def test_a_bucket_holds_what_comes_in_a_tick_and_the_largest_packet() -> None:
    assert burst(1_000) >= 65536
    assert burst(1_250_000_000) == 12_500_000


async def test_what_was_led_through_a_limit_is_still_checked(
    host_netns: None, tmp_path: Path, spawn: Spawn, serve: Serve
) -> None:
    """By nftables from prerouting on, as what came in by the container's own link, and by its source (rp_filter)."""
    web = spawn()
    async with networks(tmp_path) as driver:
        address = await attached(driver, web)
        serve(web)
        await driver.limit(NAME, Bandwidth(20 * MBIT, 20 * MBIT))
        run("nft", "add table inet t; add chain inet t c { type filter hook prerouting priority raw; }")
        run("nft", f"add rule inet t c iifname {veth_name(NAME)} counter")
        assert moved(address, "<", 1000) < 1
        assert "packets 0 " not in run("nft", "list", "chain", "inet", "t", "c")
        run("nft", "flush chain inet t c")
        run("nft", f"add rule inet t c iifname {veth_name(NAME)} drop")
        with pytest.raises(TimeoutError):
            socket.create_connection((str(address), PORT), timeout=0.5)
        run("nft", "flush chain inet t c; add rule inet t c ip saddr 10.9.0.77 counter")
        run("nft", "add chain inet t f { type filter hook input priority 0; }")
        run("nft", "add rule inet t f ip saddr 10.9.0.77 counter")
        web.run("ip", "addr", "add", "10.9.0.77/32", "dev", "eth0")
        with network_of(web.pid), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as forger:
            forger.bind(("10.9.0.77", 0))
            for _ in range(10):
                forger.sendto(b"x", ("10.9.0.1", 9))
        assert "packets 10 " in await counted_in("c")
        assert "packets 0 " in run("nft", "list", "chain", "inet", "t", "f")


async def counted_in(chain: str) -> str:
    deadline = time.monotonic() + DEADLINE_S
    while "packets 10 " not in (text := run("nft", "list", "chain", "inet", "t", chain)):
        assert time.monotonic() < deadline, text
        await asyncio.sleep(0.02)
    return text


@pytest.mark.parametrize("what", ["a container", "what is left of a pod"])
async def test_the_next_agent_looks_after_the_limits_of_the_one_before(
    host_netns: None, tmp_path: Path, spawn: Spawn, what: str
) -> None:
    limits = Bandwidth(20 * MBIT, 20 * MBIT)
    task = TaskSpec("web.1", "services", "/web", ("true",), Resources(), "local", bandwidth=limits)
    sandbox = Sandbox(NAME, tmp_path, tmp_path, 100_000, "local")
    gone = Container(task, replace(sandbox, id="gone"))
    known = [Container(task, sandbox), gone]
    if what == "what is left of a pod":
        task = replace(task, pod=Pod("web.pod", "second", ("web.0", "web.1")))
        holder = Holder(NAME, tmp_path, tmp_path, 1, ("network",))
        held = Container(replace(task, bandwidth=None), sandbox)
        known = [held, Container(task, replace(sandbox, id="second", holder=holder)), held]
    async with networks(tmp_path) as driver:
        await attached(driver, spawn())
        await driver.limit(NAME, limits)
    before = (queues(veth_name(NAME)), {link["ifname"]: link["ifindex"] for link in ip("link")})
    async with Networks(tmp_path, "n1", "boot-1", ip_address("192.0.2.1")) as driver:
        await NetworkIsolator(driver, NftFirewall()).recover(known, [])
        after = (queues(veth_name(NAME)), {link["ifname"]: link["ifindex"] for link in ip("link")})
        assert after == before
        for name in IFBS:
            run("ip", "link", "del", name)
        await driver.restore()
        assert ifbs() == IFBS
