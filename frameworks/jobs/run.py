"""Runs of jobs, as they are stored, and what becomes of one when its task ends. Pure.

A run has one task at a time, named after it and the attempt: after a restart of the master it is found again by its
name, and a task that is not there was never started. What is over is a `Finished`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from frameworks.jobs.definition import Definition
from master.offers import TaskView
from model.codec import Codec
from model.task import TaskSpec, TaskState

FRAMEWORK = "jobs"
RETRY_FIRST_S = 1.0
RETRY_MOST_S = 60.0
ATTEMPTS_KEPT = 20  # of a run that is tried for days
SUCCESS, FAILED, KILLED = "SUCCESS", "FAILED", "KILLED"
INITIAL, STARTING, ACTIVE = "INITIAL", "STARTING", "ACTIVE"


@dataclass(frozen=True, slots=True)
class Attempt:
    """A task that is over. Times are seconds since the epoch."""

    task: str
    node: str
    state: TaskState
    started: float | None
    ended: float
    exit_code: int | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """`definition` is the job's as it was then, with what is different this once; runs of one `group` ask for the same.
    `life` is that of the job: another one of its name has nothing to do with this. Its task is to run by
    `start_by`, and not to begin before `not_before`, nor before those that it `replaces` are over. `stopping` says why
    it is to end. `ended` are its former tasks."""

    job: str
    id: str
    definition: Definition
    group: str
    life: str
    created: float
    start_by: float
    attempt: int = 1
    not_before: float = 0.0
    ended: tuple[Attempt, ...] = ()
    schedule: str = ""
    due: float | None = None
    pipeline: str = ""
    replaces: tuple[str, ...] = ()
    stopping: str = ""

    @property
    def key(self) -> str:
        return f"{self.job}/{self.id}"

    @property
    def task(self) -> str:
        return f"{self.job}.{self.id}.{self.attempt}"


@dataclass(frozen=True, slots=True)
class Finished:
    """A run that is over. `status` is SUCCESS, FAILED or KILLED."""

    job: str
    id: str
    status: str
    created: float
    completed: float
    attempt: int
    tasks: tuple[Attempt, ...]
    reason: str = ""
    schedule: str = ""
    due: float | None = None
    pipeline: str = ""


CODEC = Codec(Run)
FINISHED = Codec(Finished)


def run_of(task: TaskSpec) -> str:
    """The key of the run that a task belongs to."""
    return f"{task.owner}/{task.id.removeprefix(task.owner + '.').rpartition('.')[0]}"


def run_id(at: float, ending: str) -> str:
    """Metronome's form: the time, to the second, and characters that make it the only one."""
    return f"{datetime.fromtimestamp(at, UTC):%Y%m%d%H%M%S}{ending}"


def after(run: Run, view: TaskView | None, started: float | None, now: float) -> Run | Finished:
    """What the run is when its task, or that there is none, is the end of this attempt."""
    if view is None:
        late = "" if run.stopping else f"did not start by {_time(run.start_by)}"
        return _finished(run, KILLED if run.stopping else FAILED, run.stopping or late, now)
    ended = replace(run, ended=(*run.ended, attempt_of(view, started))[-ATTEMPTS_KEPT:])
    if view.status.state is TaskState.FINISHED:
        return _finished(ended, SUCCESS, "", now)
    if run.stopping:
        return _finished(ended, KILLED, run.stopping, now)
    reason = describe_end(view)
    if view.killing and view.status.state is TaskState.KILLED:
        return _finished(ended, KILLED, "its task was killed", now)
    if not _may_try_again(run, now):
        return _finished(ended, FAILED, reason, now)
    not_before = now + min(RETRY_FIRST_S * 2 ** (run.attempt - 1), RETRY_MOST_S) if run.attempt < 60 else now
    start_by = not_before + run.definition.run.maxLaunchDelay
    return replace(ended, attempt=run.attempt + 1, not_before=not_before, start_by=start_by, replaces=())


def attempt_of(view: TaskView, started: float | None) -> Attempt:
    status = view.status
    ended = status.since or status.at
    return Attempt(view.spec.id, view.node, status.state, started, ended, status.exit_code, _detail(view))


def describe_end(view: TaskView) -> str:
    """`failed: exit code 1`."""
    word, detail = view.status.state.name.lower(), _detail(view)
    return f"{word}: {detail}" if detail else word


def _detail(view: TaskView) -> str:
    status = view.status
    detail = status.message or status.reason
    return f"exit code {status.exit_code}" if not detail and status.exit_code is not None else detail


def _may_try_again(run: Run, now: float) -> bool:
    restart = run.definition.run.restart
    limit = restart.activeDeadlineSeconds
    return restart.policy == "ON_FAILURE" and (limit is None or now < run.created + limit)


def _finished(run: Run, status: str, reason: str, now: float) -> Finished:
    return Finished(
        run.job,
        run.id,
        status,
        run.created,
        now,
        run.attempt,
        run.ended,
        reason,
        run.schedule,
        run.due,
        run.pipeline,
    )


def _time(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"
