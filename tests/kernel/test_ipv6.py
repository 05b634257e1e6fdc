"""What IPv6 asks of a node and of a container's link, on a bridge network."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import pytest

from model.network import NetworkKind
from netns.driver import Attachment, NetworkError
from netns.gateway import GATEWAY_MAC
from netns.link import gateway_name, veth_name
from netns.neighbour import mac_of
from tests.kernel.namespaces import Echo, NetnsProcess, echo
from tests.kernel.nodes import Host, network

pytestmark = pytest.mark.anyio

Spawn = Callable[..., NetnsProcess]
FORWARDING = "/proc/sys/net/ipv6/conf/all/forwarding"


@pytest.fixture(params=["v6", "dual"])
def host(request: pytest.FixtureRequest, spawn: Spawn, tmp_path: Path) -> Host:
    """With a network card that listens to routers, as links do by themselves."""
    process = spawn()
    process.run("ip", "link", "add", "card", "type", "veth", "peer", "wire")
    process.run("ip", "addr", "add", "192.0.2.1/24", "dev", "card")
    for name in ("lo", "card", "wire"):
        process.run("ip", "link", "set", name, "up")
    versions = (6,) if request.param == "v6" else (4, 6)
    return Host(1, process, ip_address("192.0.2.1"), network(versions, NetworkKind.BRIDGE), tmp_path)


async def test_container_has_single_addresses_and_asks_nothing(host: Host, spawn: Spawn) -> None:
    web = spawn()
    addresses = await host.attach("web", web, host.spec())
    block, address = host.blocks[-1], addresses[-1]
    [link] = web.ip("addr", "show", "dev", "eth0")
    assert [(a["local"], a["prefixlen"]) for a in link["addr_info"]] == [
        (str(each), each.max_prefixlen) for each in addresses
    ]
    assert not any(a.get("tentative") for a in link["addr_info"]) and link["address"] == mac_of(address)
    routes = {route["dst"]: route for route in web.ip("-6", "route", "show", "dev", "eth0")}
    assert routes["default"]["gateway"] == str(block.gateway) and set(routes) >= {"default", str(block.gateway)}
    neighbours = {n["dst"]: (n["lladdr"], n["state"]) for n in web.ip("-6", "neigh", "show", "nud", "permanent")}
    assert neighbours == {str(block.gateway): (GATEWAY_MAC, ["PERMANENT"])}
    for setting in ("accept_ra", "accept_redirects"):
        assert web.run("cat", f"/proc/sys/net/ipv6/conf/eth0/{setting}") == "0\n"


async def test_nodes_end_has_no_address_and_leads_to_the_container(host: Host, spawn: Spawn) -> None:
    addresses = await host.attach("web", spawn(), host.spec())
    veth = veth_name("web")
    [link] = host.process.ip("addr", "show", "dev", veth)
    assert link["addr_info"] == []
    [route] = host.process.ip("-6", "route", "show", "dev", veth, "proto", "84")
    assert (route["dst"], route["prefsrc"]) == (str(addresses[-1]), str(host.blocks[-1].gateway))
    [gateway] = host.process.ip("addr", "show", "dev", gateway_name("prod"))
    assert [a["local"] for a in gateway["addr_info"]] == [str(block.gateway) for block in host.blocks]


async def test_without_ipv6_a_link_has_none(spawn: Spawn, tmp_path: Path, host: Host) -> None:
    plain = Host(1, host.process, host.underlay, network((4,), NetworkKind.BRIDGE), tmp_path)
    await plain.attach("web", spawn(), plain.spec())
    assert host.process.run("cat", f"/proc/sys/net/ipv6/conf/{veth_name('web')}/disable_ipv6") == "1\n"
    assert host.process.run("cat", FORWARDING) == "0\n"


async def test_on_a_kernel_that_does_without_ipv6_a_network_is_what_is_left_of_it(
    host: Host, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netns.networks.KERNEL_IPV6", Path("/proc/net/nothing"))
    web = spawn()
    if host.network.versions == (6,):
        with pytest.raises(NetworkError, match='network "prod": subnets: this node.s kernel has no IPv6'):
            await host.attach("web", web, host.spec())
        return
    (address,) = await host.attach("web", web, host.spec())
    assert address.version == 4
    assert host.process.run("cat", f"/proc/sys/net/ipv6/conf/{veth_name('web')}/disable_ipv6") == "1\n"


async def test_where_new_links_have_no_ipv6_ours_have(
    host: Host, spawn: Spawn, echo_server: Callable[[int], Echo]
) -> None:
    web = spawn()
    for process in (host.process, web):
        process.run("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
    addresses = await host.attach("web", web, host.spec())
    assert echo(host.process.pid, addresses[-1], echo_server(web.pid).port) == str(host.blocks[-1].gateway)


async def test_node_becomes_a_router_and_goes_on_listening_to_its_own(host: Host) -> None:
    """Else it would lose its default route, when the lifetime that was advertised has passed."""
    process = host.process
    settings = {name: f"/proc/sys/net/ipv6/conf/{name}/accept_ra" for name in ("card", "wire", "default")}
    process.run("sysctl", "-qw", "net.ipv6.conf.wire.accept_ra=0")  # somebody does not want it
    process.run("ip", "-6", "route", "add", "default", "via", "fe80::1", "dev", "card", "proto", "ra")
    async with host.driver(host.spec()) as driver:
        assert process.run("cat", FORWARDING) == "1\n"
        found = {name: process.run("cat", path).strip() for name, path in settings.items()}
        assert found == {"card": "2", "wire": "0", "default": "1"}
        assert [route["dev"] for route in process.ip("-6", "route", "show", "default")] == ["card"]
        assert process.run("cat", f"/proc/sys/net/ipv6/conf/{gateway_name('prod')}/accept_ra") == "0\n"
        process.run("sysctl", "-qw", "net.ipv6.conf.card.accept_ra=1")
        await driver.mend("prod")  # whose business it is not, once the node is a router
        assert process.run("cat", settings["card"]) == "1\n"


async def test_neighbours_reach_each_other_and_the_way_out(
    host: Host, spawn: Spawn, echo_server: Callable[[int], Echo]
) -> None:
    one, two = spawn(), spawn()
    own = await host.attach("one", one, host.spec())
    addresses = await host.attach("two", two, host.spec())
    port = echo_server(two.pid).port
    for mine, address in zip(own, addresses, strict=True):
        assert echo(one.pid, address, port, size=100_000) == str(mine)


async def test_detach_leaves_nothing_of_either(host: Host, spawn: Spawn) -> None:
    async with host.driver(host.spec()):
        before = traces(host)
    container = spawn()
    await host.attach("web", container, host.spec())
    assert traces(host) != before
    async with host.driver(host.spec()) as driver:
        await driver.detach("web")
    assert traces(host) == before
    assert [link["ifname"] for link in container.ip("link")] == ["lo"]


def traces(host: Host) -> object:
    routes = [(r["dst"], r["dev"]) for version in ("-4", "-6") for r in host.process.ip(version, "route")]
    routes = [route for route in routes if not route[0].startswith("fe80")]
    links = [link["ifname"] for link in host.process.ip("link")]
    return links, routes, host.process.ip("neigh", "show", "nud", "permanent")


async def test_attached_again_has_the_same(host: Host, spawn: Spawn) -> None:
    web = spawn()
    async with host.driver(host.spec()) as driver:
        first = await driver.attach(Attachment("web", "prod", web.pid))
        assert await driver.attach(Attachment("web", "prod", web.pid)) == first
    assert len(web.ip("link")) == 2
