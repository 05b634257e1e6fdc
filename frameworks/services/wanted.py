"""What should change, as pure functions of an app and its tasks: how many are missing, which are too many.

A task that is being killed still counts: it may run for its whole grace period, and an app never has more tasks than
it asks for because of something this framework started.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from frameworks.services.app import VERSION_LABEL, App, label
from frameworks.services.backoff import NEVER
from master.offers import TaskView
from model.health import given_up
from model.task import TaskState


@dataclass(frozen=True, slots=True)
class Run:
    """A task that is not over. `launched_at` and `running_at` are on the monotonic clock: NEVER when that was before
    this master's time. `started` is what the node said, in seconds since the epoch."""

    view: TaskView
    launched_at: float = NEVER
    running_at: float | None = None
    started: float | None = None

    @property
    def id(self) -> str:
        return self.view.spec.id

    @property
    def running(self) -> bool:
        return self.view.status.state == TaskState.RUNNING

    @property
    def serving(self) -> bool:
        """It runs, is well if that is checked, and ready for others if that is."""
        spec, status = self.view.spec, self.view.status
        well = status.healthy is True or not spec.health_checks
        ready = len(spec.readiness_checks) == sum(readiness.ready for readiness in status.readiness)
        return self.running and well and ready


def missing(app: App, runs: Iterable[Run]) -> int:
    return max(0, app.instances - sum(1 for _ in runs))


def surplus(app: App | None, runs: Iterable[Run], chosen: Collection[str] = ()) -> list[Run]:
    """Which to kill: all of other versions and those that their checks gave up, then as many as are too many: those
    with a `chosen` id, then the worst first."""
    living = [run for run in runs if not run.view.killing]
    if app is None:
        return living
    staying = sorted((run for run in living if current(app, run) and not illness(run.view)), key=_worth)
    staying.sort(key=lambda run: run.id not in chosen)
    obsolete = [run for run in living if not current(app, run) or illness(run.view)]
    return obsolete + staying[: max(0, len(staying) - app.instances)]


def settled(app: App, runs: Iterable[Run]) -> bool:
    """The app is as it was asked to be: nothing is left of its deployment."""
    known = list(runs)
    return len(known) == app.instances and all(current(app, run) and run.serving for run in known)


def current(app: App, run: Run) -> bool:
    return label(run.view.spec, VERSION_LABEL) == app.config_version


def illness(view: TaskView) -> str:
    """Why its checks gave the task up; empty when they did not."""
    return given_up(view.spec.health_checks, view.status.health)


def _worth(run: Run) -> tuple[bool, bool, float, float, str]:
    """Unhealthy before healthy, not yet running before running, the newest first."""
    launched = run.view.status.at if run.started is None else run.started
    return run.view.status.healthy is not False, run.running, -run.launched_at, -launched, run.id
