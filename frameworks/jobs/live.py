"""Tasks of runs, as the master told of them last. Not on disk: the master has it."""

from __future__ import annotations

import time

from master.offers import Offer, TaskView
from model.task import MESOS_STATES, TaskSpec, TaskState, TaskStatus, newer


class Live:
    def __init__(self) -> None:
        self._views: dict[str, TaskView] = {}
        self._started: dict[str, float] = {}  # seconds since the epoch, as the node said

    def view(self, task: str) -> TaskView | None:
        return self._views.get(task)

    def started(self, task: str) -> float | None:
        return self._started.get(task)

    def note(self, view: TaskView) -> bool:
        """Whether its state is another one, as Metronome tells them apart."""
        known = self._views.get(view.spec.id)
        if known is not None and not newer(known.status, view.status):
            if known.killing != view.killing:
                self._views[view.spec.id] = view
            return False
        self._views[view.spec.id] = view
        if view.status.state is TaskState.RUNNING:
            self._started.setdefault(view.spec.id, view.status.since or view.status.at)
        states = [MESOS_STATES[each.status.state] for each in (known, view) if each is not None]
        return len(set(states)) > 1 or known is None

    def stage(self, spec: TaskSpec, offer: Offer) -> None:
        """It counts from before it is handed to the master, so that it is not started twice meanwhile."""
        self._views[spec.id] = TaskView(spec, offer.node.id, TaskStatus(spec.id, TaskState.STAGING, at=time.time()))

    def unstage(self, task: str) -> bool:
        """Whether nothing is known of it but that it was to be handed over."""
        staged = self._views.get(task)
        if staged is None or staged.status.state is not TaskState.STAGING:
            return False
        self.forget(task)
        return True

    def forget(self, task: str) -> None:
        self._views.pop(task, None)
        self._started.pop(task, None)
