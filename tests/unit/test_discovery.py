"""The VIP table: at any time what a recomputation from all tasks and nodes gives, and the same on the wire."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from master.discovery import serving, wanted
from master.store.sqlite import SqliteStore
from master.vip_names import VipNames
from model.health import HealthCheck, ProbeKind
from model.network import Network, NetworkKind
from model.node import NodeState
from model.task import Interface, Port, Protocol, TaskState
from model.vip import Backend, Vip, parse_label
from tests.unit.cluster import next_change, node, until
from tests.unit.control import POOL, POOLS, Master, master, task
from wire.networks import vip_from_wire

pytestmark = pytest.mark.anyio
VIPS = ("/web:80", "/db:5432", "9.9.9.9:80")


def recomputed(parts: Master) -> list[Vip]:
    """The table by its definition. Only the addresses of names are taken as given."""
    online = {view.node.id for view in parts.nodes.all() if view.state is NodeState.ONLINE}
    refs = {ref for record in parts.tasks.all() for ref, _ in wanted(record)}
    vips = []
    for ref in refs:
        for number, own in enumerate([ref.address] if ref.address else parts.names.get(ref.name)):
            every = {
                Backend(record.spec.id, record.node, address, port.number)
                for record in parts.tasks.all()
                for each, port in wanted(record)
                if each == ref and serving(record)
                for address in map(ip_address, record.status.addresses)
                if address.version == own.version
            }
            backends = {backend for backend in every if backend.node in online} or every
            if backends or not number:
                vips.append(Vip(own, ref.port, ref.protocol, ref.name, tuple(sorted(backends))))
    return sorted(vips, key=lambda vip: vip.key)


def on_the_wire(parts: Master) -> list[Vip]:
    feed = parts.desired.open("observer")
    change = next_change(parts.desired, feed)
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
        st.tuples(st.just("run"), st.sampled_from("abc"), st.sampled_from((0, 1, 2))),
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
        case ("run", str(name), int(count)) if parts.tasks.get(name):
            addresses = (f"100.64.0.{ord(name)}", f"fd01:b::{ord(name)}")[:count]
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
                    named = f"{vip.name or vip.key} {vip.address.version}"
                    assert addresses.setdefault(named, vip.address) == vip.address


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


async def test_unreachable_nodes_are_left_out_unless_all_are(tmp_path: Path) -> None:
    async with master(tmp_path) as parts:
        for number in "123":
            await parts.nodes.connected(node(f"n{number}"))
            await parts.run(f"t{number}", f"n{number}", vip="/web:80")

        def nodes() -> list[str]:
            return [backend.node for vip in parts.discovery.table() for backend in vip.backends]

        await until(lambda: nodes() == ["n1", "n2", "n3"])
        seen = []
        for number in "123":
            parts.nodes._away(f"n{number}", NodeState.UNREACHABLE, 0.0)
            seen.append(nodes())
        assert seen == [["n2", "n3"], ["n3"], ["n1", "n2", "n3"]]
        await parts.nodes.connected(node("n2"))
        assert nodes() == ["n2"]
        await parts.tasks.mark("t2")
        assert nodes() == ["n1", "n3"]


async def test_names_have_addresses_of_both_versions(tmp_path: Path) -> None:
    both = ("100.64.0.2", "fd01:b::6440:2")
    async with master(tmp_path) as parts:
        await parts.nodes.connected(node("n1"))
        await parts.run("a", "n1", vip="/web:80")
        await until(lambda: len(parts.discovery.table()) == 1)  # it has no address of IPv6
        await parts.tasks.add("n1", [task("b", vip="/web:80")])
        await parts.saw("b", TaskState.RUNNING, addresses=both)
        four, six = parts.discovery.table()
        assert (str(four.address), str(six.address)) == ("100.127.0.1", "fd01:c::1")
        assert [each.task_id for each in four.backends] == ["a", "b"]
        assert [(each.task_id, str(each.address)) for each in six.backends] == [("b", both[1])]
        assert six.key == "[fd01:c::1]:80/tcp"
        await parts.tasks.mark("b")
        assert parts.discovery.table() == [replace(four, backends=four.backends[:1])] == on_the_wire(parts)


async def test_a_bridges_task_is_reached_through_its_node_from_others(tmp_path: Path) -> None:
    labels = (("VIP_0", "/web:80"),)
    ports = {"a": Port(8080, labels=labels, host=31000), "b": Port(8080, labels=labels)}
    async with master(tmp_path) as parts:
        await parts.nodes.connected(node("n1"))
        for name, port in ports.items():
            await parts.tasks.add("n1", [replace(task(name), network="bridge", ports=(port,))])
            await parts.saw(name, TaskState.RUNNING, addresses=("100.96.0.2", "fd01:a::6460:2"))
        await settled(parts)
        four, six = on_the_wire(parts)
        assert four.seen_from("n1").backends == tuple(
            Backend(name, "n1", ip_address("100.96.0.2"), 8080) for name in ("a", "b")
        )
        assert four.seen_from("n2").backends == (Backend("a", "n1", ip_address("10.0.0.1"), 31000),)
        assert len(six.seen_from("n1").backends) == 2 and six.seen_from("n2").backends == ()


@pytest.mark.parametrize(
    ("more", "addresses", "six"),
    [
        ((), ("100.64.0.2", "fd01:9::7"), "fd01:9::7"),
        (("back",), ("100.64.0.2", "fd01:9::7"), None),
        (("back",), ("100.64.0.2", "fd01:9::7", "fd01:b::6440:2"), "fd01:b::6440:2"),
        (("back",), ("fd01:9::7", "100.64.0.2"), "fd01:9::7"),
    ],
)
async def test_the_first_network_is_where_a_vip_leads(
    tmp_path: Path, more: tuple[str, ...], addresses: tuple[str, ...], six: str | None
) -> None:
    spec = replace(task("a", vip="/web:80"), interfaces=tuple(Interface(name) for name in more))
    async with master(tmp_path) as parts:
        await parts.nodes.connected(node("n1"))
        await parts.tasks.add("n1", [spec])
        await parts.saw("a", TaskState.RUNNING, addresses=addresses)
        await settled(parts)
        found = [
            str(each.address) for vip in parts.discovery.table() if vip.address.version == 6 for each in vip.backends
        ]
        assert found == ([six] if six else [])


async def test_a_name_is_free_again_when_its_owner_is_gone(tmp_path: Path) -> None:
    async with master(tmp_path) as parts:
        services = parts.allocator.subscribe("services")
        await parts.tasks.add("n1", [task("a", vip="/web:80"), replace(task("b", vip="/db:80"), owner="/db")])
        await settled(parts)
        addresses = {name: parts.names.get(f"services/{name}") for name in ("web", "db")}
        assert services.owners() == {"/web", "/db"}
        await services.forget("/other")
        await parts.tasks.end("a", TaskState.KILLED, "")
        await parts.tasks.acknowledge("a", 1000)
        assert parts.names.get("services/web") == addresses["web"]  # it may come again
        await services.forget("/web")
        assert services.owners() == {"/db"} and parts.names.get("services/web") == ()
        await parts.tasks.add("n1", [task("c", vip="/other:80")])
        await settled(parts)
        given = parts.names.get("services/other")
        assert not set(given) & {*addresses["web"], *addresses["db"]}  # used again as late as possible
    async with master(tmp_path) as again:
        assert again.names.get("services/web") == () and again.names.get("services/other") == given


async def test_a_name_that_another_asks_for_becomes_its_own(tmp_path: Path) -> None:
    async with master(tmp_path) as parts:
        services = parts.allocator.subscribe("services")
        await parts.tasks.add("n1", [task("a", vip="/web:80"), replace(task("b", vip="/web:80"), owner="/green")])
        await settled(parts)
        before = parts.names.get("services/web")
        await parts.tasks.end("a", TaskState.KILLED, "")
        await parts.tasks.acknowledge("a", 1000)
        await services.forget("/web")
        assert services.owners() == {"/green"} and parts.names.get("services/web") == before
    async with master(tmp_path) as again:
        assert again.names.owners("services") == {"/green"}


async def test_a_pool_that_comes_later_gives_names_what_they_lack(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "store.db")
    four, six = POOLS
    first = VipNames(store, (four,))
    await first.load()
    first.give("services/web", "/web", {}, lambda: None)
    await until(lambda: first.complete("services/web"))
    both = VipNames(store, (four, six))
    await both.load()
    assert not both.complete("services/web")
    both.give("services/web", "/web", {six[1]: 1}, lambda: None)
    await until(lambda: both.complete("services/web"))
    assert both.get("services/web") == (four[1], six[2])
    await store.close()


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
    monkeypatch.setattr("master.vip_names.STORE_RETRY_S", 0.01)
    async with master(tmp_path) as parts:
        parts.store.full = ("vips/",)
        await parts.tasks.add("n1", [task("a", vip="/web:80")])
        await until(lambda: parts.store.refused > 1)
        assert parts.discovery.table() == []
        parts.store.full = ()
        await until(lambda: len(parts.discovery.table()) == 1)
    async with master(tmp_path) as again:
        assert len(again.discovery.table()) == 1


async def test_only_addresses_of_pools_and_ranges_can_be_had(tmp_path: Path) -> None:
    async with master(tmp_path) as parts:
        services = parts.allocator.subscribe("services")
        await parts.tasks.add("n1", [task("a", vip="/web:80")])
        await settled(parts)
        said = {
            value: services.vip_problem(parse_label(value)) for value in ("/web:80", "100.127.0.9:80", "9.9.9.9:80")
        }
        assert said == {"/web:80": "", "100.127.0.9:80": "", "9.9.9.9:80": ""}
        none = "is in none of 100.127.0.0/24, fd01:c::/120, 9.9.9.0/24 (vip_ranges in master.toml allows more)"
        assert services.vip_problem(parse_label("10.1.2.3:80")) == none
        assert services.vip_problem(parse_label("[fd09::1]:80")) == none
        assert services.vip_problem(parse_label("100.127.0.1:81")) == "is the address of services/web"
        await parts.networks.create(Network("mine", NetworkKind.BRIDGE, (ip_network("9.9.9.0/24"),)), [], POOLS)
        within = 'is within network "mine", whose containers and name servers have these'
        assert services.vip_problem(parse_label("9.9.9.129:53")) == within


async def test_a_port_says_how_its_vips_choose(tmp_path: Path) -> None:
    labels = (("VIP_0", "/web:80"), ("tepui/affinity", "600"), ("tepui/prefer-local", "true"))
    async with master(tmp_path) as parts:
        for number in "12":
            await parts.nodes.connected(node(f"n{number}"))
            await parts.run(f"t{number}", f"n{number}", vip="/web:80")
        await settled(parts)
        (plain,) = parts.discovery.table()
        assert (plain.affinity_s, plain.prefer_local) == (0, False)
        await parts.tasks.add("n2", [replace(task("t3"), ports=(Port(8080, labels=labels),))])
        (chosen,) = on_the_wire(parts)
        assert (chosen.affinity_s, chosen.prefer_local) == (600, True)
        assert [each.node for each in chosen.seen_from("n1").backends] == ["n1"]
        assert [each.node for each in chosen.seen_from("n9").backends] == ["n1", "n2"]
        assert replace(chosen, prefer_local=False).seen_from("n1").backends == chosen.backends
