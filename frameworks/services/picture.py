"""What is known of apps and their tasks: `framework.py` acts on it.

Nothing here waits for anybody. Whatever changes of an app is noted in `touched`, so that a pass looks at the apps of
which something changed and at no others.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf

import structlog

from frameworks.services import dependencies, system
from frameworks.services.app import GROUP_CODEC, GROUPS, PREFIX, STAGED_LABEL, SUCCEEDED, App, Group, decoded, label
from frameworks.services.backoff import Backoff, Failure, failed, waits
from frameworks.services.unreachable import times
from frameworks.services.vips import Claimed
from frameworks.services.wanted import Run, illness, missing, missing_before, settled, surplus
from master.offers import TaskView
from master.store.base import Change
from model.codec import Damaged
from model.node import Node
from model.task import TaskSpec, TaskState

NOT_ITS_FAULT = {TaskState.KILLED, TaskState.LOST, TaskState.GONE}  # no reason to start the app more slowly
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class TaskFailure:
    view: TaskView
    version: str
    at: float


class Picture:
    def __init__(self) -> None:
        self.apps: dict[str, App] = {}
        self.claimed = Claimed()  # VIPs
        self.groups: dict[str, Group] = {}
        self.unreadable: set[str] = set()  # ids: their tasks are left alone
        self.runs: dict[str, dict[str, Run]] = {}  # app -> task -> run
        self.nodes: tuple[Node, ...] = ()  # that take tasks
        self.backoff: dict[str, Backoff] = {}
        self.failures: dict[str, TaskFailure] = {}
        self.chosen: set[str] = set()  # ids: they go first when their app shrinks
        self.condemned: set[str] = set()  # volumes of apps that are gone
        self.touched: set[str] = set()
        self.lacking: set[str] = set()  # apps that have fewer instances than they ask for
        self._away: dict[str, str] = {}  # tasks whose nodes are unreachable, and their apps

    def app(self, app_id: str) -> App | None:
        app = self.apps.get(app_id)
        return None if app is None else self.sized(app)

    def sized(self, app: App) -> App:
        """A system service has as many instances as there are nodes for it."""
        if not system.is_system(app):
            return app
        return replace(app, definition=app.definition.scaled(len(self._targets(app))))

    def runs_of(self, app_id: str) -> list[Run]:
        """Tasks that are not over, oldest first."""
        return sorted(self.runs.get(app_id, {}).values(), key=lambda run: (label(run.view.spec, STAGED_LABEL), run.id))

    def run(self, spec: TaskSpec) -> Run | None:
        return self.runs.get(spec.owner, {}).get(spec.id)

    def too_many(self, app_id: str) -> list[Run]:
        """Tasks that are to be killed."""
        app, runs = self.app(app_id), list(self.runs.get(app_id, {}).values())
        misplaced = system.misplaced(self._targets(app), runs) if app is not None and system.is_system(app) else []
        others = [run for run in runs if run not in misplaced]
        return [*(run for run in misplaced if not run.view.killing), *surplus(app, others, self.chosen)]

    def missing(self, app: App) -> int:
        runs = self.runs.get(app.id, {}).values()
        return missing(app, runs) + missing_before(app, runs)

    def missing_of(self, version: App) -> int:
        """Of an app, or of what its canary leaves as it was: how many of that to start."""
        app = self.app(version.id)
        if app is None:
            return 0
        count = missing if version.config_version == app.config_version else missing_before
        return count(app, self.runs.get(app.id, {}).values())

    def held_by(self, app: App) -> list[str]:
        """What it depends on that is not as it was asked to be."""
        groups = {path: group.dependencies for path, group in self.groups.items()}
        paths = dependencies.paths_of(app.id, app.definition.dependencies, groups)
        others = {each for path in paths for each in dependencies.among(path, self.apps)} - {app.id}
        return sorted(each for each in others if not self._is_there(self.apps[each]))

    def replaced(self, change: Change) -> tuple[App | None, App | None]:
        """An app in the store is another one now. Returns it as it was and as it is."""
        app_id = change.key.removeprefix(PREFIX)
        previous = self.apps.pop(app_id, None)
        self.unreadable.discard(app_id)
        if change.value is not None:
            try:
                self.apps[app_id] = decoded(change.value)
            except Damaged as error:
                self.unreadable.add(app_id)
                log.error("read service from the store", app=app_id, error=str(error))
        app = self.apps.get(app_id)
        self.claimed.put(app_id, app.definition if app is not None else None)
        if app is None or previous is None or app.config_version != previous.config_version:
            self.backoff.pop(app_id, None)
            self.failures.pop(app_id, None)
        self.touched.add(app_id)
        return previous, app

    def group_replaced(self, change: Change) -> None:
        path = change.key.removeprefix(GROUPS)
        self.groups.pop(path, None)
        if change.value is not None:
            try:
                self.groups[path] = GROUP_CODEC.decode(change.value)
            except Damaged as error:
                log.error("read group from the store", group=path, error=str(error))

    def nodes_changed(self, nodes: Sequence[Node]) -> None:
        self.nodes = tuple(nodes)
        self.touched.update(app.id for app in self.apps.values() if system.is_system(app))

    def note(self, run: Run) -> None:
        """Put the task into the picture, and remember when it was first seen running."""
        if run.view.status.state.terminal:
            return
        if run.running and run.running_at is None:
            run = replace(run, running_at=time.monotonic(), started=run.view.status.since or run.view.status.at)
        if run.view.unreachable is not None:
            self._away[run.id] = run.view.spec.owner
        elif self._away.pop(run.id, None) is not None:
            run = replace(run, inactive=False)
        self.runs.setdefault(run.view.spec.owner, {})[run.id] = run
        self.touched.add(run.view.spec.owner)

    def forget(self, spec: TaskSpec) -> Run | None:
        runs = self.runs.get(spec.owner, {})
        run = runs.pop(spec.id, None)
        self.chosen.discard(spec.id)
        self._away.pop(spec.id, None)
        if not runs:
            self.runs.pop(spec.owner, None)
        self.touched.add(spec.owner)
        return run

    def ended(self, view: TaskView) -> None:
        """It is out of the picture, and may be a reason to start the next one later."""
        app_id = view.spec.owner
        run, app = self.forget(view.spec), self.apps.get(app_id)
        ill = bool(illness(view))
        if run is None or app is None or (not ill and (view.killing or run.view.killing)):
            return
        state, now = view.status.state, time.monotonic()
        if ill or state not in (TaskState.FINISHED, TaskState.KILLED):
            self.failures[app_id] = TaskFailure(view, app.version, view.status.at)
        if not ill and state is TaskState.FINISHED:
            self.backoff[app_id] = waits(self.backoff.get(app_id, Backoff()), app.definition, now)
        elif ill or state not in NOT_ITS_FAULT:
            ran_s = now - run.running_at if run.running_at is not None else 0.0
            failure = Failure(run.launched_at, ran_s, describe_end(view))
            self.backoff[app_id] = failed(self.backoff.get(app_id, Backoff()), app.definition, failure, now)
        log.info("service task ended", app=app_id, task=view.spec.id, reason=describe_end(view))

    def delay(self, app_id: str, now: float) -> float:
        """Seconds until the next start."""
        return self.backoff.get(app_id, Backoff()).remaining(now)

    def count_away(self, now: float) -> tuple[list[Run], float | None]:
        """Of the tasks whose nodes are away, notes which count no more. Returns those that are given up, and in how
        many seconds the next one is due."""
        expunged: list[Run] = []
        due: list[float] = []
        for task_id, app_id in list(self._away.items()):
            app, run = self.apps.get(app_id), self.runs[app_id][task_id]
            if app is None or run.view.unreachable is None or run.view.killing:
                continue
            inactive_s, expunged_s = times(app.definition.unreachableStrategy)
            away_s = now - run.view.unreachable
            if away_s >= inactive_s and not run.inactive:
                log.info("service task counts no more", app=app_id, task=task_id, node=run.view.node, away_s=away_s)
                self.note(replace(run, inactive=True))
            if away_s >= expunged_s:
                expunged.append(run)
            due += [after_s - away_s for after_s in (inactive_s, expunged_s)]
        return expunged, min((s for s in due if 0 < s < inf), default=None)

    def count(self, touched: Iterable[str]) -> None:
        """Which of these apps lack instances."""
        for app_id in touched:
            app = self.app(app_id)
            (self.lacking.add if app is not None and self.missing(app) else self.lacking.discard)(app_id)

    def _targets(self, app: App) -> frozenset[str]:
        return system.targets(app, self.nodes, self.runs.get(app.id, {}).values())

    def _is_there(self, app: App) -> bool:
        return app.outcome == SUCCEEDED or settled(self.sized(app), self.runs.get(app.id, {}).values())


def describe_end(view: TaskView) -> str:
    """`failed: exit code 1`."""
    status = view.status
    if ill := illness(view):
        return f"unhealthy: {ill}"
    detail = status.message or status.reason
    if not detail and status.exit_code is not None:
        detail = f"exit code {status.exit_code}"
    return f"{status.state.name.lower()}: {detail}" if detail else status.state.name.lower()
