"""What a node should have, and that an agent which applies every Change has exactly that, whatever the order."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from master.desired import Desired, Feed
from tests.unit.cluster import next_change, until
from wire import control_pb2 as pb

pytestmark = pytest.mark.anyio
NODES = ("n1", "n2", "n3")
KEYS = ("a", "b", "c")
LATE_S = 0.03


def item(key: str, version: int = 0) -> pb.Item:
    return pb.Item(key=key, vip=pb.Vip(port=version))


class Applier:
    """An agent as far as Changes go."""

    def __init__(self, desired: Desired, node: str) -> None:
        self.desired = desired
        self.feed = desired.open(node)
        self.items: dict[str, pb.Item] = {}
        self.revision = 0

    def fetch(self) -> None:
        change = next_change(self.desired, self.feed)
        if change is None:
            return
        assert change.full == (self.revision == 0) and change.revision == self.revision + 1
        assert not {item.key for item in change.put} & set(change.remove)
        if change.full:
            self.items.clear()
        for key in change.remove:
            self.items.pop(key, None)
        self.items.update({item.key: item for item in change.put})
        self.revision = change.revision


operations = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from(NODES), st.sampled_from(KEYS), st.integers(0, 3)),
        st.tuples(st.just("remove"), st.sampled_from(NODES), st.sampled_from(KEYS)),
        st.tuples(st.just("share"), st.sampled_from(KEYS), st.integers(0, 3)),
        st.tuples(st.just("unshare"), st.sampled_from(KEYS)),
        st.tuples(st.just("fetch"), st.sampled_from(NODES)),
        st.tuples(st.just("open"), st.sampled_from(NODES)),
    ),
    max_size=40,
)


@given(operations, st.dictionaries(st.sampled_from(KEYS), st.sampled_from(NODES)))
async def test_whoever_applies_the_changes_has_what_is_desired(
    steps: list[tuple[Any, ...]], skips: dict[str, str]
) -> None:
    """`own` and `shared` are the model: plain dictionaries. Keys of own and shared items never coincide."""
    desired = Desired()
    own: dict[str, dict[str, pb.Item]] = {node: {} for node in NODES}
    shared: dict[str, pb.Item] = {}
    agents = {node: Applier(desired, node) for node in NODES}
    for step in steps:
        match step:
            case ("put", node, key, version):
                own[node][f"own/{key}"] = item(f"own/{key}", version)
                desired.put(node, own[node][f"own/{key}"])
            case ("remove", node, key):
                own[node].pop(f"own/{key}", None)
                desired.remove(node, f"own/{key}")
            case ("share", key, version):
                shared[f"all/{key}"] = item(f"all/{key}", version)
                desired.share(shared[f"all/{key}"], skip=skips.get(key))
            case ("unshare", key):
                shared.pop(f"all/{key}", None)
                desired.unshare(f"all/{key}")
            case ("fetch", node):
                agents[node].fetch()
            case ("open", node):
                agents[node] = Applier(desired, node)
    for node, agent in agents.items():
        agent.fetch()
        others = {key: item for key, item in shared.items() if skips.get(key.removeprefix("all/")) != node}
        assert agent.items == own[node] | others
        assert desired.next_change(agent.feed) is None


async def test_a_slow_node_costs_one_set_of_keys() -> None:
    desired = Desired()
    slow = Applier(desired, "n1")
    slow.fetch()
    for version in range(1000):
        for key in KEYS:
            desired.share(item(key, version))
    slow.fetch()
    assert slow.revision == 2 and {i.vip.port for i in slow.items.values()} == {999}


def test_a_second_session_ends_the_first() -> None:
    desired = Desired()
    first, second = desired.open("n1"), desired.open("n1")
    assert first.closed and not second.closed
    desired.close(first)  # late, as its task ends: the second must not suffer
    desired.put("n1", item("a"))
    assert second.own == {"a"} and not first.own


async def applied(feed: Feed, desired: Desired) -> None:
    while desired.next_change(feed) is not None:
        feed.acknowledge(feed.revision)
        await asyncio.sleep(0)


async def test_the_barrier_waits_for_what_is_on_its_way() -> None:
    desired = Desired()
    feeds = {node: desired.open(node) for node in ("n1", "n2")}
    for feed in feeds.values():
        await applied(feed, desired)
    desired.share(item("a"))
    barrier = asyncio.create_task(desired.barrier(feeds, 10.0))
    await asyncio.sleep(0)
    await applied(feeds["n1"], desired)
    assert desired.next_change(feeds["n2"]) is not None  # sent, but not applied
    desired.share(item("b"))  # later than the barrier, which need not wait for it
    await asyncio.sleep(0)
    assert not barrier.done()
    feeds["n2"].acknowledge(feeds["n2"].revision)
    assert await barrier == []


async def test_the_barrier_waits_for_what_lets_the_nodes_own_go_first() -> None:
    desired = Desired()
    feed = desired.open("n1")
    await applied(feed, desired)
    desired.share(item("a"))
    barrier = asyncio.create_task(desired.barrier(["n1"], 10.0))
    await asyncio.sleep(0)
    for key in ("b", "c"):
        desired.put("n1", item(key))
        assert feed.urgent.is_set() and feed.wake.is_set()
        told = desired.next_change(feed, only_own=True)
        assert told is not None and [i.key for i in pb.MasterMessage.FromString(told).change.put] == [key]
        feed.acknowledge(feed.revision)
    assert desired.next_change(feed, only_own=True) is None and desired.behind("a") == {"n1": pytest.approx(0, abs=5)}
    await asyncio.sleep(0)
    assert not barrier.done()
    change = next_change(desired, feed)
    assert change is not None and [each.key for each in change.put] == ["a"]
    feed.acknowledge(feed.revision)
    assert await barrier == []


async def test_the_barrier_names_who_is_late() -> None:
    desired = Desired()
    quick = desired.open("n1")
    desired.open("n2")
    await applied(quick, desired)
    assert await desired.barrier(["n1", "n2", "n3"], LATE_S) == ["n2", "n3"]
    assert await desired.barrier([], LATE_S) == []


async def test_a_node_that_reconnects_during_the_barrier_is_waited_for() -> None:
    """Its session ended with the old table in its kernel: only what the next one applies makes it new."""
    desired = Desired()
    first = desired.open("n1")
    await applied(first, desired)
    desired.share(item("a"))
    barrier = asyncio.create_task(desired.barrier(["n1"], 10.0))
    await asyncio.sleep(0)
    desired.close(first)
    for _ in range(3):
        await asyncio.sleep(0)
    assert not barrier.done()
    await applied(desired.open("n1"), desired)
    await until(barrier.done)
    assert barrier.result() == []


async def test_an_abandoned_barrier_leaves_nothing_behind() -> None:
    desired = Desired()
    desired.open("n1")
    before = asyncio.all_tasks()
    barrier = asyncio.create_task(desired.barrier(["n1", "n2"], 10.0))
    await asyncio.sleep(0)
    barrier.cancel()
    await until(lambda: asyncio.all_tasks() == before)
