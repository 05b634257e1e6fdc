"""The agent's end of the session with the master: dials, tells, applies, and dials again.

Three loops share a session: one reads, puts tasks into the reconciler and network items into `NodeNetwork`; one
applies to the kernel what has gathered there, in one go, and so keeps up however many changes come; one writes news.
Containers, VIPs and routes stay as they are while there is no session. After a failure the next attempt comes after a
random time up to a bound that doubles, so that a master which comes back is not met by all its nodes at once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from typing import TypeAlias

import grpc
import structlog

from agent.node_network import NodeNetwork
from agent.reconciler import Reconciler
from agent.renewal import Dial, describe
from agent.streams import Streams
from agent.volumes import VolumeRemovals
from model.network import Block
from model.node import Node
from model.task import TaskState, TaskStatus, Usage
from pki.credentials import CredentialError
from wire import control_pb2 as pb
from wire import control_pb2_grpc, convert, networks

log = structlog.get_logger()

BACKOFF_FIRST_S = 0.2
BACKOFF_MOST_S = 5.0
RETRY_AFTER_S = 2.0  # what the kernel refused
PASSING = {TaskState.ACCEPTED, TaskState.PREPARING, TaskState.STARTING, TaskState.KILLING}
PASSING_S = 0.1

Call: TypeAlias = "grpc.aio.StreamStreamCall[pb.AgentMessage, pb.MasterMessage]"


class RevisionGap(Exception):
    """A Change was lost: only a full one helps, and that is what a new session begins with."""


class Session:
    """`dial` makes a channel with the credentials as they are now. `ready` is set when the networks of the first
    desired state are there."""

    def __init__(self, node: Node, dial: Dial, network: NodeNetwork, ready: asyncio.Event) -> None:
        self._node = node
        self._dial = dial
        self._network = network
        self._ready = ready
        self._news: set[str] = set()  # ids of tasks that the master must hear of
        self._passing: set[str] = set()  # and of those that can wait a moment
        self._usages: dict[str, Usage] = {}  # of tasks that run, by id
        self._wake = asyncio.Event()

    def report_usages(self, usages: dict[str, Usage]) -> None:
        """The master shall know what tasks take now; what it had not been told before is of no interest any more."""
        self._usages = usages
        self._wake.set()

    def report(self, status: TaskStatus) -> None:
        """The master must hear of it, now or when it can be reached again. What tasks only pass through it hears of
        when they stay there: most come to run sooner, and it has one thing to write down instead of three."""
        if status.state in PASSING:
            if not self._passing:
                asyncio.get_running_loop().call_later(PASSING_S, self._stayed)
            self._passing.add(status.task_id)
            return
        self._news.add(status.task_id)
        self._wake.set()

    def _stayed(self) -> None:
        self._news |= self._passing
        self._passing.clear()
        self._wake.set()

    def wake(self) -> None:
        """There is something new to tell."""
        self._wake.set()

    async def run(self, reconciler: Reconciler, removals: VolumeRemovals, streams: Streams) -> None:
        """Until cancelled."""
        bound = BACKOFF_FIRST_S
        said = ""
        while True:
            connected, reason = await self._attempt(reconciler, removals, streams)
            if connected:
                bound, said = BACKOFF_FIRST_S, ""
            if reason != said:
                log.warning("no session with the master, trying again", node=self._node.id, reason=reason)
                said = reason
            await asyncio.sleep(random.uniform(0.1 * bound, bound))
            bound = min(2 * bound, BACKOFF_MOST_S)

    async def _attempt(self, reconciler: Reconciler, removals: VolumeRemovals, streams: Streams) -> tuple[bool, str]:
        """One session, to its end. Whether it came about, and why it ended."""
        try:
            async with self._dial() as channel:
                stub = control_pb2_grpc.ControlStub(channel)
                conversation = _Conversation(self, reconciler, removals, streams, stub)
                try:
                    reason = await conversation.run()
                except grpc.aio.AioRpcError as error:
                    reason = describe(error)
                return conversation.begun, reason
        except CredentialError as error:
            return False, str(error)


class _Conversation:
    """The state of one session: what was received, what of it was applied, and what the other side knows."""

    def __init__(
        self,
        session: Session,
        reconciler: Reconciler,
        removals: VolumeRemovals,
        streams: Streams,
        stub: control_pb2_grpc.ControlStub,
    ) -> None:
        self.begun = False
        self._session = session
        self._reconciler = reconciler
        self._removals = removals
        self._told_removed: set[str] = set()
        self._told_released: frozenset[Block] = frozenset()
        self._streams = streams
        self._network = session._network
        self._stub = stub
        self._received = 0
        self._applied = 0
        self._errors: list[str] = []
        self._told = pb.Applied()
        self._told_usages: dict[str, Usage] = {}
        self._gathered = asyncio.Event()

    async def run(self) -> str:
        """Returns why it ended. Raises AioRpcError for what gRPC noticed."""
        call = self._stub.Session(timeout=None)
        works = [asyncio.create_task(work) for work in (self._read(call), self._apply(), self._write(call))]
        try:
            done, _ = await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
            for work in done:
                work.result()
            return f"the master ended the session: {await call.details()}"
        except (RevisionGap, ValueError, OSError) as error:
            # OSError: a task's end could not be written down. The master asks for it again with the next session.
            return str(error)
        finally:
            for work in works:
                work.cancel()
            call.cancel()
            await asyncio.gather(*works, return_exceptions=True)

    async def _read(self, call: Call) -> None:
        while isinstance(message := await call.read(), pb.MasterMessage):
            if not self.begun:
                self.begun = True
                log.info("session begins", node=self._session._node.id)
            match message.WhichOneof("body"):
                case "change":
                    self._receive(message.change)
                case "status_ack":
                    self._acknowledged((message.status_ack,))
                case "status_acks":
                    self._acknowledged(message.status_acks.acks)
                case "open":
                    self._streams.open(self._stub, message.open)
                case "close":
                    self._streams.end(message.close)

    def _acknowledged(self, acks: Iterable[pb.StatusAck]) -> None:
        for ack in acks:
            self._reconciler.books.acknowledged(ack.task_id, ack.sequence)

    def _receive(self, change: pb.Change) -> None:
        if not change.full and (not self._received or change.revision != self._received + 1):
            raise RevisionGap(f"revision {change.revision} came after {self._received}")
        wanted = {item.key for item in change.put}
        if change.full:
            self._network.keep_only(wanted)
            self._reconciler.withdraw_others(_names(wanted, "task/"))
            self._removals.keep_only(_names(wanted, "volume/"))
        for key in change.remove:
            self._remove(key)
        for item in change.put:
            self._put(item)
        self._received = change.revision
        self._gathered.set()

    def _put(self, item: pb.Item) -> None:
        match item.WhichOneof("body"):
            case "task":
                self._reconciler.assign(*convert.assignment_from_wire(item.task))
            case "network":
                self._network.put_network(networks.network_from_wire(self._session._node.id, item.network))
            case "peer":
                self._network.put_peer(networks.peer_from_wire(item.peer))
            case "vip":
                self._network.put_vip(networks.vip_from_wire(item.vip))
            case "policy":
                self._network.put_policy(networks.policy_from_wire(item.policy))
            case "name":
                self._network.put_name(networks.named_task_from_wire(item.name))
            case "members":
                self._network.put_members(networks.members_from_wire(item.members))
            case "volume_removal":
                self._removals.put(convert.volume_id_from_wire(item.volume_removal.id))
            case other:
                raise ValueError(f"item {item.key}: unknown kind {other}")

    def _remove(self, key: str) -> None:
        if key.startswith("task/"):
            self._reconciler.withdraw(key.removeprefix("task/"))
        elif key.startswith("volume/"):
            self._removals.withdraw(key.removeprefix("volume/"))
        else:
            self._network.remove(key)

    async def _apply(self) -> None:
        while True:
            await self._wait_gathered()
            self._gathered.clear()
            revision = self._received
            self._errors = await self._network.apply() + await self._reconciler.settle()
            if not self._errors:
                self._applied = revision  # who waits for a backend to leave must not take a failure for it
            self._session._ready.set()
            self._session._wake.set()

    async def _wait_gathered(self) -> None:
        """For the next change, or until it is time to try again what failed."""
        try:
            async with asyncio.timeout(RETRY_AFTER_S if self._errors else None):
                await self._gathered.wait()
        except TimeoutError:
            return

    async def _write(self, call: Call) -> None:
        session = self._session
        hello = convert.hello_to_wire(session._node, self._reconciler.books.statuses())
        await call.write(pb.AgentMessage(hello=hello))
        # The master got all statuses with Hello; what was not acknowledged since is found again by this.
        session._news |= {status.task_id for status in self._reconciler.books.statuses()}
        while True:
            session._wake.clear()
            news, session._news = session._news, set()
            for task_id in news:
                if (status := self._reconciler.books.unacknowledged(task_id)) is not None:
                    await call.write(pb.AgentMessage(status=convert.status_to_wire(status)))
            applied = pb.Applied(revision=self._applied, errors=self._errors)
            if applied != self._told:
                await call.write(pb.AgentMessage(applied=applied))
                self._told = applied
            for volume in sorted(self._removals.removed - self._told_removed):
                await call.write(pb.AgentMessage(volume_removed=volume))
                self._told_removed.add(volume)
            released = self._network.released()
            for block in sorted(released - self._told_released, key=str):
                await call.write(pb.AgentMessage(block_released=networks.released_to_wire(block)))
            self._told_released = released
            usages = session._usages
            if changed := dict(usages.items() - self._told_usages.items()):
                await call.write(pb.AgentMessage(usage=convert.usages_to_wire(changed)))
            self._told_usages = usages
            await session._wake.wait()


def _names(keys: set[str], kind: str) -> set[str]:
    return {key.removeprefix(kind) for key in keys if key.startswith(kind)}
