"""Exactly one run for each due time, whenever the master is killed: before and after every write and every word to the
master's other parts. The store is the real one; the nodes live on.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frameworks.jobs.framework import Jobs
from frameworks.jobs.run import SUCCESS
from master.offers import Event, TaskView, VolumeView
from master.store.base import Change, Delete, Entry, Put, Store, StoreError
from master.store.sqlite import SqliteStore
from model.node import Node
from model.task import TaskSpec, TaskState
from model.vip import VipLabel
from model.volume import PersistentVolume
from tests.unit import cluster as in_memory
from tests.unit.cluster import Cluster, node
from tests.unit.jobs import MINUTE, NOON, Clock, definition, schedule

MINUTES = 4
LIFE_S = 10.0  # the longest


class Death:
    """Comes at one of the next operations, before it or after it, and then nothing happens any more."""

    def __init__(self, operations: int, after: bool) -> None:
        self._left, self._after = operations, after
        self.came, self._buried = asyncio.Event(), asyncio.Event()

    async def around(self, operation: Any) -> Any:
        self._left -= 1
        if self.came.is_set() or (self._left == 0 and not self._after):
            operation.close()
            await self._die()
        done = await operation
        if self.came.is_set() or self._left == 0:
            await self._die()
        return done

    def bury(self) -> None:
        self._buried.set()

    async def _die(self) -> None:
        self.came.set()
        await self._buried.wait()
        raise StoreError("the master was killed")


class MortalStore:
    def __init__(self, store: SqliteStore, death: Death) -> None:
        self._store, self._death = store, death

    async def transaction(self, *operations: Put | Delete) -> int:
        return int(await self._death.around(self._store.transaction(*operations)))

    async def get(self, key: str) -> Entry | None:
        return await self._store.get(key)

    async def range(self, prefix: str) -> list[Entry]:
        return await self._store.range(prefix)

    def watch(self, prefix: str, after: int) -> AsyncIterator[Change]:
        return self._store.watch(prefix, after)

    async def grant(self, lease: str, ttl_s: float) -> None:
        await self._store.grant(lease, ttl_s)

    async def revoke(self, lease: str) -> None:
        await self._store.revoke(lease)

    async def revision(self) -> int:
        return await self._store.revision()

    async def close(self) -> None:
        """It is the test's."""


class MortalSubscription:
    """`master.offers.Subscription`."""

    def __init__(self, subscription: in_memory.Subscription, death: Death) -> None:
        self._own, self._death = subscription, death

    def events(self) -> AsyncIterator[Event]:
        return self._own.events()

    async def accept(self, offer_id: str, tasks: Sequence[TaskSpec], volumes: Sequence[PersistentVolume] = ()) -> None:
        await self._death.around(self._own.accept(offer_id, tasks, volumes))

    def decline(self, offer_id: str, reason: str, filter_s: float = 5.0) -> None:
        self._own.decline(offer_id, reason, filter_s)

    def revive(self) -> None:
        self._own.revive()

    def suppress(self) -> None:
        self._own.suppress()

    async def kill(self, task_id: str) -> None:
        await self._death.around(self._own.kill(task_id))

    def nodes(self) -> tuple[Node, ...]:
        return self._own.nodes()

    def volumes(self) -> tuple[VolumeView, ...]:
        return ()

    async def destroy(self, volume_id: str) -> None:
        raise NotImplementedError

    def vip_problem(self, label: VipLabel) -> str:
        return ""

    def owners(self) -> set[str]:
        return set()

    async def forget(self, owner: str) -> None:
        raise NotImplementedError

    async def reconcile(self) -> tuple[TaskView, ...]:
        return await self._own.reconcile()

    async def acknowledge(self, task_id: str, sequence: int) -> None:
        await self._death.around(self._own.acknowledge(task_id, sequence))


