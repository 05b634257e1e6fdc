"""Offers nodes' free resources to frameworks, and holds the master's end of the offer contract (`offers.py`).

Free is what the node has, less what its tasks that are not over use and its persistent volumes hold, less what is on
offer or just being accepted. A node's free resources are offered whole, to one framework at a time, in turn. Nothing
here is on disk but tasks and volumes themselves: after a restart of the master every framework subscribes again, and
offers begin anew.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from master.addresses import Addresses
from master.blocks import Blocks, NetworkFull
from master.discovery import Discovery
from master.networks import Networks
from master.nodes import Nodes, NodeView
from master.offers import (
    Event,
    NodesChanged,
    Offer,
    OfferGone,
    Offers,
    Rescinded,
    TaskView,
    UnknownTask,
    UnknownVolume,
    Update,
    VolumeView,
)
from master.store.base import StoreError
from master.tasks import TaskRecord, Tasks
from master.volumes import VolumeRecord, Volumes
from model.node import Node, NodeState
from model.resources import Resources, describe
from model.rights import missing, needed
from model.task import TASK_ID, TaskSpec, sockets
from model.vip import VipLabel
from model.volume import PersistentVolume

OFFER_DEADLINE_S = 30.0
OFFERED_TOGETHER_S = 0.01
AT_ONCE = 16  # nodes or events, before all else has its turn
REPEAT_S = 1.0  # an update whose acknowledgement could not be written down


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a framework declined a node: `needs 4 CPU, has 1.5 CPU`."""

    reason: str
    until: float  # on the monotonic clock


class Shortage(Exception):
    """A node has less free than is asked for: `lacking` by kind, of `free`."""

    def __init__(self, node_id: str, amount: Resources, free: Resources) -> None:
        lacking = {kind: missing for kind, missing in free.shortage(amount).items() if getattr(amount, kind)}
        words = ", ".join(describe(kind, missing) for kind, missing in lacking.items())
        super().__init__(f"node {node_id} has {words} too little")
        self.lacking = lacking
        self.free = free


@dataclass(slots=True, eq=False)
class _Inbox:
    """What a subscriber has not fetched yet: bounded by the number of its tasks and of nodes."""

    updates: dict[str, None] = field(default_factory=dict)  # task ids, in the order of their first change
    offers: list[Offer] = field(default_factory=list)
    rescinded: list[str] = field(default_factory=list)
    nodes_changed: bool = False
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class _Holds:
    """What is on offer or just being accepted, by node."""

    def __init__(self) -> None:
        self._offers: dict[str, dict[str, Offer]] = {}

    def add(self, offer: Offer) -> None:
        self._offers.setdefault(offer.node.id, {})[offer.id] = offer

    def drop(self, offer: Offer) -> None:
        of_node = self._offers[offer.node.id]
        del of_node[offer.id]
        if not of_node:
            del self._offers[offer.node.id]

    def on(self, node_id: str) -> Resources:
        return sum((offer.resources for offer in self._offers.get(node_id, {}).values()), Resources())


