"""Bridge networks: what a container gets, that it reaches its neighbours through the node only, and that nothing of
it is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path

import pytest

from model.network import Block, Network, NetworkKind
from netns.driver import Attachment, NetworkError, NetworkSpec
from netns.gateway import GATEWAY_MAC
from netns.link import gateway_name, veth_name
from netns.neighbour import mac_of
from netns.networks import Networks
from tests.kernel.namespaces import Echo, NetnsProcess, echo, ip, run
from tests.kernel.sandbox import until

pytestmark = pytest.mark.anyio

SUBNET = ip_network("10.9.0.0/24")
NETWORK = Network("local", NetworkKind.BRIDGE, (ip_network("10.9.0.0/16"),))
SPEC = NetworkSpec(NETWORK, (Block("local", "n1", SUBNET),))
GATEWAY = gateway_name("local")
UNDERLAY = ip_address("192.0.2.1")

Spawn = Callable[..., NetnsProcess]


@pytest.fixture
def underlay(host_netns: None) -> None:
    """A link that stands for the node's network card, with nothing at its other end."""
    run("ip", "link", "add", "card", "type", "veth", "peer", "wire")
    run("ip", "addr", "add", f"{UNDERLAY}/24", "dev", "card")
    run("ip", "link", "set", "card", "up")
    run("ip", "link", "set", "wire", "up")


@asynccontextmanager
async def networks(state: Path, boot: str = "boot-1") -> AsyncIterator[Networks]:
    async with Networks(state, "n1", boot, UNDERLAY) as opened:
        yield opened


def attachment(name: str, container: NetnsProcess, network: str = "local") -> Attachment:
    return Attachment(name, network, container.pid)


async def test_container_gets_one_address_and_the_way_out(underlay: None, tmp_path: Path, spawn: Spawn) -> None:
    web = spawn()
    async with networks(tmp_path) as driver:
        await driver.configure(SPEC)
        assert await driver.attach(attachment("web", web)) == (IPv4Address("10.9.0.2"),)
    links = {link["ifname"]: link for link in web.ip("addr")}
    assert set(links) == {"lo", "eth0"}
    assert "UP" in links["lo"]["flags"] and "UP" in links["eth0"]["flags"]
    assert [(a["local"], a["prefixlen"]) for a in links["eth0"]["addr_info"]] == [("10.9.0.2", 32)]  # no IPv6
    assert links["eth0"]["address"] == mac_of(ip_address("10.9.0.2"))
    assert links["eth0"]["mtu"] == 1500
    routes = {route["dst"]: route for route in web.ip("route")}
    assert routes["default"]["gateway"] == "10.9.0.1" and routes["10.9.0.1"]["scope"] == "link"
    assert [(n["dst"], n["lladdr"], n["state"]) for n in web.ip("neigh")] == [("10.9.0.1", GATEWAY_MAC, ["PERMANENT"])]


async def test_nodes_end_leads_to_the_container_and_takes_nothing_else(
    underlay: None, tmp_path: Path, spawn: Spawn
) -> None:
    async with networks(tmp_path) as driver:
        await driver.configure(SPEC)
        await driver.attach(attachment("web", spawn()))
    veth = veth_name("web")
    [link] = ip("addr", "show", "dev", veth)
    assert (link["address"], link["ifalias"], link["addr_info"]) == (GATEWAY_MAC, "web", [])
    [neighbour] = ip("neigh", "show", "dev", veth)
    assert (neighbour["dst"], neighbour["state"]) == ("10.9.0.2", ["PERMANENT"])
    [route] = ip("route", "show", "dev", veth)
    assert (route["dst"], route["prefsrc"], route["scope"]) == ("10.9.0.2", "10.9.0.1", "link")
    settings = Path("/proc/sys/net/ipv4/conf", veth)
    assert {name: (settings / name).read_text() for name in ("rp_filter", "forwarding")} == {
        "rp_filter": "1\n",
        "forwarding": "1\n",
    }
    assert run("cat", "/proc/sys/net/ipv4/ip_forward") == "0\n"
    assert not ip("-6", "addr", "show", "dev", GATEWAY)


async def test_neighbours_and_the_node_reach_each_other(
    underlay: None, tmp_path: Path, spawn: Spawn, echo_server: Callable[[int], Echo]
) -> None:
    one, two = spawn(), spawn()
    async with networks(tmp_path) as driver:
        await driver.configure(SPEC)
        await driver.attach(attachment("one", one))
        [address] = await driver.attach(attachment("two", two))
        [own] = driver.addresses("one")
    server = echo_server(two.pid)
    assert echo(one.pid, address, server.port, size=100_000) == str(own)
    assert echo(None, address, server.port) == "10.9.0.1"
    assert echo(two.pid, address, server.port) == str(address)


