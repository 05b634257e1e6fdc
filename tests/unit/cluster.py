"""A cluster in memory that keeps the offer contract, for tests of frameworks.

It plays the master and all agents: offers what is free, runs what is accepted when told to, and refuses what the
contract forbids. `limits` says how many tasks an owner may have, and every accept is held against it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any

from master.desired import Desired, Feed
from master.offers import (
    Event,
    NodesChanged,
    Offer,
    OfferGone,
    Offers,
    Rescinded,
    TaskView,
    UnknownTask,
    Update,
    VolumeView,
)
from master.store.base import StoreError
from model.node import Node
from model.resources import Resources
from model.task import TaskSpec, TaskState, TaskStatus, Usage, sockets
from model.vip import VipLabel
from model.volume import PersistentVolume, persistent
from wire import control_pb2 as pb

DEADLINE_S = 10.0


def node(name: str, cpus: int = 4000, mem: int = 4096) -> Node:
    return Node(name, name, f"boot-{name}", ip_address("10.0.0.1"), Resources(cpus, mem, 10_000))


@dataclass(frozen=True, slots=True)
class Declined:
    node: str
    reason: str


class Cluster:
    """`automatic`: tasks run as soon as they are accepted, and end as soon as they are killed."""

    def __init__(self, *nodes: Node, automatic: bool = True) -> None:
        self.nodes = {node.id: node for node in nodes}
        self.tasks: dict[str, TaskView] = {}
        self.volumes: dict[str, VolumeView] = {}
        self.limits: dict[str, int] = {}
        self.declined: list[Declined] = []
        self.accepted: list[TaskSpec] = []
        self.killed: list[str] = []
        self.kept: set[str] = set()  # owners for whom addresses are kept
        self.vip_problems: dict[str, str] = {}  # by address
        self.forgotten: list[str] = []
        self.rejecting: StoreError | None = None
        self.losing_offers = 0
        self.automatic = automatic
        self.deploying: Callable[[], int] = lambda: 0  # apps of the framework that plays here
        self.networks = frozenset({"overlay"})
        self._numbers = itertools.count(1)
        self._outstanding: dict[str, Offer] = {}
        self._filtered: set[str] = set()
        self._suppressed = False
        self._subscription: Subscription | None = None

    @property
    def suppressed(self) -> bool:
        """The framework wants no offers."""
        return self._suppressed

    def subscribe(self) -> Subscription:
        """A framework that starts (again): offers of its former life are gone."""
        self._outstanding.clear()
        self._filtered.clear()
        self._suppressed = False
        self._subscription = Subscription(self)
        for view in self.tasks.values():
            self._subscription.tell(Update(view))
        self.offer()
        return self._subscription

    def remove_node(self, name: str) -> Node:
        """With what it has offered; its tasks are another matter."""
        for offer in [offer for offer in self._outstanding.values() if offer.node.id == name]:
            del self._outstanding[offer.id]
            self._tell(Rescinded(offer.id))
        removed = self.nodes.pop(name)
        self._tell(NodesChanged())
        return removed

    def drain(self, name: str) -> None:
        """Its offers are gone, there are no more, and its tasks are to leave."""
        self.remove_node(name)
        for view in [view for view in self.active() if view.node == name]:
            self.tasks[view.spec.id] = replace(view, leaving=True)
            self._tell(Update(self.tasks[view.spec.id]))

    def add_node(self, added: Node) -> None:
        self.nodes[added.id] = added
        self._tell(NodesChanged())
        self.offer()

    def offer(self) -> None:
        """Offer every node that has something free."""
        if self._subscription is None or self._suppressed:
            return
        held = {offer.node.id for offer in self._outstanding.values()}
        given = []
        for node in self.nodes.values():
            free = self.free(node)
            if node.id not in held | self._filtered and free.cpus > 0 and free.mem > 0:
                given.append(Offer(f"offer-{next(self._numbers)}", node, free, self.networks, self.published(node.id)))
        if given:
            self._outstanding.update({offer.id: offer for offer in given})
            self._subscription.tell(Offers(tuple(given)))

    def free(self, node: Node) -> Resources:
        used = (task.spec.held for task in self.active() if task.node == node.id)
        held = sum(view.volume.size for view in self.volumes.values() if view.node == node.id)
        return node.resources - sum(used, Resources(disk=held))

    def published(self, name: str) -> dict[tuple[str, int], str]:
        there = (task.spec for task in self.active() if task.node == name)
        return {socket: spec.id for spec in there for socket in sockets(spec.ports)}

    def kept_owners(self) -> set[str]:
        return self.kept - set(self.forgotten)

    def rescind_all(self) -> None:
        for offer_id in list(self._outstanding):
            del self._outstanding[offer_id]
            self._tell(Rescinded(offer_id))

    def active(self, owner: str | None = None) -> list[TaskView]:
        tasks = [task for task in self.tasks.values() if not task.status.state.terminal]
        return [task for task in tasks if owner in (None, task.spec.owner)]

    def running(self, owner: str) -> list[TaskView]:
        return [task for task in self.active(owner) if task.status.state == TaskState.RUNNING]

    def spread(self, owner: str) -> Counter[str]:
        return Counter(task.node for task in self.active(owner))

    def advance(self, task_id: str, state: TaskState, **attributes: Any) -> None:
        """The agent saw something of the task."""
        view = self.tasks[task_id]
        status = TaskStatus(task_id, state, view.status.sequence + 1, at=1_700_000_000.0 + next(self._numbers))
        if state == TaskState.RUNNING:
            status = replace(status, addresses=("100.64.0.2",), pid=4711, usage=Usage(cpu_limit=0.1))
        self.tasks[task_id] = replace(view, status=replace(status, **attributes))
        self._tell(Update(self.tasks[task_id]))
        if state.terminal:
            for other in self._together(task_id):
                self.advance(other, TaskState.KILLED)
            self.offer()

    def accept(self, offer_id: str, specs: Sequence[TaskSpec], volumes: Sequence[PersistentVolume]) -> None:
        if self.losing_offers:
            self.losing_offers -= 1
            self._outstanding.pop(offer_id, None)
        offer = self._outstanding.pop(offer_id, None)
        if offer is None:
            raise OfferGone(offer_id)
        if self.rejecting:
            raise self.rejecting
        disk = Resources(disk=sum(volume.size for volume in volumes))
        assert offer.resources.covers(sum((spec.held for spec in specs), disk)), "more than was offered"
        for volume in volumes:
            assert volume.id not in self.volumes, "a volume's id was used twice"
            self.volumes[volume.id] = VolumeView(volume, offer.node.id)
        used = {volume for task in self.active() for volume in persistent(task.spec.volumes)}
        for volume_id in (volume_id for spec in specs for volume_id in persistent(spec.volumes)):
            assert self.volumes[volume_id].node == offer.node.id, "a volume is on another node"
            assert volume_id not in used and not self.volumes[volume_id].destroying, "a volume can't be had"
        taken = [*self.published(offer.node.id), *(socket for spec in specs for socket in sockets(spec.ports))]
        assert len(set(taken)) == len(taken), "a port of a node was given twice"
        for spec in specs:
            assert spec.id not in {known.id for known in self.accepted}, "a task id was used twice"
            assert len(self.active(spec.owner)) < self.limits.get(spec.owner, 100_000), "more tasks than wanted"
            self.accepted.append(spec)
            status = TaskStatus(spec.id, TaskState.ASSIGNED, 0)
            self.tasks[spec.id] = TaskView(spec, offer.node.id, status)
            if self.automatic:
                self.advance(spec.id, TaskState.RUNNING)
        self.offer()

    def decline(self, offer_id: str, reason: str) -> None:
        if offer := self._outstanding.pop(offer_id, None):
            self.declined.append(Declined(offer.node.id, reason))
            self._filtered.add(offer.node.id)

    def revive(self) -> None:
        self._suppressed = False
        self._filtered.clear()
        self.offer()

    def suppress(self) -> None:
        self._suppressed = True

    def kill(self, task_id: str) -> None:
        if task_id not in self.tasks:
            raise UnknownTask(task_id)
        self.killed.append(task_id)
        if self.tasks[task_id].status.state.terminal:
            return
        for each in self._together(task_id):
            self.tasks[each] = replace(self.tasks[each], killing=True)
            self._tell(Update(self.tasks[each]))
        if self.automatic:
            self.advance(task_id, TaskState.KILLED)

    def views(self) -> tuple[VolumeView, ...]:
        users = {volume: task.spec.id for task in self.active() for volume in persistent(task.spec.volumes)}
        return tuple(replace(view, task=users.get(name, "")) for name, view in self.volumes.items())

    def destroy(self, volume_id: str) -> None:
        self.volumes[volume_id] = replace(self.volumes[volume_id], destroying=True)

    def sweep(self) -> None:
        """The nodes have destroyed what nobody uses any more."""
        for view in self.views():
            if view.destroying and not view.task:
                del self.volumes[view.volume.id]

    def _together(self, task_id: str) -> list[str]:
        """Of a pod, those that are not over."""
        pod = self.tasks[task_id].spec.pod
        members = pod.members if pod is not None else (task_id,)
        return [each for each in members if each in self.tasks and not self.tasks[each].status.state.terminal]

    def acknowledge(self, task_id: str, sequence: int) -> None:
        view = self.tasks.get(task_id)
        if view and view.status.state.terminal and sequence >= view.status.sequence:
            del self.tasks[task_id]

    def _tell(self, event: Event) -> None:
        if self._subscription is not None:
            self._subscription.tell(event)


class Subscription:
    """`master.offers.Subscription`."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def tell(self, event: Event) -> None:
        self._events.put_nowait(event)

    async def events(self) -> AsyncIterator[Event]:
        while True:
            yield await self._events.get()

    async def accept(self, offer_id: str, tasks: Sequence[TaskSpec], volumes: Sequence[PersistentVolume] = ()) -> None:
        self._cluster.accept(offer_id, tasks, volumes)
        await asyncio.sleep(0)

    def nodes(self) -> tuple[Node, ...]:
        return tuple(self._cluster.nodes.values())

    def volumes(self) -> tuple[VolumeView, ...]:
        return self._cluster.views()

    async def destroy(self, volume_id: str) -> None:
        self._cluster.destroy(volume_id)
        await asyncio.sleep(0)

    def decline(self, offer_id: str, reason: str, filter_s: float = 5.0) -> None:
        self._cluster.decline(offer_id, reason)

    def revive(self) -> None:
        self._cluster.revive()

    def suppress(self) -> None:
        self._cluster.suppress()

    async def kill(self, task_id: str) -> None:
        self._cluster.kill(task_id)
        await asyncio.sleep(0)

    def vip_problem(self, label: VipLabel) -> str:
        return self._cluster.vip_problems.get(str(label.address), "")

    def owners(self) -> set[str]:
        return self._cluster.kept_owners()

    async def forget(self, owner: str) -> None:
        self._cluster.forgotten.append(owner)
        await asyncio.sleep(0)

    async def reconcile(self) -> tuple[TaskView, ...]:
        return tuple(self._cluster.tasks.values())

    async def acknowledge(self, task_id: str, sequence: int) -> None:
        self._cluster.acknowledge(task_id, sequence)


async def until(condition: Callable[[], bool], what: str = "") -> None:
    """Wait for what other tasks of this loop will bring about."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - any condition, so there is nothing to wait on
            await asyncio.sleep(0.002)


def next_change(desired: Desired, feed: Feed) -> pb.Change | None:
    """As the node reads it."""
    message = desired.next_change(feed)
    return pb.MasterMessage.FromString(message).change if message is not None else None