class Allocator:
    def __init__(
        self,
        tasks: Tasks,
        nodes: Nodes,
        networks: Networks,
        blocks: Blocks,
        addresses: Addresses,
        volumes: Volumes,
        discovery: Discovery,
    ) -> None:
        self.tasks = tasks
        self.volumes = volumes
        self.blocks = blocks
        self.addresses = addresses
        self.discovery = discovery
        self.holds = _Holds()
        self.accepting: dict[str, Offer] = {}  # their tasks are on the way to the store
        self.arriving: dict[str, Sequence[TaskSpec]] = {}  # these tasks
        self._nodes = nodes
        self._networks = networks
        self._subscribers: list[FrameworkSubscription] = []
        self._numbers = itertools.count(1)
        self._wake = asyncio.Event()
        self._told: dict[str, tuple[bool, bool]] = {}  # of nodes: whether they drain, and whether they are away
        self._taking: dict[str, Node] = {}  # nodes that take tasks
        tasks.listen(self._task_changed)
        nodes.listen(self._node_changed)
        volumes.listen(self._volume_changed)
        networks.listen(lambda name, network: self.wake())
        blocks.listen(lambda name, node: self.wake())

    def subscribe(self, framework: str) -> FrameworkSubscription:
        """A second subscription under one name takes the first one's place, and the first one's offers are gone."""
        for earlier in [s for s in self._subscribers if s.framework == framework]:
            self._subscribers.remove(earlier)
            earlier.close_all()
        subscription = FrameworkSubscription(self, framework)
        self.in_turn(subscription)
        self._subscribers.append(subscription)
        self.wake()
        return subscription

    def in_turn(self, subscription: FrameworkSubscription) -> None:
        """From now on: not every offer until it has had as many as the others had in months."""
        others = [s.offered for s in self._subscribers if s is not subscription and not s.suppressed]
        subscription.offered = max(subscription.offered, min(others, default=0))

    async def run(self) -> None:
        """Offers whatever becomes free, until cancelled."""
        while True:
            self._wake.clear()
            self._rescind_late()
            await self._offer()
            await asyncio.sleep(OFFERED_TOGETHER_S)  # with hundreds of nodes something becomes free all the time
            try:
                # Not wait_for: in Python 3.11 that swallows a cancellation which comes together with the event.
                async with asyncio.timeout(self._next_expiry()):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def wake(self) -> None:
        self._wake.set()

    def view(self, record: TaskRecord) -> TaskView:
        node = self._nodes.get(record.node)
        leaving, unreachable = (node.draining, node.unreachable) if node is not None else (False, None)
        return TaskView(record.spec, record.node, record.status, record.killing, leaving, unreachable)

    def taking(self) -> tuple[Node, ...]:
        return tuple(view.node for view in self._nodes.all() if _takes_tasks(view))

    def used(self, node_id: str) -> Resources:
        return self.tasks.used(node_id) + self.volumes.reserved(node_id)

    def published(self, node_id: str) -> dict[tuple[str, int], str]:
        """Protocols and ports of the node, and which task has each."""
        there = [record.spec for record in self.tasks.on(node_id) if not record.over]
        return {socket: task.id for task in (*there, *self.arriving_on(node_id)) for socket in sockets(task.ports)}

    def arriving_on(self, node_id: str) -> list[TaskSpec]:
        """Tasks of the node that are on their way to the store."""
        arriving = self.arriving.items()
        return [task for offer_id, tasks in arriving if self.accepting[offer_id].node.id == node_id for task in tasks]

    def new_id(self) -> str:
        return f"offer-{next(self._numbers)}"

    @contextmanager
    def reserved(self, node_id: str, amount: Resources) -> Iterator[None]:
        """Holds what a task of the node is to have more, while that is written down; offers that were made of it are
        rescinded. Raises Shortage."""
        if amount == Resources():
            yield
            return
        view = self._nodes.get(node_id)
        accepted = sum((o.resources for o in self.accepting.values() if o.node.id == node_id), Resources())
        if view is None:
            raise Shortage(node_id, amount, Resources())
        free = view.node.resources - self.used(node_id) - accepted
        if any(getattr(amount, kind) for kind in free.shortage(amount)):  # else it is short of what is not asked for
            raise Shortage(node_id, amount, free)
        for subscriber in self._subscribers:
            for offer in [o for o in subscriber.outstanding.values() if o.node.id == node_id]:
                subscriber.rescind(offer.id)
        hold = self.new_id()
        self.begin(Offer(hold, view.node, amount, frozenset()))
        try:
            yield
        finally:
            self.end(hold)

    def begin(self, offer: Offer) -> None:
        """It is being accepted, and goes on holding its resources until its tasks do."""
        self.accepting[offer.id] = offer
        self.holds.add(offer)

    def end(self, offer_id: str) -> None:
        self.holds.drop(self.accepting.pop(offer_id))
        self.wake()

    async def _offer(self) -> None:
        views = self._nodes.all()
        for first in range(0, len(views), AT_ONCE):
            self._offer_nodes([view.node.id for view in views[first : first + AT_ONCE]])
            await asyncio.sleep(0)

    def _offer_nodes(self, node_ids: Iterable[str]) -> None:
        now = time.monotonic()
        networks = frozenset(network.name for network in self._networks.all())
        for view in filter(None, map(self._nodes.get, node_ids)):
            takers = [s for s in self._subscribers if s.wants(view.node.id, now)] if _takes_tasks(view) else []
            if not takers:
                continue
            free = view.node.resources - self.used(view.node.id) - self.holds.on(view.node.id)
            if free.cpus <= 0 or free.mem <= 0:
                continue
            taker = min(takers, key=lambda subscriber: subscriber.offered)
            room = self.blocks.room(view.node.id, self.arriving_on(view.node.id))
            taker.give(Offer(self.new_id(), view.node, free, networks, self.published(view.node.id), room))

    def _rescind_late(self) -> None:
        late = time.monotonic() - OFFER_DEADLINE_S
        for subscriber in self._subscribers:
            for offer_id, _ in list(itertools.takewhile(lambda each: each[1] <= late, subscriber.offered_at.items())):
                subscriber.rescind(offer_id)

    def _next_expiry(self) -> float | None:
        now = time.monotonic()
        times = [refusal.until for s in self._subscribers for refusal in s.refusals.values() if refusal.until > now]
        times += [at + OFFER_DEADLINE_S for s in self._subscribers for at in itertools.islice(s.offered_at.values(), 1)]
        return max(0.0, min(times) - now) if times else None

    def _task_changed(self, before: TaskRecord | None, after: TaskRecord | None) -> None:
        if after is not None:
            self._tell(after)
        if before is None or after is None or after.over or after.held != before.held:
            self.wake()

    def _tell(self, record: TaskRecord) -> None:
        for subscriber in self._subscribers:
            if subscriber.framework == record.spec.framework:
                subscriber.note(record.spec.id)

    def _volume_changed(self, volume_id: str, after: VolumeRecord | None) -> None:
        if after is None:
            self.wake()

    def _node_changed(self, view: NodeView) -> None:
        """An offer is good for as long as its node is there, and is what it was."""
        good = _takes_tasks(view)
        told = view.draining, view.unreachable is not None
        if self._told.get(view.node.id, (False, False)) != told:
            self._told[view.node.id] = told
            for record in self.tasks.on(view.node.id):
                self._tell(record)
        if self._taking.get(view.node.id) != (view.node if good else None):
            self._taking = {node.id: node for node in self.taking()}
            for subscriber in self._subscribers:
                subscriber.note_nodes()
        for subscriber in self._subscribers:
            for offer in [o for o in subscriber.outstanding.values() if o.node.id == view.node.id]:
                if not good or offer.node != view.node:
                    subscriber.rescind(offer.id)
        self.wake()


