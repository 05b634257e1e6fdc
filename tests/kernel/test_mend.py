"""What somebody takes from a node's network is back within a second, is said once, and nothing else is touched."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from model.network import Address, Block, Network, NetworkKind, Vtep, vtep_mac
from model.task import Bandwidth, Protocol
from model.vip import Backend, Vip
from netns import mend
from netns.bandwidth import shaper_name
from netns.driver import Attachment, NetworkError, NetworkSpec
from netns.link import gateway_name, veth_name
from netns.mend import Mender, keep_mended, keep_vips
from netns.networks import Networks
from netns.node_mend import menders, watch_of
from netns.queue import RECEIVED
from netns.vip.backend import Table
from netns.vip.iptables import IptablesVips
from netns.watch import Touched, Watch
from tests.kernel.namespaces import Echo, NetnsProcess, echo, ip, run
from tests.patience import PATIENCE

pytestmark = pytest.mark.anyio

WITHIN_S = 1.0 * PATIENCE
QUIET_S = 0.7  # longer than anything mended waits
VNI = 1024
DEV, GATEWAY, VETH = f"tx{VNI}", gateway_name("prod"), veth_name("web")
UNDERLAY = ip_address("192.0.2.1")
NETWORK = Network("prod", NetworkKind.OVERLAY, (ip_network("100.64.0.0/11"),), vni=VNI)
PEER = Vtep(
    "prod", "n2", ip_address("192.0.2.2"), vtep_mac("n2", VNI), (Block("prod", "n2", ip_network("100.64.2.0/24")),)
)
SPEC = NetworkSpec(NETWORK, (Block("prod", "n1", ip_network("100.64.1.0/24")),), (PEER,))
POOL = ip_network("100.127.0.0/16")

Spawn = Callable[..., NetnsProcess]
Log = list[Any]


@dataclass(frozen=True, slots=True)
class Node:
    driver: Networks
    vips: IptablesVips
    watch: Watch
    web: NetnsProcess
    address: Address
    log: Log

    def said(self) -> list[str]:
        """What was mended, each in the words of one line of the log."""
        return ["; ".join(line["operations"]) for line in self.log if line["event"] == "mended"]


@pytest.fixture
async def node(host_netns: None, tmp_path: Path, spawn: Spawn) -> AsyncIterator[Node]:
    run("ip", "link", "add", "card", "type", "veth", "peer", "wire")
    for command in ("addr add 192.0.2.1/24 dev card", "link set card up", "link set wire up"):
        run("ip", *command.split())
    web = spawn()
    with capture_logs() as log:
        async with Networks(tmp_path, "n1", "boot-1", UNDERLAY) as driver:
            await driver.configure_vip_route([POOL])
            await driver.configure(SPEC)
            [address] = await driver.attach(Attachment("web", "prod", web.pid))
            vips = IptablesVips()
            await vips.apply(_table(address))
            async with watch_of(driver) as watch:
                tasks = [
                    asyncio.create_task(keep_mended(watch, menders(driver, None))),
                    asyncio.create_task(keep_vips(vips)),
                ]
                yield Node(driver, vips, watch, web, address, log)
                for task in tasks:
                    assert not task.done(), "the loop ended"
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            await vips.close()


def _table(address: Address) -> Table:
    backends = (Backend("task-1", "n1", address, 8080, 1),)
    vip = Vip(IPv4Address("100.127.0.1"), 80, Protocol.TCP, "web", backends)
    return Table({vip.key: vip}, (POOL,), (SPEC.blocks[0].subnet,), NETWORK.subnets)


def state() -> dict[str, Any]:
    """Everything that is ours, as the tools show it."""
    links = [_link(link) for link in ip("addr") if link["ifname"][:2] in ("tg", "tx", "tv", "ti", "te")]
    return {
        "links": sorted(links),
        "routes": sorted(line.replace("linkdown", "").strip() for line in run("ip", "route").splitlines()),
        "neighbours": sorted(line.strip() for line in run("ip", "neigh", "show", "nud", "permanent").splitlines()),
        "fdb": sorted(line for line in run("bridge", "fdb", "show").splitlines() if DEV in line.split()),
        "rules": _rules(),
    }


def _link(link: dict[str, Any]) -> tuple[object, ...]:
    addresses = sorted(address["local"] for address in link["addr_info"])
    return (link["ifname"], link["address"], link["mtu"], "UP" in link["flags"], addresses)


def _rules() -> list[str]:
    saved = run("iptables-legacy-save").splitlines()
    return sorted(line.split(" [")[0] for line in saved if not line.startswith(("#", "COMMIT")))


async def back(before: dict[str, Any], began: float) -> float:
    """How long it took until the state was the one before."""
    while (now := state()) != before:
        assert time.monotonic() - began < WITHIN_S, f"{now} is not {before}"
        await asyncio.sleep(0.02)
    return time.monotonic() - began


async def quiet(node: Node) -> None:
    """Nothing more is mended."""
    count = len(node.said())
    await asyncio.sleep(QUIET_S)
    assert len(node.said()) == count


@pytest.mark.parametrize(
    ("deed", "word"),
    [
        (f"ip route del 100.64.2.0/24 dev {DEV}", "add route 100.64.2.0/24"),
        (f"ip route del 100.64.1.0/24 dev {GATEWAY}", "add route 100.64.1.0/24"),
        (f"ip route del {POOL} dev {GATEWAY}", f"add route {POOL}"),
        (f"ip route flush dev {DEV}", "add route 100.64.2.0/24"),
        (f"bridge fdb del {PEER.mac} dev {DEV} dst 192.0.2.2", "add forwarding entry"),
        (f"bridge fdb replace {PEER.mac} dev {DEV} dst 192.0.2.9 self permanent", "add forwarding entry"),
        (f"ip neigh del 100.64.2.0 dev {DEV}", "add neighbour 100.64.2.0"),
        (f"ip neigh replace 100.64.2.0 lladdr 02:00:00:00:00:09 dev {DEV} nud permanent", "add neighbour 100.64.2.0"),
        (f"ip addr del 100.64.1.1/32 dev {GATEWAY}", "add address 100.64.1.1"),
        (f"ip addr flush dev {DEV}", "add address 100.64.1.0"),
        (f"ip link set {GATEWAY} mtu 1280", f"set {GATEWAY}"),
        (f"ip link del {GATEWAY}", f"create bridge {GATEWAY}"),
        (f"ip link del {DEV}", f"create vxlan {DEV}"),
        (f"ip link set {GATEWAY} down", f"set {GATEWAY} up"),
        (f"ip link set {DEV} down", f"set {DEV} up"),
        (f"ip link set {VETH} down", f"set {VETH} up"),
        (f"ip neigh flush dev {VETH} nud permanent", "add neighbour 100.64.1.2"),
        (f"ip route flush dev {VETH}", "add route 100.64.1.2/32"),
        (f"ip link del {VETH}", "create veth"),
        ("iptables-legacy -t nat -F", "nat"),
        ("iptables-legacy -t nat -F; iptables-legacy -t nat -X", "nat"),
        ("iptables-legacy -t nat -D PREROUTING 1", "nat: PREROUTING was damaged"),
        ("iptables-legacy -F", "filter"),
    ],
)
async def test_what_is_taken_is_back_and_said_once(
    node: Node, echo_server: Callable[[int], Echo], deed: str, word: str
) -> None:
    before = state()
    began = time.monotonic()
    run("sh", "-c", deed)
    assert state() != before
    await back(before, began)
    while not node.said():
        assert time.monotonic() - began < WITHIN_S
        await asyncio.sleep(0.01)
    await quiet(node)
    assert state() == before
    [said] = node.said()
    assert word in said
    server = echo_server(node.web.pid)
    assert echo(None, node.address, server.port) == "100.64.1.1"
    assert echo(None, "100.127.0.1", 80) == "100.64.1.1"


async def test_limits_of_a_container_are_kept(node: Node) -> None:
    await node.driver.limit("web", Bandwidth(10**7, 10**7))
    right, rules = state(), run("tc", "qdisc", "show", "dev", VETH)
    for deed in (
        f"ip link del {shaper_name('web', RECEIVED)}",
        f"tc qdisc del dev {VETH} clsact",
        f"ip link del {VETH}",
    ):
        began = time.monotonic()
        run("sh", "-c", deed)
        await back(right, began)
        while run("tc", "qdisc", "show", "dev", VETH) != rules:
            assert time.monotonic() - began < WITHIN_S, deed
            await asyncio.sleep(0.02)
    while len(node.said()) < 3:
        assert time.monotonic() - began < WITHIN_S
        await asyncio.sleep(0.01)
    await quiet(node)
    assert len(node.said()) == 3


async def test_foreign_objects_are_let_be(node: Node) -> None:
    before = state()
    run("ip", "link", "add", "other", "type", "bridge")
    for command in ("link set other up", "addr add 198.51.100.1/24 dev other", "route add 203.0.113.0/24 dev other"):
        run("ip", *command.split())
    run("iptables-legacy", "-A", "INPUT", "-s", "203.0.113.1", "-j", "DROP")
    run("ip", "route", "del", "203.0.113.0/24", "dev", "other")
    run("ip", "link", "del", "other")
    await quiet(node)
    assert node.said() == []
    rule = "-A INPUT -s 203.0.113.1/32 -j DROP"
    assert rule in _rules() and state() == before | {"rules": sorted([*before["rules"], rule])}


async def test_what_the_node_does_itself_is_not_mended(node: Node, spawn: Spawn) -> None:
    for number in range(3):
        container = spawn()
        await node.driver.attach(Attachment(f"c{number}", "prod", container.pid))
        await node.driver.limit(f"c{number}", Bandwidth(10**7))
        container.stop()
        await node.driver.detach(f"c{number}")
    await node.driver.configure(NetworkSpec(NETWORK, SPEC.blocks))
    await node.driver.configure(SPEC)
    await quiet(node)
    assert node.said() == [] and not [line for line in node.log if line["event"] == "not mended"]


async def test_containers_of_an_earlier_agent_are_connected_again(node: Node, tmp_path: Path) -> None:
    before = state()
    async with Networks(tmp_path, "n1", "boot-1", UNDERLAY) as successor:
        successor.recall([Attachment("web", "prod", node.web.pid)])
        node.driver._endpoints._inside.clear()  # as if it were not there any more
        run("ip", "link", "del", VETH)
        assert await successor.restore() == []
        await successor.configure_vip_route([POOL])
        await successor.configure(SPEC)
        assert await successor.restore() == [f"create veth {VETH} to eth0"]
        assert await successor.restore() == []
        assert successor.addresses("web") == (node.address,)
    assert state() == before


async def test_a_container_is_detached_for_good_while_it_is_connected_again(node: Node) -> None:
    run("ip", "link", "del", VETH)
    await asyncio.gather(node.driver.restore(), node.driver.detach("web"))
    await quiet(node)
    assert VETH not in {link["ifname"] for link in ip("link")} and node.driver.addresses("web") == ()


async def test_a_container_that_has_ended_is_not_connected(node: Node) -> None:
    node.web.stop()
    await quiet(node)
    assert node.said() == [] and veth_name("web") not in {link["ifname"] for link in ip("link")}
    await node.driver.detach("web")
    assert node.driver.addresses("web") == ()


async def test_a_flood_of_foreign_changes_starves_nobody(node: Node, tmp_path: Path) -> None:
    """While thousands of routes of others come and go."""
    before = state()
    batch = tmp_path / "batch"
    routes = [f"198.18.{high}.{low}/32 dev wire" for high in range(40) for low in range(250)]
    batch.write_text("".join(f"route add {r}\n" for r in routes) + "".join(f"route del {r}\n" for r in routes))
    run("ip", "addr", "add", "198.51.100.1/24", "dev", "wire")
    with_address = state()
    assert with_address["links"] == before["links"]
    flood = await asyncio.create_subprocess_exec("ip", "-batch", str(batch))
    looked = node.watch.messages
    await asyncio.sleep(0.05)
    assert flood.returncode is None, "the flood was over before anything was taken"
    began = time.monotonic()
    run("ip", "link", "del", VETH)
    while VETH not in {link["ifname"] for link in ip("link")}:
        assert time.monotonic() - began < WITHIN_S
        await asyncio.sleep(0.02)
    assert await flood.wait() == 0
    await back(with_address, time.monotonic())
    await quiet(node)
    assert node.watch.messages - looked > 10_000
    assert len(node.said()) <= 2


async def test_when_the_socket_overflows_everything_is_looked_at(host_netns: None, tmp_path: Path) -> None:
    run("ip", "link", "add", "card", "type", "veth", "peer", "wire")
    run("ip", "link", "set", "card", "up")
    batch = tmp_path / "batch"
    batch.write_text("".join(f"route add 198.18.{h}.{low}/32 dev card\n" for h in range(80) for low in range(250)))
    async with Watch(("tv",)) as watch:
        run("ip", "-batch", str(batch))  # the event loop stands still meanwhile
        async with asyncio.timeout(5):
            assert (await watch.touched()).everything


async def test_only_foreign_transactions_on_our_tables_count(host_netns: None) -> None:
    async with Watch(("tv",), tables=("tepui",)) as watch:
        run("nft", "add table inet tepui; add chain inet tepui a; add table inet other; add chain inet other a")
        run("nft", "delete table inet other")
        run("nft", "add rule inet tepui a accept")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(QUIET_S):
                await watch.touched()
        for deed in ("flush chain inet tepui a", "add rule inet tepui a accept", "flush ruleset"):
            run("nft", deed)
        async with asyncio.timeout(5):
            assert await watch.touched() == Touched(tables=frozenset({"tepui"}))


async def test_what_fails_is_tried_again(host_netns: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mend, "RETRY_S", 0.05)
    seen: list[Touched] = []

    async def third_time(touched: Touched) -> list[str]:
        seen.append(touched)
        if len(seen) < 3:
            raise NetworkError("not yet")
        return ["done"]

    run("ip", "link", "add", "tv1", "type", "bridge")
    with capture_logs() as log:
        async with Watch(("tv",)) as watch:
            loop = asyncio.create_task(
                keep_mended(watch, [Mender("x", lambda touched: touched.link("tv"), third_time)])
            )
            run("ip", "link", "del", "tv1")
            deadline = time.monotonic() + 5
            while not any(line["event"] == "mended" for line in log):
                assert time.monotonic() < deadline and not loop.done()
                await asyncio.sleep(0.01)
            loop.cancel()
    assert seen == [Touched(frozenset({"tv1"}))] * 3
    assert [line["event"] for line in log] == ["not mended", "not mended", "mended"]
