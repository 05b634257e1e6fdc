"""Containers of other runtimes when agents come and go, and what the firewall makes of them."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from agent import foreign
from agent.cni_request import Request
from agent.foreign import Foreign, id_of
from isolators.network import NetworkIsolator
from model.policy import Policy, Source
from netns.driver import NetworkError
from netns.durable import write_durably
from netns.firewall.nftables import NftFirewall
from netns.firewall.table import Zone
from netns.link import veth_name
from netns.networks import Networks
from tests.kernel import daemon
from tests.kernel.daemon import node_daemon
from tests.kernel.faults import MOST_STEPS, Crash, Steps, steps_of
from tests.kernel.foreign import Door, Runtime, door, netns_of, until
from tests.kernel.namespaces import Echo, NetnsProcess, echo, ip, run
from tests.kernel.site import OPEN, REFUSED, SILENT, Site, ask_tcp, site, tcp
from tests.kernel.test_cni_socket import spec

pytestmark = pytest.mark.anyio

Spawn = Callable[..., NetnsProcess]
UNDERLAY = ip_address("192.0.2.1")
PROD, BACK = spec("prod", 1), spec("back", 2)
ID = id_of("web", "eth0")
VETH = veth_name(ID)


@pytest.fixture
def card(host_netns: None) -> None:
    for words in ("link add card type veth peer wire", f"addr add {UNDERLAY}/24 dev card", "link set card up"):
        run("ip", *words.split())


@asynccontextmanager
async def agent(state: Path, boot_id: str = "boot-1", collect: bool = True) -> AsyncIterator[Door]:
    """One that has just started, has recovered as the daemon does, and knows its networks."""
    firewall = NftFirewall()
    async with Networks(state, "n1", boot_id, UNDERLAY) as networks:
        async with door(state, networks, firewall, boot_id) as opened:
            if collect:
                await NetworkIsolator(networks, firewall, opened.foreign.guests).recover([], [])
            await networks.configure(PROD)
            await networks.configure(BACK)
            zones = tuple(Zone(each.network, tuple(block.subnet for block in each.blocks)) for each in (PROD, BACK))
            await firewall.configure(zones, (), {}, frozenset())
            yield opened
        await firewall.remove()


def links(process: NetnsProcess | None = None) -> set[str]:
    return {link["ifname"] for link in (process.ip("link") if process else ip("link"))}


def leased(state: Path) -> list[str]:
    return sorted(path.name for path in (state / "leases").glob("*/*") if not path.name.endswith(".rested"))


def untouched(node: Door) -> bool:
    return node.records() == [] == leased(node.state) and not any(name.startswith("tv") for name in links())


async def test_the_next_agent_knows_them_guards_them_and_detaches_them(
    card: None, tmp_path: Path, spawn: Spawn, echo_server: Callable[[int], Echo]
) -> None:
    web, second = spawn(), {"CNI_IFNAME": "eth1"}
    async with agent(tmp_path) as node:
        result = await node.runtime.add(web.pid)
        other = await replace(node.runtime, network="back", environment=second).add(web.pid)
    rules, addresses = web.ip("rule"), web.ip("addr")
    port = echo_server(web.pid).port
    own = [each["address"].partition("/")[0] for each in result["ips"]]
    async with agent(tmp_path) as node:
        assert (web.ip("addr"), web.ip("rule")) == (addresses, rules)
        for address in own:
            assert echo(None, address, port)
            kind = "own4" if "." in address else "own6"
            assert f"{address} . {address}" in run("nft", "list", "set", "inet", "tepui", kind)
        assert await node.runtime.add(web.pid) == result
        assert (await node.runtime.call("CHECK", netns_of(web.pid), prevResult=result)).result is None
        run("ip", "link", "del", VETH)  # somebody takes it: it is as well known as our own
        assert await node.networks.restore() == [f"create veth {VETH} to eth0"]
        assert (await node.runtime.call("CHECK", netns_of(web.pid), prevResult=result)).result is None
        runtime = replace(node.runtime, network="back", environment=second)
        assert (await runtime.call("CHECK", netns_of(web.pid), prevResult=other)).result is None
        await runtime.delete(web.pid)
        await node.runtime.delete(web.pid)
        assert links(web) == {"lo"} and len(web.ip("rule")) == len(rules) - 1 and untouched(node)
        assert "own4" in run("nft", "list", "table", "inet", "tepui")
        assert own[0] not in run("nft", "list", "set", "inet", "tepui", "own4")


async def test_what_ended_while_no_agent_was_here_is_given_back(card: None, tmp_path: Path, spawn: Spawn) -> None:
    web, stays = spawn(), spawn()
    async with agent(tmp_path) as node:
        await node.runtime.add(web.pid)
        await node.runtime.add(stays.pid, "stays")
    web.stop()
    await until(lambda: VETH not in links())
    async with agent(tmp_path) as node:
        assert node.records() == [id_of("stays", "eth0")] and len(leased(tmp_path)) == 1
        assert [guest.container for guest in node.foreign.guests()] == node.records()
        assert (await node.runtime.call("DEL", netns_of(web.pid))).result is None


async def test_a_namespace_that_is_kept_elsewhere_is_not_gone(
    card: None, host_mounts: None, tmp_path: Path, spawn: Spawn
) -> None:
    """Its first process has ended, by whose number it was named, and the container goes on."""
    web = spawn()
    (tmp_path / "kept").touch()
    async with agent(tmp_path) as node:
        await node.runtime.add(web.pid)
    run("mount", "--bind", netns_of(web.pid), str(tmp_path / "kept"))
    web.stop()
    async with agent(tmp_path) as node:
        assert node.records() == [ID] and VETH in links()
        await node.runtime.delete(web.pid)
        await until(lambda: untouched(node))
    run("umount", str(tmp_path / "kept"))


async def test_after_a_reboot_nothing_is_known(card: None, tmp_path: Path, spawn: Spawn) -> None:
    web = spawn()
    async with agent(tmp_path) as node:
        await node.runtime.add(web.pid)
    web.stop()
    await until(lambda: VETH not in links())
    other = spawn()
    path = tmp_path / "foreign" / ID  # a process of this boot has the number, and its namespace the inode
    inode = os.stat(netns_of(other.pid)).st_ino
    record = replace(foreign.CODEC.decode(path.read_bytes()), netns=netns_of(other.pid), namespace=inode)
    path.write_bytes(foreign.CODEC.encode(record))
    async with agent(tmp_path, "boot-2") as node:
        assert untouched(node) and node.foreign.guests() == () and links(other) == {"lo"}


async def test_a_record_that_can_not_be_read_costs_the_container_nothing(
    card: None, tmp_path: Path, spawn: Spawn
) -> None:
    web = spawn()
    async with agent(tmp_path) as node:
        result = await node.runtime.add(web.pid)
    (tmp_path / "foreign" / ID).write_bytes(b"{")
    async with agent(tmp_path) as node:
        [guest] = node.foreign.guests()
        assert (guest.container, [f"{each}/{each.max_prefixlen}" for each in guest.addresses]) == (
            ID,
            [each["address"] for each in result["ips"]],
        )
        assert links(web) == {"lo", "eth0"} and VETH in links()
        await node.runtime.delete(web.pid)
        await until(lambda: links(web) == {"lo"} and untouched(node))
    other = spawn()
    async with agent(tmp_path) as node:
        await node.runtime.add(other.pid)
    (tmp_path / "foreign" / ID).write_bytes(b"")
    other.stop()
    await until(lambda: VETH not in links())
    async with agent(tmp_path) as node:
        assert untouched(node)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return steps_of(monkeypatch, (Path, "unlink"))


def request(command: str, web: NetnsProcess, interface: str) -> Request:
    network = "prod" if interface == "eth0" else "back"
    return Request(command, "1.1.0", "tepui", network, "web", interface, netns_of(web.pid))


async def crash_at_each_step(
    state: Path,
    steps: Steps,
    before: Callable[[Foreign], Awaitable[Any]],
    action: Callable[[Foreign], Awaitable[Any]],
    then: Callable[[Door], Awaitable[Any]],
) -> int:
    for allowed in range(MOST_STEPS):
        crashed = False
        try:
            async with agent(state) as node:
                await before(node.foreign)
                steps.left = allowed
                await action(node.foreign)
                steps.left = MOST_STEPS
        except Crash:
            crashed = True
        steps.left = MOST_STEPS
        async with agent(state) as node:
            await then(node)
            assert untouched(node)
        if not crashed:
            return allowed
    raise AssertionError(f"not done after {MOST_STEPS} steps")


@pytest.mark.parametrize("interface", ["eth0", "eth1"])
async def test_an_agent_killed_at_any_step_of_add(
    card: None, tmp_path: Path, spawn: Spawn, steps: Steps, interface: str
) -> None:
    """It never answered, so the runtime takes it that nothing is attached; or asks once more."""
    web = spawn()

    async def nothing(of: Foreign) -> None: ...

    async def add(of: Foreign) -> None:
        await of.add(request("ADD", web, interface))

    async def then(node: Door) -> None:
        await node.foreign.recover()
        if node.records():  # it was complete, and only the answer missing
            assert links(web) == {"lo", interface}
        else:
            await until(lambda: links(web) == {"lo"})
        await node.foreign.add(request("ADD", web, interface))
        await node.networks.check(id_of("web", interface))
        await node.foreign.remove(request("DEL", web, interface))
        assert links(web) == {"lo"}
        assert [rule["table"] for rule in web.ip("rule")] == ["local", "main", "default"]

    assert await crash_at_each_step(tmp_path, steps, nothing, add, then) > 15


@pytest.mark.parametrize("interface", ["eth0", "eth1"])
async def test_an_agent_killed_at_any_step_of_del(
    card: None, tmp_path: Path, spawn: Spawn, steps: Steps, interface: str
) -> None:
    """What was begun is brought to its end, whether or not the runtime asks once more."""
    web = spawn()

    async def add(of: Foreign) -> None:
        await of.add(request("ADD", web, interface))

    async def remove(of: Foreign) -> None:
        await of.remove(request("DEL", web, interface))

    async def then(node: Door) -> None:
        if node.records():  # it had not begun
            assert links(web) == {"lo", interface}
            await node.networks.check(id_of("web", interface))
        else:
            await until(lambda: links(web) == {"lo"})
        await node.foreign.remove(request("DEL", web, interface))
        await until(lambda: links(web) == {"lo"})

    assert await crash_at_each_step(tmp_path, steps, add, remove, then) > 4


async def test_a_disk_that_is_full_attaches_nothing(
    card: None, tmp_path: Path, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    web, room = spawn(), [0]

    def full(path: Path, content: bytes) -> None:
        if room[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room[0] -= 1
        write_durably(path, content)

    async with agent(tmp_path) as node:
        monkeypatch.setattr("agent.foreign.write_durably", full)
        for room[0] in (0, 1):
            code, text = (await node.runtime.call("ADD", netns_of(web.pid))).error
            assert (code, "No space left on device" in text) == (5, True)
            await until(lambda: links(web) == {"lo"} and untouched(node))
        room[0] = 2
        await node.runtime.add(web.pid)
        room[0] = 1
        await node.runtime.delete(web.pid)


async def test_what_the_firewall_does_not_admit_is_not_attached(
    card: None, tmp_path: Path, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(self: object, guest: object) -> None:
        raise NetworkError("admit: no")

    web = spawn()
    async with agent(tmp_path) as node:
        monkeypatch.setattr(NftFirewall, "admit", refuse)
        assert (await node.runtime.call("ADD", netns_of(web.pid))).error == (100, "admit: no")
        assert links(web) == {"lo"} and untouched(node)


@pytest.fixture
async def lan(spawn: Spawn, tmp_path: Path) -> AsyncIterator[Site]:
    async with site(spawn, tmp_path) as made:
        yield made


async def test_network_and_policy_hold_for_them_as_for_our_own(lan: Site, tmp_path: Path) -> None:
    friend = await lan.container(lan.one, "db.1", "prod")
    far = await lan.container(lan.two, "db.2", "prod")
    stranger = await lan.container(lan.one, "x.1", "dev")
    web = lan.spawn()
    with lan.one.host.inside():
        async with door(tmp_path / "door", lan.one.networks, lan.one.firewall) as node:
            result = await node.runtime.add(web.pid)
            address = result["ips"][0]["address"].partition("/")[0]
            lan.serve(web.pid)
            for each in (friend, far):
                assert ask_tcp(web.pid, each.address, 80) == f"{address} 80"
                assert ask_tcp(each.pid, address, 80) == f"{each.address} 80"
            assert tcp(web.pid, stranger.address, 80) == tcp(stranger.pid, address, 80) == REFUSED
            assert tcp(lan.outside.process.pid, address, 80) in (REFUSED, SILENT)
            await lan.guard(policies=(Policy("in", network="prod", sources=(Source(network="dev"),)),))
            assert tcp(stranger.pid, address, 80) == OPEN
            # Policies of apps are none of its business, even one for what has no name.
            await lan.guard(policies=(Policy("app", app="services/web", sources=(Source(network="dev"),)),))
            assert (tcp(friend.pid, address, 80), tcp(stranger.pid, address, 80)) == (OPEN, REFUSED)
            web.run("ip", "addr", "add", "100.64.1.200/32", "dev", "eth0")
            gateway = result["ips"][0]["gateway"]
            web.run("ip", "route", "replace", "default", "via", gateway, "dev", "eth0", "src", "100.64.1.200")
            assert tcp(web.pid, friend.address, 80) == SILENT
            await node.runtime.delete(web.pid)


async def test_ports_of_the_node_lead_to_them(lan: Site, tmp_path: Path) -> None:
    web, late = lan.spawn(), lan.spawn()
    lan.serve(web.pid)
    outside, host = lan.outside.process.pid, lan.one.host.address
    mappings = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "0.0.0.0"}]
    published = {"portMappings": mappings}
    with lan.one.host.inside():
        async with door(tmp_path / "door", lan.one.networks, lan.one.firewall) as node:
            await node.runtime.add(web.pid, runtimeConfig=published)
            assert ask_tcp(outside, host, 8080) == f"{lan.outside.address} 80"
            code, text = (await node.runtime.call("ADD", netns_of(late.pid), "late", runtimeConfig=published)).error
            assert code == 100 and f"port 8080/tcp of the node is published by {ID}" in text
            assert links(late) == {"lo"}
        async with door(tmp_path / "door", lan.one.networks, lan.one.firewall) as node:
            await lan.one.firewall.recover(node.foreign.guests())
            assert ask_tcp(outside, host, 8080) == f"{lan.outside.address} 80"
            await node.runtime.delete(web.pid)
            assert tcp(outside, host, 8080) == REFUSED


@pytest.mark.usefixtures("host_mounts", "one_loop")
async def test_with_the_agent_itself(tmp_path: Path, spawn: Spawn) -> None:
    """Killed and started again: the container stays connected, and is known."""
    web, ended = spawn(), spawn()
    async with node_daemon(tmp_path) as node:
        runtime = Runtime(node.cni_socket, "overlay")
        assert (node.cni_socket.stat().st_mode & 0o777, node.cni_socket.stat().st_uid) == (0o600, 0)
        result = await runtime.add(web.pid)
        await runtime.add(ended.pid, "ended")
        records = node.state / "foreign"
        assert [stat.S_IMODE(path.stat().st_mode) for path in (records, *records.iterdir())] == [0o700, 0o600, 0o600]
        assert " @" not in run("cat", "/proc/net/unix")  # abstract sockets, which have no owner
        node.kill()
        assert (await runtime.call("DEL", netns_of(web.pid))).error[0] == 11
        ended.stop()
        node.begin()
        await node.connected()
        await daemon.until(lambda: len(leased(node.state)) == 1, "what has ended is released", node.tail)
        assert (await runtime.call("STATUS")).result is None
        assert (await runtime.call("CHECK", netns_of(web.pid), prevResult=result)).result is None
        own = result["ips"][0]["address"].partition("/")[0]
        assert f"{own} . {own}" in run("nft", "list", "set", "inet", "tepui", "own4")
        await runtime.delete(web.pid)
        assert links(web) == {"lo"}
