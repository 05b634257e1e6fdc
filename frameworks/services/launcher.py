"""Gives instances that lack to offers, and keeps why an offer was of no use.

What is launched counts in the picture at once, before the master has it. Offers are answered all together: with the
instances that go there, or with the reasons why none does.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import structlog

from frameworks.services.app import FRAMEWORK, App, Place, new_tasks, place_noted
from frameworks.services.constraints import Constraint
from frameworks.services.declined import Declined
from frameworks.services.demands import constraints_of, demand, pinned
from frameworks.services.instances import Instance, Waiting, idle
from frameworks.services.networking import addresses_asked
from frameworks.services.picture import Picture
from frameworks.services.place import Demand, Placement, Places, place
from frameworks.services.refusals import Refusal, reason
from frameworks.services.volumes import Residency
from frameworks.services.wanted import Run, current, instances
from master.offers import Offer, OfferGone, Offers, Rescinded, Subscription, TaskView
from master.store.base import StoreError
from model.task import TaskSpec, TaskState, TaskStatus
from model.volume import PersistentVolume, persistent

GATHER_S = 0.05  # offers of several nodes arrive one by one; to spread, wait this long for the others
RETRY_S = 1.0  # after the master could not write a launch down
LAUNCHES = 512  # in one pass, so that a large app does not hold up the kills
PLACED_AT_ONCE = 64  # instances, while all else waits
log = structlog.get_logger()


class Launcher:
    def __init__(self, subscription: Subscription, picture: Picture) -> None:
        self._subscription = subscription
        self._picture = picture
        self._offers: dict[str, Offer] = {}
        self._offers_since = 0.0
        self._asked: Counter[str] = Counter()  # what the last pass wanted offers for
        self.declined = Declined()
        self.waiting = Waiting()

    def offered(self, event: Offers | Rescinded) -> None:
        if isinstance(event, Rescinded):
            self._offers.pop(event.offer_id, None)
            return
        if not self._offers:
            self._offers_since = time.monotonic()
        self._offers.update({offer.id: offer for offer in event.offers})

    def ask(self) -> None:
        """Something was freed: it may be enough for somebody."""
        self._asked.clear()

    async def launch(self) -> float | None:
        """Start what lacks. Returns when to come back, in seconds, if nothing happens before."""
        now = time.monotonic()
        lacking = [app for app_id in self._picture.lacking if (app := self._picture.app(app_id)) is not None]
        delays = {app.id: self._picture.delay(app.id, now) for app in lacking}
        ready = [app for app in lacking if not delays[app.id] and not self._picture.held_by(app)]
        demands = [demand for app in ready for demand in self._demands(app, now)]
        self._ask_for_offers(demands)
        if demands and self._offers and (rest := self._offers_since + GATHER_S - now) > 0:
            return rest
        failure = await self._answer(demands)
        return min((s for s in (*delays.values(), failure) if s), default=None)

    def _demands(self, app: App, now: float) -> list[Demand]:
        """Those that go on where their volumes are, and those that may begin anywhere."""
        versions = [version for version in (app, app.before) if version is not None]
        counts = [(version, min(self._picture.missing_of(version), LAUNCHES)) for version in versions]
        if not app.definition.kept(FRAMEWORK, ""):
            return [demand(version, count) for version, count in counts if count]
        demands: list[Demand] = []
        for version, count in counts:
            patience_s = (version.definition.residency or Residency()).patience_s
            going_on = self.waiting.choose(self.idle(version), count, patience_s, now)
            demands += [pinned(version, instance) for instance in going_on]
            demands += [demand(version, count - len(going_on))] * (len(going_on) < count)
        return demands

    def idle(self, app: App) -> list[Instance]:
        runs = self._picture.runs.get(app.id, {}).values()
        used = {volume for run in runs for volume in persistent(run.view.spec.volumes)}
        return idle(app.id, self._subscription.volumes(), used, self._picture.condemned)

    def _ask_for_offers(self, demands: Sequence[Demand]) -> None:
        wanted: Counter[str] = Counter()
        for each in demands:
            wanted[each.app] += each.count
        if not wanted:
            self._subscription.suppress()
        elif wanted - self._asked:
            self._subscription.revive()
        self._asked = wanted

    async def _answer(self, demands: Sequence[Demand]) -> float | None:
        """Accept or decline every offer at hand. Returns when to come back if the master could not write that down."""
        offers, self._offers = list(self._offers.values()), {}
        asked = {demand.app: self._picture.apps[demand.app].version for demand in demands}
        runs = {demand.app: self._picture.runs.get(demand.app, {}).values() for demand in demands}
        running = Counter((app_id, run.view.node) for app_id, theirs in runs.items() for run in theirs)
        if sum(demand.count for demand in demands) > PLACED_AT_ONCE:
            plan = await asyncio.to_thread(place, demands, offers, running, self._places(demands))
        else:
            plan = place(demands, offers, running, self._places(demands))
        self.declined.remember(plan.refusals, [demand.app for demand in demands], offers)
        placements: dict[str, list[Placement]] = {}
        for placement in plan.placements:
            placements.setdefault(placement.offer.id, []).append(placement)
        refusals: dict[str, list[Refusal]] = {}
        for refusal in plan.refusals:
            refusals.setdefault(refusal.node, []).append(refusal)
        launches = []
        async with asyncio.TaskGroup() as group:
            for offer in offers:
                if offer.id in placements:
                    launches.append(group.create_task(self._launch(offer, placements[offer.id], asked)))
                    await asyncio.sleep(0)  # all else has its turn
                else:
                    why = reason(refusals.get(offer.node.id, ()))
                    self._subscription.decline(offer.id, why or "no service waits for resources")
        return None if all(launch.result() for launch in launches) else RETRY_S

    def _places(self, demands: Sequence[Demand]) -> Places:
        """Where instances are of the versions that apps have now, and beside a canary, of both. Of a task it was noted
        when it was launched."""
        places: dict[tuple[str, Constraint], Counter[str]] = {}
        for each in demands:
            app = self._picture.apps[each.app]
            known = self._picture.runs.get(app.id, {}).values()
            runs = [run for run in known if (app.canary is not None or current(app, run)) and not run.inactive]
            firsts = [instance[0] for instance in instances(runs)]
            for constraint in each.constraints:
                noted = (place_noted(run.view.spec, constraint.field) for run in firsts)
                places[app.id, constraint] = Counter(at for at in noted if at is not None)
        return places

    async def _launch(self, offer: Offer, placements: Sequence[Placement], asked: Mapping[str, str]) -> bool:
        """`asked` are the apps' versions for which places were looked for. Meanwhile they may have changed."""
        specs: list[TaskSpec] = []
        made: list[PersistentVolume] = []
        known = {view.volume.id for view in self._subscription.volumes()}
        for placement in placements:
            app = self._version(placement)
            if app is not None and (app.version == asked.get(app.id) or self._picture.missing_of(app)):
                tasks = new_tasks(app, datetime.now(UTC), self._place(app, placement))
                for spec in tasks:
                    self._picture.note(Run(_staging(spec, offer), launched_at=time.monotonic()))
                specs += tasks
                kept = app.definition.kept(FRAMEWORK, placement.instance or tasks[0].id)
                made += [volume for volume in kept if volume.id not in known]
                self.waiting.launched(placement.instance, [volume.id for volume in kept])
        if not specs:
            self._subscription.decline(offer.id, "no service waits for resources")
            return True
        try:
            await self._subscription.accept(offer.id, specs, made)
        except OfferGone:
            self._unlaunched(specs)
        except (StoreError, ValueError) as error:
            log.error("launch service tasks", node=offer.node.id, count=len(specs), error=str(error))
            self._unlaunched(specs)
            self._subscription.decline(offer.id, str(error))
            # Whether it was written before it failed, only the master can tell.
            ids = {spec.id for spec in specs}
            for view in await self._subscription.reconcile():
                if view.spec.id in ids:
                    self._picture.note(Run(view, launched_at=time.monotonic()))
            for placement in placements:
                self.declined.add(Refusal(placement.app, offer.node.id, offer.resources, said=str(error)))
            return False
        return True

    def _version(self, placement: Placement) -> App | None:
        """The app as the instance that is placed is to be; None when that is no longer wanted."""
        app = self._picture.app(placement.app)
        versions = [app, app.before] if app is not None else []
        return next((each for each in versions if each and each.config_version == placement.version), None)

    def _place(self, app: App, placement: Placement) -> Place:
        asks = any(each.addresses for each in app.definition.networks)
        runs = self._picture.runs.get(app.id, {}).values() if asks else ()
        used = frozenset(address for run in runs for address in addresses_asked(run.view.spec))
        node = placement.offer.node
        fields = {each.field: each.place_of(node) for each in constraints_of(app)}
        noted = tuple((field, at) for field, at in fields.items() if at is not None)
        return Place(str(node.address), placement.ports, placement.instance, used, noted)

    def _unlaunched(self, specs: Sequence[TaskSpec]) -> None:
        for spec in specs:
            self._picture.forget(spec)
        self.ask()


def _staging(spec: TaskSpec, offer: Offer) -> TaskView:
    return TaskView(spec, offer.node.id, TaskStatus(spec.id, TaskState.STAGING, at=time.time()))
