"""Keeps as many tasks of every app running as it asks for.

Reads the apps from the store and the tasks from the offer contract; writes tasks, through offers. Three loops share
one picture: apps change, events arrive, and `_keep` makes the one follow the other. A pass of it is always the same,
whatever happened: kill what is too many, then place what is missing on what is on offer.

A task counts from before it is handed to the master, so that nothing is started twice while that is under way. After
a restart the picture is complete, apps and tasks, before the first pass.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import structlog

from frameworks.services import vips
from frameworks.services.app import CODEC, FRAMEWORK, PREFIX, STAGED_LABEL, App, Place, label, new_tasks, place_noted
from frameworks.services.backoff import Backoff, Failure, failed
from frameworks.services.constraints import Constraint
from frameworks.services.definition import Definition
from frameworks.services.events import ServiceEvents
from frameworks.services.fields import Location
from frameworks.services.instances import Instance, Waiting, idle, remains
from frameworks.services.networking import addresses_asked, names_of
from frameworks.services.place import Demand, Placement, Places, place
from frameworks.services.pods.definition import PodDefinition
from frameworks.services.refusals import Refusal, explain, reason
from frameworks.services.volumes import Residency
from frameworks.services.wanted import Run, current, illness, instances, missing, settled, surplus
from master.offers import (
    Offer,
    OfferGone,
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
from model.codec import Damaged
from model.resources import Resources
from model.rights import needed
from model.task import MESOS_STATES, TaskSpec, TaskState, TaskStatus, newer, sockets
from model.volume import PersistentVolume, persistent

GATHER_S = 0.05  # offers of several nodes arrive one by one; to spread, wait this long for the others
RETRY_S = 1.0  # after the master could not write a launch or a kill down
REFUSAL_VALID_S = 15.0  # a declined node is offered again after 5 s; not heard of since: it is gone
LAUNCHES = 256  # in one pass, so that a large app does not hold up the kills

NOT_ITS_FAULT = {TaskState.KILLED, TaskState.LOST, TaskState.GONE}  # no reason to start the app more slowly
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class TaskFailure:
    view: TaskView
    version: str
    at: float


class Services:
    def __init__(self, store: Store, subscription: Subscription) -> None:
        self._store = store
        self._subscription = subscription
        self._apps: dict[str, App] = {}
        self._unreadable: set[str] = set()  # ids: their tasks are left alone
        self._runs: dict[str, dict[str, Run]] = {}  # app -> task -> run
        self._offers: dict[str, Offer] = {}
        self._offers_since = 0.0
        self._backoff: dict[str, Backoff] = {}
        self._failures: dict[str, TaskFailure] = {}
        self._chosen: set[str] = set()  # ids: they go first when their app shrinks
        self._refusals: dict[str, dict[str, tuple[float, Refusal]]] = {}  # app -> node
        self._waiting = Waiting()
        self._condemned: set[str] = set()  # volumes of apps that are gone
        self._asked: Counter[str] = Counter()  # what the last pass wanted offers for
        self._changed = asyncio.Event()
        self.events = ServiceEvents()
        self._deploying: dict[str, App] = {}  # as they were asked for, and are not yet

    async def run(self) -> None:
        """Never ends."""
        revision = await self._load_apps()
        for view in await self._subscription.reconcile():
            self._note(Run(view))
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_apps(revision))
            group.create_task(self._follow_events())
            group.create_task(self._keep())

    def apps(self) -> list[App]:
        """Those that can be read."""
        return list(self._apps.values())

    def vip_problems(self, definition: Definition | PodDefinition) -> dict[Location, str]:
        """Why its labels can not have the VIPs that they ask for."""
        others = ((app.id, app.definition) for app in self._apps.values())
        return dict(vips.problems(definition, others, self._subscription.vip_problem))

    def deploying(self) -> int:
        """How many apps are not yet as they were asked to be."""
        return sum(not settled(app, self.runs(app.id)) for app in self._apps.values())

    def runs(self, app_id: str) -> list[Run]:
        """The app's tasks that are not over, oldest first."""
        return sorted(self._runs.get(app_id, {}).values(), key=lambda run: (label(run.view.spec, STAGED_LABEL), run.id))

    def choose(self, runs: Sequence[Run]) -> None:
        """When their app shrinks, it is by these."""
        self._chosen.update(run.id for run in runs)
        self._waiting.left.update(volume for run in runs for volume in persistent(run.view.spec.volumes))

    async def wipe(self, run: Run) -> None:
        """Destroy its persistent volumes, when it has ended. Raises StoreError."""
        for volume in persistent(run.view.spec.volumes):
            with suppress(UnknownVolume):
                await self._subscription.destroy(volume)

    async def kill(self, run: Run) -> None:
        """End a task. Its app has another one started, unless it has enough. Raises StoreError."""
        latest = self._runs.get(run.view.spec.owner, {}).get(run.id)
        if latest is None or latest.view.killing:
            return
        try:
            await self._subscription.kill(run.id)
        except UnknownTask:
            self._forget(run.view.spec)
            return
        latest = self._runs.get(run.view.spec.owner, {}).get(run.id)
        if latest is not None:
            self._note(replace(latest, view=replace(latest.view, killing=True)))

    def queue(self) -> list[tuple[App, int, float]]:
        """Apps that have fewer instances than they ask for: how many fewer, and for how many seconds they are held
        back."""
        now, lacking = time.monotonic(), [(app, self._missing(app)) for app in self._apps.values()]
        return [(app, count, self._backoff.get(app.id, Backoff()).remaining(now)) for app, count in lacking if count]

    def end_delay(self, app_id: str) -> bool:
        """Whether there was one."""
        delayed = self._backoff.pop(app_id, None) is not None
        self._changed.set()
        return delayed

    def refused(self, app_id: str) -> list[str]:
        """Why offers of nodes are of no use to it."""
        return [reason([refusal]) for refusal in self._valid_refusals(app_id)]

    def last_failure(self, app_id: str) -> TaskFailure | None:
        return self._failures.get(app_id)

    def waiting(self, app: App) -> list[str]:
        """Why the app has fewer tasks than it asks for, in sentences. Empty when it has them."""
        if not missing(app, self._runs.get(app.id, {}).values()):
            return self._waiting_for_kills(app)
        backoff = self._backoff.get(app.id, Backoff())
        if remaining := backoff.remaining(time.monotonic()):
            starts = "1 start failed" if backoff.failures == 1 else f"{backoff.failures} starts in a row failed"
            return [f"{starts}: the next one in {remaining:.1f} s (last: {backoff.reason})"]
        refusals = self._valid_refusals(app.id)
        if not refusals:
            nodes = sorted({instance.node for instance in self._idle(app)})
            away = [f"its volume is on node {node}, which has offered nothing yet" for node in nodes]
            return away or ["no node has offered resources yet"]
        return explain(_demand(app, 1).resources, refusals)

    async def _load_apps(self) -> int:
        revision = await self._store.revision()
        entries = await self._store.range(PREFIX + "/")
        self._apps, self._unreadable = {}, set()
        for entry in entries:
            self._app_changed(Change(entry.revision, entry.key, entry.value))
        return revision

    def _volumes_of(self, app_id: str) -> list[VolumeView]:
        return [view for view in self._subscription.volumes() if view.volume.owner == app_id]

    async def _follow_apps(self, revision: int) -> None:
        while True:
            try:
                async for change in self._store.watch(PREFIX + "/", revision):
                    app_id = change.key.removeprefix(PREFIX)
                    previous = self._apps.get(app_id)
                    self._app_changed(change)
                    self._deployed(previous, self._apps.get(app_id))
            except Compacted as error:
                log.warning("read all services again", reason=str(error))
                revision = await self._load_apps()

    def _app_changed(self, change: Change) -> None:
        app_id = change.key.removeprefix(PREFIX)
        previous = self._apps.pop(app_id, None)
        self._unreadable.discard(app_id)
        if change.value is None:
            self._condemned.update(view.volume.id for view in self._volumes_of(app_id))
        else:
            try:
                self._apps[app_id] = CODEC.decode(change.value)
            except Damaged as error:
                self._unreadable.add(app_id)
                log.error("read service from the store", app=app_id, error=str(error))
        app = self._apps.get(app_id)
        if app is None or previous is None or app.config_version != previous.config_version:
            self._backoff.pop(app_id, None)
            self._failures.pop(app_id, None)
            self._refusals.pop(app_id, None)
        self._changed.set()

    async def _follow_events(self) -> None:
        async for event in self._subscription.events():
            match event:
                case Offers(offers):
                    if not self._offers:
                        self._offers_since = time.monotonic()
                    self._offers.update({offer.id: offer for offer in offers})
                case Rescinded(offer_id):
                    self._offers.pop(offer_id, None)
                case Update(view):
                    await self._observe(view)
            self._changed.set()

    def _deployed(self, previous: App | None, app: App | None) -> None:
        """The app was changed: what was under way is not any more, and something else is."""
        if previous is not None and (late := self._deploying.pop(previous.id, None)) is not None:
            self.events.deployment("deployment_failed", late)
        if app is not None:
            self._deploying[app.id] = app
            self.events.deployment("deployment_info", app)
        elif previous is not None:
            self.events.gone(previous.id)

    def _tell_deployed(self) -> None:
        for app in [app for app in self._deploying.values() if settled(app, self.runs(app.id))]:
            del self._deploying[app.id]
            self.events.deployment("deployment_success", app)

    async def _observe(self, view: TaskView) -> None:
        self._tell_of(view)
        if view.status.state.terminal:
            self._ended(view)
        else:
            known = self._runs.get(view.spec.owner, {}).get(view.spec.id)
            if known is None:
                self._note(Run(view))
            elif newer(known.view.status, view.status) or _marks(view) != _marks(known.view):
                self._note(replace(known, view=view))
        try:
            await self._subscription.acknowledge(view.spec.id, view.status.sequence)
        except (StoreError, UnknownTask) as error:
            # It comes again, and finds nothing left to do.
            log.warning("acknowledge task", task=view.spec.id, error=str(error))

    def _tell_of(self, view: TaskView) -> None:
        known = self._runs.get(view.spec.owner, {}).get(view.spec.id)
        before = known.view.status if known is not None else None
        if before is None or MESOS_STATES[before.state] != MESOS_STATES[view.status.state]:
            self.events.status(view)
        if before is not None and view.status.healthy is not None and before.healthy != view.status.healthy:
            self.events.health(view)

    def _note(self, run: Run) -> None:
        """Put the task into the picture, and remember when it was first seen running."""
        if run.view.status.state.terminal:
            return
        if run.running and run.running_at is None:
            run = replace(run, running_at=time.monotonic(), started=run.view.status.since or run.view.status.at)
        self._runs.setdefault(run.view.spec.owner, {})[run.id] = run

    def _ended(self, view: TaskView) -> None:
        app_id = view.spec.owner
        run = self._forget(view.spec)
        app = self._apps.get(app_id)
        self._asked.clear()  # what it used may be enough for somebody: ask again
        ill = bool(illness(view))
        if run is None or app is None or (not ill and (view.killing or run.view.killing)):
            return
        state, now = view.status.state, time.monotonic()
        if ill or state not in (TaskState.FINISHED, TaskState.KILLED):
            self._failures[app_id] = TaskFailure(view, app.version, view.status.at)
        if ill or state not in NOT_ITS_FAULT:
            ran_s = now - run.running_at if run.running_at is not None else 0.0
            failure = Failure(run.launched_at, ran_s, describe_end(view))
            self._backoff[app_id] = failed(self._backoff.get(app_id, Backoff()), app.definition, failure, now)
        log.info("service task ended", app=app_id, task=view.spec.id, reason=describe_end(view))

    def _forget(self, spec: TaskSpec) -> Run | None:
        runs = self._runs.get(spec.owner, {})
        run = runs.pop(spec.id, None)
        self._chosen.discard(spec.id)
        if not runs:
            self._runs.pop(spec.owner, None)
        return run

    async def _keep(self) -> None:
        while True:
            self._changed.clear()
            pause = await self._kill_surplus() or await self._destroy_remains()
            again = await self._start_missing()
            self._tell_deployed()
            try:
                async with asyncio.timeout(min((s for s in (pause, again) if s is not None), default=None)):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _kill_surplus(self) -> float | None:
        """Returns when to come back, in seconds, if something could not be killed."""
        for app_id, runs in list(self._runs.items()):
            if app_id in self._unreadable:
                continue
            for run in surplus(self._apps.get(app_id), list(runs.values()), self._chosen):
                if ill := illness(run.view):
                    log.info("service task is replaced", app=app_id, task=run.id, reason=ill)
                else:
                    self._waiting.left.update(persistent(run.view.spec.volumes))
                try:
                    await self.kill(run)
                except StoreError as error:
                    log.error("kill service task", task=run.id, error=str(error))
                    return RETRY_S
        return None

    async def _destroy_remains(self) -> float | None:
        """Of apps that are gone, and of instances that have lost a part: volumes, and addresses that were kept. Returns
        when to come back, as above."""
        gone = self._subscription.owners() - self._apps.keys() - self._unreadable - self._runs.keys()
        views = self._subscription.volumes()
        self._condemned &= {view.volume.id for view in views}
        owners = self._apps.keys() | self._unreadable
        self._condemned |= {view.volume.id for view in views if view.volume.owner not in owners}
        for volume in sorted(remains(views, self._condemned)):
            try:
                await self._subscription.destroy(volume)
            except UnknownVolume:
                continue
            except StoreError as error:
                log.error("destroy volume", volume=volume, error=str(error))
                return RETRY_S
        for owner in sorted(gone):
            try:
                await self._subscription.forget(owner)
            except StoreError as error:
                log.error("forget addresses", app=owner, error=str(error))
                return RETRY_S
        return None

    async def _start_missing(self) -> float | None:
        """Returns when to come back, in seconds, if nothing happens before."""
        now = time.monotonic()
        lacking = [app for app in self._apps.values() if self._missing(app)]
        held_back = {app.id: self._backoff.get(app.id, Backoff()).remaining(now) for app in lacking}
        demands = [demand for app in lacking if not held_back[app.id] for demand in self._demands(app, now)]
        self._ask_for_offers(demands)
        if demands and self._offers and (rest := self._offers_since + GATHER_S - now) > 0:
            return rest
        failure = await self._answer(demands)
        return min((s for s in (*held_back.values(), failure) if s), default=None)

    def _missing(self, app: App) -> int:
        return missing(app, self._runs.get(app.id, {}).values())

    def _demands(self, app: App, now: float) -> list[Demand]:
        """Those that go on where their volumes are, and those that may begin anywhere."""
        count = min(self._missing(app), LAUNCHES)
        if not app.definition.kept(FRAMEWORK, ""):
            return [_demand(app, count)]
        patience_s = (app.definition.residency or Residency()).patience_s
        going_on = self._waiting.choose(self._idle(app), count, patience_s, now)
        demands = [_pinned(app, instance) for instance in going_on]
        return demands + ([_demand(app, count - len(demands))] if len(demands) < count else [])

    def _idle(self, app: App) -> list[Instance]:
        runs = self._runs.get(app.id, {}).values()
        used = {volume for run in runs for volume in persistent(run.view.spec.volumes)}
        return idle(app.id, self._subscription.volumes(), used, self._condemned)

    def _ask_for_offers(self, demands: Sequence[Demand]) -> None:
        wanted: Counter[str] = Counter()
        for demand in demands:
            wanted[demand.app] += demand.count
        if not wanted:
            self._subscription.suppress()
        elif wanted - self._asked:
            self._subscription.revive()
        self._asked = wanted

    async def _answer(self, demands: Sequence[Demand]) -> float | None:
        """Accept or decline every offer at hand. Returns when to come back if the master could not write that down."""
        offers, self._offers = list(self._offers.values()), {}
        running = Counter((app_id, run.view.node) for app_id, runs in self._runs.items() for run in runs.values())
        plan = place(demands, offers, running, self._places(demands))
        self._remember(plan.refusals, demands, offers)
        pause = None
        for offer in offers:
            chosen = [placement for placement in plan.placements if placement.offer is offer]
            if not chosen:
                refusals = [refusal for refusal in plan.refusals if refusal.node == offer.node.id]
                self._subscription.decline(offer.id, reason(refusals) or "no service waits for resources")
            elif not await self._launch(offer, chosen):
                pause = RETRY_S
        return pause

    def _places(self, demands: Sequence[Demand]) -> Places:
        """Where instances are of the versions that apps have now. Of a task it was noted when it was launched."""
        places: dict[tuple[str, Constraint], Counter[str]] = {}
        for demand in demands:
            app = self._apps[demand.app]
            runs = [run for run in self._runs.get(app.id, {}).values() if current(app, run)]
            firsts = [instance[0] for instance in instances(runs)]
            for constraint in demand.constraints:
                noted = (place_noted(run.view.spec, constraint.field) for run in firsts)
                places[app.id, constraint] = Counter(at for at in noted if at is not None)
        return places

    async def _launch(self, offer: Offer, placements: Sequence[Placement]) -> bool:
        # The apps may have changed while earlier offers were being answered.
        specs: list[TaskSpec] = []
        made: list[PersistentVolume] = []
        known = {view.volume.id for view in self._subscription.volumes()}
        for placement in placements:
            app = self._apps.get(placement.app)
            if app is not None and self._missing(app):
                tasks = new_tasks(app, datetime.now(UTC), self._place(placement))
                for spec in tasks:
                    self._note(Run(_staging(spec, offer), launched_at=time.monotonic()))
                specs += tasks
                kept = app.definition.kept(FRAMEWORK, placement.instance or tasks[0].id)
                made += [volume for volume in kept if volume.id not in known]
                self._waiting.launched(placement.instance, [volume.id for volume in kept])
        if not specs:
            self._subscription.decline(offer.id, "no service waits for resources")
            return True
        try:
            await self._subscription.accept(offer.id, specs, made)
        except OfferGone:
            self._unlaunched(specs)
            self._changed.set()
        except (StoreError, ValueError) as error:
            log.error("launch service tasks", node=offer.node.id, count=len(specs), error=str(error))
            self._unlaunched(specs)
            self._subscription.decline(offer.id, str(error))
            # Whether it was written before it failed, only the master can tell.
            ids = {spec.id for spec in specs}
            for view in await self._subscription.reconcile():
                if view.spec.id in ids:
                    self._note(Run(view, launched_at=time.monotonic()))
            now = time.monotonic()
            for placement in placements:
                refusal = Refusal(placement.app, offer.node.id, offer.resources, said=str(error))
                self._refusals.setdefault(placement.app, {})[offer.node.id] = (now, refusal)
            return False
        return True

    def _place(self, placement: Placement) -> Place:
        runs = self._runs.get(placement.app, {}).values()
        used = frozenset(address for run in runs for address in addresses_asked(run.view.spec))
        node, app = placement.offer.node, self._apps[placement.app]
        fields = {each.field: each.place_of(node) for each in app.definition.placement}
        noted = tuple((field, at) for field, at in fields.items() if at is not None)
        return Place(str(node.address), placement.ports, placement.instance, used, noted)

    def _unlaunched(self, specs: Sequence[TaskSpec]) -> None:
        for spec in specs:
            self._forget(spec)
        self._asked.clear()

    def _remember(self, refusals: Sequence[Refusal], demands: Sequence[Demand], offers: Sequence[Offer]) -> None:
        now = time.monotonic()
        for demand in demands:
            known = self._refusals.setdefault(demand.app, {})
            for offer in offers:
                known.pop(offer.node.id, None)
        # Of two instances that one node refuses, the one that can go nowhere else is the one to tell of.
        for refusal in sorted(refusals, key=lambda refusal: refusal.elsewhere):
            self._refusals[refusal.app][refusal.node] = (now, refusal)

    def _valid_refusals(self, app_id: str) -> list[Refusal]:
        oldest = time.monotonic() - REFUSAL_VALID_S
        return [refusal for at, refusal in self._refusals.get(app_id, {}).values() if at >= oldest]

    def _waiting_for_kills(self, app: App) -> list[str]:
        ending = sum(run.view.killing for run in self._runs.get(app.id, {}).values())
        if not ending:
            return []
        return ["waits for 1 task to end" if ending == 1 else f"waits for {ending} tasks to end"]


