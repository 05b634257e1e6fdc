"""Records of the master's store that can not be read cost themselves and no others, and are kept for a look."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from ipaddress import ip_network

import pytest
from structlog.testing import capture_logs

from frameworks.services import catalog
from master.blocks import BLOCKS, Blocks
from master.desired import Desired
from master.discovery import Discovery
from master.networks import NETWORKS, Networks
from master.nodes import PREFIX as NODES
from master.nodes import Nodes
from master.store.base import Put
from master.store.damaged import DAMAGED, readable
from master.store.sqlite import SqliteStore
from master.tasks import PREFIX as TASKS
from master.tasks import Tasks
from master.vip_names import PREFIX as VIPS
from master.vip_names import VipNames
from tests.unit.control import task

pytestmark = pytest.mark.anyio

NONSENSE = b"{\xff"


async def test_those_that_can_be_read_are_read_and_the_others_put_aside_once(store: SqliteStore) -> None:
    await store.transaction(Put("n/1", b"1"), Put("n/2", b"two"), Put("n/3", b"3"), Put("o/4", b"four"))
    with capture_logs() as logs:
        for _ in range(2):
            assert await readable(store, "n/", int) == [("n/1", 1), ("n/3", 3)]
    assert [entry["key"] for entry in logs] == ["n/2"]
    (aside,) = await store.range(DAMAGED)
    assert (aside.key, aside.value) == (f"{DAMAGED}n/2", b"two")


async def load_all(store: SqliteStore) -> Tasks:
    tasks, nodes = Tasks(store), Nodes(store, 60, 60)
    networks = Networks(store)
    discovery = Discovery(tasks, nodes, networks, Desired(), VipNames(store, (ip_network("100.127.0.0/16"),)))
    blocks = Blocks(store, networks, tasks, nodes)
    parts: list[Callable[[], Awaitable[None]]] = [tasks.load, nodes.load, networks.load, blocks.load, discovery.load]
    for load in parts:
        await load()
    nodes.close()
    return tasks


async def test_a_master_starts_without_them(store: SqliteStore) -> None:
    await Tasks(store).add("n1", [task("a")])
    keys = [f"{TASKS}b", f"{NODES}n1", f"{NETWORKS}prod", f"{BLOCKS}prod/n1", f"{VIPS}web"]
    await store.transaction(*(Put(key, NONSENSE) for key in keys))
    with capture_logs() as logs:
        tasks = await load_all(store)
    assert [record.spec.id for record in tasks.all()] == ["a"]
    assert sorted(entry["key"] for entry in logs if "aside" in entry) == sorted(keys)
    assert {entry.key for entry in await store.range(DAMAGED)} == {DAMAGED + key for key in keys}


async def test_an_app_that_can_not_be_read_does_not_hide_the_others(store: SqliteStore) -> None:
    await store.transaction(Put("services/apps/broken", NONSENSE))
    assert await catalog.read_all(store) == []
