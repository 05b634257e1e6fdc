"""A crash between any two steps: whatever was done until then, starting again mends it and nothing is left.

An action is repeated on a fresh host, crashing one step later each time, until it gets through.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from model.network import Block, Network, NetworkKind, Vtep, vtep_mac
from model.task import Bandwidth
from netns.driver import Attachment, NetworkSpec
from netns.link import veth_name
from netns.networks import Networks
from tests.kernel.faults import MOST_STEPS, Crash, Steps, steps_of
from tests.kernel.namespaces import Echo, NetnsProcess, echo, ip, run

pytestmark = pytest.mark.anyio

UNDERLAY = ip_address("192.0.2.1")
NETWORK = Network("prod", NetworkKind.OVERLAY, (ip_network("100.64.0.0/11"), ip_network("fd01:b::/64")), vni=1024)
PEER_BLOCKS = tuple(Block("prod", "n2", ip_network(subnet)) for subnet in ("100.64.2.0/24", "fd01:b:0:0:2::/80"))
PEER = Vtep("prod", "n2", ip_address("192.0.2.2"), vtep_mac("n2", 1024), PEER_BLOCKS)
BLOCKS = tuple(Block("prod", "n1", ip_network(subnet)) for subnet in ("100.64.1.0/24", "fd01:b:0:0:1::/80"))
SPEC = NetworkSpec(NETWORK, BLOCKS, (PEER,))
BACK = NetworkSpec(
    Network("back", NetworkKind.BRIDGE, (ip_network("10.9.0.0/16"),)), (Block("back", "n1", ip_network("10.9.1.0/24")),)
)

LIMITS = Bandwidth(20_000_000, 10_000_000)
VETH = veth_name("web")

Spawn = Callable[[], NetnsProcess]
Action = Callable[[Networks], Awaitable[Any]]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return steps_of(monkeypatch)


@pytest.fixture
def card(host_netns: None) -> None:
    run("ip", "link", "add", "card", "type", "veth", "peer", "wire")
    run("ip", "addr", "add", f"{UNDERLAY}/24", "dev", "card")
    run("ip", "link", "set", "card", "up")
    run("ip", "link", "set", "wire", "up")


def opened(state: Path, boot: str = "boot-1") -> Networks:
    return Networks(state, "n1", boot, UNDERLAY)


async def after_crash_at_each_step(
    state: Path, steps: Steps, action: Action, then: Action, before: Action | None = None
) -> int:
    """`before`, `action` until it crashes, a restart, `then`; one step later each time. Returns how many there are."""
    for allowed in range(MOST_STEPS):
        if before is not None:
            async with opened(state) as driver:
                await before(driver)
        steps.left = allowed
        crashed = False
        try:
            async with opened(state) as driver:
                await action(driver)
        except Crash:
            crashed = True
        steps.left = MOST_STEPS
        async with opened(state) as driver:
            await then(driver)
        if not crashed:
            return allowed
    raise AssertionError(f"not done after {MOST_STEPS} steps")


def kernel() -> object:
    links = [(link["ifname"], link["mtu"], "UP" in link["flags"]) for link in ip("link")]
    addresses = [(link["ifname"], a["local"]) for link in ip("addr") for a in link["addr_info"] if a["scope"] != "link"]
    routes = [(r["dst"], r.get("gateway"), r["dev"], r.get("prefsrc")) for r in (*ip("route"), *ip("-6", "route"))]
    routes = [route for route in routes if not route[0].startswith("fe80")]
    neighbours = [(n["dst"], n["dev"], n.get("lladdr")) for n in ip("neigh", "show", "nud", "permanent")]
    fdb = [line for line in run("bridge", "fdb").split("\n") if " dst " in line]
    return sorted(links), sorted(addresses), sorted(map(repr, routes)), sorted(map(repr, neighbours)), sorted(fdb)


def leased(state: Path) -> list[str]:
    return [path.name for path in (state / "leases").glob("*/*") if not path.name.endswith(".rested")]


async def test_configure(card: None, tmp_path: Path, steps: Steps) -> None:
    nothing = kernel()
    async with opened(tmp_path) as driver:
        await driver.configure(SPEC)
        good = kernel()
        await driver.remove("prod")

    async def mend(driver: Networks) -> None:
        await driver.configure(SPEC)
        assert kernel() == good
        await driver.remove("prod")
        assert kernel() == nothing

    assert await after_crash_at_each_step(tmp_path, steps, lambda driver: driver.configure(SPEC), mend) > 15


async def test_configure_then_removed_without_ever_being_configured_again(
    card: None, tmp_path: Path, steps: Steps
) -> None:
    nothing = kernel()

    async def remove(driver: Networks) -> None:
        await driver.remove("prod")
        assert kernel() == nothing

    await after_crash_at_each_step(tmp_path, steps, lambda driver: driver.configure(SPEC), remove)


async def test_remove(card: None, tmp_path: Path, steps: Steps) -> None:
    nothing = kernel()

    async def again(driver: Networks) -> None:
        await driver.remove("prod")
        assert kernel() == nothing

    await after_crash_at_each_step(
        tmp_path, steps, lambda driver: driver.remove("prod"), again, before=lambda driver: driver.configure(SPEC)
    )


async def test_attach_then_collected(card: None, tmp_path: Path, steps: Steps, spawn: Spawn) -> None:
    web = spawn()
    async with opened(tmp_path) as driver:
        await driver.configure(SPEC)
    good = kernel()

    async def attach(driver: Networks) -> None:
        await driver.configure(SPEC)
        await driver.attach(Attachment("web", "prod", web.pid))

    async def collect(driver: Networks) -> None:
        await driver.configure(SPEC)
        await driver.gc(frozenset())
        assert kernel() == good
        assert leased(tmp_path) == []
        assert [link["ifname"] for link in web.ip("link")] == ["lo"]

    assert await after_crash_at_each_step(tmp_path, steps, attach, collect) > 12


async def test_attach_then_attached_again(
    card: None, tmp_path: Path, steps: Steps, spawn: Spawn, echo_server: Callable[[int], Echo]
) -> None:
    web = spawn()
    web.run("ip", "link", "set", "lo", "up")
    port = echo_server(web.pid).port
    async with opened(tmp_path) as driver:
        await driver.configure(SPEC)

    async def attach(driver: Networks) -> None:
        await driver.configure(SPEC)
        address, second = await driver.attach(Attachment("web", "prod", web.pid))
        if steps.left > MOST_STEPS // 2:  # after the restart
            assert echo(None, address, port) == "100.64.1.1"
            assert echo(None, second, port) == "fd01:b::1:0:0:1"
            assert leased(tmp_path) == [str(address)]
            await driver.detach("web")

    await after_crash_at_each_step(tmp_path, steps, attach, attach)


async def test_detach_then_collected(card: None, tmp_path: Path, steps: Steps, spawn: Spawn) -> None:
    web = spawn()
    async with opened(tmp_path) as driver:
        await driver.configure(SPEC)
    good = kernel()

    async def attach(driver: Networks) -> None:
        await driver.configure(SPEC)
        await driver.attach(Attachment("web", "prod", web.pid))

    async def collect(driver: Networks) -> None:
        await driver.gc(frozenset())
        assert kernel() == good
        assert leased(tmp_path) == []

    await after_crash_at_each_step(tmp_path, steps, lambda driver: driver.detach("web"), collect, before=attach)


async def test_limit_then_collected(card: None, tmp_path: Path, steps: Steps, spawn: Spawn) -> None:
    """Also what limits a container's links is gone with it, and one that is half made keeps nobody from it."""
    web = spawn()
    async with opened(tmp_path) as driver:
        await driver.configure(SPEC)
    good = kernel()

    async def attach(driver: Networks) -> None:
        await driver.configure(SPEC)
        await driver.attach(Attachment("web", "prod", web.pid))

    async def again(driver: Networks) -> None:
        await driver.limit("web", LIMITS)
        limited = run("tc", "-s", "qdisc").count("qdisc tbf"), run("tc", "filter", "show", "dev", VETH, "ingress")
        assert limited[0] == 2 and "mirred" in limited[1]
        await collect(driver)

    async def collect(driver: Networks) -> None:
        await driver.gc(frozenset())
        assert (kernel(), leased(tmp_path), run("tc", "qdisc").count("tbf")) == (good, [], 0)

    def limit(driver: Networks) -> Awaitable[None]:
        return driver.limit("web", LIMITS)

    assert await after_crash_at_each_step(tmp_path, steps, limit, collect, before=attach) > 5
    await after_crash_at_each_step(tmp_path, steps, limit, again, before=attach)


