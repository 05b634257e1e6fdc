"""Offers: never more than a node has, each good for one answer, and none that outlives what it was made of."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from master.allocator import FrameworkSubscription
from master.offers import Event, Offer, OfferGone, Offers, Rescinded, UnknownTask, Update
from master.store.base import StoreError
from model.pod import Pod
from model.resources import Resources
from model.task import Port, Protocol, TaskSpec, TaskState
from tests.unit.cluster import node, until
from tests.unit.control import Master, master, resized, task

pytestmark = pytest.mark.anyio


class Framework:
    """A subscriber that notes what it hears."""

    def __init__(self, subscription: FrameworkSubscription) -> None:
        self.subscription = subscription
        self.heard: list[Event] = []
        self.offers: dict[str, Offer] = {}
        self.listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        async for event in self.subscription.events():
            self.heard.append(event)
            match event:
                case Offers(offers):
                    self.offers.update({offer.id: offer for offer in offers})
                case Rescinded(offer_id):
                    self.offers.pop(offer_id, None)

    def updates(self, task_id: str) -> list[TaskState]:
        updates = [event.task for event in self.heard if isinstance(event, Update)]
        return [task.status.state for task in updates if task.spec.id == task_id]

    async def offer(self, good: Callable[[Offer], bool] = lambda offer: True) -> Offer:
        await until(lambda: any(map(good, self.offers.values())))
        return next(filter(good, self.offers.values()))


@asynccontextmanager
async def running(parts: Master) -> AsyncIterator[Callable[..., Framework]]:
    """The allocator runs; gives how to subscribe."""
    frameworks: list[Framework] = []

    def subscribe(name: str = "services") -> Framework:
        frameworks.append(Framework(parts.allocator.subscribe(name)))
        return frameworks[-1]

    allocator = asyncio.create_task(parts.allocator.run())
    try:
        yield subscribe
    finally:
        for work in (allocator, *(framework.listening for framework in frameworks)):
            work.cancel()
        await asyncio.gather(allocator, return_exceptions=True)


def promised(parts: Master, on: str) -> Resources:
    """Used, on offer, or on its way from the one to the other."""
    offers = [offer for s in parts.allocator._subscribers for offer in s.outstanding.values()]
    offers += parts.allocator.accepting.values()
    return sum((offer.resources for offer in offers if offer.node.id == on), parts.tasks.used(on))


def within_its_means(parts: Master) -> None:
    for view in parts.nodes.all():
        assert view.node.resources.covers(promised(parts, view.node.id)), view.node.id


async def test_a_nodes_free_resources_are_offered_whole_and_once(tmp_path: Path) -> None:
    async with master(tmp_path) as parts, running(parts) as subscribe:
        await parts.nodes.connected(node("n1", cpus=1000, mem=512))
        framework, other = subscribe(), subscribe("other")
        offer = await framework.offer()
        assert offer.resources == node("n1", cpus=1000, mem=512).resources and offer.networks >= {"overlay", "host"}
        await framework.subscription.accept(offer.id, [task("a", cpus=300)])
        rest = await other.offer()
        assert rest.resources == offer.resources - task("a", cpus=300).resources
        with pytest.raises(OfferGone):
            await framework.subscription.accept(offer.id, [task("b")])
        with pytest.raises(OfferGone):
            await framework.subscription.accept(rest.id, [task("b")])  # somebody else's
        within_its_means(parts)


def published(task_id: str, *ports: int, protocols: tuple[Protocol, ...] = (Protocol.TCP,)) -> TaskSpec:
    return replace(task(task_id), ports=tuple(Port(80 + port, protocols=protocols, host=port) for port in ports))


async def test_a_port_of_a_node_belongs_to_one_task(tmp_path: Path) -> None:
    async with master(tmp_path) as parts, running(parts) as subscribe:
        await parts.nodes.connected(node("n1"))
        await parts.nodes.connected(node("n2"))
        framework = subscribe()
        first = await framework.offer(lambda offer: offer.node.id == "n1")
        with pytest.raises(ValueError, match="task c: port 80/tcp of n1 is taken by task b"):
            await framework.subscription.accept(first.id, [published("b", 80), published("c", 81, 80)])
        await framework.subscription.accept(first.id, [published("a", 80, 443)])
        second = await framework.offer(lambda offer: offer.node.id == "n1" and offer.id != first.id)
        assert second.published == {("tcp", 80): "a", ("tcp", 443): "a"}
        with pytest.raises(ValueError, match="task b: port 443/tcp of n1 is taken by task a"):
            await framework.subscription.accept(second.id, [published("b", 443)])
        await framework.subscription.accept(second.id, [published("b", 443, protocols=(Protocol.UDP,))])
        elsewhere = await framework.offer(lambda offer: offer.node.id == "n2")
        assert elsewhere.published == {}
        await framework.subscription.accept(elsewhere.id, [published("c", 443)])
        await parts.tasks.end("a", TaskState.FAILED, "")
        assert set(parts.allocator.published("n1").values()) == {"b"}


async def test_a_port_of_a_task_that_is_being_accepted_is_taken(tmp_path: Path) -> None:
    async with master(tmp_path) as parts, running(parts) as subscribe:
        await parts.nodes.connected(node("n1"))
        await parts.tasks.add("n1", [task("old", cpus=500)])
        framework = subscribe()
        first = await framework.offer()
        await parts.tasks.end("old", TaskState.FAILED, "")
        second = await framework.offer(lambda offer: offer.id != first.id)  # of what has become free meanwhile
        accepting = asyncio.create_task(framework.subscription.accept(first.id, [published("a", 80)]))
        await until(lambda: bool(parts.allocator.accepting) or accepting.done())
        with pytest.raises(ValueError, match="task b: port 80/tcp of n1 is taken by task a"):
            await framework.subscription.accept(second.id, [published("b", 80)])
        await accepting


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (task("b", cpus=2000), "the tasks need 1 CPU more than was offered"),
        (task("b", cpus=-5), "task b: resources must not be negative"),
        (task("../b"), "not an id for a task of services"),
        (replace(task("b"), framework="other"), "not an id for a task of services"),
        (replace(task("b"), network="moon"), "network 'moon' does not exist on n1"),
    ],
)
async def test_a_bad_task_is_refused_before_anything_changes(tmp_path: Path, bad: object, complaint: str) -> None:
    async with master(tmp_path) as parts, running(parts) as subscribe:
        await parts.nodes.connected(node("n1", cpus=1000))
        framework = subscribe()
        offer = await framework.offer()
        with pytest.raises(ValueError, match=complaint):
            await framework.subscription.accept(offer.id, [bad])  # type: ignore[list-item]
        assert parts.tasks.all() == []
        await framework.subscription.accept(offer.id, [task("a")])


async def test_a_declined_node_comes_again_after_its_filter_or_a_revival(tmp_path: Path) -> None:
    async with master(tmp_path) as parts, running(parts) as subscribe:
        await parts.nodes.connected(node("n1"))
        framework = subscribe()
        first = await framework.offer()
        framework.subscription.decline(first.id, "too small", filter_s=0.05)
        framework.subscription.decline(first.id, "twice does no harm")
        assert framework.subscription.refusals["n1"].reason == "too small"
        second = await framework.offer(lambda offer: offer.id != first.id)
        framework.subscription.decline(second.id, "too small", filter_s=3600)
        framework.subscription.suppress()
        framework.subscription.revive()
        await framework.offer(lambda offer: offer.id not in (first.id, second.id))


async def test_offers_go_in_turn_also_to_one_that_comes_late(tmp_path: Path) -> None:
    async with master(tmp_path) as parts, running(parts) as subscribe:
        await parts.nodes.connected(node("n1"))
        old = subscribe("old")
        for _ in range(10):
            offer = await old.offer()
            del old.offers[offer.id]
            old.subscription.decline(offer.id, "", filter_s=0)
        await old.offer()
        late = subscribe("late")
        assert late.subscription.offered >= 10


async def test_offers_go_in_turn_also_to_one_that_wanted_none_for_long(tmp_path: Path) -> None:
    async with master(tmp_path) as parts, running(parts) as subscribe:
        await parts.nodes.connected(node("n1"))
        busy, idle = subscribe("busy"), subscribe("idle")
        idle.subscription.suppress()
        for _ in range(50):
            busy.subscription.decline((await busy.offer()).id, "", filter_s=0.0)
            busy.offers.clear()
        assert busy.subscription.offered >= 50
        idle.subscription.revive()
        for _ in range(10):
            await until(lambda: bool(busy.offers or idle.offers))
            for framework in (busy, idle):
                for offer in list(framework.offers):
                    framework.subscription.decline(offer, "", filter_s=0.0)
                framework.offers.clear()
        assert abs(busy.subscription.offered - idle.subscription.offered) <= 1


async def test_offers_of_a_node_that_leaves_or_changes_are_rescinded(tmp_path: Path) -> None:
    async with master(tmp_path) as parts, running(parts) as subscribe:
        await parts.nodes.connected(node("n1", cpus=4000))
        framework = subscribe()
        first = await framework.offer()
        await parts.nodes.connected(resized(first.node, 1000))  # its agent was restarted with less
        smaller = await framework.offer(lambda offer: offer.resources.cpus == 1000)
        assert first.id not in framework.offers
        parts.nodes.disconnected("n1")
        await until(lambda: not framework.offers)
        with pytest.raises(OfferGone):
            await framework.subscription.accept(smaller.id, [task("a")])


async def test_of_a_node_that_drains_nothing_is_offered_and_its_tasks_are_told_of(tmp_path: Path) -> None:
    async with master(tmp_path) as parts, running(parts) as subscribe:
        await parts.nodes.connected(node("n1", cpus=4000))
        framework = subscribe()
        offer = await framework.offer()
        await framework.subscription.accept(offer.id, [task("a")])
        rest = await framework.offer(lambda other: other.id != offer.id)
        await parts.nodes.drain("n1", True)
        await until(lambda: rest.id not in framework.offers)
        (view,) = await framework.subscription.reconcile()
        assert view.leaving
        await parts.nodes.drain("n1", False)
        await framework.offer(lambda other: other.id not in (offer.id, rest.id))
        (view,) = await framework.subscription.reconcile()
        assert not view.leaving


async def test_an_offer_nobody_answers_is_rescinded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("master.allocator.OFFER_DEADLINE_S", 0.05)
    async with master(tmp_path) as parts, running(parts) as subscribe:
        await parts.nodes.connected(node("n1"))
        framework = subscribe()
        first = await framework.offer()
        await until(lambda: Rescinded(first.id) in framework.heard)
        await framework.offer(lambda offer: offer.id != first.id)


async def test_an_offer_is_used_once_even_when_two_answers_race(tmp_path: Path) -> None:
    async with master(tmp_path) as parts, running(parts) as subscribe:
        await parts.nodes.connected(node("n1", cpus=1000))
        framework = subscribe()
        offer = await framework.offer()
        answers = [framework.subscription.accept(offer.id, [task(name, cpus=800)]) for name in "ab"]
        outcomes = await asyncio.gather(*answers, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [type(None), OfferGone]
        within_its_means(parts)


async def test_a_node_that_leaves_during_an_accept_is_not_promised_twice(tmp_path: Path) -> None:
    async with master(tmp_path) as parts, running(parts) as subscribe:
        await parts.nodes.connected(node("n1", cpus=1000))
        framework = subscribe()
        offer = await framework.offer()
        accept = asyncio.create_task(framework.subscription.accept(offer.id, [task("a", cpus=800)]))
        await asyncio.sleep(0)
        assert list(parts.allocator.accepting) == [offer.id]  # its tasks are on the way to the disk
        parts.nodes.disconnected("n1")
        await parts.nodes.connected(node("n1", cpus=1000))
        await accept
        within_its_means(parts)
        await framework.offer(lambda offer: offer.resources.cpus == 200)


async def test_a_second_subscription_takes_over(tmp_path: Path) -> None:
    async with master(tmp_path) as parts, running(parts) as subscribe:
        await parts.nodes.connected(node("n1", cpus=1000))
        first = subscribe()
        offer = await first.offer()
        await first.subscription.accept(offer.id, [task("a", cpus=300)])
        offer = await first.offer(lambda o: o.id != offer.id)
        second = subscribe()
        await second.offer()
        await until(lambda: second.updates("a") == [TaskState.ASSIGNED])
        with pytest.raises(OfferGone):
            await first.subscription.accept(offer.id, [task("b", cpus=700)])
        within_its_means(parts)


async def test_updates_come_until_the_end_is_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("master.allocator.REPEAT_S", 0.01)
    async with master(tmp_path) as parts, running(parts) as subscribe:
        framework, other = subscribe(), subscribe("other")
        await parts.run("a", "n1")
        await until(lambda: framework.updates("a") != [] and framework.updates("a")[-1] is TaskState.RUNNING)
        await parts.saw("a", TaskState.FAILED)
        await until(lambda: framework.updates("a")[-1] is TaskState.FAILED)
        count = len(framework.updates("a"))
        parts.store.full = ("tasks/",)
        with pytest.raises(StoreError):
            await framework.subscription.acknowledge("a", 2)
        await until(lambda: len(framework.updates("a")) > count)
        parts.store.full = ()
        await framework.subscription.acknowledge("a", 2)
        assert parts.tasks.get("a") is None and other.updates("a") == []


async def test_only_ones_own_tasks_can_be_killed(tmp_path: Path) -> None:
    async with master(tmp_path) as parts, running(parts) as subscribe:
        framework, other = subscribe(), subscribe("other")
        await parts.run("a", "n1")
        for task_id in ("a", "unknown"):
            with pytest.raises(UnknownTask):
                await other.subscription.kill(task_id)
        await framework.subscription.kill("a")
        assert [view.killing for view in await framework.subscription.reconcile()] == [True]
        assert await other.subscription.reconcile() == ()


steps = st.lists(
    st.one_of(
        st.tuples(st.just("accept"), st.integers(0, 1), st.integers(0, 3), st.integers(0, 1200)),
        st.tuples(st.just("decline"), st.integers(0, 1), st.integers(0, 3)),
        st.tuples(st.just("end"), st.integers(0, 30)),
        st.tuples(st.just("away"), st.sampled_from(["n1", "n2"])),
        st.tuples(st.just("back"), st.sampled_from(["n1", "n2"])),
        st.tuples(st.just("subscribe"), st.integers(0, 1)),
        st.tuples(st.just("run")),
    ),
    max_size=25,
)


async def check(history: list[tuple[object, ...]], directory: Path) -> None:
    """Every step begins without waiting for the one before to end, so that they overlap at the store."""
    names = ("services", "other")
    async with master(directory) as parts, running(parts) as subscribe:
        for name in ("n1", "n2"):
            await parts.nodes.connected(node(name, cpus=1000, mem=1000))
        frameworks = [subscribe(name) for name in names]
        works: list[asyncio.Task[None]] = []
        for number, step in enumerate(history):
            match step:
                case ("accept", int(who), int(which), int(cpus)) if frameworks[who].offers:
                    offers = list(frameworks[who].offers)
                    wanted = replace(task(f"t{number}", cpus=cpus), framework=names[who])
                    accept = frameworks[who].subscription.accept(offers[which % len(offers)], [wanted])
                    works.append(asyncio.create_task(accept))
                case ("decline", int(who), int(which)) if frameworks[who].offers:
                    offers = list(frameworks[who].offers)
                    frameworks[who].subscription.decline(offers[which % len(offers)], "", filter_s=0)
                case ("end", int(which)) if tasks := parts.tasks.all():
                    end = parts.tasks.end(tasks[which % len(tasks)].spec.id, TaskState.FAILED, "")
                    works.append(asyncio.create_task(end))
                case ("away", str(name)):
                    parts.nodes.disconnected(name)
                case ("back", str(name)):
                    works.append(asyncio.create_task(parts.nodes.connected(node(name, cpus=1000, mem=1000))))
                case ("subscribe", int(who)):
                    frameworks[who] = subscribe(names[who])
                case ("run",):
                    await asyncio.sleep(0.002)
            await asyncio.sleep(0)
            within_its_means(parts)
        for outcome in await asyncio.gather(*works, return_exceptions=True):
            assert outcome is None or isinstance(outcome, OfferGone | ValueError)
        within_its_means(parts)


@given(steps)
@settings(max_examples=60)
def test_what_is_used_and_offered_never_exceeds_a_node(history: list[tuple[object, ...]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(check(history, Path(directory)))


async def test_a_pod_is_accepted_as_a_whole(tmp_path: Path) -> None:
    specs = [replace(task(each, cpus=400), pod=Pod("p", each, ("a", "b"))) for each in "ab"]
    stranger = replace(specs[0], id="c")
    async with master(tmp_path) as parts, running(parts) as subscribe:
        await parts.nodes.connected(node("n1", cpus=1000))
        framework = subscribe()
        offer = await framework.offer()
        for bad, complaint in (
            (specs[:1], "task a: b of its pod must be accepted with it"),
            ([stranger, specs[1]], "task c: is not one of pod p"),
            (
                [replace(each, pod=Pod("p", each.id, ("a", "b"), resources=Resources(300))) for each in specs],
                "the tasks need 0.1 CPU more",
            ),
        ):
            with pytest.raises(ValueError, match=complaint):
                await framework.subscription.accept(offer.id, bad)
        await framework.subscription.accept(offer.id, specs)
        assert {record.spec.id for record in parts.tasks.all()} == {"a", "b"}
