"""A master's control side on a real store, its server on loopback, and an agent that is driven by hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import grpc.aio

from agent.streams import Streams
from master.addresses import Addresses
from master.allocator import Allocator
from master.blocks import Blocks
from master.desired import Desired
from master.discovery import Discovery
from master.dispatcher import Dispatcher
from master.logs import Logs
from master.networks import Networks
from master.nodes import Nodes
from master.store.base import Delete, Put, StoreError
from master.store.sqlite import SqliteStore
from master.tasks import TaskRecord, Tasks
from master.vip_names import VipNames
from master.volumes import Volumes
from model.node import Node
from model.resources import Resources
from model.task import Port, TaskSpec, TaskState, TaskStatus
from pki.authority import Authority
from pki.credentials import Credentials, issue_to
from pki.identity import Identity, Role
from tests.unit.cluster import node
from wire import control_pb2 as pb
from wire import control_pb2_grpc, convert
from wire.service import add_control
from wire.tls import SERVER_OPTIONS, channel, server_credentials

DEADLINE_S = 10.0
POOL = ip_network("100.127.0.0/24")
POOLS = (POOL, ip_network("fd01:c::/120"))


def task(task_id: str, cpus: int = 100, mem: int = 32, vip: str = "", **attributes: Any) -> TaskSpec:
    ports = (Port(8080, labels=(("VIP_0", vip),)),) if vip else ()
    return TaskSpec(task_id, "services", "/web", ("true",), Resources(cpus, mem), "overlay", ports=ports, **attributes)


class FullDisk(SqliteStore):
    """The real store, on a disk that takes no keys that begin with one of `full`, until told otherwise."""

    full: tuple[str, ...] = ()
    refused = 0

    async def transaction(self, *operations: Put | Delete) -> int:
        if self.full and any(operation.key.startswith(self.full) for operation in operations):
            self.refused += 1
            raise StoreError("disk full")
        return await super().transaction(*operations)


@dataclass(frozen=True, slots=True)
class Master:
    store: FullDisk
    tasks: Tasks
    nodes: Nodes
    networks: Networks
    blocks: Blocks
    addresses: Addresses
    volumes: Volumes
    desired: Desired
    names: VipNames
    discovery: Discovery
    logs: Logs
    dispatcher: Dispatcher
    allocator: Allocator

    async def run(self, task_id: str, on: str, vip: str = "", address: str = "100.64.0.2") -> TaskRecord:
        """Add a task, and see it running."""
        await self.tasks.add(on, [task(task_id, vip=vip)])
        return await self.saw(task_id, TaskState.RUNNING, addresses=(address,))

    async def saw(self, task_id: str, state: TaskState, **attributes: Any) -> TaskRecord:
        """An observation of the task's node."""
        record = self.record(task_id)
        status = TaskStatus(task_id, state, record.status.sequence + 1, time.time(), **attributes)
        await self.tasks.observe(record.node, status)
        return self.record(task_id)

    def record(self, task_id: str) -> TaskRecord:
        record = self.tasks.get(task_id)
        assert record is not None
        return record


@asynccontextmanager
async def master(
    directory: Path, unreachable_after_s: float = 10.0, lost_after_s: float = 75.0
) -> AsyncIterator[Master]:
    """From what is in the directory, as after a restart."""
    store = await FullDisk.open(directory / "store.db")
    assert isinstance(store, FullDisk)
    tasks, networks, desired = Tasks(store), Networks(store), Desired()
    volumes = Volumes(store, tasks)
    nodes = Nodes(store, unreachable_after_s, lost_after_s)
    blocks, addresses = Blocks(store, networks, tasks, nodes), Addresses(store, networks, tasks)
    names = VipNames(store, POOLS)
    discovery = Discovery(tasks, nodes, networks, desired, names, (ip_network("9.9.9.0/24"),))
    dispatcher = Dispatcher(tasks, nodes, networks, blocks, volumes, desired)
    logs = Logs(dispatcher.streams)
    allocator = Allocator(tasks, nodes, networks, blocks, addresses, volumes, discovery)
    try:
        for part in (tasks, volumes, networks, nodes, blocks, addresses, discovery, dispatcher):
            await part.load()
        yield Master(
            store,
            tasks,
            nodes,
            networks,
            blocks,
            addresses,
            volumes,
            desired,
            names,
            discovery,
            logs,
            dispatcher,
            allocator,
        )
    finally:
        await dispatcher.close()
        nodes.close()
        await store.close()


@dataclass(frozen=True, slots=True)
class Certificates:
    authority: Authority
    directory: Path

    def issue(self, role: Role, name: str) -> Credentials:
        return issue_to(self.directory / name, self.authority, Identity(role, name))


