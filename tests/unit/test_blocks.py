"""Which part of each network a node has: from its first connection, more when its tasks need it, less when they end."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network

import pytest
from structlog.testing import capture_logs

from master.blocks import BLOCK_CODEC, BLOCKS, Blocks, NetworkFull
from master.networks import NETWORK_CODEC, NETWORKS, Networks
from master.nodes import Nodes
from master.store.base import Put, StoreError
from master.store.sqlite import SqliteStore
from master.tasks import Tasks
from model.network import Block, Network, NetworkKind, vtep_mac
from model.pod import Pod
from model.task import Interface, TaskSpec, TaskState, TaskStatus
from tests.unit.cluster import node
from tests.unit.control import task

pytestmark = pytest.mark.anyio

# Of three blocks with 13 addresses each, and one that is static.
SMALL = Network(
    "small", NetworkKind.OVERLAY, (ip_network("10.9.0.0/26"),), 28, vni=7, static=(ip_network("10.9.0.48/28"),)
)


@dataclass(slots=True)
class Master:
    store: SqliteStore
    tasks: Tasks
    nodes: Nodes
    networks: Networks
    blocks: Blocks
    changed: list[tuple[str, str]] = field(default_factory=list)
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def join(self, *names: str) -> None:
        for name in names:
            await self.blocks.admit(name)
            await self.nodes.connected(node(name))

    def subnets(self, name: str, network: str = "small") -> list[str]:
        return [str(block.subnet) for block in self.blocks.of(network, name)]

    async def run(self, name: str, count: int, network: str = "small") -> list[str]:
        """Tasks on the node, as a framework's accepted offer makes them."""
        specs = [replace(task(f"t{next(self.numbers)}"), network=network) for _ in range(count)]
        await self.start(name, specs)
        return [spec.id for spec in specs]

    async def start(self, name: str, specs: Sequence[TaskSpec]) -> None:
        await self.blocks.ensure(name, specs)
        await self.tasks.add(name, specs)

    async def end(self, ids: Sequence[str]) -> None:
        for task_id in ids:
            await self.tasks.end(task_id, TaskState.FINISHED, "")

    def retiring(self, name: str) -> list[Block]:
        return [block for block in self.blocks.of("small", name) if self.blocks.retires(block)]


@asynccontextmanager
async def master(store: SqliteStore, network: Network | None = SMALL) -> AsyncIterator[Master]:
    if network is not None and await store.get(NETWORKS + network.name) is None:
        await store.transaction(Put(NETWORKS + network.name, NETWORK_CODEC.encode(network)))
    tasks, nodes, networks = Tasks(store), Nodes(store), Networks(store)
    blocks = Blocks(store, networks, tasks, nodes)
    for part in (tasks, networks, nodes, blocks):
        await part.load()
    made = Master(store, tasks, nodes, networks, blocks)
    blocks.listen(lambda name, node: made.changed.append((name, node)))
    try:
        yield made
    finally:
        nodes.close()


async def test_a_node_keeps_its_blocks(store: SqliteStore) -> None:
    async with master(store) as first:
        await first.join("n1", "n2")
    async with master(store) as again:
        await again.join("n2", "n1", "n3")
        assert [again.subnets(name, "overlay") for name in ("n1", "n2", "n3")] == [
            ["100.64.0.0/24", "fd01:b::/80"],
            ["100.64.1.0/24", "fd01:b:0:0:1::/80"],
            ["100.64.2.0/24", "fd01:b:0:0:2::/80"],
        ]
        assert again.subnets("n1", "host") == again.subnets("n1", "none") == []
        overlay = again.networks.get("overlay")
        assert overlay is not None
        vtep = again.blocks.vtep(overlay, node("n2"))
        assert vtep is not None
        assert (vtep.underlay, vtep.mac) == (ip_address("10.0.0.1"), vtep_mac("n2", 1024))


