"""Policies at the master: on disk first, then sent to all nodes, with the addresses of just the apps that they name."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli.events import describe
from master.events import Events
from master.policies import CODEC, PREFIX, Policies, TooMany, Unnameable
from master.store.base import Put, StoreError
from master.tasks import TaskRecord
from model.network import Network, NetworkKind
from model.policy import MOST_PAIRS, MOST_PORTS, MOST_SOURCES, Members, Policy, PortRange, Source
from model.task import Protocol, TaskSpec, TaskState
from tests.unit.cluster import next_change, node
from tests.unit.control import POOL, Master, cluster, master, task
from wire.networks import members_from_wire, policy_from_wire

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("one_loop")]

BACK = Network("back", NetworkKind.OVERLAY, (ip_network("100.112.0.0/16"),), vni=2000)
TCP_80 = PortRange(Protocol.TCP, 80, 80)
TO_BACK = Policy("to-back", network="back", sources=(Source(network="overlay"),), ports=(TCP_80,))
SHOP = Policy("shop", app="services/db", sources=(Source(app="services/a"), Source(subnet=ip_network("fd00::/8"))))
Told = tuple[dict[str, Policy], dict[str, set[str]]]
FORGET = 1000  # a sequence that is beyond every task's


@dataclass(frozen=True, slots=True)
class Parts:
    master: Master
    policies: Policies

    def sent(self) -> Told:
        """What a node is told when it comes: policies by name, and addresses by app."""
        feed = self.master.desired.open("observer")
        change = next_change(self.master.desired, feed)
        self.master.desired.close(feed)
        assert change is not None
        policies = {item.key: policy_from_wire(item.policy) for item in change.put if item.HasField("policy")}
        members = {item.key: members_from_wire(item.members) for item in change.put if item.HasField("members")}
        assert policies == {f"policy/{policy.name}": policy for policy in policies.values()}
        assert members == {f"members/{each.app}": each for each in members.values()}
        return (
            {policy.name: policy for policy in policies.values()},
            {each.app: set(each.addresses) for each in members.values()},
        )

    def members(self) -> dict[str, set[str]]:
        return self.sent()[1]


@asynccontextmanager
async def started(directory: Path) -> AsyncIterator[Parts]:
    """From what is in the directory, as after a restart, with the network `back`."""
    async with master(directory) as parts:
        policies = Policies(parts.store, parts.tasks, parts.networks, parts.blocks, parts.desired)
        await policies.load()
        if parts.networks.get("back") is None:
            await parts.networks.create(BACK, [], (POOL,))
        yield Parts(parts, policies)


def of(app: str, task_id: str, network: str = "overlay") -> TaskSpec:
    return replace(task(task_id), owner=f"/{app}", network=network)


async def run(parts: Parts, app: str, task_id: str, *addresses: str, on: str = "n1") -> None:
    await parts.master.tasks.add(on, [of(app, task_id)])
    await parts.master.saw(task_id, TaskState.STARTING, addresses=addresses)


async def test_a_policy_is_on_disk_before_any_node_hears_of_it_and_found_again(tmp_path: Path) -> None:
    async with started(tmp_path) as parts:
        parts.master.store.full = (PREFIX,)
        with pytest.raises(StoreError):
            await parts.policies.put(SHOP)
        assert parts.policies.all() == [] and parts.sent() == ({}, {})
        parts.master.store.full = ()
        assert await parts.policies.put(SHOP) is True
        assert await parts.policies.put(TO_BACK) is True
        assert parts.policies.all() == [SHOP, TO_BACK] and parts.policies.get("shop") == SHOP
        told: Told = ({"shop": SHOP, "to-back": TO_BACK}, {"services/a": set()})
        assert parts.sent() == told
    async with started(tmp_path) as again:
        assert again.policies.all() == [SHOP, TO_BACK] and again.sent() == told
        again.master.store.full = (PREFIX,)
        with pytest.raises(StoreError):
            await again.policies.remove("shop")
        assert again.sent() == told
        again.master.store.full = ()
        assert await again.policies.remove("shop") == SHOP
        assert await again.policies.remove("shop") is None
        assert again.sent() == ({"to-back": TO_BACK}, {})
    async with started(tmp_path) as last:
        assert last.policies.all() == [TO_BACK]


async def test_a_policy_replaces_the_one_of_its_name_and_the_same_again_is_nothing_new(tmp_path: Path) -> None:
    async with started(tmp_path) as parts:
        await parts.policies.put(SHOP)
        revision = await parts.master.store.revision()
        feed = parts.master.desired.open("observer")
        parts.master.desired.next_change(feed)
        assert await parts.policies.put(SHOP) is False
        assert await parts.master.store.revision() == revision
        assert next_change(parts.master.desired, feed) is None
        other = replace(SHOP, sources=(Source(app="services/b"),))
        assert await parts.policies.put(other) is False
        change = next_change(parts.master.desired, feed)
        assert change is not None and list(change.remove) == ["members/services/a"]
        assert {item.key for item in change.put} == {"policy/shop", "members/services/b"}
        assert parts.sent() == ({"shop": other}, {"services/b": set()})


async def test_a_damaged_policy_costs_no_other(tmp_path: Path) -> None:
    async with started(tmp_path) as parts:
        await parts.policies.put(SHOP)
        await parts.master.store.transaction(Put(f"{PREFIX}a", b"{"), Put(f"{PREFIX}z", CODEC.encode(TO_BACK)[:-9]))
    async with started(tmp_path) as again:
        assert again.policies.all() == [SHOP]
        assert len(await again.master.store.range("damaged/policies/")) == 2


@pytest.mark.parametrize(
    ("policy", "problems"),
    [
        (replace(TO_BACK, network="backk"), {"backk": "does not exist"}),
        (replace(TO_BACK, sources=(Source(app="services/a"), Source(network="fro"))), {"fro": "does not exist"}),
        (replace(TO_BACK, network="x", sources=(Source(network="y"),)), {"x": "does not exist", "y": "does not exist"}),
        (replace(TO_BACK, network="host"), {"host": "has no addresses of its own that a policy could be for"}),
        (replace(SHOP, sources=(Source(network="none"),)), {"none": "has no addresses of its own"}),
    ],
)
async def test_networks_that_can_not_be_named(tmp_path: Path, policy: Policy, problems: dict[str, str]) -> None:
    async with started(tmp_path) as parts:
        with pytest.raises(Unnameable) as refused:
            await parts.policies.put(policy)
        assert refused.value.problems.keys() == problems.keys()
        assert all(refused.value.problems[name].startswith(problem) for name, problem in problems.items())
        assert all(f'network "{name}"' in str(refused.value) for name in problems)
        assert parts.policies.all() == [] and await parts.master.store.range(PREFIX) == []


async def test_there_is_an_end_to_what_nodes_have_to_compile(tmp_path: Path) -> None:
    sources = tuple(Source(app=f"services/{number}") for number in range(MOST_SOURCES))
    ports = tuple(PortRange(Protocol.UDP, number, number) for number in range(1, MOST_PORTS + 1))
    large = Policy("large", app="services/db", sources=sources, ports=ports)
    async with started(tmp_path) as parts:
        for number in range(MOST_PAIRS // large.pairs):
            await parts.policies.put(replace(large, name=f"large-{number}"))
        with pytest.raises(TooMany, match=f"1024 pairs .* are more than {MOST_PAIRS}"):
            await parts.policies.put(large)
        await parts.policies.put(replace(large, name="large-0", app="services/web"))  # in place of another
        await parts.policies.remove("large-0")
        assert await parts.policies.put(large)


async def test_which_policies_need_a_network(tmp_path: Path) -> None:
    async with started(tmp_path) as parts:
        await parts.policies.put(TO_BACK)
        await parts.policies.put(replace(SHOP, sources=(Source(network="back"), Source(network="back"))))
        assert parts.policies.uses("back") == ["shop", "to-back"]
        assert parts.policies.uses("overlay") == ["to-back"]
        assert parts.policies.uses("bridge") == []
        coming = asyncio.create_task(parts.policies.put(replace(TO_BACK, name="coming", network="bridge")))
        await asyncio.sleep(0)
        assert parts.policies.get("coming") is None and parts.policies.uses("bridge") == ["coming"]
        await coming
        await parts.policies.remove("to-back")
        await parts.policies.remove("coming")
        assert (parts.policies.uses("overlay"), parts.policies.uses("bridge")) == ([], [])


async def test_members_are_the_tasks_that_have_addresses_and_are_not_over(tmp_path: Path) -> None:
    async with started(tmp_path) as parts:
        await run(parts, "a", "a.1", "100.64.0.2", "fd01:b::6440:2")
        await parts.policies.put(SHOP)
        assert parts.members() == {"services/a": {"100.64.0.2", "fd01:b::6440:2"}}
        await parts.master.tasks.add("n1", [of("a", "a.2"), of("b", "b.1")])
        await parts.master.saw("a.2", TaskState.PREPARING)
        assert parts.members() == {"services/a": {"100.64.0.2", "fd01:b::6440:2"}}
        await parts.master.saw("a.2", TaskState.STARTING, addresses=("100.64.0.3",))
        await parts.master.saw("b.1", TaskState.RUNNING, addresses=("100.64.0.4",))
        await parts.master.tasks.end("a.1", TaskState.LOST, "")
        assert parts.members() == {"services/a": {"100.64.0.3"}}
        await parts.master.saw("a.2", TaskState.RUNNING, addresses=("100.64.0.3",), healthy=False)
        await parts.master.tasks.mark("a.2", drained=True)
        assert parts.members() == {"services/a": {"100.64.0.3"}}  # it may still have something to ask, to end well
        await parts.master.saw("a.2", TaskState.KILLED)
        assert parts.members() == {"services/a": set()}


async def test_tasks_of_a_pod_have_their_address_together(tmp_path: Path) -> None:
    async with started(tmp_path) as parts:
        await parts.policies.put(SHOP)
        for name in ("a.1", "a.2"):
            await run(parts, "a", name, "100.64.0.2")
        await parts.master.saw("a.1", TaskState.FINISHED)
        assert parts.members() == {"services/a": {"100.64.0.2"}}
        await parts.master.saw("a.2", TaskState.FINISHED)
        assert parts.members() == {"services/a": set()}


async def test_a_task_of_the_nodes_network_has_the_addresses_by_which_its_node_is_in_overlays(tmp_path: Path) -> None:
    async with started(tmp_path) as parts:
        blocks, networks = parts.master.blocks, parts.master.networks
        await parts.policies.put(SHOP)
        for name in ("n1", "n2"):
            await blocks.admit(name)
            await parts.master.nodes.connected(node(name))
        await parts.master.tasks.add("n2", [of("a", "a.1", network="host")])
        assert parts.members() == {"services/a": set()}
        await parts.master.saw("a.1", TaskState.STARTING)

        def ends(*names: str) -> set[str]:
            own = [block for name in names for block in blocks.of(name, "n2")]
            return {str(address) for block in own for address in (block.vtep_address, block.gateway)}

        assert len(blocks.of("overlay", "n2")) == 2
        assert parts.members() == {"services/a": ends("overlay", "back")}
        assert not any(address.startswith("10.0.") for address in parts.members()["services/a"])
        third = Network("third", NetworkKind.OVERLAY, (ip_network("100.116.0.0/16"),), vni=2001)
        await networks.create(third, [], (POOL,))
        await blocks.provide(third)
        assert parts.members() == {"services/a": ends("overlay", "back", "third")}
        before = ends("overlay", "back")
        await networks.remove("third")
        await blocks.forget_network("third")
        assert parts.members() == {"services/a": before}
        await parts.master.tasks.end("a.1", TaskState.FAILED, "")
        assert parts.members() == {"services/a": set()}
    async with started(tmp_path) as again:
        await again.master.tasks.add("n2", [of("a", "a.2", network="host")])
        await again.master.saw("a.2", TaskState.RUNNING)
        assert again.members() == {"services/a": before}


async def test_nothing_is_sent_that_is_not_new(tmp_path: Path) -> None:
    async with started(tmp_path) as parts:
        await parts.policies.put(SHOP)
        feed = parts.master.desired.open("observer")

        def news() -> set[str]:
            change = next_change(parts.master.desired, feed)
            keys = {*change.remove, *(item.key for item in change.put)} if change is not None else set()
            return {key for key in keys if key.startswith(("policy/", "members/"))}

        assert news() == {"policy/shop", "members/services/a"}
        await run(parts, "other", "other.1", "100.64.0.9")
        assert news() == set()
        await run(parts, "a", "a.1", "100.64.0.2")
        assert news() == {"members/services/a"}
        for healthy in (None, True, False):
            await parts.master.saw("a.1", TaskState.RUNNING, addresses=("100.64.0.2",), healthy=healthy)
        await parts.master.tasks.mark("a.1")
        assert news() == set()
        await parts.master.saw("a.1", TaskState.KILLED)
        await parts.master.tasks.acknowledge("a.1", FORGET)
        assert news() == {"members/services/a"}


async def test_a_member_more_is_told_in_a_change_of_a_session_at_once(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (parts, dial):
        policies = Policies(parts.store, parts.tasks, parts.networks, parts.blocks, parts.desired)
        await policies.load()
        async with dial("n1") as first, dial("n2") as second:
            for agent in (first, second):
                await agent.join()
            await policies.put(SHOP)
            await parts.tasks.add("n1", [of("a", "a.1")])
            await first.status("a.1", TaskState.STARTING, 1, addresses=("100.64.0.2",))
            there = Members("services/a", ("100.64.0.2",))
            for agent in (first, second):
                await agent.until(
                    lambda agent: (
                        members_from_wire(agent.items["members/services/a"].members) == there
                        if "members/services/a" in agent.items
                        else False
                    )
                )
                assert policy_from_wire(agent.items["policy/shop"].policy) == SHOP


async def test_a_change_costs_no_look_at_other_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with started(tmp_path) as parts:
        await parts.policies.put(SHOP)
        await parts.master.tasks.add("n1", [of("a", "a.1"), of("b", "b.1")])
        looked: list[str] = []

        def look(*node: str) -> list[TaskRecord]:
            looked.extend(node or ("all",))
            return []

        monkeypatch.setattr(parts.master.tasks, "all", look)
        monkeypatch.setattr(parts.master.tasks, "on", look)
        await parts.master.saw("a.1", TaskState.STARTING, addresses=("100.64.0.2",))
        assert parts.members() == {"services/a": {"100.64.0.2"}} and looked == []


async def test_a_policy_that_comes_or_goes_is_an_event(tmp_path: Path) -> None:
    async with started(tmp_path) as parts:
        events = Events(parts.master.tasks, parts.master.nodes, parts.master.networks)
        parts.policies.listen(events.policy_changed)
        await parts.policies.put(SHOP)
        await parts.policies.put(SHOP)
        await parts.policies.remove("shop")
        seen = [(event.kind, json.loads(event.data)) async for event in events.read(follow=False)]
        assert [(kind, data["policy"], data["state"]) for kind, data in seen] == [
            ("policy", "shop", "set"),
            ("policy", "shop", "removed"),
        ]
        assert describe(*seen[0]).endswith("  policy shop: set")


steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from("123"), st.sampled_from("ab"), st.sampled_from(("overlay", "host"))),
        st.tuples(st.just("start"), st.sampled_from("123"), st.booleans()),
        st.tuples(st.just("end"), st.sampled_from("123")),
        st.tuples(st.just("forget"), st.sampled_from("123")),
        st.tuples(st.just("set"), st.sampled_from("pq"), st.sets(st.sampled_from("ab"))),
        st.tuples(st.just("remove"), st.sampled_from("pq")),
        st.tuples(st.just("blocks"), st.booleans()),
        st.tuples(st.just("restart")),
    ),
    max_size=16,
)


async def perform(parts: Parts, step: tuple[object, ...]) -> None:
    tasks = parts.master.tasks
    match step:
        case ("add", str(name), str(app), str(network)) if tasks.get(name) is None:
            await tasks.add("n1", [of(app, name, network)])
        case ("start", str(name), bool(connected)) if record := tasks.get(name):
            own = connected and record.spec.network != "host"
            await parts.master.saw(name, TaskState.STARTING, addresses=(f"100.64.9.{name}",) if own else ())
        case ("end", str(name)):
            await tasks.end(name, TaskState.FAILED, "")
        case ("forget", str(name)):
            await tasks.acknowledge(name, FORGET)
        case ("set", str(name), set() as apps):
            sources = tuple(Source(app=f"services/{app}") for app in sorted(apps))
            await parts.policies.put(Policy(name, app="services/db", sources=sources))
        case ("remove", str(name)):
            await parts.policies.remove(name)
        case ("blocks", bool(more)):
            if more:
                await parts.master.blocks.admit("n1")
            else:
                for block in parts.master.blocks.of("back", "n1"):
                    parts.master.blocks._retire("back", "n1", [block])
                    await parts.master.blocks.released(block)


def recomputed(parts: Parts) -> dict[str, set[str]]:
    """By their definition."""
    named = {source.app for policy in parts.policies.all() for source in policy.sources if source.app}
    found: dict[str, set[str]] = {app: set() for app in named}
    for record in parts.master.tasks.all():
        app = f"services{record.spec.owner}"
        if app not in named or record.over or record.status.state < TaskState.STARTING:
            continue
        found[app] |= set(record.status.addresses)
        if record.spec.network == "host":
            blocks = [block for name in ("overlay", "back") for block in parts.master.blocks.of(name, record.node)]
            found[app] |= {str(address) for block in blocks for address in (block.gateway, block.vtep_address)}
    return found


async def check(history: list[tuple[object, ...]], directory: Path) -> None:
    lives: list[list[tuple[object, ...]]] = [[]]
    for step in history:
        if step == ("restart",):
            lives.append([])
        else:
            lives[-1].append(step)
    for life in lives:
        async with started(directory) as parts:
            for step in [("blocks", None), *life]:
                await perform(parts, step)
                assert parts.sent() == ({policy.name: policy for policy in parts.policies.all()}, recomputed(parts))


@given(steps)
@settings(max_examples=60)
def test_members_are_what_a_recomputation_gives(history: list[tuple[object, ...]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(check(history, Path(directory)))
