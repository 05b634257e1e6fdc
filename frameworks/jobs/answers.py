"""What the API answers of jobs, schedules and runs, in Metronome's words and with its keys. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from frameworks.jobs.job import History, Job
from frameworks.jobs.run import ACTIVE, INITIAL, STARTING, SUCCESS, Attempt, Finished, Run
from frameworks.jobs.schedule import Scheduled
from frameworks.jobs.times import format_time, time_or_none
from master.offers import TaskView
from model.task import TaskState

Json = dict[str, Any]

# Metronome knows no others (`TaskState.scala`).
TASK_STATES = {
    TaskState.STAGING: "TASK_STAGING",
    TaskState.ASSIGNED: "TASK_STAGING",
    TaskState.ACCEPTED: "TASK_STAGING",
    TaskState.PREPARING: "TASK_STARTING",
    TaskState.STARTING: "TASK_STARTING",
    TaskState.RUNNING: "TASK_RUNNING",
    TaskState.KILLING: "TASK_RUNNING",
    TaskState.FINISHED: "TASK_FINISHED",
    TaskState.KILLED: "TASK_KILLED",
}
ENDED_BADLY = "TASK_FAILED"


def spec_json(job: Job, schedules: Sequence[Scheduled], now: float | None = None) -> Json:
    """The definition. `now` is for when its schedules are due next."""
    answer: Json = job.definition.model_dump(exclude_none=True)
    return answer | {"schedules": [schedule_json(each, now) for each in schedules]}


def schedule_json(scheduled: Scheduled, now: float | None = None) -> Json:
    answer: Json = scheduled.definition.model_dump(exclude_none=True)
    if now is not None:
        answer["nextRunAt"] = time_or_none(scheduled.next(now))
    return answer


def status_of(view: TaskView | None, held: bool) -> str:
    """`held`: it is not its turn yet."""
    if view is not None:
        return ACTIVE
    return INITIAL if held else STARTING


def run_json(run: Run, view: TaskView | None, started: float | None, held: bool) -> Json:
    """Of one that is not over."""
    tasks = [attempt_json(each) for each in run.ended]
    if view is not None:
        tasks.append(task_json(view, started))
    return {
        "id": run.id,
        "jobId": run.job,
        "status": status_of(view, held),
        "createdAt": format_time(run.created),
        "completedAt": None,
        "tasks": tasks,
    }


def finished_json(finished: Finished) -> Json:
    return {
        "id": finished.id,
        "jobId": finished.job,
        "status": finished.status,
        "createdAt": format_time(finished.created),
        "completedAt": format_time(finished.completed),
        "tasks": [attempt_json(each) for each in finished.tasks],
    }


def task_json(view: TaskView, started: float | None) -> Json:
    status = view.status
    return {
        "id": view.spec.id,
        "startedAt": format_time(started if started is not None else status.since or status.at),
        "completedAt": None,
        "status": TASK_STATES.get(status.state, ENDED_BADLY),
    }


def attempt_json(attempt: Attempt) -> Json:
    started = attempt.started if attempt.started is not None else attempt.ended
    return {
        "id": attempt.task,
        "startedAt": format_time(started),
        "completedAt": format_time(attempt.ended),
        "status": TASK_STATES.get(attempt.state, ENDED_BADLY),
    }


def summary_json(history: History) -> Json:
    return {
        "successCount": history.successes,
        "failureCount": history.failures,
        "lastSuccessAt": time_or_none(history.last_success),
        "lastFailureAt": time_or_none(history.last_failure),
    }


def history_json(history: History, finished: Iterable[Finished]) -> Json:
    infos: dict[bool, list[Json]] = {True: [], False: []}
    for each in finished:
        infos[each.status == SUCCESS].append(_info(each))
    return summary_json(history) | {"successfulFinishedRuns": infos[True], "failedFinishedRuns": infos[False]}


def _info(finished: Finished) -> Json:
    return {
        "id": finished.id,
        "createdAt": format_time(finished.created),
        "finishedAt": format_time(finished.completed),
        "tasks": [each.task for each in finished.tasks],
    }
