"""The services framework on the master's own allocator, tasks and store: nothing stands in but the agents."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

import pytest

from frameworks.services import catalog
from frameworks.services.definition import Definition
from frameworks.services.framework import Services
from master.addresses import Addresses
from master.allocator import Allocator
from master.blocks import Blocks
from master.desired import Desired
from master.discovery import Discovery
from master.networks import Networks
from master.nodes import Nodes
from master.store.sqlite import SqliteStore
from master.tasks import TaskRecord, Tasks
from master.vip_names import VipNames
from master.volumes import Volumes
from model.task import TaskState, TaskStatus
from tests.unit.cluster import node, until

pytestmark = pytest.mark.anyio
EXAMPLE = Path(__file__).parents[2] / "examples" / "web.json"


@dataclass(frozen=True, slots=True)
class Master:
    tasks: Tasks
    services: Services

    def active(self) -> list[TaskRecord]:
        return [record for record in self.tasks.all() if not record.over]

    async def saw(self, record: TaskRecord, state: TaskState, exit_code: int | None = None) -> None:
        status = TaskStatus(record.spec.id, state, record.status.sequence + 1, time.time(), exit_code=exit_code)
        await self.tasks.observe(record.node, status)


@asynccontextmanager
async def master(store: SqliteStore, cpus: int = 2000) -> AsyncIterator[Master]:
    tasks, nodes, networks = Tasks(store), Nodes(store), Networks(store)
    volumes = Volumes(store, tasks)
    blocks, addresses = Blocks(store, networks, tasks, nodes), Addresses(store, networks, tasks)
    discovery = Discovery(tasks, nodes, networks, Desired(), VipNames(store, (ip_network("100.127.0.0/16"),)))
    allocator = Allocator(tasks, nodes, networks, blocks, addresses, volumes, discovery)
    services = Services(store, allocator.subscribe("services"))
    for part in (tasks, volumes, networks, nodes, blocks, addresses, discovery):
        await part.load()
    running = [asyncio.create_task(allocator.run()), asyncio.create_task(services.run())]
    for name in ("a", "b", "c"):
        await nodes.connected(node(name, cpus))
    try:
        yield Master(tasks, services)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        nodes.close()


def web() -> Definition:
    return Definition.model_validate(json.loads(EXAMPLE.read_text()))


async def test_the_example_from_start_to_end(store: SqliteStore) -> None:
    async with master(store) as first:
        await catalog.add(store, web())
        await until(lambda: len(first.active()) == 4)
        assert sorted(Counter(record.node for record in first.active()).values()) == [1, 1, 2]
        for record in first.active():
            await first.saw(record, TaskState.RUNNING)
        victim = first.active()[0]
        await first.saw(victim, TaskState.FAILED, exit_code=137)
        await until(lambda: len(first.active()) == 4 and first.tasks.get(victim.spec.id) is None)
        before = {record.spec.id for record in first.active()}
    async with master(store) as second:
        await until(lambda: len(second.services.runs("/web")) == 4)
        await catalog.resize(store, "/web", 1)
        await until(lambda: sum(record.killing for record in second.active()) == 3)
        assert {record.spec.id for record in second.active()} == before


async def test_it_says_what_is_missing_and_starts_when_it_is_there(store: SqliteStore) -> None:
    async with master(store, cpus=1500) as running:
        big = await catalog.add(store, web().model_copy(update={"cpus": 4.0, "instances": 1}))
        await until(lambda: running.services.waiting(big)[0].startswith("needs"))
        assert running.services.waiting(big) == ["needs 4 CPU: 3 of 3 nodes have too little (most free: 1.5 CPU)"]
        assert running.active() == []
    async with master(store, cpus=4000) as running:
        await until(lambda: len(running.active()) == 1)


async def test_a_port_of_a_node_is_had_by_one_task_and_waited_for_by_the_next(store: SqliteStore) -> None:
    published = {**json.loads(EXAMPLE.with_name("published.json").read_text()), "instances": 4, "backoffSeconds": 0.01}
    async with master(store) as parts:
        app = await catalog.add(store, Definition.model_validate(published))
        await until(lambda: len(parts.active()) == 3 and bool(parts.services.waiting(app)))
        assert Counter(record.node for record in parts.active()) == {"a": 1, "b": 1, "c": 1}
        (sentence,) = parts.services.waiting(app)
        assert sentence.startswith("needs host port 80/tcp: taken by ") and sentence.count("published") == 3
        first = parts.active()[0]
        await parts.saw(first, TaskState.RUNNING)
        await parts.saw(parts.tasks.get(first.spec.id) or first, TaskState.FAILED, exit_code=1)
        await until(lambda: len(parts.active()) == 3)
        assert {record.node for record in parts.active()} == {"a", "b", "c"}


async def test_chosen_ports_of_a_node_are_each_given_once(store: SqliteStore) -> None:
    several = {**json.loads(EXAMPLE.read_text()), "instances": 12}
    several["container"] = {"portMappings": [{"containerPort": port, "hostPort": 0} for port in (80, 81)]}
    async with master(store) as parts:
        await catalog.add(store, Definition.model_validate(several))
        await until(lambda: len(parts.active()) == 12)
        taken = [(record.node, port.host) for record in parts.active() for port in record.spec.ports]
        assert len(set(taken)) == 24 and all(port and 31000 <= port <= 32000 for _, port in taken)