class World:
    """What is there whether there is a master or not."""

    def __init__(self, store: SqliteStore) -> None:
        self.store: Store = store
        self._sqlite = store
        self.cluster = Cluster(node("a", cpus=100_000, mem=100_000))
        self.clock = Clock()

    async def live(self, death: Death, settled: Any) -> bool:
        """A master's life, until everything is as it is to be, or it is killed. Whether it got there."""
        jobs = Jobs(MortalStore(self._sqlite, death), MortalSubscription(self.cluster.subscribe(), death), self.clock)
        await jobs.load()
        running = asyncio.create_task(jobs.run())
        try:
            async with asyncio.timeout(LIFE_S):
                while not settled(jobs) and not death.came.is_set():  # noqa: ASYNC110 - anything may be awaited
                    await asyncio.sleep(0.001)
            return not death.came.is_set()
        finally:
            running.cancel()
            death.bury()
            await asyncio.gather(running, return_exceptions=True)

    def finish_all(self) -> None:
        for view in self.cluster.active():
            self.cluster.advance(view.spec.id, TaskState.FINISHED)


deaths = st.tuples(st.integers(1, 8), st.booleans())


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(deaths, max_size=12), st.lists(st.booleans(), min_size=MINUTES, max_size=MINUTES), st.booleans())
def test_each_due_time_has_one_run(deaths: list[tuple[int, bool]], finishing: list[bool], with_pipeline: bool) -> None:
    asyncio.run(_each_due_time_has_one_run(deaths, finishing, with_pipeline))


async def _each_due_time_has_one_run(
    deaths: list[tuple[int, bool]], finishing: list[bool], with_pipeline: bool
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        store = await SqliteStore.open(Path(directory) / "store.db")
        try:
            await _lives(World(store), list(deaths), finishing, with_pipeline)
        finally:
            await store.close()


async def _lives(world: World, deaths: list[tuple[int, bool]], finishing: list[bool], with_pipeline: bool) -> None:
    names = ["job", "next"] if with_pipeline else ["job"]
    first = Jobs(world.store, world.cluster.subscribe(), world.clock)
    await first.load()
    await first.catalog.create(definition("job"), [schedule("one"), schedule("two", "*/2 * * * *")])
    if with_pipeline:
        await first.catalog.create(definition("next", ("job",)), ())

    async def reached(settled: Any) -> None:
        while not await world.live(Death(*(deaths.pop() if deaths else (10**9, True))), settled):
            pass

    def all_dealt_with(jobs: Jobs) -> bool:
        return all(each.latest(world.clock.now) is None for each in jobs.ledger.schedules)

    def all_over(jobs: Jobs) -> bool:
        world.finish_all()
        return len(jobs.ledger.runs) == 0 and not world.cluster.tasks

    for minute, finish in enumerate(finishing, 1):
        world.clock.now = NOON + minute * MINUTE
        await reached(all_dealt_with)
        if finish:
            await reached(all_over)
    await reached(all_over)
    last = Jobs(world.store, world.cluster.subscribe(), world.clock)
    await last.load()
    expected = Counter({("one", NOON + minute * MINUTE): 1 for minute in range(1, MINUTES + 1)})
    expected.update({("two", NOON + minute * MINUTE): 1 for minute in range(2, MINUTES + 1, 2)})
    over = await last.ledger.finished("job")
    assert Counter((run.schedule, run.due) for run in over) == expected
    accepted = Counter(spec.owner for spec in world.cluster.accepted)
    for name in names:
        found = await last.ledger.finished(name)
        assert all(run.status == SUCCESS and len(run.tasks) == 1 for run in found)
        history = last.ledger.history_of(last.catalog.read(name))
        assert history.successes == len(found) == accepted[name] == sum(expected.values())
        assert history.failures == 0
    assert len({spec.id for spec in world.cluster.accepted}) == len(world.cluster.accepted)
    assert all(pipeline.state == SUCCESS for pipeline in last.ledger.pipelines)