async def test_nodes_that_arrive_together_get_different_blocks(store: SqliteStore) -> None:
    async with master(store) as running:
        await asyncio.gather(*(running.blocks.admit(f"n{number}") for number in range(20)))
        assert len({tuple(running.subnets(f"n{number}", "overlay")) for number in range(20)}) == 20


async def test_a_node_that_leaves_while_its_block_is_written_keeps_it(store: SqliteStore) -> None:
    async with master(store) as running:
        arrival = asyncio.create_task(running.blocks.admit("n1"))
        await asyncio.sleep(0)
        arrival.cancel()
        await asyncio.gather(arrival, return_exceptions=True)
        await running.join("n2", "n1")
        async with master(store) as again:
            for name in ("n1", "n2"):
                assert again.subnets(name, "overlay") == running.subnets(name, "overlay")
        assert running.subnets("n1", "overlay") != running.subnets("n2", "overlay")


async def test_a_node_for_which_none_is_left_comes_all_the_same(store: SqliteStore) -> None:
    async with master(store) as running:
        await running.join("n1", "n2", "n3")
        with capture_logs() as logs:
            await running.join("n4")
        (reason,) = (entry["reason"] for entry in logs if entry["event"] == "node begins without a block")
        assert reason == "network small: all its /28 blocks are taken, none for n4"
        assert running.subnets("n4") == []
        assert running.subnets("n4", "overlay")
        assert running.blocks.room("n4")["small"] == 0


async def test_a_block_that_could_not_be_written_is_not_owned(store: SqliteStore) -> None:
    async with master(store) as running:
        await store.close()
        with pytest.raises(StoreError):
            await running.blocks.admit("n1")
        assert running.subnets("n1") == running.subnets("n1", "overlay") == []


async def test_one_of_a_master_of_before_is_known(store: SqliteStore) -> None:
    block = Block("small", "n1", ip_network("10.9.0.16/28"))
    await store.transaction(Put(f"{BLOCKS}small/n1", BLOCK_CODEC.encode(block)))
    async with master(store) as running:
        await running.join("n1", "n2")
        assert (running.subnets("n1"), running.subnets("n2")) == (["10.9.0.16/28"], ["10.9.0.0/28"])
        await running.blocks.forget_node("n1")
        assert await store.range(f"{BLOCKS}small/n1") == []


async def test_more_tasks_than_a_block_has_addresses_get_another_one(store: SqliteStore) -> None:
    async with master(store) as running:
        await running.join("n1")
        assert running.blocks.room("n1")["small"] == 3 * 13
        await running.run("n1", 13)
        assert running.subnets("n1") == ["10.9.0.0/28"]
        running.changed.clear()
        await running.run("n1", 1)
        assert running.subnets("n1") == ["10.9.0.0/28", "10.9.0.16/28"]
        assert ("small", "n1") in running.changed
        assert running.blocks.room("n1")["small"] == 25


async def test_what_is_static_is_no_block(store: SqliteStore) -> None:
    async with master(store) as running:
        await running.join("n1", "n2", "n3")
        await running.run("n1", 13)
        with pytest.raises(NetworkFull, match="network small: all its /28 blocks are taken, none for n1"):
            await running.run("n1", 1)
        assert running.blocks.room("n1")["small"] == 0


async def test_a_pod_has_one_address_and_every_network_counts(store: SqliteStore) -> None:
    async with master(store) as running:
        await running.join("n1")
        pod = Pod("p", "a", ("p.a", "p.b"))
        members = [replace(task(name), network="small", pod=pod) for name in pod.members]
        both = replace(task("both"), network="overlay", interfaces=(Interface("small"),))
        fixed = replace(task("fixed"), network="small", address="10.9.0.50")
        await running.start("n1", [*members, both, fixed])
        assert running.blocks.used("small", "n1") == 2
        share = running.blocks.share(SMALL, "n1")
        assert share.singles == (ip_address("10.9.0.50"),)
        await running.end(["fixed"])
        assert running.blocks.share(SMALL, "n1").singles == ()


