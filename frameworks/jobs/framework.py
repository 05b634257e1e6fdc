"""Runs jobs: as they are asked for, when their schedules are due, and as pipelines go on.

Reads jobs, schedules and runs from the ledger and tasks from the offer contract; writes runs, and tasks through offers.
Every pass of `_keep` does the same, whatever happened: it writes down which runs are over and what follows of that,
makes the runs that are due, kills what is to be stopped, launches what waits, and acknowledges. It deals with what has
changed: no pass looks at all runs.

A run is on disk before its task is accepted, and the task is named after it. So after a restart each run finds its
task, or knows that there never was one. The end of a task is acknowledged when what became of its run is on disk: if
the master dies before, it is told again.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import structlog

from frameworks.jobs import pipeline as pipelines
from frameworks.jobs.catalog import REMOVED, Catalog, until_written
from frameworks.jobs.definition import Overrides
from frameworks.jobs.dues import Dealt, dealt_with, next_due, runs_of
from frameworks.jobs.ends import Ends
from frameworks.jobs.events import JobEvents
from frameworks.jobs.job import belongs
from frameworks.jobs.launcher import RETRY_S, Launcher
from frameworks.jobs.ledger import Change, Ledger
from frameworks.jobs.live import Live
from frameworks.jobs.moments import Moments
from frameworks.jobs.pipeline import Pipeline
from frameworks.jobs.queue import Queue
from frameworks.jobs.run import FAILED, Run, run_of
from frameworks.jobs.schedule import Scheduled
from frameworks.jobs.starts import Progress, asked_for, begun
from master.offers import Offers, Rescinded, Subscription, TaskView, UnknownTask, Update
from master.store.base import Conflict, Put, Store, StoreError

BATCH = 256  # of anything at once
LOOK_S = 1.0  # the longest wait while something is due later: the clock may be set
STOPPED = "stopped by request"
LOST = "what was known of its run can not be read"

log = structlog.get_logger()


class UnknownRun(Exception):
    """The job has no run of this id that is not over."""


class UnknownPipeline(Exception):
    """No pipeline has this id."""


class NothingFailed(Exception):
    """Nothing of the pipeline could be run again."""


class Jobs:
    def __init__(self, store: Store, subscription: Subscription, clock: Callable[[], float] = time.time) -> None:
        self._subscription = subscription
        self.clock = clock
        self.ledger = Ledger(store)
        self.events = JobEvents()
        self.catalog = Catalog(self.ledger, self.events, clock)
        self.live = Live()
        self.queue = Queue()
        self.counts: Counter[str] = Counter()  # of runs, since the master began
        self._launcher = Launcher(subscription, self.ledger, self.live, self.queue, self._sort)
        self._dues = Moments()  # of schedules
        self._looks = Moments()  # when to look at a run again
        self._over: dict[str, None] = {}  # runs of which the end, or the next attempt, is to be written
        self._kills: dict[str, None] = {}  # tasks
        self._seen: dict[str, int] = {}  # tasks, and which of their updates can be acknowledged
        self._held: dict[str, set[str]] = {}  # runs that wait for one to be over
        self._changed = asyncio.Event()
        self.ledger.runs.listen(self._run_changed)
        self.ledger.schedules.listen(self._schedule_changed)

    async def load(self) -> None:
        """Before anything else."""
        await self.ledger.load()

    async def run(self) -> None:
        """Never ends."""
        for view in await self._subscription.reconcile():
            self._observe(view)
        await self._mend()
        for run in self.ledger.runs:
            self._run_changed(run.key, None, run)
        for schedule in self.ledger.schedules:
            self._schedule_changed(schedule.key, None, schedule)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_events())
            group.create_task(self._keep())

    def wake(self) -> None:
        self._changed.set()

    async def start(self, job_id: str, overrides: Overrides) -> Run:
        """Raises UnknownJob, ValidationError or StoreError."""

        async def write() -> Run:
            job = self.catalog.read(job_id)
            different = overrides.applied(job.definition)
            definition = None if different is job.definition else different
            run = asked_for(job, self.clock(), definition)
            await self._write(begun(self.ledger, run))
            return run

        run = await until_written(write)
        if not belongs(run, self.ledger.jobs.get(job_id)):
            await self.stop(run.key, REMOVED)
        return run

    async def stop(self, key: str, reason: str = STOPPED) -> Run:
        """Raises UnknownRun or StoreError."""

        async def write() -> Run:
            run = self.ledger.runs.get(key)
            if run is None:
                raise UnknownRun(key)
            if not run.stopping:
                await self.ledger.write([Change(self.ledger.runs, key, replace(run, stopping=reason))])
            return self.ledger.runs.get(key) or run

        return await until_written(write)

    async def stop_pipeline(self, pipeline_id: str, reason: str = STOPPED) -> Pipeline:
        """All of it. Raises UnknownPipeline or StoreError."""

        async def write() -> Pipeline:
            pipeline = self.pipeline(pipeline_id)
            if pipeline.over:
                return pipeline
            progress = Progress(self.ledger, self.clock())
            progress.put(pipelines.stopped(pipeline, reason))
            progress.advance()
            stopping = [
                Change(self.ledger.runs, run.key, replace(run, stopping=reason))
                for run in runs_of(self.ledger, pipeline)
                if not run.stopping
            ]
            await self._write([*stopping, *progress.changes()])
            return self.pipeline(pipeline_id)

        return await until_written(write)

    async def rerun(self, pipeline_id: str) -> Pipeline:
        """Once more what did not succeed. Raises UnknownPipeline, NothingFailed or StoreError."""

        async def write() -> Pipeline:
            again = pipelines.again(self.pipeline(pipeline_id))
            if again is None:
                raise NothingFailed(pipeline_id)
            progress = Progress(self.ledger, self.clock())
            progress.put(again)
            progress.advance()
            await self._write(progress.changes())
            return self.pipeline(pipeline_id)

        return await until_written(write)

    def pipeline(self, pipeline_id: str) -> Pipeline:
        found = self.ledger.pipelines.get(pipeline_id)
        if found is None:
            raise UnknownPipeline(pipeline_id)
        return found

    def held(self, run: Run) -> bool:
        """It is not its turn yet: those that it replaces are not over."""
        return any(self.ledger.runs.get(key) is not None for key in run.replaces)

    def waiting(self, run: Run) -> list[str]:
        """Why it has no task, in sentences. Empty when it has one."""
        if self.live.view(run.task) is not None:
            return []
        if run.stopping:
            return [f"is being stopped: {run.stopping}"]
        others = [key for key in run.replaces if self.ledger.runs.get(key) is not None]
        if others:
            return [f"waits for run {key.partition('/')[2]} of {key.partition('/')[0]} to end" for key in others]
        if (rest := run.not_before - self.clock()) > 0:
            return [f"attempt {run.attempt - 1} failed ({run.ended[-1].message}): the next one in {rest:.1f} s"]
        return self.queue.waiting(run.key)

    async def _follow_events(self) -> None:
        async for event in self._subscription.events():
            match event:
                case Update(view):
                    self._observe(view)
                case Offers() | Rescinded():
                    self._launcher.offered(event)
            self._changed.set()

    def _observe(self, view: TaskView) -> None:
        key, task = run_of(view.spec), view.spec.id
        run = self.ledger.runs.get(key)
        if run is None or run.task != task:
            if view.status.state.terminal:
                self._seen[task] = view.status.sequence
            elif not view.killing:
                log.warning("task of no run is killed", task=task)
                self._kills[task] = None
            return
        if self.live.note(view) and not view.status.state.terminal:
            self.events.updated(run, view, self.live.started(task))
        if not view.status.state.terminal:
            self._seen[task] = view.status.sequence
        self._sort(key)

    def _run_changed(self, key: str, before: Run | None, after: Run | None) -> None:
        if after is None:
            for other in self._held.pop(key, ()):
                self._sort(other)
        self._sort(key)

    def _sort(self, key: str) -> None:
        """Put the run where it belongs, whatever became of it."""
        run = self.ledger.runs.get(key)
        over, waits, look = self._standing(run) if run is not None else (False, False, None)
        self._looks.put(key, look)
        if over:
            self._over[key] = None
        else:
            self._over.pop(key, None)
        if run is not None and waits:
            self.queue.add(run)
            self._launcher.ask()
        else:
            self.queue.discard(key)
        self._changed.set()

    def _standing(self, run: Run) -> tuple[bool, bool, float | None]:
        """Whether this attempt is over, whether it waits for resources, and when that may be otherwise."""
        now, view = self.clock(), self.live.view(run.task)
        if view is not None:
            over = view.status.state.terminal
            if run.stopping and not over and not view.killing:
                self._kills[run.task] = None
            return over, False, None
        if run.stopping or run.start_by <= now:
            return True, False, None
        if run.not_before > now:
            return False, False, run.not_before
        return False, not self._is_held(run), run.start_by

    def _is_held(self, run: Run) -> bool:
        """It is looked at again when the one that it waits for is over."""
        before = next((key for key in run.replaces if self.ledger.runs.get(key) is not None), None)
        if before is not None:
            self._held.setdefault(before, set()).add(run.key)
        return before is not None

    def _schedule_changed(self, key: str, before: Scheduled | None, after: Scheduled | None) -> None:
        self._dues.put(key, next_due(after))
        self._changed.set()

    async def _mend(self) -> None:
        """A pipeline does not wait for a run whose record could not be read."""
        progress = Progress(self.ledger, self.clock())
        for pipeline in self.ledger.pipelines:
            for node in pipeline.nodes:
                if node.state == pipelines.RUNNING and self.ledger.runs.get(f"{node.job}/{node.run}") is None:
                    known = progress.known(pipeline.id) or pipeline
                    progress.put(pipelines.ended(known, node.job, node.run, FAILED, LOST, self.clock()))
        progress.advance()
        if changes := progress.changes():
            await self._write(changes)

    async def _keep(self) -> None:
        while True:
            self._changed.clear()
            try:
                pause = await self._pass()
            except Conflict:
                pause = 0.0  # something was changed meanwhile, and is known now
            except StoreError as error:
                log.error("write runs", error=str(error))
                pause = RETRY_S
            if pause == 0.0:
                await asyncio.sleep(0)
                continue
            try:
                # Not wait_for: in Python 3.11 that swallows a cancellation which comes together with the event.
                async with asyncio.timeout(pause):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _pass(self) -> float | None:
        """Returns when to come back, in seconds, if nothing happens before."""
        now = self.clock()
        for key in self._looks.take(now, BATCH):
            self._sort(key)
        await self._write_ends()
        await self._start_due(now)
        await self._kill()
        pause = await self._launcher.launch()
        await self._acknowledge()
        if self._over or self._kills or self._seen:
            return 0.0
        times = [self._dues.first(), self._looks.first()]
        rests = [max(0.001, min(LOOK_S, at - self.clock())) for at in times if at is not None]
        return min([*rests, *([] if pause is None else [pause])], default=None)

    async def _write_ends(self) -> None:
        keys = list(islice(self._over, BATCH))
        if not keys:
            return
        ends = Ends(self.ledger, self.clock())
        for key in keys:
            run = self.ledger.runs.get(key)
            if run is None:
                del self._over[key]
                continue
            ends.add(run, self.live.view(run.task), self.live.started(run.task))
        await self._write(ends.changes(), ends.kept())
        self._launcher.ask()
        for view in ends.acknowledged:
            self.live.forget(view.spec.id)
            self._seen[view.spec.id] = view.status.sequence
        for finished in ends.finished:
            self.counts[finished.status] += 1
            self.events.ended(finished)
            log.info("run ended", job=finished.job, run=finished.id, status=finished.status, reason=finished.reason)

    async def _start_due(self, now: float) -> None:
        """Of schedules of one job one comes after the other: what is forbidden depends on the runs that there are."""
        taken = self._dues.take(now, BATCH)
        if not taken:
            return
        dealt: dict[str, Dealt] = {}  # by job
        for schedule in filter(None, map(self.ledger.schedules.get, taken)):
            if schedule.job not in dealt and (found := self._dealt(schedule, now)) is not None:
                dealt[schedule.job] = found
        try:
            await self._write(_once(change for each in dealt.values() for change in each.changes))
        finally:
            for key in taken:
                self._dues.put(key, next_due(self.ledger.schedules.get(key)))
        for each in dealt.values():
            self._tell_skipped(each.schedule)

    def _dealt(self, schedule: Scheduled, now: float) -> Dealt | None:
        job, due = self.ledger.jobs.get(schedule.job), schedule.latest(now)
        if job is None or due is None or not schedule.definition.enabled:
            return None
        return dealt_with(self.ledger, job, schedule, due, now)

    def _tell_skipped(self, schedule: Scheduled) -> None:
        if (skipped := schedule.skipped) is not None:
            self.events.skipped(schedule, skipped)
            name = schedule.definition.id
            log.info("due time passed over", job=schedule.job, schedule=name, reason=skipped.reason)

    async def _write(self, changes: Sequence[Change[Any]], also: Sequence[Put] = ()) -> None:
        """And tell of it. Raises StoreError, and Conflict when something was changed meanwhile."""
        pipelines_before = {change.key: self.ledger.pipelines.get(change.key) for change in changes}
        begun = [change.value for change in changes if isinstance(change.value, Run)]
        begun = [run for run in begun if self.ledger.runs.get(run.key) is None]
        await self.ledger.write(changes, also)
        for run in begun:
            self.counts["started"] += 1
            self.events.started(run)
        for change in changes:
            if isinstance(change.value, Pipeline):
                self.events.pipeline(pipelines_before[change.key], change.value)

    async def _kill(self) -> None:
        tasks = list(islice(self._kills, BATCH))
        for task in tasks:
            del self._kills[task]
        failures = [failure for failure in await asyncio.gather(*map(self._kill_one, tasks)) if failure is not None]
        if failures:
            raise failures[0]

    async def _kill_one(self, task: str) -> StoreError | None:
        try:
            await self._subscription.kill(task)
        except UnknownTask:
            if (view := self.live.view(task)) is not None:
                self.live.forget(task)
                self._sort(run_of(view.spec))
        except StoreError as error:
            self._kills[task] = None
            return error
        return None

    async def _acknowledge(self) -> None:
        seen = list(islice(self._seen.items(), BATCH))
        for task, _ in seen:
            del self._seen[task]
        await asyncio.gather(*(self._acknowledge_one(task, sequence) for task, sequence in seen))

    async def _acknowledge_one(self, task: str, sequence: int) -> None:
        try:
            await self._subscription.acknowledge(task, sequence)
        except (StoreError, UnknownTask) as error:
            # It comes again, and finds nothing left to do.
            log.warning("acknowledge task", task=task, error=str(error))


def _once(changes: Iterable[Change[Any]]) -> list[Change[Any]]:
    """Of several changes of one thing the last."""
    return list({(change.table.prefix, change.key): change for change in changes}.values())