async def test_a_neighbour_can_not_be_reached_without_the_node(
    underlay: None, tmp_path: Path, spawn: Spawn, echo_server: Callable[[int], Echo]
) -> None:
    """With the neighbour's MAC address known and a route past the gateway, a frame still gets nowhere."""
    one, two = spawn(), spawn()
    async with networks(tmp_path) as driver:
        await driver.configure(SPEC)
        await driver.attach(attachment("one", one))
        [address] = await driver.attach(attachment("two", two))
    server = echo_server(two.pid)
    one.run("ip", "route", "add", str(address), "dev", "eth0")
    one.run("ip", "neigh", "replace", str(address), "lladdr", mac_of(address), "dev", "eth0", "nud", "permanent")
    with pytest.raises(OSError):
        echo(one.pid, address, server.port, deadline_s=0.5)
    one.run("ip", "route", "del", str(address), "dev", "eth0")
    assert echo(one.pid, address, server.port)


async def test_an_address_can_not_be_taken_over(
    underlay: None, tmp_path: Path, spawn: Spawn, echo_server: Callable[[int], Echo]
) -> None:
    """A container that gives itself its neighbour's addresses and sends with them gets none of its traffic."""
    victim, thief = spawn(), spawn()
    async with networks(tmp_path) as driver:
        await driver.configure(SPEC)
        [address] = await driver.attach(attachment("victim", victim))
        await driver.attach(attachment("thief", thief))
    server = echo_server(victim.pid)
    thief.run("ip", "addr", "add", f"{address}/32", "dev", "eth0")
    thief.run("ip", "link", "set", "eth0", "address", mac_of(address))
    thief.run("ip", "route", "replace", "default", "via", "10.9.0.1", "dev", "eth0", "src", str(address))
    outside = spawn()
    async with networks(tmp_path) as driver:
        await driver.configure(SPEC)
        [other] = await driver.attach(attachment("other", outside))
    with pytest.raises(TimeoutError):
        echo(thief.pid, other, echo_server(outside.pid).port, deadline_s=0.5)
    assert echo(None, address, server.port) == "10.9.0.1"


async def test_configure_again_does_nothing(underlay: None, tmp_path: Path, counted: list[str]) -> None:
    async with networks(tmp_path) as driver:
        await driver.configure(SPEC)
        assert counted
        before, counted[:] = list(counted), []
        await driver.configure(SPEC)
        assert counted == [], before
    async with networks(tmp_path) as driver:
        await driver.configure(SPEC)
        assert counted == []


async def test_configure_mends_what_others_broke(underlay: None, tmp_path: Path) -> None:
    async with networks(tmp_path) as driver:
        await driver.configure(SPEC)
        good = _gateway()
        run("ip", "link", "set", GATEWAY, "down", "address", "02:00:00:00:00:01", "mtu", "1000")
        run("ip", "addr", "flush", "dev", GATEWAY)
        await driver.configure(SPEC)
        assert _gateway() == good
        run("ip", "link", "del", GATEWAY)
        await driver.configure(SPEC)
        assert _gateway() == good


def _gateway() -> object:
    [link] = ip("addr", "show", "dev", GATEWAY)
    addresses = [(address["local"], address["prefixlen"]) for address in link["addr_info"]]
    routes = [(route["dst"], route["prefsrc"]) for route in ip("route", "show", "dev", GATEWAY)]
    return link["address"], link["mtu"], "UP" in link["flags"], addresses, routes


async def test_container_in_a_user_namespace(
    underlay: None, tmp_path: Path, spawn: Spawn, echo_server: Callable[[int], Echo]
) -> None:
    web = spawn("--user", "--map-root-user")
    async with networks(tmp_path) as driver:
        await driver.configure(SPEC)
        [address] = await driver.attach(attachment("web", web))
    assert echo(None, address, echo_server(web.pid).port)


async def test_attached_at_once_each_gets_its_own(
    underlay: None, tmp_path: Path, spawn: Spawn, echo_server: Callable[[int], Echo]
) -> None:
    containers = {f"c{n}": spawn() for n in range(8)}
    async with networks(tmp_path) as driver:
        await driver.configure(SPEC)
        async with asyncio.TaskGroup() as group:
            attaching = {
                name: group.create_task(driver.attach(attachment(name, container)))
                for name, container in containers.items()
            }
        addresses = {name: task.result()[0] for name, task in attaching.items()}
        assert len(set(addresses.values())) == len(containers)
        for name, container in containers.items():
            assert [a["local"] for a in container.ip("addr", "show", "eth0")[0]["addr_info"]] == [str(addresses[name])]
        async with asyncio.TaskGroup() as group:
            for name in containers:
                group.create_task(driver.detach(name))
        assert not any(map(driver.addresses, containers))
    assert not [link for link in ip("link") if link["ifname"].startswith("tv")]