async def test_a_block_goes_back_when_it_is_not_needed(store: SqliteStore) -> None:
    async with master(store) as running:
        await running.join("n1")
        ids = await running.run("n1", 20)
        await running.end(ids[:12])
        assert running.retiring("n1") == []  # the other block would be full too soon
        await running.end(ids[12:15])
        (retiring,) = running.retiring("n1")
        assert running.blocks.share(SMALL, "n1").retiring == (retiring,)
        assert running.blocks.capacity(SMALL, "n1") == 13
        assert running.subnets("n1") == ["10.9.0.0/28", "10.9.0.16/28"]  # until the node says so
        await running.blocks.released(retiring)
        assert running.subnets("n1") == ["10.9.0.0/28"]
    async with master(store) as again:
        assert again.subnets("n1") == ["10.9.0.0/28"]


async def test_one_with_addresses_in_use_does_not(store: SqliteStore) -> None:
    async with master(store) as running:
        await running.join("n1")
        ids = await running.run("n1", 20)
        for task_id, address in zip(ids, ("10.9.0.2", "10.9.0.18"), strict=False):
            await running.tasks.observe(
                "n1", TaskStatus(task_id, TaskState.RUNNING, 1, time.time(), addresses=(address,))
            )
        await running.end(ids[2:])
        assert running.retiring("n1") == []
        await running.end(ids[1:2])
        assert [str(block.subnet) for block in running.retiring("n1")] == ["10.9.0.16/28"]


async def test_one_that_retires_is_the_first_to_be_used_again(store: SqliteStore) -> None:
    async with master(store) as running:
        await running.join("n1")
        ids = await running.run("n1", 20)
        await running.end(ids)
        (retiring,) = running.retiring("n1")
        assert running.blocks.room("n1")["small"] == 3 * 13
        await running.run("n1", 14)
        assert running.retiring("n1") == []
        await running.blocks.released(retiring)  # old news
        assert running.subnets("n1") == ["10.9.0.0/28", "10.9.0.16/28"]


async def test_who_does_nothing_with_its_block_gives_it_to_who_has_none(store: SqliteStore) -> None:
    async with master(store) as running:
        await running.join("n1", "n2", "n3")
        ids = await running.run("n1", 1)
        await running.run("n3", 1)
        assert running.retiring("n2") == []  # everybody has room
        await running.join("n4")
        await running.end(ids)
        (retiring,) = running.retiring("n1") + running.retiring("n2")
        assert running.blocks.room("n4")["small"] == 0
        await running.blocks.released(retiring)
        assert running.blocks.room("n4")["small"] == 13
        await running.run("n4", 1)
        assert running.subnets("n4") == [str(retiring.subnet)]


async def test_what_a_node_had_that_is_gone_is_free(store: SqliteStore) -> None:
    async with master(store) as running:
        await running.join("n1", "n2", "n3")
        await running.blocks.forget_node("n2")
        await running.join("n4")
        assert running.subnets("n4") == ["10.9.0.16/28"]
    async with master(store) as again:
        assert again.subnets("n2") == again.subnets("n2", "overlay") == []


async def test_only_the_node_itself_gives_back_and_only_what_it_is_asked_for(store: SqliteStore) -> None:
    async with master(store) as running:
        await running.join("n1")
        await running.end(await running.run("n1", 20))
        (retiring,) = running.retiring("n1")
        for other in (replace(retiring, node="n2"), replace(retiring, network="overlay")):
            await running.blocks.released(other)
        await running.blocks.released(running.blocks.of("small", "n1")[0])
        assert running.subnets("n1") == ["10.9.0.0/28", "10.9.0.16/28"]


async def test_a_task_for_a_network_that_is_gone_is_refused(store: SqliteStore) -> None:
    async with master(store) as running:
        await running.join("n1")
        with pytest.raises(ValueError, match="task t0: network 'gone' does not exist"):
            await running.run("n1", 1, "gone")