def certificates(directory: Path) -> Certificates:
    return Certificates(Authority.create(directory / "ca"), directory)


@asynccontextmanager
async def serving(parts: Master, credentials: Credentials) -> AsyncIterator[str]:
    server = grpc.aio.server(options=SERVER_OPTIONS)
    add_control(parts.dispatcher, server)
    port = server.add_secure_port("127.0.0.1:0", server_credentials(lambda: credentials))
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await parts.dispatcher.close()
        await server.stop(grace=None)


@asynccontextmanager
async def cluster(directory: Path, **settings: float) -> AsyncIterator[tuple[Master, Dial]]:
    """A master that serves, and how to dial it as a node (or as whatever else has a certificate)."""
    issued = certificates(directory)
    async with AsyncExitStack() as stack:
        parts = await stack.enter_async_context(master(directory, **settings))
        target = await stack.enter_async_context(serving(parts, issued.issue(Role.MASTER, "m1")))

        @asynccontextmanager
        async def dial(name: str, role: Role = Role.AGENT) -> AsyncIterator[Agent]:
            async with channel(target, issued.issue(role, name)) as to_master:
                agent = Agent(name, to_master)
                yield agent
                agent.call.cancel()

        yield parts, dial


class Agent:
    """One session, message by message. `items` is what the changes it took have made of the desired state."""

    def __init__(self, name: str, to_master: grpc.aio.Channel) -> None:
        self.node = node(name)
        self.stub = control_pb2_grpc.ControlStub(to_master)
        self.call = self.stub.Session()
        self.items: dict[str, pb.Item] = {}
        self.revision = 0
        self.acknowledged: dict[str, int] = {}
        self.streams = Streams({})  # what it serves

    async def hello(self, *statuses: TaskStatus, node: Node | None = None) -> None:
        self.node = node or self.node
        await self.send(pb.AgentMessage(hello=convert.hello_to_wire(self.node, list(statuses))))

    async def join(self, *statuses: TaskStatus) -> None:
        """Up to the full change, applied."""
        await self.hello(*statuses)
        await self.take()
        await self.applied()

    async def send(self, message: pb.AgentMessage) -> None:
        async with asyncio.timeout(DEADLINE_S):
            await self.call.write(message)

    async def status(self, task_id: str, state: TaskState, sequence: int, **attributes: Any) -> None:
        status = TaskStatus(task_id, state, sequence, time.time(), **attributes)
        await self.send(pb.AgentMessage(status=convert.status_to_wire(status)))

    async def applied(self, revision: int | None = None, errors: Iterable[str] = ()) -> None:
        applied = pb.Applied(revision=self.revision if revision is None else revision, errors=errors)
        await self.send(pb.AgentMessage(applied=applied))

    async def read(self) -> pb.MasterMessage | None:
        """The next message, heeded; None when the master ended the session."""
        async with asyncio.timeout(DEADLINE_S):
            message = await self.call.read()
        if not isinstance(message, pb.MasterMessage):
            return None
        match message.WhichOneof("body"):
            case "change":
                self._apply(message.change)
            case "status_acks":
                self.acknowledged |= {ack.task_id: ack.sequence for ack in message.status_acks.acks}
            case "open":
                self.streams.open(self.stub, message.open)
            case "close":
                self.streams.end(message.close)
        return message

    async def serve(self, streams: Streams) -> None:
        """Heed every message that comes, and serve these streams, until the master ends the session."""
        self.streams = streams
        while await self.read() is not None:
            pass

    async def take(self) -> pb.Change:
        """The next change."""
        while (message := await self.read()) is not None:
            if message.HasField("change"):
                return message.change
        raise ConnectionError("the master ended the session")

    async def until(self, condition: Callable[[Agent], bool]) -> None:
        """Read and apply, until the items are so."""
        while not condition(self):
            if await self.read() is None:
                raise ConnectionError("the master ended the session")
            await self.applied()

    def kills(self, task_id: str) -> bool:
        item = self.items.get(f"task/{task_id}")
        return item is not None and item.task.kill

    def _apply(self, change: pb.Change) -> None:
        if change.full:
            self.items.clear()
        else:
            assert change.revision == self.revision + 1
        for key in change.remove:
            del self.items[key]
        self.items.update({item.key: item for item in change.put})
        self.revision = change.revision


Dial = Callable[..., AbstractAsyncContextManager[Agent]]


def resized(known: Node, cpus: int) -> Node:
    return replace(known, resources=replace(known.resources, cpus=cpus))
