"""What a due time leads to.

That it was dealt with is written down in one transaction with its run, which only succeeds if nobody has changed the
schedule meanwhile: a due time has one run, or the reason why it has none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from frameworks.jobs import pipeline as pipelines
from frameworks.jobs.job import Job
from frameworks.jobs.ledger import Change, Ledger
from frameworks.jobs.run import Run
from frameworks.jobs.schedule import Scheduled, Skipped
from frameworks.jobs.starts import Progress, begun, scheduled


@dataclass(frozen=True, slots=True)
class Dealt:
    """`run` is the one that is made, if there is one; else the schedule says why not."""

    schedule: Scheduled
    changes: list[Change[Any]]
    run: Run | None = None


def next_due(schedule: Scheduled | None) -> float | None:
    """The first due time that was not dealt with; None when there is none."""
    enabled = schedule is not None and schedule.definition.enabled
    return schedule.next(schedule.mark) if schedule is not None and enabled else None


def dealt_with(ledger: Ledger, job: Job, schedule: Scheduled, due: float, now: float) -> Dealt:
    late = now - due - schedule.definition.startingDeadlineSeconds
    if late > 0:
        return _skipped(ledger, schedule, due, f"was noticed {late:.0f} s after startingDeadlineSeconds")
    run = scheduled(job, schedule, due, now)
    if ledger.runs.get(run.key) is not None:  # made before the schedule was removed and made again
        return _skipped(ledger, schedule, due, f"has run {run.id} already")
    policy = schedule.definition.concurrencyPolicy
    active = [each for each in ledger.pipelines_of(job.id) if not each.over]
    stopped: list[Change[Any]] = []
    if policy == "FORBID" and (ledger.active(job.id) or active):
        return _skipped(ledger, schedule, due, f"run {_first_active(ledger, job.id)} is still active")
    if policy == "REPLACE":
        stopped, keys = _stopped(ledger, job.id, active, f"replaced by run {run.id}", now)
        run = replace(run, replaces=tuple(keys))
    followed = replace(schedule, mark=due, due=due, skipped=None)
    changes = [Change(ledger.schedules, schedule.key, followed), *stopped, *begun(ledger, run)]
    return Dealt(followed, changes, run)


def _first_active(ledger: Ledger, job: str) -> str:
    """Of its runs, and of those of the pipelines that begin with it."""
    runs = [run.id for run in ledger.runs_of(job)]
    return (runs or [each.id for each in ledger.pipelines_of(job) if not each.over])[0]


def _skipped(ledger: Ledger, schedule: Scheduled, due: float, reason: str) -> Dealt:
    followed = replace(schedule, mark=due, due=due, skipped=Skipped(due, reason))
    return Dealt(followed, [Change(ledger.schedules, schedule.key, followed)])


def _stopped(
    ledger: Ledger, job: str, active: list[pipelines.Pipeline], reason: str, now: float
) -> tuple[list[Change[Any]], list[str]]:
    runs = {run.key: run for run in ledger.runs_of(job)}
    progress = Progress(ledger, now)
    for pipeline in active:
        progress.put(pipelines.stopped(pipeline, reason))
        runs |= {run.key: run for run in runs_of(ledger, pipeline)}
    progress.advance()
    changes = [Change(ledger.runs, key, replace(run, stopping=reason)) for key, run in runs.items() if not run.stopping]
    return [*changes, *progress.changes()], list(runs)


def runs_of(ledger: Ledger, pipeline: pipelines.Pipeline) -> list[Run]:
    """Those of a pipeline that are not over."""
    found = (ledger.runs.get(f"{node.job}/{node.run}") for node in pipeline.nodes if node.state == pipelines.RUNNING)
    return [run for run in found if run is not None]
