"""Changes what a running task may use, and pauses it, without a restart.

An adjustment is written to the store with what was before; the task's node gets it as a part of its desired state, and
answers with the task's status. Here that answer is waited for, so that who asked learns whether the kernel took it.
While a node is away its answer is, too: the adjustment stays, and is done when the node is back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from master.allocator import Allocator
from master.tasks import TaskRecord, Tasks
from model.adjustment import Adjustment, adjustment_of
from model.resources import Resources

ANSWER_DEADLINE_S = 15.0  # of a node that is connected: longer than a freeze may take there


class NotAdjustable(Exception):
    """The task can not be adjusted now: it is over or ends, or its last adjustment is under way."""


class Refused(Exception):
    """The node could not do it. The task is as it was before."""


class Adjustments:
    def __init__(self, tasks: Tasks, allocator: Allocator) -> None:
        self._tasks = tasks
        self._allocator = allocator
        self._waits: dict[str, set[asyncio.Event]] = {}
        tasks.listen(self._task_changed)

    async def adjust(self, task_id: str, change: Callable[[Adjustment], Adjustment]) -> TaskRecord:
        """The task as its node has it now; `before` is set when the node did not answer in time. Raises Shortage,
        NotAdjustable, Refused."""
        record = self._adjustable(task_id)
        before = adjustment_of(record.spec, record.paused, record.adjustment)
        wanted = change(before)
        with self._allocator.reserved(record.node, _more(before.resources, wanted.resources)):
            asked = await self._tasks.adjust(task_id, wanted)
        if asked is None:
            raise NotAdjustable(_why_not(self._tasks.get(task_id)) or "it was changed at the same moment: try again")
        return await self._answer(asked)

    def _adjustable(self, task_id: str) -> TaskRecord:
        record = self._tasks.get(task_id)
        if record is None or (reason := _why_not(record)):
            raise NotAdjustable(reason if record else "it is over")
        return record

    async def _answer(self, asked: TaskRecord) -> TaskRecord:
        task_id, answered = asked.spec.id, asyncio.Event()
        self._waits.setdefault(task_id, set()).add(answered)
        try:
            async with asyncio.timeout(ANSWER_DEADLINE_S):
                while (record := self._tasks.get(task_id)) is not None and not record.over and record.before:
                    answered.clear()
                    await answered.wait()
        except TimeoutError:
            return self._tasks.get(task_id) or asked
        finally:
            self._waits[task_id].discard(answered)
            if not self._waits[task_id]:
                del self._waits[task_id]
        if record is None or record.over:
            raise Refused(f"it has ended meanwhile: {record.status.reason if record else 'it is forgotten'}")
        if record.status.adjustment == asked.adjustment and record.status.refused:
            raise Refused(record.status.refused)
        return record

    def _task_changed(self, before: TaskRecord | None, after: TaskRecord | None) -> None:
        record = after or before
        assert record is not None
        for wait in self._waits.get(record.spec.id, ()):
            wait.set()


def paused(wanted: bool) -> Callable[[Adjustment], Adjustment]:
    return lambda adjustment: replace(adjustment, paused=wanted)


def _more(before: Resources, after: Resources) -> Resources:
    """What is needed beyond what the task has: a kind that shrinks makes no room for another."""
    return (before | after) - before


def _why_not(record: TaskRecord | None) -> str:
    if record is None or record.over:
        return "it is over"
    if record.killing:
        return "it is being ended"
    return "its last change is under way: wait for its node" if record.before is not None else ""
