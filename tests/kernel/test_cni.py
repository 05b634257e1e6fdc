"""CNI networks with Debian's plug-ins: what containers get, whom they reach, and that nothing of it is left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.plugged import keep_checked
from netns.cni.driver import CniDriver
from netns.driver import Attachment, NetworkError
from netns.networks import Networks
from tests.kernel.cni import DEBIAN, conflist, host_local, links, mounts_below, reserved, spec
from tests.kernel.namespaces import Echo, NetnsProcess, echo, ip, run
from tests.kernel.sandbox import until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("host_mounts")]

Spawn = Callable[..., NetnsProcess]
Server = Callable[[int], Echo]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "cni"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Where host-local keeps its reservations."""
    return tmp_path / "host-local"


@pytest.fixture
def driver(state: Path) -> CniDriver:
    return CniDriver(state, [DEBIAN])


def bridge(data: Path, **more: object) -> dict[str, object]:
    return {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipam": host_local(data), **more}


async def test_bridge_and_host_local(
    driver: CniDriver, state: Path, data: Path, spawn: Spawn, echo_server: Server
) -> None:
    web, client = spawn(), spawn()
    await driver.configure(spec(conflist(bridge(data))))
    [address] = await driver.attach(Attachment("web.1", "sdn", web.pid))
    [other] = await driver.attach(Attachment("client.1", "sdn", client.pid))
    assert links() == {"lo", "cni0"} | {link for link in links() if link.startswith("veth")}
    assert reserved(data) == {str(address): "web.1", str(other): "client.1"}
    assert driver.addresses("web.1") == (address,)
    port = echo_server(web.pid).port
    assert echo(client.pid, address, port) == str(other)
    assert echo(None, address, port) == "10.88.0.1"
    await driver.check("web.1")
    await driver.detach("web.1")
    await driver.detach("web.1")
    assert reserved(data) == {str(other): "client.1"}
    assert {link["ifname"] for link in web.ip("link")} == {"lo"}
    assert driver.addresses("web.1") == ()
    await driver.remove("sdn")
    assert (reserved(data), driver.known(), mounts_below(state)) == ({}, frozenset(), [])
    assert list((state / "attachments").iterdir()) == []


async def test_attach_again_is_the_same_also_after_a_restart(
    driver: CniDriver, state: Path, data: Path, spawn: Spawn
) -> None:
    web, successor = spawn(), spawn()
    await driver.configure(spec(conflist(bridge(data))))
    first = await driver.attach(Attachment("web", "sdn", web.pid))
    assert await driver.attach(Attachment("web", "sdn", web.pid)) == first
    again = CniDriver(state, [DEBIAN])
    assert (again.known(), again.addresses("web")) == (frozenset({"sdn"}), first)
    assert await again.attach(Attachment("web", "sdn", web.pid)) == first
    await again.check("web")
    second = await again.attach(Attachment("web", "sdn", successor.pid))  # its namespace is another
    assert list(reserved(data)) == [str(*second)]
    assert "eth0" in {link["ifname"] for link in successor.ip("link")}
    assert "eth0" not in {link["ifname"] for link in web.ip("link")}
    await again.detach("web")
    assert reserved(data) == {}


async def test_what_plug_ins_find_wrong_is_said_once(
    tmp_path: Path, data: Path, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.plugged.INTERVAL_S", 0.01)
    web, ready = spawn(), asyncio.Event()
    async with Networks(tmp_path / "state", "n1", "boot-1", ip_address("192.0.2.1"), cni_path=[DEBIAN]) as networks:
        await networks.configure(spec(conflist(bridge(data))))
        await networks.attach(Attachment("web", "sdn", web.pid))
        assert networks.plugged() == ["web"]
        with capture_logs() as logs:
            looking = asyncio.create_task(keep_checked(networks, ready))
            ready.set()
            await asyncio.sleep(0.1)
            assert logs == []
            web.run("ip", "link", "set", "eth0", "name", "eth7")
            await until(lambda: bool(logs), "it is said")
            await asyncio.sleep(0.1)
            web.run("ip", "link", "set", "eth7", "name", "eth0")
            await until(lambda: len(logs) == 2, "it is said that it is well")
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
        wrong, right = logs
        assert wrong["event"] == "network is not as it was made" and "plug-in bridge: CHECK" in wrong["reason"]
        assert right["event"] == "network is as it was made again"
        await networks.detach("web")


async def test_check_finds_what_somebody_removed(driver: CniDriver, data: Path, spawn: Spawn) -> None:
    web = spawn()
    await driver.configure(spec(conflist(bridge(data))))
    await driver.attach(Attachment("web", "sdn", web.pid))
    web.run("ip", "addr", "flush", "dev", "eth0")
    with pytest.raises(NetworkError, match='check web on cni "sdn": plug-in bridge: CHECK: '):
        await driver.check("web")
    await driver.detach("web")


@pytest.mark.parametrize("processes", ["alive", "ended"])
async def test_masquerading_chain_leaves_no_rule(
    driver: CniDriver, state: Path, data: Path, spawn: Spawn, processes: str
) -> None:
    """`bridge` learns in the namespace what it had masqueraded, so this has to outlive the processes."""
    web = spawn()
    chain = bridge(data, ipMasq=True), {"type": "firewall", "backend": "iptables"}
    await driver.configure(spec(conflist(*chain)))
    [address] = await driver.attach(Attachment("web", "sdn", web.pid))
    assert str(address) in run("iptables-save", "-t", "nat")
    assert str(address) in run("iptables-save", "-t", "filter")
    if processes == "ended":
        web.stop()
    await driver.detach("web")
    assert str(address) not in run("iptables-save")
    assert (reserved(data), mounts_below(state)) == ({}, [])
    assert not any(link.startswith("veth") for link in links())


async def test_ptp_with_portmap_bandwidth_and_tuning(
    driver: CniDriver, data: Path, spawn: Spawn, echo_server: Server
) -> None:
    web, client = spawn(), spawn()
    run("ip", "link", "add", "card", "type", "veth", "peer", "name", "eth0", "netns", str(client.pid))
    run("ip", "addr", "add", "192.0.2.1/24", "dev", "card")
    run("ip", "link", "set", "card", "up")
    client.run("ip", "addr", "add", "192.0.2.2/24", "dev", "eth0")
    client.run("ip", "link", "set", "eth0", "up")
    before = links()
    chain = (
        {"type": "ptp", "ipMasq": False, "ipam": host_local(data)},
        {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}, "capabilities": {"mac": True}},
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
    )
    # CHECK of this portmap looks for rules of IPv6 that it never made: what the switch is for.
    await driver.configure(spec(conflist(*chain, disableCheck=True)))
    wanted = {
        "portMappings": [{"hostPort": 8081, "containerPort": 8080, "protocol": "tcp"}],
        "bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 8_000_000, "egressRate": 0, "egressBurst": 0},
        "mac": "02:00:00:00:00:09",
    }
    [address] = await driver.attach(Attachment("web", "sdn", web.pid), wanted)
    [link] = web.ip("link", "show", "eth0")
    assert link["address"] == "02:00:00:00:00:09"
    assert web.run("sysctl", "-n", "net.core.somaxconn").strip() == "500"
    [veth] = links() - before
    assert "tbf" in run("tc", "qdisc", "show", "dev", veth)
    port = echo_server(web.pid).port
    assert echo(None, address, port)
    assert echo(client.pid, "192.0.2.1", 8081) == "192.0.2.2"
    await driver.check("web")
    await driver.detach("web")
    assert (links(), reserved(data)) == (before, {})
    assert "8081" not in run("iptables-save")


async def test_macvlan_and_static_address_on_request(driver: CniDriver, spawn: Spawn, echo_server: Server) -> None:
    web, client = spawn(), spawn()
    run("ip", "link", "add", "card", "type", "veth", "peer", "wire")
    run("ip", "link", "set", "card", "up")
    run("ip", "link", "set", "wire", "up")
    ipam = {"type": "static"}
    await driver.configure(
        spec(
            conflist(
                {"type": "macvlan", "master": "card", "mode": "bridge", "ipam": ipam, "capabilities": {"ips": True}}
            )
        )
    )
    one, other = ip_address("10.88.0.7"), ip_address("10.88.0.8")
    assert await driver.attach(Attachment("web", "sdn", web.pid, address=one)) == (one,)
    assert await driver.attach(Attachment("client", "sdn", client.pid, "net1", other)) == (other,)
    assert client.ip("addr", "show", "net1")[0]["addr_info"][0]["prefixlen"] == 24  # of the network's subnet
    assert echo(client.pid, one, echo_server(web.pid).port) == str(other)
    for name in ("web", "client"):
        await driver.detach(name)
    assert {link["ifname"] for process in (web, client) for link in process.ip("link")} == {"lo"}


async def test_address_on_request_of_host_local(driver: CniDriver, data: Path, spawn: Spawn) -> None:
    web, other = spawn(), spawn()
    await driver.configure(spec(conflist(bridge(data, capabilities={"ips": True}))))
    wanted = ip_address("10.88.0.77")
    assert await driver.attach(Attachment("web", "sdn", web.pid, address=wanted)) == (wanted,)
    with pytest.raises(NetworkError, match='attach other to cni "sdn": plug-in bridge: ADD: .*10.88.0.77'):
        await driver.attach(Attachment("other", "sdn", other.pid, address=wanted))
    assert reserved(data) == {"10.88.0.77": "web"}
    await driver.detach("web")


async def test_refused_before_anything_is_executed(driver: CniDriver, data: Path, spawn: Spawn) -> None:
    web = spawn()
    await driver.configure(spec(conflist(bridge(data))))
    with pytest.raises(NetworkError, match='no plug-in of it has the capability "portMappings"'):
        await driver.attach(Attachment("web", "sdn", web.pid), {"portMappings": []})
    with pytest.raises(NetworkError, match='no plug-in of it has the capability "ips"'):
        await driver.attach(Attachment("web", "sdn", web.pid, address=ip_address("10.88.0.7")))
    with pytest.raises(NetworkError, match="container: must match"):
        await driver.attach(Attachment("../web", "sdn", web.pid))
    with pytest.raises(NetworkError, match="interface: "):
        await driver.attach(Attachment("web", "sdn", web.pid, "a/b"))
    with pytest.raises(NetworkError, match='attach web to cni "other": is not configured on this node'):
        await driver.attach(Attachment("web", "other", web.pid))
    with pytest.raises(NetworkError, match='network "other": cni.name: "sdn" is that of network "sdn"'):
        driver.validate(spec(conflist(bridge(data)), "other"))
    assert (links(), reserved(data)) == ({"lo"}, {})


async def test_several_networks_of_one_container(driver: CniDriver, data: Path, spawn: Spawn) -> None:
    web = spawn()
    await driver.configure(spec(conflist(bridge(data))))
    await driver.configure(spec(conflist(bridge(data, bridge="cni1"), name="second"), "second"))
    first = await driver.attach(Attachment("web", "sdn", web.pid))
    second = await driver.attach(Attachment("web", "second", web.pid, "eth1"))
    assert driver.addresses("web") == first + second
    with pytest.raises(NetworkError, match='eth1 is attached to "second"'):
        await driver.attach(Attachment("web", "sdn", web.pid, "eth1"))
    await driver.detach("web")
    assert (reserved(data), reserved(data, "second")) == ({}, {})


async def test_the_node_has_them_beside_its_own(tmp_path: Path, data: Path, spawn: Spawn) -> None:
    """Through the driver that the agent uses, and collected by the next agent when the container has gone."""
    web = spawn()
    underlay = ip_address("192.0.2.1")
    async with Networks(tmp_path, "n1", "boot-1", underlay, cni_path=[DEBIAN]) as networks:
        await networks.configure(spec(conflist(bridge(data))))
        found = await networks.attach(Attachment("web", "sdn", web.pid))
        assert networks.addresses("web") == found
    web.stop()
    async with Networks(tmp_path, "n1", "boot-1", underlay, cni_path=[DEBIAN]) as networks:
        assert (networks.known(), networks.addresses("web")) == (frozenset({"sdn"}), found)
        await networks.gc(frozenset({"web"}))
        assert reserved(data) == {str(*found): "web"}
        await networks.gc(frozenset())
        assert (networks.addresses("web"), reserved(data)) == ((), {})
        await networks.remove("sdn")
        assert networks.known() == frozenset()
    assert not any(link["ifname"].startswith("veth") for link in ip("link"))


async def test_plugins_that_can_not_be_executed_are_named_when_configured(driver: CniDriver, data: Path) -> None:
    with pytest.raises(NetworkError, match=r'network "sdn": plug-in absent: VERSION: is not in /usr/lib/cni'):
        await driver.configure(spec(conflist({"type": "absent"})))
    with pytest.raises(NetworkError, match="plug-in bridge: VERSION: its plug-in absent: is not in /usr/lib/cni"):
        await driver.configure(spec(conflist({"type": "bridge", "ipam": {"type": "absent"}})))
    with pytest.raises(NetworkError, match="plug-in bridge: VERSION: speaks .*1.0.0 and not 1.1.0"):
        await driver.configure(spec(conflist(bridge(data), version="1.1.0")))
    await driver.configure(spec(conflist(bridge(data), version="1.1.0", cniVersions=["1.0.0"])))
    assert driver.known() == {"sdn"}
