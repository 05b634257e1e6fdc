"""Whatever somebody does to what we have in the kernel, `mend` finds it, puts it right and says so, once."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import pytest

from netns.driver import Attachment
from netns.link import gateway_name, veth_name
from tests.kernel.namespaces import NetnsProcess
from tests.kernel.nodes import Host, block_subnet, network

pytestmark = pytest.mark.anyio

Spawn = Callable[..., NetnsProcess]
GATEWAY, VETH = gateway_name("prod"), veth_name("web")
PEER = {4: block_subnet(4, 2), 6: block_subnet(6, 2)}

BREAKAGES = [
    f"ip link del {GATEWAY}",
    "ip link del tx1024",
    f"ip link set {GATEWAY} down",
    "ip link set tx1024 down mtu 1300",
    f"ip addr flush dev {GATEWAY}",
    f"ip route del {PEER[4]}",
    f"ip -6 route del {PEER[6]}",
    f"ip neigh del {PEER[4].network_address} dev tx1024",
    f"ip neigh del {PEER[6].network_address} dev tx1024",
    "bridge fdb flush dev tx1024",
    "bridge fdb append 02:00:00:00:00:99 dev tx1024 dst 192.0.2.99 self",
    f"ip link set {VETH} down",
    f"ip route del {block_subnet(4, 1)[2]}",
    f"ip -6 route del {block_subnet(6, 1)[0x64400102]}",
    f"ip neigh flush nud permanent dev {VETH}",
    f"sysctl -qw net.ipv4.conf.{VETH}.rp_filter=0",
    f"sysctl -qw net.ipv4.conf.{GATEWAY}.forwarding=0",
    f"sysctl -qw net.ipv6.conf.{VETH}.disable_ipv6=1",
    "sysctl -qw net.ipv6.conf.all.forwarding=0",
]


@pytest.fixture
def one(spawn: Spawn, tmp_path: Path) -> Host:
    process = spawn()
    process.run("ip", "link", "add", "card", "type", "veth", "peer", "wire")
    process.run("ip", "addr", "add", "192.0.2.1/24", "dev", "card")
    for name in ("lo", "card", "wire"):
        process.run("ip", "link", "set", name, "up")
    return Host(1, process, ip_address("192.0.2.1"), network((4, 6)), tmp_path)


@pytest.mark.parametrize("breakage", BREAKAGES)
async def test_mended(one: Host, spawn: Spawn, breakage: str) -> None:
    two = Host(2, one.process, ip_address("192.0.2.2"), one.network, one.state)
    async with one.driver(one.spec(two)) as driver:
        await driver.attach(Attachment("web", "prod", spawn().pid))
        assert await driver.mend("prod") == []
        good = kernel(one)
        one.process.run(*breakage.split())
        assert kernel(one) != good
        assert await driver.mend("prod")
        assert kernel(one) == good
        assert await driver.mend("prod") == []


def kernel(host: Host) -> object:
    links = [(link["ifname"], link["mtu"], "UP" in link["flags"], link["address"]) for link in host.process.ip("link")]
    addresses = [(link["ifname"], a["local"]) for link in host.process.ip("addr") for a in link["addr_info"]]
    routes = [
        (r["dst"], r.get("gateway"), r["dev"], r.get("prefsrc"))
        for version in ("-4", "-6")
        for r in host.process.ip(version, "route")
        if r["dev"] not in ("card", "wire")
    ]
    neighbours = [(n["dst"], n["dev"], n["lladdr"]) for n in host.process.ip("neigh", "show", "nud", "permanent")]
    fdb = [line for line in host.process.run("bridge", "fdb").split("\n") if " dst " in line]
    settings = [
        host.process.run("sysctl", "-en", f"net/{path}")  # of a link that is gone: nothing
        for path in (
            f"ipv4/conf/{VETH}/rp_filter",
            f"ipv4/conf/{GATEWAY}/forwarding",
            f"ipv6/conf/{VETH}/disable_ipv6",
            "ipv6/conf/all/forwarding",
        )
    ]
    flickering = {a for a in addresses if a[1].startswith("fe80")}
    return (
        sorted(links),
        sorted(set(addresses) - flickering),
        sorted(map(repr, routes)),
        sorted(neighbours),
        sorted(fdb),
        settings,
    )


async def test_of_an_unknown_network_there_is_nothing_to_mend(one: Host) -> None:
    async with one.driver() as driver:
        assert await driver.mend("never") == []


async def test_a_link_that_is_gone_is_made_again(one: Host, spawn: Spawn) -> None:
    web = spawn()
    async with one.driver(one.spec()) as driver:
        addresses = await driver.attach(Attachment("web", "prod", web.pid))
        one.process.run("ip", "link", "del", VETH)
        assert [link["ifname"] for link in web.ip("link")] == ["lo"]
        assert await driver.mend("prod") == [f"create veth {VETH} to eth0"]
        found = [a["local"] for a in web.ip("addr", "show", "eth0")[0]["addr_info"]]
        assert found == [str(address) for address in addresses]
        assert await driver.mend("prod") == []


async def test_of_a_container_that_has_ended_no_link_is_made_again(one: Host, spawn: Spawn) -> None:
    web = spawn()
    async with one.driver(one.spec()) as driver:
        await driver.attach(Attachment("web", "prod", web.pid))
        one.process.run("ip", "link", "del", VETH)
        web.stop()
        assert await driver.mend("prod") == []