def _marks(view: TaskView) -> tuple[bool, bool]:
    """What may change of a task without an observation of its node."""
    return view.killing, view.leaving


def describe_end(view: TaskView) -> str:
    """`failed: exit code 1`."""
    status = view.status
    if ill := illness(view):
        return f"unhealthy: {ill}"
    detail = status.message or status.reason
    if not detail and status.exit_code is not None:
        detail = f"exit code {status.exit_code}"
    return f"{status.state.name.lower()}: {detail}" if detail else status.state.name.lower()


def _demand(app: App, count: int) -> Demand:
    definition = app.definition
    tasks = new_tasks(app, datetime.now(UTC))
    disk = sum(volume.size for volume in definition.kept(FRAMEWORK, tasks[0].id))
    rights = frozenset[str]().union(*map(needed, tasks))
    ports = [port for task in tasks for port in task.ports]
    return Demand(
        app.id,
        definition.resources + Resources(disk=disk),
        names_of(definition.networks),
        count,
        rights,
        sockets=tuple(socket for socket in sockets(ports) if socket[1]),
        chosen=tuple(tuple(protocol.value for protocol in port.protocols) for port in ports if port.host == 0),
        static=frozenset(each.network for task in tasks for each in task.attachments if each.address),
        constraints=definition.placement,
    )


def _pinned(app: App, instance: Instance) -> Demand:
    """It needs no disk for volumes that it has."""
    lacking = [each for each in app.definition.kept(FRAMEWORK, instance.id) if each.id not in instance.volumes]
    resources = app.definition.resources + Resources(disk=sum(volume.size for volume in lacking))
    return replace(_demand(app, 1), resources=resources, instance=instance.id, node=instance.node)


def _staging(spec: TaskSpec, offer: Offer) -> TaskView:
    return TaskView(spec, offer.node.id, TaskStatus(spec.id, TaskState.STAGING, at=time.time()))