async def test_detach_of_a_container_whose_namespace_is_gone(underlay: None, tmp_path: Path, spawn: Spawn) -> None:
    web = spawn()
    async with networks(tmp_path) as driver:
        await driver.configure(SPEC)
        await driver.attach(attachment("web", web))
        web.stop()
        await driver.detach("web")
        assert driver.addresses("web") == ()
    assert not [link for link in ip("link") if link["ifname"].startswith("tv")]


async def test_detached_container_is_cut_off_at_once(
    underlay: None, tmp_path: Path, spawn: Spawn, echo_server: Callable[[int], Echo]
) -> None:
    """Its address may be somebody else's already, while the kernel has not got round to removing the link."""
    old, new = spawn(), spawn()
    block = Block("local", "n1", ip_network("10.9.0.0/30"))  # has room for one
    async with networks(tmp_path) as driver:
        await driver.configure(NetworkSpec(NETWORK, (block,)))
        [address] = await driver.attach(attachment("old", old))
        await driver.detach("old")
        assert await driver.attach(attachment("new", new)) == (address,)
        port = echo_server(new.pid).port
        assert echo(None, address, port) == "10.9.0.1"
        with pytest.raises(OSError):
            echo(old.pid, "10.9.0.1", port, deadline_s=0.3)
        await driver.attach(attachment("new", new))  # as an agent does that has started again


async def test_detached_and_attached_again_at_once(underlay: None, tmp_path: Path, spawn: Spawn) -> None:
    web = spawn()
    async with networks(tmp_path) as driver:
        await driver.configure(SPEC)
        await driver.attach(attachment("web", web))
        await driver.detach("web")
        await driver.attach(attachment("web", web))
    assert [link["ifname"] for link in web.ip("link")] == ["lo", "eth0"]
    assert "UP" in ip("link", "show", veth_name("web"))[0]["flags"]


async def test_detach_leaves_nothing(underlay: None, tmp_path: Path, spawn: Spawn) -> None:
    web = spawn()
    async with networks(tmp_path) as driver:
        await driver.configure(SPEC)
        before = _everything(tmp_path)
        await driver.attach(attachment("web", web))
        assert _everything(tmp_path) != before
        await driver.detach("web")
        assert driver.addresses("web") == ()
        await until(lambda: _everything(tmp_path) == before, "nothing is left")
        await driver.detach("web")
        await driver.detach("never")
        assert [link["ifname"] for link in web.ip("link")] == ["lo"]


def _everything(state: Path) -> object:
    leases = sorted(path.name for path in state.rglob("*") if path.is_file() and not path.name.endswith(".rested"))
    routes = [(route["dst"], route["dev"]) for route in ip("route")]
    neighbours = run("ip", "neigh", "show", "nud", "permanent")
    return [link["ifname"] for link in ip("link")], neighbours, run("bridge", "fdb"), routes, leases


async def test_detach_by_name_after_a_restart(underlay: None, tmp_path: Path, spawn: Spawn) -> None:
    async with networks(tmp_path) as driver:
        await driver.configure(SPEC)
        before = _everything(tmp_path)
        await driver.attach(attachment("web", spawn()))
    async with networks(tmp_path) as driver:
        assert driver.addresses("web") == (IPv4Address("10.9.0.2"),)
        await driver.detach("web")
    assert _everything(tmp_path) == before  # links are gone when the driver is closed, at the latest


async def test_restart_keeps_connections(
    underlay: None, tmp_path: Path, spawn: Spawn, echo_server: Callable[[int], Echo]
) -> None:
    web = spawn()
    async with networks(tmp_path) as driver:
        await driver.configure(SPEC)
        [address] = await driver.attach(attachment("web", web))
    server = echo_server(web.pid)
    index = ip("link", "show", veth_name("web"))[0]["ifindex"]
    async with networks(tmp_path) as driver:
        await driver.configure(SPEC)
        await driver.gc(frozenset({"web"}))
        assert echo(None, address, server.port)
    assert ip("link", "show", veth_name("web"))[0]["ifindex"] == index


