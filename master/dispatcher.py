"""The master's end of the agents' sessions, and what each node should run.

Reads Hello, Applied and Status from the agents, and the changes of tasks that the rest of the master announces. Writes
the nodes' desired state (`desired.py`) and, through it, the Changes on the wire.

Law 6, take out, wait, then stop: a task that shall end is first marked `killing`, on which discovery takes it out of
the VIPs at once; when every node that is online has applied that, or the deadline passed, it is marked `drained`, and
only then does its node hear that it is to be killed. That waits for connections that are still open (`agent/drain.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import partial

import grpc
import structlog

from master.blocks import Blocks
from master.desired import Desired, Feed
from master.networks import Networks
from master.nodes import Nodes, NodeView
from master.store.base import StoreError
from master.streams import Streams
from master.tasks import TaskRecord, Tasks, active
from master.turns import Turns
from master.volumes import VolumeRecord, Volumes
from model.network import Network, Vtep
from model.node import Node, NodeState
from model.task import TaskState, TaskStatus, newer
from model.volume import persistent
from wire import control_pb2 as pb
from wire import convert, networks
from wire.service import SessionContext, StreamContext
from wire.tls import agent_name

log = structlog.get_logger()

DRAIN_DEADLINE_S = 5.0
DRAINED_TOGETHER_S = 0.02
OBSERVED_TOGETHER = 32  # tasks, in one write
HELLO_DEADLINE_S = 10.0
STORE_RETRY_S = 1.0
REFUSAL_POLL_S = 0.05


class Dispatcher:
    """Serves `wire.service.Control`."""

    def __init__(
        self, tasks: Tasks, nodes: Nodes, networks: Networks, blocks: Blocks, volumes: Volumes, desired: Desired
    ) -> None:
        self._tasks = tasks
        self._nodes = nodes
        self._networks = networks
        self._blocks = blocks
        self._volumes = volumes
        self._desired = desired
        self.streams = Streams(self._tell)
        self._sessions: dict[str, _Session] = {}
        self._turns = Turns()
        self._works: dict[str, asyncio.Task[object]] = {}
        self._leaving: dict[str, None] = {}  # tasks, until their drain begins
        self._draining: set[str] = set()  # then
        self._next_drain = 0.0
        self._ends: dict[tuple[str, str], Vtep] = {}  # of overlays, by network and node, as they were told last
        blocks.listen(self._share_changed)
        networks.listen(self._network_changed)
        tasks.listen(self._task_changed)
        nodes.listen(self._node_changed)
        volumes.listen(self._volume_changed)

    async def load(self) -> None:
        """After a restart of the master: everything desired before is desired again, and interrupted drains go on."""
        for view in self._nodes.all():
            self._tell_networks(view.node)
        for record in self._tasks.all():
            self._task_changed(None, record)
        for volume in self._volumes.all():
            self._volume_changed(volume.volume.id, volume)

    async def close(self) -> None:
        for session in self._sessions.values():
            session.feed.close()
        works = list(self._works.values())
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)

    async def Session(
        self, request_iterator: AsyncIterator[pb.AgentMessage], context: SessionContext
    ) -> AsyncIterator[bytes]:
        node_id = await agent_name(context)
        structlog.contextvars.bind_contextvars(node=node_id)
        statuses = await self._hello(node_id, request_iterator, context)
        self.streams.forget(node_id)
        # From "connected", above, to the block below that takes it back, nothing waits, so nothing can be cancelled.
        session = self._sessions[node_id] = _Session(self._desired.open(node_id), self._turns)
        receiving = asyncio.create_task(self._receive(session, request_iterator))
        try:
            for status in statuses:
                session.acknowledge(status)
            async for message in session.messages(self._desired):
                yield message
        finally:
            receiving.cancel()
            self._desired.close(session.feed)
            if self._sessions.get(node_id) is session:
                del self._sessions[node_id]
                self._nodes.disconnected(node_id)

    async def Stream(
        self, request_iterator: AsyncIterator[pb.Frame], context: StreamContext
    ) -> AsyncIterator[pb.Frame]:
        node_id = await agent_name(context)
        metadata = dict(context.invocation_metadata() or ())
        async for frame in self.streams.join(node_id, str(metadata.get("request", "")), request_iterator):
            yield frame

    def _tell(self, node: str, message: pb.MasterMessage) -> bool:
        """False when the node is not connected, or has not taken the last few yet."""
        session = self._sessions.get(node)
        return session is not None and session.tell(message)

    async def _hello(
        self, node_id: str, messages: AsyncIterator[pb.AgentMessage], context: SessionContext
    ) -> list[TaskStatus]:
        """The node is connected afterwards. Returns what the agent said of its tasks."""
        try:
            async with asyncio.timeout(HELLO_DEADLINE_S):
                first = await anext(messages)
            if not first.HasField("hello"):
                raise ValueError("the first message must be Hello")
            node, statuses = convert.hello_from_wire(node_id, first.hello)
            await self._blocks.admit(node.id)
            self._tell_networks(node)
            await self._reconcile(node, statuses)
            await self._nodes.connected(node)
            return statuses
        except (ValueError, StoreError, TimeoutError, StopAsyncIteration) as error:
            log.error("session refused", node=node_id, reason=str(error))
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error) or "no Hello")

    def _tell_networks(self, node: Node) -> None:
        for network in self._networks.all():
            self._tell_network(network, node)

    def _tell_network(self, network: Network, node: Node) -> None:
        """The node what it has of the network, and its peers how they reach that."""
        share = self._blocks.share(network, node.id)
        self._desired.put(node.id, pb.Item(key=f"network/{network.name}", network=networks.network_to_wire(share)))
        key, end = f"peer/{network.name}/{node.id}", self._blocks.vtep(network, node)
        if end is None:
            self._desired.unshare(key)
            self._ends.pop((network.name, node.id), None)
        elif self._ends.get((network.name, node.id)) != end:
            self._ends[network.name, node.id] = end
            self._desired.share(pb.Item(key=key, peer=networks.peer_to_wire(end)), skip=node.id)

    def _share_changed(self, network: str, node: str) -> None:
        known, view = self._networks.get(network), self._nodes.get(node)
        if known is not None and view is not None:
            self._tell_network(known, view.node)

    def _network_changed(self, name: str, network: Network | None) -> None:
        for view in self._nodes.all():
            if network is not None:
                self._tell_network(network, view.node)
                continue
            self._desired.remove(view.node.id, f"network/{name}")
            self._desired.unshare(f"peer/{name}/{view.node.id}")
            self._ends.pop((name, view.node.id), None)

    async def remove_node(self, node_id: str) -> dict[str, int]:
        """It will not come back: its tasks are over, its volumes gone, and its addresses free. It is not connected.
        Returns how many of each there were."""
        tasks = active(self._tasks.on(node_id))
        for record in tasks:
            await self._tasks.end(record.spec.id, TaskState.GONE, f"node {node_id} was removed")
        volumes = await self._volumes.forget_node(node_id)
        blocks = await self._blocks.forget_node(node_id)
        for network in self._networks.all():
            self._desired.unshare(f"peer/{network.name}/{node_id}")
            self._ends.pop((network.name, node_id), None)
        self._desired.forget(node_id)
        await self._nodes.remove(node_id)
        return {"tasks": len(tasks), "volumes": volumes, "blocks": blocks}

    async def refusals(self, network: str, deadline_s: float) -> list[tuple[str, str]]:
        """Which nodes can not have the network, and why, once all that are online have tried, or after the deadline."""
        online = [view.node.id for view in self._nodes.all() if view.state is NodeState.ONLINE and view.connected]
        trying = asyncio.create_task(self._desired.barrier(online, deadline_s))
        while not (refusals := self.errors(network)) and not trying.done():
            await asyncio.wait({trying}, timeout=REFUSAL_POLL_S)
        trying.cancel()
        return refusals

    def errors(self, network: str) -> list[tuple[str, str]]:
        """What nodes say of the network that they could not do."""
        views = self._nodes.all()
        return [(view.node.id, error) for view in views for error in view.errors if f'"{network}"' in error]

    async def _reconcile(self, node: Node, statuses: list[TaskStatus]) -> None:
        """What the agent remembers against what we do: a task that a rebooted or re-installed node has forgotten after
        it had started is lost. One that it was never told of, or did not yet write down, is told again."""
        for first in range(0, len(statuses), OBSERVED_TOGETHER):
            await self._tasks.observe(node.id, *statuses[first : first + OBSERVED_TOGETHER])
        remembered = {status.task_id for status in statuses}
        for record in self._tasks.on(node.id):
            if record.spec.id in remembered or record.status.state <= TaskState.ASSIGNED:
                continue
            if record.over:
                # It ran already: a node that was made anew must not take it for a task that it missed.
                self._desired.remove(node.id, f"task/{record.spec.id}")
            else:
                await self._tasks.end(record.spec.id, TaskState.LOST, f"node {node.id} no longer knows the task")

    async def _receive(self, session: _Session, messages: AsyncIterator[pb.AgentMessage]) -> None:
        """Until the agent is gone or says what it should not; that ends the session."""
        observing = asyncio.create_task(self._observe(session))
        try:
            async for message in messages:
                await self._heed(session, message)
        except (ValueError, StoreError) as error:
            log.error("session ended", node=session.feed.node, reason=str(error))
        finally:
            observing.cancel()
            session.feed.close()

    async def _observe(self, session: _Session) -> None:
        """What the agent says of its tasks is written down together with what it says meanwhile."""
        try:
            while True:
                await session.seen.some()
                await self._turns.next()
                statuses = session.seen.take(OBSERVED_TOGETHER)
                await self._tasks.observe(session.feed.node, *statuses)
                for status in statuses:
                    session.acknowledge(status)
        except StoreError as error:
            log.error("session ended", node=session.feed.node, reason=str(error))
            session.feed.close()

    async def _heed(self, session: _Session, message: pb.AgentMessage) -> None:
        node_id = session.feed.node
        match message.WhichOneof("body"):
            case "status":
                session.seen.add(convert.status_from_wire(message.status))
            case "applied":
                session.feed.acknowledge(message.applied.revision)
                self._nodes.report(node_id, tuple(message.applied.errors))
            case "usage":
                self._tasks.measure(node_id, convert.usages_from_wire(message.usage))
            case "block_released":
                await session.seen.settled()
                await self._blocks.released(networks.released_from_wire(node_id, message.block_released))
            case "volume_removed":
                await session.seen.settled()
                await self._volumes.removed(node_id, convert.volume_id_from_wire(message.volume_removed))
            case other:
                raise ValueError(f"unexpected message {other}")

    def _task_changed(self, before: TaskRecord | None, after: TaskRecord | None) -> None:
        if after is None:
            assert before is not None
            self._desired.remove(before.node, f"task/{before.spec.id}")
            return
        if after.over:
            self._release(after)
        # LOST while its node was away: should the node come back, it must hear that the task has no place any more.
        if after.status.state >= TaskState.LOST:
            self._desired.remove(after.node, f"task/{after.spec.id}")
            return
        if before is None or _order(before) != _order(after):
            assignment = convert.assignment_to_wire(after.spec, after.drained, after.paused, after.adjustment)
            self._desired.put(after.node, pb.Item(key=f"task/{after.spec.id}", task=assignment))
        if after.killing and not after.drained and not after.over:
            pod = after.spec.pod
            self._leave(pod.members if pod is not None else (after.spec.id,))
            self._give_up_with(self._nodes.get(after.node), after)  # it may be the only one that was not yet

    def _release(self, over: TaskRecord) -> None:
        """Volumes of it that are to be destroyed may be now."""
        for volume_id in persistent(over.spec.volumes):
            self._volume_changed(volume_id, self._volumes.get(volume_id))

    def _volume_changed(self, volume_id: str, after: VolumeRecord | None) -> None:
        """Nodes are told of volumes only that they are to destroy them, and not before the last task is over."""
        key = f"volume/{volume_id}"
        if after is None:
            for view in self._nodes.all():
                self._desired.remove(view.node.id, key)
        elif after.destroying and not self._volumes.busy(after):
            self._desired.put(after.node, pb.Item(key=key, volume_removal=pb.VolumeRemoval(id=volume_id)))

    def _node_changed(self, view: NodeView) -> None:
        """A node that stays away is given up, so that frameworks start its tasks elsewhere."""
        for record in active(self._tasks.on(view.node.id)) if view.state is NodeState.LOST else ():
            self._give_up_with(view, record)

    def _give_up_with(self, view: NodeView | None, record: TaskRecord) -> None:
        if view is not None and view.state is NodeState.LOST and (record.killing or not record.spec.patient):
            self._work(f"give up {record.spec.id}", partial(self._give_up, record.spec.id, record.node))

    async def _give_up(self, task_id: str, node_id: str) -> None:
        view = self._nodes.get(node_id)
        if view is not None and view.state is NodeState.LOST:
            reason = f"node {node_id} has been away for {self._nodes.lost_after_s:g} s"
            await self._tasks.end(task_id, TaskState.LOST, reason)

    def _leave(self, task_ids: Iterable[str]) -> None:
        """They are to be drained, with all that are to be in this moment."""
        begun = bool(self._leaving)
        self._leaving.update(dict.fromkeys(each for each in task_ids if each not in self._draining))
        if self._leaving and not begun:
            self._work(f"drain {next(iter(self._leaving))}", self._drain)

    async def _drain(self) -> None:
        await asyncio.sleep(max(0.0, self._next_drain - time.monotonic()))
        self._next_drain = time.monotonic() + DRAINED_TOGETHER_S
        leaving, self._leaving = self._leaving, {}
        self._draining |= leaving.keys()
        try:
            online = [view.node.id for view in self._nodes.all() if view.state is NodeState.ONLINE]
            if late := await self._desired.barrier(online, DRAIN_DEADLINE_S):
                log.warning("stopping although VIPs may still point at them", tasks=list(leaving), nodes=late)
            await self._tasks.mark_all(leaving, drained=True)
        except StoreError:
            self._leaving |= leaving
            raise
        finally:
            self._draining -= leaving.keys()

    def _work(self, name: str, work: Callable[[], Awaitable[object]]) -> None:
        """In the background, once at a time for each name, again and again while the store fails."""
        if name not in self._works:
            task = self._works[name] = asyncio.create_task(_until_stored(name, work), name=name)
            task.add_done_callback(self._worked)

    def _worked(self, task: asyncio.Task[object]) -> None:
        del self._works[task.get_name()]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("failed", work=task.get_name(), error=str(error))


class _Session:
    """What waits to be written to one agent. All of it is bounded: keys, one number a task, and a few messages about
    streams.

    What is new for the node alone goes at once. All else goes in turns. The time between two grows with the square of
    the number of nodes, as each change is told to all, and more nodes have more changes: with three nobody notices, and
    with hundreds a thousand changes a second cost no more than a few."""

    MAX_MESSAGES = 256
    TURN_S = 25e-6  # for each pair of nodes
    BYTES_S = 16 * 2**20
    LONGEST_TURN_S = 1.0  # who leaves its VIPs waits for this too
    ACKS_S = 0.5

    def __init__(self, feed: Feed, turns: Turns) -> None:
        self.feed = feed
        self._turns = turns
        self.seen = _Seen()
        self._acks: dict[str, int] = {}
        self._messages: list[pb.MasterMessage] = []

    def acknowledge(self, status: TaskStatus) -> None:
        if not self._acks:  # nobody waits for them: they go with what comes next, or together
            asyncio.get_running_loop().call_later(self.ACKS_S, self.feed.wake.set)
        self._acks[status.task_id] = status.sequence

    def tell(self, message: pb.MasterMessage) -> bool:
        if len(self._messages) >= self.MAX_MESSAGES:
            return False
        self._messages.append(message)
        self.feed.hurry()
        return True

    async def messages(self, desired: Desired) -> AsyncIterator[bytes]:
        """What the agent has to be told, as it comes, until the feed is closed."""
        turn = 0.0
        while not self.feed.closed:
            await self._turns.next()
            if turn <= time.monotonic():
                await desired.encode(self.feed)
            now = time.monotonic()
            change = desired.next_change(self.feed, only_own=now < turn)
            acks, self._acks = self._acks, {}
            messages, self._messages = self._messages, []
            if change is not None:
                yield change
            if acks:
                together = [pb.StatusAck(task_id=task_id, sequence=sequence) for task_id, sequence in acks.items()]
                yield pb.MasterMessage(status_acks=pb.StatusAcks(acks=together)).SerializeToString()
            for message in messages:
                yield message.SerializeToString()
            if now >= turn:
                cost_s = max(self.TURN_S * desired.sessions, len(change or b"") / self.BYTES_S)
                turn = now + min(self.LONGEST_TURN_S, cost_s * desired.sessions)
            await self._next(turn)

    async def _next(self, turn: float) -> None:
        """Until there is something to tell, and it is urgent or its turn."""
        if not self.feed.dirty and not self.feed.own:
            await self.feed.wake.wait()
        if (wait_s := turn - time.monotonic()) > 0 and not self.feed.urgent.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self.feed.urgent.wait()


class _Seen:
    """What an agent has said of its tasks, the newest of each, until it is written down: bounded by their number."""

    def __init__(self) -> None:
        self._statuses: dict[str, TaskStatus] = {}
        self._more = asyncio.Event()
        self._none = asyncio.Event()  # nothing waits, and what was taken is written down
        self._none.set()

    def add(self, status: TaskStatus) -> None:
        if newer(self._statuses.get(status.task_id), status):
            self._statuses[status.task_id] = status
        self._none.clear()
        self._more.set()

    async def some(self) -> None:
        """Until there are some. What was taken before is written down."""
        if not self._statuses:
            self._none.set()
            self._more.clear()
            await self._more.wait()

    def take(self, most: int) -> list[TaskStatus]:
        """The next ones."""
        return [self._statuses.pop(task_id) for task_id in list(self._statuses)[:most]]

    async def settled(self) -> None:
        await self._none.wait()


def _order(record: TaskRecord) -> tuple[object, ...]:
    """All of a task that its node has to follow."""
    return record.spec, record.drained, record.paused, record.adjustment


async def _until_stored(name: str, work: Callable[[], Awaitable[object]]) -> None:
    while True:
        try:
            await work()
            return
        except StoreError as error:
            log.error("trying again", work=name, error=str(error))
        await asyncio.sleep(STORE_RETRY_S)
