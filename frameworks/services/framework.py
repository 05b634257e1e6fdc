"""Keeps as many tasks of every app running as it asks for.

Reads the apps from the store and the tasks from the offer contract; writes tasks, through offers. Three loops share
one picture (`picture.py`): apps change, events arrive, and `_keep` makes the one follow the other. A pass of it is
always the same, whatever happened: of apps of which something changed, kill what is too many; then place what is
missing on what is on offer; then see which deployments are over.

A task counts from before it is handed to the master, so that nothing is started twice while that is under way. After
a restart the picture is complete, apps and tasks, before the first pass.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

import structlog

from frameworks.services import dependencies, vips
from frameworks.services.app import GROUPS, PREFIX, App, Group
from frameworks.services.declined import DeclinedOffer
from frameworks.services.definition import Definition
from frameworks.services.demands import demand
from frameworks.services.events import ServiceEvents
from frameworks.services.fields import Location
from frameworks.services.instances import remains
from frameworks.services.launcher import Launcher
from frameworks.services.picture import Picture, TaskFailure
from frameworks.services.pods.definition import PodDefinition
from frameworks.services.progress import waits_for
from frameworks.services.refusals import explain
from frameworks.services.rollouts import Rollouts, stage
from frameworks.services.wanted import Run, illness
from master.offers import (
    NodesChanged,
    Offers,
    Rescinded,
    Subscription,
    TaskView,
    UnknownTask,
    UnknownVolume,
    Update,
    VolumeView,
)
from master.store.base import Change, Compacted, Store, StoreError
from model.task import MESOS_STATES, TaskStatus, newer
from model.volume import persistent

RETRY_S = 1.0  # after the master could not write a kill down
REST, LONGEST_REST_S = 3.0, 0.2  # times as long as what was done
KILLED_AT_ONCE = 100  # tasks, before all else has its turn
log = structlog.get_logger()


class Services:
    def __init__(self, store: Store, subscription: Subscription) -> None:
        self._store = store
        self._subscription = subscription
        self._picture = Picture()
        self._launcher = Launcher(subscription, self._picture)
        self._changed = asyncio.Event()
        self._acknowledging: set[asyncio.Task[None]] = set()
        self.events = ServiceEvents()
        self.rollouts = Rollouts(store, self.events)

    async def run(self) -> None:
        """Never ends."""
        revision = await self._store.revision()
        await self._load(revision)
        for view in await self._subscription.reconcile():
            self._picture.note(Run(view))
        self._picture.nodes_changed(self._subscription.nodes())
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(PREFIX, revision, self._app_changed))
            group.create_task(self._follow(GROUPS, revision, self._group_changed))
            group.create_task(self._follow_events())
            group.create_task(self._keep())

    def apps(self) -> list[App]:
        """Those that can be read."""
        return list(self._picture.apps.values())

    def groups(self) -> dict[str, Group]:
        """Those that somebody made, by their paths."""
        return dict(self._picture.groups)

    def sized(self, app: App) -> App:
        """With as many instances as it is to have now."""
        return self._picture.sized(app)

    def vip_problems(self, definition: Definition | PodDefinition) -> dict[Location, str]:
        """Why its labels can not have the VIPs that they ask for."""
        return dict(vips.problems(definition, self._picture.claimed, self._subscription.vip_problem))

    def deploying(self) -> int:
        """How many apps are not yet as they were asked to be."""
        return len(self.rollouts.under_way())

    def runs(self, app_id: str) -> list[Run]:
        """The app's tasks that are not over, oldest first."""
        return self._picture.runs_of(app_id)

    def choose(self, runs: Sequence[Run]) -> None:
        """When their app shrinks, it is by these."""
        self._picture.chosen.update(run.id for run in runs)
        self._launcher.waiting.left.update(volume for run in runs for volume in persistent(run.view.spec.volumes))

    async def wipe(self, run: Run) -> None:
        """Destroy its persistent volumes, when it has ended. Raises StoreError."""
        for volume in persistent(run.view.spec.volumes):
            with suppress(UnknownVolume):
                await self._subscription.destroy(volume)

    async def kill(self, run: Run) -> None:
        """End a task. Its app has another one started, unless it has enough. Raises StoreError."""
        latest = self._picture.run(run.view.spec)
        if latest is None or latest.view.killing:
            return
        try:
            await self._subscription.kill(run.id)
        except UnknownTask:
            self._picture.forget(run.view.spec)
            return
        latest = self._picture.run(run.view.spec)
        if latest is not None:
            self._picture.note(replace(latest, view=replace(latest.view, killing=True)))

    def queue(self) -> list[tuple[App, int, float]]:
        """Apps that have fewer instances than they ask for: how many fewer, and for how many seconds they are held
        back."""
        now = time.monotonic()
        lacking = [(app, self._picture.missing(app)) for app in map(self.sized, self._picture.apps.values())]
        return [(app, count, self._picture.delay(app.id, now)) for app, count in lacking if count]

    def end_delay(self, app_id: str) -> bool:
        """Whether there was one."""
        delayed = self._picture.backoff.pop(app_id, None) is not None
        self._changed.set()
        return delayed

    def declined(self, app_id: str) -> list[DeclinedOffer]:
        """Offers that were of no use to it, the last one of each node."""
        return self._launcher.declined.of(app_id)

    def last_failure(self, app_id: str) -> TaskFailure | None:
        return self._picture.failures.get(app_id)

    def waiting(self, app: App) -> list[str]:
        """Why the app is not yet as it was asked to be, in sentences. Empty when it is."""
        app = self.sized(app)
        if not self._picture.missing(app):
            runs = self.runs(app.id)
            return [sentence] if (sentence := stage(app, runs)) else waits_for(runs)
        if held_by := self._picture.held_by(app):
            return [dependencies.sentence(held_by)]
        if sentence := self._waiting_for_delay(app):
            return [sentence]
        refusals = [each.refusal for each in self._launcher.declined.of(app.id)]
        if not refusals:
            nodes = sorted({instance.node for instance in self._launcher.idle(app)})
            away = [f"its volume is on node {node}, which has offered nothing yet" for node in nodes]
            return away or ["no node has offered resources yet"]
        return explain(demand(app, 1).resources, refusals)

    async def _load(self, revision: int) -> None:
        """Of what is newer than `revision` the watches tell."""
        older = set()
        for prefix, changed in ((PREFIX, self._picture.replaced), (GROUPS, self._picture.group_replaced)):
            for entry in await self._store.range(prefix + "/"):
                changed(Change(entry.revision, entry.key, entry.value))
                older |= {entry.key.removeprefix(prefix)} if entry.revision <= revision else set()
        self.rollouts.load(app for app in self._picture.apps.values() if app.id in older)

    async def _follow(self, prefix: str, revision: int, changed: Callable[[Change], None]) -> None:
        """What the store has under `prefix`."""
        while True:
            try:
                async for change in self._store.watch(prefix + "/", revision):
                    changed(change)
                    self._changed.set()
            except Compacted as error:
                log.warning("read all services again", reason=str(error))
                revision = await self._store.revision()
                await self._read_again(prefix, revision, changed)

    async def _read_again(self, prefix: str, revision: int, changed: Callable[[Change], None]) -> None:
        entries = {entry.key: entry.value for entry in await self._store.range(prefix + "/")}
        known = self._picture.apps if prefix == PREFIX else self._picture.groups
        for key in [*entries, *(prefix + name for name in known if prefix + name not in entries)]:
            changed(Change(revision, key, entries.get(key)))

    def _app_changed(self, change: Change) -> None:
        previous, app = self._picture.replaced(change)
        if change.value is None and previous is not None:
            self._picture.condemned.update(view.volume.id for view in self._volumes_of(previous.id))
        if app is None or previous is None or app.config_version != previous.config_version:
            self._launcher.declined.forget(change.key.removeprefix(PREFIX))
        self.rollouts.changed(previous, app)

    def _group_changed(self, change: Change) -> None:
        self._picture.group_replaced(change)

    def _volumes_of(self, app_id: str) -> list[VolumeView]:
        return [view for view in self._subscription.volumes() if view.volume.owner == app_id]

    async def _follow_events(self) -> None:
        async for event in self._subscription.events():
            match event:
                case Offers() | Rescinded():
                    self._launcher.offered(event)
                case Update(view):
                    self._observe(view)
                case NodesChanged():
                    self._picture.nodes_changed(self._subscription.nodes())
            self._changed.set()

    def _observe(self, view: TaskView) -> None:
        known = self._picture.run(view.spec)
        self._tell_of(known, view)
        if view.status.state.terminal:
            self._launcher.ask()
            self._picture.ended(view)
        elif known is None:
            self._picture.note(Run(view))
        elif newer(known.view.status, view.status) or _marks(view) != _marks(known.view):
            self._picture.note(replace(known, view=view))
        work = asyncio.create_task(self._acknowledge(view))  # the next one need not wait for the disk
        self._acknowledging.add(work)
        work.add_done_callback(self._acknowledging.discard)

    async def _acknowledge(self, view: TaskView) -> None:
        try:
            await self._subscription.acknowledge(view.spec.id, view.status.sequence)
        except (StoreError, UnknownTask) as error:
            # It comes again, and finds nothing left to do.
            log.warning("acknowledge task", task=view.spec.id, error=str(error))

    def _tell_of(self, known: Run | None, view: TaskView) -> None:
        before = known.view.status if known is not None else None
        if before is None or MESOS_STATES[before.state] != MESOS_STATES[view.status.state]:
            self.events.status(view)
        if before is not None and view.status.healthy is not None and before.healthy != view.status.healthy:
            self.events.health(view)
        if before is not None and _failures(before) < _failures(view.status):
            self.events.failed_check(view)

    async def _keep(self) -> None:
        while True:
            began = time.monotonic()
            self._changed.clear()
            touched, self._picture.touched = self._picture.touched, set()
            pauses: list[float | None] = []
            try:
                await self._kill_surplus(touched)
                pauses += [await self._kill_expunged()]
                await self._destroy_remains()
                self._picture.count(touched)
                await asyncio.sleep(0)
                pauses += [await self._launcher.launch(), await self._conclude(touched)]
            except StoreError as error:
                log.error("keep services", error=str(error))
                await asyncio.sleep(RETRY_S)
                self._picture.touched |= touched
            # In a large cluster something changes all the time: most of it is for all else.
            await asyncio.sleep(min(REST * (time.monotonic() - began), LONGEST_REST_S))
            if self._picture.touched:  # by this pass: what it did is to be looked at
                continue
            try:
                async with asyncio.timeout(min((s for s in pauses if s is not None), default=None)):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _kill_surplus(self, touched: Iterable[str]) -> None:
        """Raises StoreError."""
        for app_id in sorted(touched):
            if app_id in self._picture.unreadable:
                continue
            too_many = self._picture.too_many(app_id)
            for run in too_many:
                if ill := illness(run.view):
                    log.info("service task is replaced", app=app_id, task=run.id, reason=ill)
                    self.events.given_up(run.view, ill)
                else:
                    self._launcher.waiting.left.update(persistent(run.view.spec.volumes))
            for first in range(0, max(1, len(too_many)), KILLED_AT_ONCE):
                await asyncio.gather(*map(self.kill, too_many[first : first + KILLED_AT_ONCE]))
                await asyncio.sleep(0)  # all else has its turn

    async def _kill_expunged(self) -> float | None:
        """What has been away for too long. Returns when to come back, in seconds. Raises StoreError."""
        expunged, pause = self._picture.count_away(time.monotonic())
        for run in expunged:
            await self.kill(run)
        return pause

    async def _destroy_remains(self) -> None:
        """Of apps that are gone, and of instances that have lost a part: volumes, and addresses that were kept. Raises
        StoreError."""
        known = self._picture.apps.keys() | self._picture.unreadable
        gone = self._subscription.owners() - known - self._picture.runs.keys()
        views = self._subscription.volumes()
        self._picture.condemned &= {view.volume.id for view in views}
        self._picture.condemned |= {view.volume.id for view in views if view.volume.owner not in known}
        for volume in sorted(remains(views, self._picture.condemned)):
            with suppress(UnknownVolume):
                await self._subscription.destroy(volume)
        for owner in sorted(gone):
            await self._subscription.forget(owner)

    async def _conclude(self, touched: Iterable[str]) -> float | None:
        """Deployments that are over. Returns when the next one may be late, in seconds. Raises StoreError."""
        for app_id in touched:
            app = self._picture.app(app_id)
            if app is not None and self.rollouts.is_under_way(app_id):
                await self.rollouts.settle(app, self.runs(app_id))
        return await self.rollouts.expire(time.time())

    def _waiting_for_delay(self, app: App) -> str:
        remaining = self._picture.delay(app.id, time.monotonic())
        if not remaining:
            return ""
        backoff = self._picture.backoff[app.id]
        if not backoff.failures:
            return f"the last task finished: the next one in {remaining:.1f} s"
        starts = "1 start failed" if backoff.failures == 1 else f"{backoff.failures} starts in a row failed"
        return f"{starts}: the next one in {remaining:.1f} s (last: {backoff.reason})"


def _marks(view: TaskView) -> tuple[bool, bool, float | None]:
    """What may change of a task without an observation of its node."""
    return view.killing, view.leaving, view.unreachable


def _failures(status: TaskStatus) -> int:
    """Of its checks, in a row."""
    return sum(health.failures for health in status.health)
