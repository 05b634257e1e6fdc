"""Nodes without a kernel: many agents in one process that speak the real session, over mutual TLS each with a
certificate of its own, and fake what is behind it.

A task goes through the states that a real agent tells, after such times as its sandbox takes, and gets addresses of its
node's blocks. `sleep N` is over after N seconds; everything else runs until it is killed. What a node is told besides
tasks it acknowledges as applied. Observations wait in one place by task, so that a slow writer tells the newest, what
tasks pass through waits a moment, and every five seconds each node tells what its tasks take, as `agent/session.py`
does.

As a program: reads one line of JSON (`Cluster`), says `connected` when every node has its desired state, and stays
until its standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import TypeAlias

import grpc

from agent.session import PASSING, PASSING_S
from model.network import Block, paired
from model.node import Node
from model.resources import Resources
from model.task import TaskState
from pki.credentials import Credentials, load_credentials
from pki.enrolment import enrol
from pki.token import parse_token
from wire import control_pb2 as pb
from wire import control_pb2_grpc, convert
from wire.tls import channel

ACCEPT_S, START_S, END_S = 0.001, 0.02, 0.02  # until a task is on disk, runs, and is cleared away
USAGE_S = 5.0  # agent/usage.py
AT_ONCE = 8  # nodes that join
NODE = Resources(cpus=32_000, mem=131_072, disk=1_000_000)
BACKOFF_S = 0.1, 2.0  # agent/session.py
OVERLAY = "network/overlay"
SLEEP = re.compile(r"(?:/bin/)?sleep ([0-9.]+)")
Call: TypeAlias = "grpc.aio.StreamStreamCall[pb.AgentMessage, pb.MasterMessage]"


@dataclass(frozen=True, slots=True)
class Cluster:
    """`count` nodes, which keep their certificates in `directory`, join with `token` at `enrolment`; the master's port
    for agents is `control`."""

    count: int
    directory: str
    token: str
    enrolment: str
    control: str


@dataclass(slots=True, eq=False)
class Task:
    status: pb.Status
    lasts_s: float | None
    timer: asyncio.TimerHandle | None = None
    addresses: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class Agent:
    node: Node
    tasks: dict[str, Task] = field(default_factory=dict)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    _news: set[str] = field(default_factory=set)
    _passing: set[str] = field(default_factory=set)
    _applied: int = 0
    _free: list[tuple[str, ...]] = field(default_factory=list)  # addresses
    _usage: pb.UsageReport | None = None
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, control: str, credentials: Credentials) -> None:
        """One session, until cancelled. Ends with an error when the master ends it."""
        while not self.ready.is_set():  # the master can not shake hands with all at once
            async with channel(control, credentials) as connection:
                call = control_pb2_grpc.ControlStub(connection).Session()
                with suppress(grpc.aio.AioRpcError):
                    await call.write(pb.AgentMessage(hello=convert.hello_to_wire(self.node, [])))
                    await self._talk(call)
            await asyncio.sleep(random.uniform(*BACKOFF_S))
        raise RuntimeError(f"{self.node.id}: the session ended: {call.details()}")

    async def _talk(self, call: Call) -> None:
        works = [asyncio.create_task(self._write(call)), asyncio.create_task(self._measure())]
        try:
            while isinstance(message := await call.read(), pb.MasterMessage):
                if message.HasField("change"):
                    self._apply(message.change)
        finally:
            for work in works:
                work.cancel()

    def _apply(self, change: pb.Change) -> None:
        for key in change.remove:
            if key.startswith("task/"):
                self._forget(key.removeprefix("task/"))
        for item in change.put:
            if item.HasField("task"):
                self._assign(item.task)
            elif item.key == OVERLAY and not self._free:
                self._free = list(_leasable(item.network))
        self._applied = change.revision
        self._wake.set()
        self.ready.set()

    def _assign(self, assignment: pb.Assignment) -> None:
        task = self.tasks.get(assignment.task.id)
        if task is None:
            task = self.tasks[assignment.task.id] = Task(
                pb.Status(task_id=assignment.task.id), _duration(list(assignment.task.argv))
            )
            self._later(task, ACCEPT_S, TaskState.ACCEPTED)
        if assignment.kill and task.status.state < TaskState.KILLING:
            self._see(task, TaskState.KILLING)
            self._later(task, END_S, TaskState.KILLED)

    def _later(self, task: Task, after_s: float, state: TaskState) -> None:
        if task.timer is not None:
            task.timer.cancel()
        task.timer = asyncio.get_running_loop().call_later(after_s, self._see, task, state)

    def _see(self, task: Task, state: TaskState) -> None:
        """The task has come so far."""
        status = task.status
        status.state, status.at = state, time.time()
        status.since = status.at
        status.sequence += 1
        match state:
            case TaskState.ACCEPTED:
                task.addresses = self._free.pop()
                status.addresses.extend(task.addresses)
                self._later(task, 0, TaskState.STARTING)
            case TaskState.STARTING:
                self._later(task, START_S, TaskState.RUNNING)
            case TaskState.RUNNING:
                status.pid = 4000 + len(self.tasks)
                if task.lasts_s is not None:
                    self._later(task, task.lasts_s, TaskState.FINISHED)
            case TaskState.FINISHED | TaskState.KILLED if task.addresses:
                self._free.insert(0, task.addresses)
                status.exit_code = 0
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

    def _forget(self, task_id: str) -> None:
        task = self.tasks.pop(task_id, None)
        if task is not None and task.timer is not None:
            task.timer.cancel()

    async def _write(self, call: Call) -> None:
        told = 0
        while True:
            self._wake.clear()
            news, self._news = self._news, set()
            for task_id in news:
                if (task := self.tasks.get(task_id)) is not None:
                    await call.write(pb.AgentMessage(status=task.status))
            if self._applied != told:
                told = self._applied
                await call.write(pb.AgentMessage(applied=pb.Applied(revision=told)))
            if self._usage is not None:
                usage, self._usage = self._usage, None
                await call.write(pb.AgentMessage(usage=usage))
            await self._wake.wait()

    async def _measure(self) -> None:
        await asyncio.sleep(random.uniform(0, USAGE_S))  # they were not all started in one moment
        looks = 0
        while True:
            await asyncio.sleep(USAGE_S)
            looks += 1
            running = [each.status.task_id for each in self.tasks.values() if each.status.state == TaskState.RUNNING]
            usage = pb.Usage(cpu_s=0.1 * looks, cpu_limit=0.1, mem_bytes=8_000_000 + looks, pids=2)
            if running:
                self._usage = pb.UsageReport(tasks=dict.fromkeys(running, usage))
                self._wake.set()


def _duration(argv: list[str]) -> float | None:
    """Of `sleep N`, also in a shell."""
    words = argv[-1].split() if argv[:2] == ["/bin/sh", "-c"] else argv
    return (
        float(words[1])
        if len(words) == 2 and words[0].rpartition("/")[2] == "sleep" and words[1].replace(".", "").isdecimal()
        else None
    )


def _leasable(network: pb.NetworkBlock) -> Iterator[tuple[str, ...]]:
    blocks = [Block(network.name, "", ip_network(subnet)) for subnet in network.blocks]
    others = [block for block in blocks if block.subnet.version == 6]
    for block in blocks:
        for number in block.leasable() if block.subnet.version == 4 else ():
            address = block.subnet.network_address + number
            yield str(address), *(str(paired(other, address)) for other in others)


async def simulate(cluster: Cluster) -> None:
    joining = asyncio.Semaphore(AT_ONCE)
    agents = [Agent(_node(number)) for number in range(cluster.count)]

    async def joined(agent: Agent) -> Credentials:
        directory = Path(cluster.directory) / agent.node.id
        directory.mkdir()
        async with joining:
            await enrol(cluster.enrolment, parse_token(cluster.token), agent.node.id, directory)
        return load_credentials(directory)

    everybody = await asyncio.gather(*map(joined, agents))
    async with asyncio.TaskGroup() as group:
        sessions = [
            group.create_task(agent.run(cluster.control, credentials))
            for agent, credentials in zip(agents, everybody, strict=True)
        ]
        for agent in agents:
            await agent.ready.wait()
        print("connected", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        for session in sessions:
            session.cancel()


def name_of(number: int) -> str:
    return f"n{number:03}"


def _node(number: int) -> Node:
    name, address = name_of(number), IPv4Address("10.0.0.0") + number + 1
    return Node(name, name, str(uuid.uuid4()), address, NODE, (("rack", str(number % 10)),))


if __name__ == "__main__":
    asyncio.run(simulate(Cluster(**json.loads(sys.stdin.readline()))))
