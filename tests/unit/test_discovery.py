"""The VIP table: at any time what a recomputation from all tasks and nodes gives, and the same on the wire."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import replace
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from master.discovery import serving, wanted
from model.health import HealthCheck, ProbeKind
from model.node import NodeState
from model.task import Port, Protocol, TaskState
from model.vip import Backend, Vip
from tests.unit.cluster import node, until
from tests.unit.control import POOL, Master, master, task
from wire.networks import vip_from_wire

pytestmark = pytest.mark.anyio
VIPS = ("/web:80", "/db:5432", "9.9.9.9:80")


def recomputed(parts: Master) -> list[Vip]:
    """The table by its definition. Only the addresses of names are taken as given."""
    online = {view.node.id for view in parts.nodes.all() if view.state is NodeState.ONLINE}
    backends: dict[tuple[str, object, int, Protocol], set[Backend]] = {}
    for record in parts.tasks.all():
        for ref, port in wanted(record):
            members = backends.setdefault((ref.name, ref.address, ref.port, ref.protocol), set())
            if serving(record) and record.node in online:
                address = ip_address(record.status.addresses[0])
                members.add(Backend(record.spec.id, record.node, address, port))
    named: dict[str, object] = {vip.name: vip.address for vip in parts.discovery.table() if vip.name}
    vips = []
    for (name, given_address, number, protocol), members in backends.items():
        own = named[name] if name else given_address
        assert isinstance(own, IPv4Address)
        vips.append(Vip(own, number, protocol, name, tuple(sorted(members))))
    return sorted(vips, key=lambda vip: vip.key)


def on_the_wire(parts: Master) -> list[Vip]:
    feed = parts.desired.open("observer")
    change = parts.desired.next_change(feed)
    parts.desired.close(feed)
    assert change is not None
    return sorted((vip_from_wire(i.vip) for i in change.put if i.HasField("vip")), key=lambda vip: vip.key)


async def settled(parts: Master) -> None:
    """All names that tasks ask for have their address."""
    names = {ref.name for record in parts.tasks.all() for ref, _ in wanted(record) if ref.name}
    await until(lambda: names <= {vip.name for vip in parts.discovery.table()})


steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from("abc"), st.sampled_from("12"), st.sampled_from(VIPS)),
        st.tuples(st.just("run"), st.sampled_from("abc"), st.booleans()),
        st.tuples(st.just("ill"), st.sampled_from("abc")),
        st.tuples(st.just("kill"), st.sampled_from("abc")),
        st.tuples(st.just("end"), st.sampled_from("abc")),
        st.tuples(st.just("forget"), st.sampled_from("abc")),
        st.tuples(st.just("away"), st.sampled_from("12")),
        st.tuples(st.just("back"), st.sampled_from("12")),
        st.tuples(st.just("restart")),
    ),
    max_size=14,
)


async def perform(parts: Master, step: tuple[object, ...]) -> None:
    match step:
        case ("add", str(name), str(on), str(vip)) if parts.tasks.get(name) is None:
            await parts.tasks.add(f"n{on}", [task(name, vip=vip)])
        case ("run", str(name), bool(connected)) if parts.tasks.get(name):
            addresses = (f"100.64.0.{ord(name)}",) if connected else ()
            await parts.saw(name, TaskState.RUNNING, addresses=addresses)
        case ("ill", str(name)) if parts.tasks.get(name):
            await parts.saw(name, TaskState.RUNNING, addresses=("100.64.0.9",), healthy=False)
        case ("kill", str(name)):
            await parts.tasks.mark(name)
        case ("end", str(name)):
            await parts.tasks.end(name, TaskState.FAILED, "")
        case ("forget", str(name)):
            await parts.tasks.acknowledge(name, 1000)
        case ("away", str(on)):
            parts.nodes._away(f"n{on}", NodeState.UNREACHABLE, 0.0)
        case ("back", str(on)):
            await parts.nodes.connected(node(f"n{on}"))


async def check(history: list[tuple[object, ...]], directory: Path) -> None:
    lives: list[list[tuple[object, ...]]] = [[]]
    for step in history:
        if step == ("restart",):
            lives.append([])
        else:
            lives[-1].append(step)
    addresses: dict[str, object] = {}
    for life in lives:
        async with master(directory) as parts:
            for name in ("n1", "n2"):
                await parts.nodes.connected(node(name))
            for step in life:
                await perform(parts, step)
                await settled(parts)
                assert parts.discovery.table() == recomputed(parts) == on_the_wire(parts)
                for vip in parts.discovery.table():
                    assert addresses.setdefault(vip.name or vip.key, vip.address) == vip.address


@given(steps)
@settings(max_examples=60)
def test_the_table_is_what_a_recomputation_gives(history: list[tuple[object, ...]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(check(history, Path(directory)))


async def test_a_backend_leaves_in_the_moment_its_task_is_to_end(tmp_path: Path) -> None:
    async with master(tmp_path) as parts:
        await parts.nodes.connected(node("n1"))
        await parts.run("a", "n1", vip="/web:80")
        await until(lambda: any(vip.backends for vip in parts.discovery.table()))
        await parts.tasks.mark("a")
        (vip,) = parts.discovery.table()
        assert vip.backends == () and not parts.record("a").drained


async def test_a_task_of_the_nodes_network_is_reached_at_the_nodes_address(tmp_path: Path) -> None:
    port = Port(31007, labels=(("VIP_0", "/web:80"),), host=31007)
    async with master(tmp_path) as parts:
        await parts.nodes.connected(node("n1"))
        await parts.tasks.add("n1", [replace(task("a"), network="host", ports=(port,))])
        assert not any(vip.backends for vip in parts.discovery.table())
        await parts.saw("a", TaskState.RUNNING, addresses=())
        backend = Backend("a", "n1", ip_address("10.0.0.1"), 31007)
        await until(lambda: [vip.backends for vip in parts.discovery.table()] == [(backend,)])
        await parts.nodes.connected(replace(node("n1"), address=ip_address("10.0.0.9")))
        (vip,) = parts.discovery.table()
        assert vip.backends == (replace(backend, address=ip_address("10.0.0.9")),)
        parts.nodes._away("n1", NodeState.UNREACHABLE, 0.0)
        assert parts.discovery.table()[0].backends == ()


async def test_with_checks_a_backend_is_what_is_known_to_be_well(tmp_path: Path) -> None:
    checked = replace(task("a", vip="/web:80"), health_checks=(HealthCheck(ProbeKind.TCP, 80),))
    async with master(tmp_path) as parts:
        await parts.nodes.connected(node("n1"))
        await parts.tasks.add("n1", [checked])

        def backends() -> list[str]:
            return [backend.task_id for vip in parts.discovery.table() for backend in vip.backends]

        seen = []
        for healthy in (None, True, False, True):
            await parts.saw("a", TaskState.RUNNING, addresses=("100.64.0.2",), healthy=healthy)
            await settled(parts)
            seen.append(backends())
        assert seen == [[], ["a"], [], ["a"]]


async def test_one_name_many_ports_one_address(tmp_path: Path) -> None:
    ports = (
        Port(53, protocols=(Protocol.TCP, Protocol.UDP), labels=(("VIP_0", "/dns:53"), ("other", "/x:1"))),
        Port(80, labels=(("vip_1", "/dns:80"), ("VIP_2", "9.9.9.9:80"))),
    )
    async with master(tmp_path) as parts:
        await parts.tasks.add("n1", [replace(task("a"), ports=ports)])
        await until(lambda: len(parts.discovery.table()) == 4)
        assert {vip.name: vip.address for vip in parts.discovery.table()} == {
            "services/dns": ip_address("100.127.0.1"),
            "": ip_address("9.9.9.9"),
        }


async def test_an_address_that_somebody_asked_for_is_given_to_no_name(tmp_path: Path) -> None:
    async with master(tmp_path) as parts:
        await parts.tasks.add("n1", [task("a", vip="100.127.0.1:80"), task("b", vip="/web:80")])
        await until(lambda: len(parts.discovery.table()) == 2)
        assert {str(vip.address) for vip in parts.discovery.table()} == {"100.127.0.1", "100.127.0.2"}


async def test_a_pool_that_is_used_up_leaves_the_others_alone(tmp_path: Path) -> None:
    async with master(tmp_path) as parts:
        names = [f"/v{number}:80" for number in range(POOL.num_addresses)]
        await parts.tasks.add("n1", [task(f"t{index}", vip=name) for index, name in enumerate(names)])
        await until(lambda: len(parts.discovery.table()) == POOL.num_addresses - 2)
        assert len({vip.address for vip in parts.discovery.table()}) == POOL.num_addresses - 2


async def test_a_name_waits_for_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("master.discovery.STORE_RETRY_S", 0.01)
    async with master(tmp_path) as parts:
        parts.store.full = ("vips/",)
        await parts.tasks.add("n1", [task("a", vip="/web:80")])
        await until(lambda: parts.store.refused > 1)
        assert parts.discovery.table() == []
        parts.store.full = ()
        await until(lambda: len(parts.discovery.table()) == 1)
    async with master(tmp_path) as again:
        assert len(again.discovery.table()) == 1
