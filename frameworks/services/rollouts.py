"""Deployments: from a change of an app to what became of it.

A deployment succeeds when the app is as it was asked to be, and what happens to its tasks later is none. It fails when
it has a deadline (`tepui/deadline`) and is late: then the app goes back to what it was before, so that a bad version
ends by itself. An app that is new has nothing to go back to, so it goes on trying, but is locked no more. It is
cancelled when another change takes its place. How the last ones ended is kept in memory.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import structlog

from frameworks.services import catalog, options
from frameworks.services.app import SUCCEEDED, App, parse_time
from frameworks.services.catalog import UnknownApp
from frameworks.services.events import ServiceEvents
from frameworks.services.wanted import Run, settled, tried
from master.store.base import Conflict, Store
from model.codec import Damaged

ENDED_KEPT = 1000
CANCELLED = "another change took its place"
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Ended:
    """Of those of its apps that it is over for. `state` is `succeeded`, or what became of the first that did not:
    `failed` or `cancelled`. `at` is in seconds since the epoch."""

    apps: tuple[App, ...]
    state: str
    reason: str
    at: float


class Rollouts:
    def __init__(self, store: Store, events: ServiceEvents) -> None:
        self._store = store
        self._events = events
        self._began = time.time()
        self._under_way: dict[str, App] = {}
        self._ended: dict[str, Ended] = {}  # by deployment, the oldest first

    def load(self, apps: Iterable[App]) -> None:
        """What was under way when the master ended goes on."""
        self._under_way = {app.id: app for app in apps if not app.outcome}

    def changed(self, previous: App | None, app: App | None) -> None:
        """What the store has of an app, before and after."""
        if app is not None and previous is not None and app.deployment == previous.deployment:
            if app.outcome and not previous.outcome:
                self._end(app, *((SUCCEEDED, "") if app.outcome == SUCCEEDED else ("failed", app.outcome)))
            elif not app.outcome and app.id not in self._under_way:  # it was read at the start already
                self._begin(app)
            return
        if previous is not None and previous.id in self._under_way:
            self._end(previous, *(("failed", app.undoes) if app and app.undoes else ("cancelled", CANCELLED)))
        if app is not None:
            self._begin(app)
        elif previous is not None:
            self._events.gone(previous.id)

    def under_way(self) -> Collection[App]:
        return self._under_way.values()

    def is_under_way(self, app_id: str) -> bool:
        return app_id in self._under_way

    def ended(self, deployment: str) -> Ended | None:
        """None while it is under way for any of its apps."""
        under_way = any(app.deployment == deployment for app in self._under_way.values())
        return None if under_way else self._ended.get(deployment)

    async def settle(self, app: App, runs: list[Run]) -> None:
        """Of an app that may be as it was asked to be. Raises StoreError."""
        if app.id in self._under_way and settled(app, runs):
            await catalog.conclude(self._store, app, SUCCEEDED)

    async def expire(self, now: float) -> float | None:
        """What is late is taken back. Returns in how many seconds the next one is due. Raises StoreError."""
        times = {app.id: at for app in self._under_way.values() if (at := self.deadline(app)) is not None}
        for app in [app for app in self._under_way.values() if times.get(app.id, now + 1) <= now]:
            del times[app.id]
            await self._give_up(app)
        return max(0.0, min(times.values()) - now) if times else None

    def deadline(self, app: App) -> float | None:
        """Until when it has to have succeeded, in seconds since the epoch. A master that was away gives it the time
        again. What takes a deployment back has none, and a canary waits for as long as people do."""
        limit_s = options.deadline_s(app.definition.labels)
        if limit_s is None or app.undoes or app.canary is not None:
            return None
        return max(parse_time(app.version).timestamp(), self._began) + limit_s

    async def _give_up(self, app: App) -> None:
        late = f"it did not succeed within {options.deadline_s(app.definition.labels):g} s"
        log.warning("deployment is late", app=app.id, deployment=app.deployment, reason=late)
        try:
            if await catalog.go_back(self._store, app, late) is None:
                await catalog.conclude(self._store, app, late)
        except (UnknownApp, Conflict, Damaged):
            return  # it was changed meanwhile: this is another deployment

    def _begin(self, app: App) -> None:
        self._under_way[app.id] = app
        self._events.deployment("deployment_info", app)

    def _end(self, app: App, state: str, reason: str) -> None:
        self._under_way.pop(app.id, None)
        known = self._ended.pop(app.deployment, None) or Ended((), SUCCEEDED, "", 0.0)
        worst = (state, reason) if known.state == SUCCEEDED else (known.state, known.reason)
        self._ended[app.deployment] = Ended((*known.apps, app), *worst, time.time())
        while len(self._ended) > ENDED_KEPT:
            del self._ended[next(iter(self._ended))]
        self._events.deployment("deployment_success" if state == SUCCEEDED else "deployment_failed", app)


def stage(app: App, runs: list[Run]) -> str:
    """What a canary waits for, in a sentence; empty when it is none, or does not serve yet."""
    if app.canary is None or not tried(app, runs):
        return ""
    count = app.canary.instances
    serves = "1 instance of the new version serves" if count == 1 else f"{count} instances of the new version serve"
    return f"{serves}: promote it, or cancel the deployment"