def _takes_tasks(view: NodeView) -> bool:
    return view.state is NodeState.ONLINE and view.connected and not view.draining


class FrameworkSubscription:
    """`offers.Subscription` for one framework."""

    def __init__(self, allocator: Allocator, framework: str) -> None:
        self.framework = framework
        self.outstanding: dict[str, Offer] = {}
        self.offered_at: dict[str, float] = {}  # the oldest first
        self.offered = 0
        self.refusals: dict[str, Refusal] = {}  # by node
        self._allocator = allocator
        self._tasks = allocator.tasks
        self._volumes = allocator.volumes
        self._addresses = allocator.addresses
        self._discovery = allocator.discovery
        self.suppressed = False
        self._inbox = _Inbox()

    async def events(self) -> AsyncIterator[Event]:
        for record in self._own():
            self.note(record.spec.id)
        while True:
            self._inbox.wake.clear()
            for number, event in enumerate(self._fetch()):
                if number % AT_ONCE == AT_ONCE - 1:
                    await asyncio.sleep(0)
                yield event
            await self._inbox.wake.wait()

    async def accept(self, offer_id: str, tasks: Sequence[TaskSpec], volumes: Sequence[PersistentVolume] = ()) -> None:
        offer = self.outstanding.get(offer_id)
        if offer is None:
            raise OfferGone(offer_id)
        for task in tasks:
            self._check(task, offer)
        _check_whole(tasks)
        _check_sockets(tasks, self._allocator.published(offer.node.id), offer.node.id)
        demand = sum((task.held for task in tasks), Resources(disk=sum(volume.size for volume in volumes)))
        shortage = offer.resources.shortage(demand)
        if shortage:
            lacking = ", ".join(describe(kind, amount) for kind, amount in shortage.items())
            raise ValueError(f"{offer_id}: the tasks need {lacking} more than was offered")
        with (
            self._volumes.claimed(offer.node.id, self.framework, tasks, volumes) as puts,
            self._addresses.claimed(tasks) as (addressed, kept),
        ):
            self._close(offer_id)
            before = self._allocator.arriving_on(offer.node.id)
            self._allocator.begin(offer)
            self._allocator.arriving[offer_id] = addressed
            try:
                await self._allocator.blocks.ensure(offer.node.id, addressed, before)
                await self._tasks.add(offer.node.id, addressed, [*puts, *kept])
            except NetworkFull as error:
                raise ValueError(f"{offer_id}: {error}") from error
            finally:
                del self._allocator.arriving[offer_id]
                self._allocator.end(offer_id)

    def decline(self, offer_id: str, reason: str, filter_s: float = 5.0) -> None:
        offer = self.outstanding.get(offer_id)
        if offer is None:
            return
        self._close(offer_id)
        self.refusals[offer.node.id] = Refusal(reason, time.monotonic() + filter_s)
        self._allocator.wake()

    def revive(self) -> None:
        if self.suppressed:
            self.suppressed = False
            self._allocator.in_turn(self)
        self.refusals.clear()
        self._allocator.wake()

    def suppress(self) -> None:
        self.suppressed = True

    async def kill(self, task_id: str) -> None:
        record = self._tasks.get(task_id)
        if record is None or record.spec.framework != self.framework:
            raise UnknownTask(task_id)
        await self._tasks.mark(task_id)

    def nodes(self) -> tuple[Node, ...]:
        return self._allocator.taking()

    def volumes(self) -> tuple[VolumeView, ...]:
        own = self._volumes.of(self.framework)
        users = self._volumes.users(own)
        return tuple(VolumeView(each.volume, each.node, users.get(each.volume.id, ""), each.destroying) for each in own)

    async def destroy(self, volume_id: str) -> None:
        record = self._volumes.get(volume_id)
        if record is None or record.volume.framework != self.framework:
            raise UnknownVolume(volume_id)
        await self._volumes.destroy(volume_id)

    def vip_problem(self, label: VipLabel) -> str:
        return self._discovery.problem(label)

    def owners(self) -> set[str]:
        return self._addresses.owners(self.framework) | self._discovery.owners(self.framework)

    async def forget(self, owner: str) -> None:
        await self._addresses.forget(self.framework, owner)
        await self._discovery.forget(self.framework, owner)

    async def reconcile(self) -> tuple[TaskView, ...]:
        return tuple(self._allocator.view(record) for record in self._own())

    async def acknowledge(self, task_id: str, sequence: int) -> None:
        try:
            await self._tasks.acknowledge(task_id, sequence)
        except StoreError:
            asyncio.get_running_loop().call_later(REPEAT_S, self.note, task_id)
            raise

    def wants(self, node_id: str, now: float) -> bool:
        refusal = self.refusals.get(node_id)
        return not self.suppressed and (refusal is None or refusal.until <= now)

    def give(self, offer: Offer) -> None:
        self.outstanding[offer.id] = offer
        self._allocator.holds.add(offer)
        self.offered_at[offer.id] = time.monotonic()
        self.offered += 1
        self._inbox.offers.append(offer)
        self._inbox.wake.set()

    def rescind(self, offer_id: str) -> None:
        self._close(offer_id)
        fetched = [offer for offer in self._inbox.offers if offer.id != offer_id]
        if len(fetched) == len(self._inbox.offers):
            self._inbox.rescinded.append(offer_id)
        self._inbox.offers = fetched
        self._inbox.wake.set()

    def note(self, task_id: str) -> None:
        self._inbox.updates[task_id] = None
        self._inbox.wake.set()

    def note_nodes(self) -> None:
        self._inbox.nodes_changed = True
        self._inbox.wake.set()

    def close_all(self) -> None:
        for offer_id in tuple(self.outstanding):
            self._close(offer_id)

    def _close(self, offer_id: str) -> None:
        if (offer := self.outstanding.pop(offer_id, None)) is not None:
            del self.offered_at[offer_id]
            self._allocator.holds.drop(offer)

    def _fetch(self) -> list[Event]:
        """Everything that waits, tasks before offers: who places must know what it has."""
        inbox = self._inbox
        changed, inbox.updates = inbox.updates, {}
        rescinded, inbox.rescinded = inbox.rescinded, []
        offers, inbox.offers = inbox.offers, []
        events: list[Event] = [NodesChanged()] if inbox.nodes_changed else []
        inbox.nodes_changed = False
        events += [Rescinded(offer_id) for offer_id in rescinded]
        for task_id in changed:
            if (record := self._tasks.get(task_id)) is not None:
                events.append(Update(self._allocator.view(record)))
        if offers:
            events.append(Offers(tuple(offers)))
        return events

    def _check(self, task: TaskSpec, offer: Offer) -> None:
        if not TASK_ID.fullmatch(task.id) or task.framework != self.framework:
            raise ValueError(f"task {task.id!r}: not an id for a task of {self.framework}")
        for each in task.attachments:
            if each.network not in offer.networks:
                raise ValueError(f"task {task.id}: network {each.network!r} does not exist on {offer.node.id}")
        if forbidden := missing(needed(task), offer.node.rights):
            raise ValueError(f"task {task.id}: node {offer.node.id} does not permit {', '.join(sorted(forbidden))}")
        if not task.resources.covers(Resources()):
            raise ValueError(f"task {task.id}: resources must not be negative")

    def _own(self) -> list[TaskRecord]:
        return [record for record in self._tasks.all() if record.spec.framework == self.framework]


def _check_sockets(tasks: Sequence[TaskSpec], published: Mapping[tuple[str, int], str], node_id: str) -> None:
    taken = dict(published)
    for task in tasks:
        for socket in sockets(task.ports):
            protocol, port = socket
            if socket in taken:
                raise ValueError(
                    f"task {task.id}: port {port}/{protocol} of {node_id} is taken by task {taken[socket]}"
                )
            taken[socket] = task.id


def _check_whole(tasks: Sequence[TaskSpec]) -> None:
    """A pod runs on one node, and all of it or nothing: its tasks are accepted together."""
    ids = {task.id for task in tasks}
    for task in tasks:
        if task.pod is None:
            continue
        if task.id not in task.pod.members:
            raise ValueError(f"task {task.id}: is not one of pod {task.pod.id}")
        if absent := [member for member in task.pod.members if member not in ids]:
            raise ValueError(f"task {task.id}: {', '.join(absent)} of its pod must be accepted with it")
