"""Every task the master knows, in memory and in the store (`tasks/<id>`), the store first.

Others follow a task's life through listeners, which are called after the change is on disk, in the order in which the
changes happened: the dispatcher (what the node should run), discovery (what the VIPs point at) and the offers.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import structlog

from master.store.base import Conflict, Delete, Put, Store
from master.store.damaged import readable
from model.adjustment import Adjustment, adjusted, adjustment_of
from model.codec import Codec
from model.resources import Resources
from model.task import TaskSpec, TaskState, TaskStatus, Usage, newer

log = structlog.get_logger()

PREFIX = "tasks/"


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """`killing`: the end was asked for. `drained`: and no VIP points at it any more, so it may be signalled.
    `acknowledged` is the last sequence that the framework dealt with. `adjustment` counts how often the task was
    adjusted; while the last time is under way, `before` is what it goes back to should that be refused."""

    spec: TaskSpec
    node: str
    status: TaskStatus
    killing: bool = False
    drained: bool = False
    acknowledged: int = -1
    paused: bool = False
    adjustment: int = 0
    before: Adjustment | None = None

    @property
    def held(self) -> Resources:
        """What is its own: of an adjustment that is under way, the more of before and after."""
        if self.before is None:
            return self.spec.held
        return self.spec.held | (self.spec.held - self.spec.resources + self.before.resources)

    @property
    def over(self) -> bool:
        return self.status.state.terminal


CODEC = Codec(TaskRecord)
# Before and after; None is "did not exist" and "is forgotten".
Listener = Callable[[TaskRecord | None, TaskRecord | None], None]


class Tasks:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._records: dict[str, TaskRecord] = {}
        self._ids: dict[str, dict[str, None]] = {}  # by node
        self._used: dict[str, Resources] = {}  # by node; a node is absent after its tasks changed
        self._listeners: list[Listener] = []
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    async def load(self) -> None:
        for _, record in await readable(self._store, PREFIX, CODEC.decode):
            self._keep(record)

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def get(self, task_id: str) -> TaskRecord | None:
        return self._records.get(task_id)

    def all(self) -> list[TaskRecord]:
        return list(self._records.values())

    def on(self, node: str) -> list[TaskRecord]:
        return [self._records[task_id] for task_id in self._ids.get(node, ())]

    def used(self, node: str) -> Resources:
        """What the node's tasks that are not over hold."""
        if node not in self._used:
            self._used[node] = sum((record.held for record in active(self.on(node))), Resources())
        return self._used[node]

    async def add(self, node: str, specs: Sequence[TaskSpec], also: Sequence[Put] = ()) -> None:
        """All of them, and what is `also` to be written, or, when an id was used before (ValueError), none."""
        now = time.time()
        records = [
            TaskRecord(spec, node, TaskStatus(spec.id, TaskState.ASSIGNED, sequence=0, at=now)) for spec in specs
        ]
        try:
            puts = [Put(PREFIX + record.spec.id, CODEC.encode(record), expected=0) for record in records]
            await self._store.transaction(*puts, *also)
        except Conflict as conflict:
            kind, _, name = conflict.key.partition("/")
            raise ValueError(f"{kind.removesuffix('s')} {name}: this id was used before") from conflict
        for record in records:
            self._publish(None, record)

    async def observe(self, node: str, *statuses: TaskStatus) -> None:
        """What the agent of `node` saw, of each task once. Old news, and news of tasks that are not this node's, change
        nothing."""
        async with self._locked(status.task_id for status in statuses):
            pairs = []
            for status in statuses:
                record = self._records.get(status.task_id)
                if record is None or record.node != node or not newer(record.status, status):
                    continue
                # A restarted agent may count from an earlier number, but here it must grow: acknowledgements go by it.
                sequence = max(status.sequence, record.status.sequence + 1)
                seen = dataclasses.replace(record, status=dataclasses.replace(status, sequence=sequence))
                pairs.append((record, _answered(seen)))
            await self._replace_all(pairs)

    def measure(self, node: str, usages: Mapping[str, Usage]) -> None:
        """What tasks of `node` take now, by id. Not on disk, and no news to anybody: it is the next moment's again."""
        for task_id, usage in usages.items():
            record = self._records.get(task_id)
            if record is not None and record.node == node and not record.over:
                status = dataclasses.replace(record.status, usage=usage)
                self._records[task_id] = dataclasses.replace(record, status=status)

    async def end(self, task_id: str, state: TaskState, reason: str) -> None:
        """The master's own verdict on a task that nobody will tell it about any more."""
        async with self._lock(task_id):
            record = self._records.get(task_id)
            if record is None or record.over:
                return
            status = dataclasses.replace(
                record.status, state=state, sequence=record.status.sequence + 1, at=time.time(), reason=reason
            )
            await self._replace(record, dataclasses.replace(record, status=status))

    async def mark(self, task_id: str, *, drained: bool = False) -> TaskRecord | None:
        """The task shall end, and its whole pod with it; with `drained` the signal may go out. None when there is no
        such task or it is over."""
        marked = await self.mark_all((task_id,), drained=drained)
        return next((record for record in marked if record.spec.id == task_id), None)

    async def mark_all(self, task_ids: Iterable[str], *, drained: bool = False) -> list[TaskRecord]:
        """As `mark`. Returns those that are not over."""
        together = {each for task_id in task_ids for each in self._together(task_id)}
        async with self._locked(together):
            living = active(record for each in sorted(together) if (record := self._records.get(each)) is not None)
            marked = [dataclasses.replace(each, killing=True, drained=each.drained or drained) for each in living]
            await self._replace_all(list(zip(living, marked, strict=True)))
        return marked

    def _together(self, task_id: str) -> list[str]:
        """What ends together."""
        record = self._records.get(task_id)
        return list(record.spec.pod.members) if record is not None and record.spec.pod else [task_id]

    async def adjust(self, task_id: str, wanted: Adjustment) -> TaskRecord | None:
        """The task shall become so; its number is given here, and is the last one's before. None when it is over or
        ends, when the last one is under way still, or when there was another one meanwhile."""
        async with self._lock(task_id):
            record = self._records.get(task_id)
            if record is None or record.over or record.killing or record.before is not None:
                return None
            before = adjustment_of(record.spec, record.paused, record.adjustment)
            if wanted.number != record.adjustment:
                return None
            if wanted == before:
                return record
            return await self._replace(
                record,
                dataclasses.replace(
                    record,
                    spec=adjusted(record.spec, wanted),
                    paused=wanted.paused,
                    adjustment=record.adjustment + 1,
                    before=before,
                ),
            )

    async def acknowledge(self, task_id: str, sequence: int) -> None:
        """The framework dealt with this update. A task that is over is forgotten with its last one."""
        async with self._lock(task_id):
            record = self._records.get(task_id)
            if record is None or sequence <= record.acknowledged:
                return
            if record.over and sequence >= record.status.sequence:
                await self._store.transaction(Delete(PREFIX + task_id))
                self._publish(record, None)
            else:
                # Only a restart of the master needs to know, and then a repeated update does no harm: not on disk.
                self._records[task_id] = dataclasses.replace(record, acknowledged=sequence)

    async def _replace(self, before: TaskRecord, after: TaskRecord) -> TaskRecord:
        await self._replace_all([(before, after)])
        return after

    async def _replace_all(self, pairs: Sequence[tuple[TaskRecord, TaskRecord]]) -> None:
        changes = [(before, after) for before, after in pairs if before != after]
        if changes:
            await self._store.transaction(*(Put(PREFIX + after.spec.id, CODEC.encode(after)) for _, after in changes))
        for before, after in changes:
            self._publish(before, after)

    def _publish(self, before: TaskRecord | None, after: TaskRecord | None) -> None:
        record = after or before
        assert record is not None
        if after is None:
            self._drop(record)
        else:
            self._keep(after)
        if before is None or after is None or before.status.state != after.status.state:
            log.info(
                "task",
                task=record.spec.id,
                node=record.node,
                state=record.status.state.name if after else "forgotten",
                reason=record.status.reason,
            )
        for listener in self._listeners:
            listener(before, after)

    def _keep(self, record: TaskRecord) -> None:
        self._records[record.spec.id] = record
        self._ids.setdefault(record.node, {})[record.spec.id] = None
        self._used.pop(record.node, None)

    def _drop(self, record: TaskRecord) -> None:
        del self._records[record.spec.id]
        del self._ids[record.node][record.spec.id]
        self._used.pop(record.node, None)

    @asynccontextmanager
    async def _locked(self, task_ids: Iterable[str]) -> AsyncIterator[None]:
        """For as long as the block runs nobody else changes these tasks."""
        async with AsyncExitStack() as locks:
            for task_id in sorted(task_ids):  # in one order, or two would wait for each other
                await locks.enter_async_context(self._lock(task_id))
            yield

    def _lock(self, task_id: str) -> asyncio.Lock:
        """One a task, and only for as long as somebody holds it or waits for it."""
        return self._locks.setdefault(task_id, asyncio.Lock())


def _answered(record: TaskRecord) -> TaskRecord:
    """The record, with an adjustment that its node has dealt with no longer under way: refused, all is as before."""
    if record.before is None or record.status.adjustment < record.adjustment:
        return record
    if not record.status.refused:
        return dataclasses.replace(record, before=None)
    spec = adjusted(record.spec, record.before)
    return dataclasses.replace(record, spec=spec, paused=record.before.paused, before=None)


def active(records: Iterable[TaskRecord]) -> list[TaskRecord]:
    """Those that hold resources: every one that is not over."""
    return [record for record in records if not record.over]