async def both(driver: Networks, pid: int) -> None:
    """A container on two networks."""
    await driver.configure(SPEC)
    await driver.configure(BACK)
    await driver.attach(Attachment("web", "prod", pid))
    await driver.attach(Attachment("web", "back", pid, "eth1"))


async def test_second_interface_then_collected(card: None, tmp_path: Path, steps: Steps, spawn: Spawn) -> None:
    web = spawn()
    async with opened(tmp_path) as driver:
        await driver.configure(SPEC)
        await driver.configure(BACK)
    good = kernel()

    async def collect(driver: Networks) -> None:
        await driver.gc(frozenset())
        await driver.configure(SPEC)
        await driver.configure(BACK)
        assert leased(tmp_path) == [] and driver.addresses("web") == ()

    async def check(driver: Networks) -> None:
        await collect(driver)
        await driver.gc(frozenset())  # which removes links at once, of containers that no lease tells of any more
        assert kernel() == good
        assert [link["ifname"] for link in web.ip("link")] == ["lo"]

    async def attach(driver: Networks) -> None:
        await both(driver, web.pid)

    assert await after_crash_at_each_step(tmp_path, steps, attach, check) > 30


async def test_second_interface_then_attached_again(
    card: None, tmp_path: Path, steps: Steps, spawn: Spawn, echo_server: Callable[[int], Echo]
) -> None:
    web = spawn()
    web.run("ip", "link", "set", "lo", "up")
    port = echo_server(web.pid).port

    async def attach(driver: Networks) -> None:
        await both(driver, web.pid)
        if steps.left > MOST_STEPS // 2:  # after the restart
            addresses = driver.addresses("web")
            assert len(addresses) == 3 and len(leased(tmp_path)) == 2
            gateways = ["100.64.1.1", "fd01:b::1:0:0:1", "10.9.1.1"]
            assert [echo(None, address, port) for address in addresses] == gateways
            assert len(web.ip("rule", "show", "table", "101")) == 1
            await driver.detach("web")

    await after_crash_at_each_step(tmp_path, steps, attach, attach)