async def test_gc_removes_what_no_valid_container_has(underlay: None, tmp_path: Path, spawn: Spawn) -> None:
    run("ip", "link", "add", "tvforeign", "type", "veth", "peer", "tvforeign2")  # not one of our names
    async with networks(tmp_path) as driver:
        await driver.configure(SPEC)
        for name in ("kept", "gone", "stray"):
            await driver.attach(attachment(name, spawn()))
        for path in (tmp_path / "leases").rglob("10.9.0.4"):
            path.unlink()  # "stray" is a link without a lease
    async with networks(tmp_path) as driver:
        await driver.configure(SPEC)
        await driver.gc(frozenset({"kept"}))
        names = {link["ifname"] for link in ip("link") if link["ifname"].startswith("tv")}
        assert names == {veth_name("kept"), "tvforeign", "tvforeign2"}
        assert driver.addresses("gone") == ()


async def test_reboot_frees_every_lease(underlay: None, tmp_path: Path, spawn: Spawn) -> None:
    async with networks(tmp_path) as driver:
        await driver.configure(SPEC)
        await driver.attach(attachment("web", spawn()))
    async with networks(tmp_path, boot="boot-2") as driver:
        assert driver.addresses("web") == ()


async def test_remove_leaves_nothing(underlay: None, tmp_path: Path) -> None:
    before = _everything(tmp_path)
    async with networks(tmp_path) as driver:
        await driver.configure(SPEC)
    async with networks(tmp_path) as driver:  # knows nothing of it but its name
        await driver.remove("local")
        await driver.remove("local")
        await driver.remove("never")
    assert _everything(tmp_path) == before
    assert not list((tmp_path / "networks").iterdir())


async def test_attach_errors_name_container_network_and_step(underlay: None, tmp_path: Path, spawn: Spawn) -> None:
    web = spawn()
    async with networks(tmp_path) as driver:
        with pytest.raises(NetworkError, match='attach web to network "local": not configured on this node'):
            await driver.attach(attachment("web", web))
        await driver.configure(SPEC)
        gone = spawn()
        gone.stop()
        with pytest.raises(NetworkError, match=f'attach web to bridge "local": .*process {gone.pid}: No such file'):
            await driver.attach(attachment("web", gone))
        web.run("ip", "link", "add", "eth0", "type", "veth", "peer", "x")
        with pytest.raises(NetworkError, match=f"create veth {veth_name('web')} to eth0: File exists"):
            await driver.attach(attachment("web", web))
        await driver.detach("web")
        assert driver.addresses("web") == ()


async def test_none_has_loopback_and_host_is_left_alone(underlay: None, tmp_path: Path, spawn: Spawn) -> None:
    alone, host = spawn(), spawn()
    async with networks(tmp_path) as driver:
        for kind in (NetworkKind.NONE, NetworkKind.HOST):
            await driver.configure(NetworkSpec(Network(kind.value, kind), ()))
        assert await driver.attach(attachment("a", alone, "none")) == ()
        assert await driver.attach(attachment("h", host, "host")) == ()
        await driver.detach("a")
    assert [(link["ifname"], "UP" in link["flags"]) for link in alone.ip("link")] == [("lo", True)]
    assert "UP" not in host.ip("link")[0]["flags"]


async def test_missing_underlay_is_one_clear_error(host_netns: None, tmp_path: Path) -> None:
    async with networks(tmp_path) as driver:
        with pytest.raises(NetworkError, match='configure bridge "local": no link of this node has .* 192.0.2.1'):
            await driver.configure(SPEC)
    assert [link["ifname"] for link in ip("link")] == ["lo"]


async def test_somebody_elses_route_is_refused_not_replaced(underlay: None, tmp_path: Path) -> None:
    run("ip", "route", "add", str(SUBNET), "dev", "card")
    async with networks(tmp_path) as driver:
        taken = r"subnets: 10\.9\.0\.0/16 overlaps what this node has a route to: 10\.9\.0\.0/24 dev card"
        with pytest.raises(NetworkError, match=taken):
            await driver.configure(SPEC)
        assert [link["ifname"] for link in ip("link")] == ["lo", "wire", "card"]
        run("ip", "route", "replace", "10.0.0.0/8", "via", "192.0.2.9")
        run("ip", "route", "del", str(SUBNET))
        with pytest.raises(NetworkError, match=r"has a route to: 10\.0\.0\.0/8 via 192\.0\.2\.9 dev card"):
            await driver.configure(SPEC)
        run("ip", "route", "del", "10.0.0.0/8")
        run("ip", "route", "add", "default", "via", "192.0.2.9")  # which leads everywhere else
        await driver.configure(SPEC)
        run("ip", "route", "add", "10.9.7.0/24", "dev", "card")
        with pytest.raises(NetworkError, match=r"add route 10\.9\.7\.0/24 dev tg\w+: File exists"):
            await driver.configure(replace(SPEC, blocks=(Block("local", "n1", ip_network("10.9.7.0/24")),)))
    assert [route["dev"] for route in ip("route", "show", "10.9.7.0/24")] == ["card"]