async def test_detach_of_both_interfaces_then_collected(card: None, tmp_path: Path, steps: Steps, spawn: Spawn) -> None:
    web = spawn()
    async with opened(tmp_path) as driver:
        await driver.configure(SPEC)
        await driver.configure(BACK)
    good = kernel()

    async def collect(driver: Networks) -> None:
        await driver.gc(frozenset())
        assert kernel() == good
        assert leased(tmp_path) == []

    count = await after_crash_at_each_step(
        tmp_path, steps, lambda driver: driver.detach("web"), collect, before=lambda driver: both(driver, web.pid)
    )
    assert count >= 6


async def test_reboot_at_any_step(card: None, tmp_path: Path, steps: Steps, spawn: Spawn) -> None:
    """The kernel has forgotten everything, the disk has not."""
    web = spawn()
    nothing = kernel()
    for allowed in range(MOST_STEPS):
        steps.left, crashed = allowed, False
        try:
            async with opened(tmp_path, f"boot-{allowed}") as driver:
                await both(driver, web.pid)
        except Crash:
            crashed = True
        steps.left = MOST_STEPS
        for link in ip("link"):
            if link["ifname"] not in ("lo", "card", "wire"):
                run("sh", "-c", f"ip link del {link['ifname']} 2>/dev/null || true")
        assert kernel() == nothing
        web.run("sh", "-c", "for v in -4 -6; do ip $v rule del table 101; done 2>/dev/null || true")
        async with opened(tmp_path, f"boot-{allowed}-after") as driver:
            assert driver.addresses("web") == () and leased(tmp_path) == []
            await driver.gc(frozenset())
            for network in driver.known():
                await driver.remove(network)
        assert kernel() == nothing
        if not crashed:
            return
    raise AssertionError(f"not done after {MOST_STEPS} steps")
