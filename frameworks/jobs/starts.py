"""New runs: what is to be written when one is asked for, when a schedule is due, and when a pipeline goes on.

Of a job that others depend on, a run is the beginning of a pipeline.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from frameworks.jobs import pipeline as pipelines
from frameworks.jobs.definition import Definition
from frameworks.jobs.job import Job, group_of
from frameworks.jobs.ledger import Change, Ledger
from frameworks.jobs.pipeline import Node, Pipeline
from frameworks.jobs.run import FAILED, Run, run_id
from frameworks.jobs.schedule import Scheduled

ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
ENDING = 10
Changes = list[Change[Any]]


def asked_for(job: Job, now: float, definition: Definition | None = None) -> Run:
    """`definition`, if it is another one than the job's."""
    return _run(job, run_id(now, _ending(secrets.token_bytes(ENDING))), now, definition)


def scheduled(job: Job, schedule: Scheduled, due: float, now: float) -> Run:
    """Of this due time there is no other: its id is made of it."""
    digest = hashlib.sha256(f"{job.id}/{schedule.definition.id}/{due:.0f}/{job.life}".encode()).digest()
    start_by = min(due + schedule.definition.startingDeadlineSeconds, now + job.definition.run.maxLaunchDelay)
    return _run(job, run_id(due, _ending(digest)), now, start_by=start_by, schedule=schedule.definition.id, due=due)


def _ending(data: bytes) -> str:
    return "".join(ALPHABET[byte % len(ALPHABET)] for byte in data[:ENDING])


def _run(job: Job, name: str, now: float, definition: Definition | None = None, **fields: Any) -> Run:
    wanted = definition or job.definition
    start_by = now + wanted.run.maxLaunchDelay
    group = group_of(job, name, definition is not None)
    return Run(job.id, name, wanted, group, job.life, now, **{"start_by": start_by, **fields})


def begun(ledger: Ledger, run: Run) -> Changes:
    """The run, and the pipeline that begins with it if others depend on its job."""
    if not ledger.dependents.get(run.job):
        return [Change(ledger.runs, run.key, run)]
    nodes = pipelines.nodes_of(run.job, ledger.dependencies, ledger.dependents)
    pipeline = Pipeline(run.id, run.job, run.created, nodes, schedule=run.schedule, due=run.due)
    advanced, _ = pipelines.advance(pipeline, lambda node: None, run.created)
    of_it = replace(run, pipeline=pipeline.id)
    kept = [known for known in ledger.pipelines_of(run.job) if known.over]
    forgotten = kept[: max(0, len(kept) + 1 - pipelines.RUNS_KEPT)]
    return [
        Change(ledger.runs, run.key, of_it),
        Change(ledger.pipelines, pipeline.id, advanced),
        *(Change(ledger.pipelines, known.id, None) for known in forgotten),
    ]


class Progress:
    """How pipelines go on with what has become of their runs, and the runs that are to be started."""

    def __init__(self, ledger: Ledger, now: float) -> None:
        self._ledger = ledger
        self._now = now
        self.pipelines: dict[str, Pipeline] = {}
        self.runs: dict[str, Run] = {}
        self._successes: dict[str, float] = {}  # of this moment, and in no history yet

    def succeeded(self, job: str) -> None:
        self._successes[job] = self._now

    def known(self, pipeline_id: str) -> Pipeline | None:
        return self.pipelines.get(pipeline_id) or self._ledger.pipelines.get(pipeline_id)

    def put(self, pipeline: Pipeline) -> None:
        self.pipelines[pipeline.id] = pipeline

    def advance(self) -> None:
        for pipeline in list(self.pipelines.values()):
            advanced, starting = pipelines.advance(pipeline, self._obstacle, self._now)
            self.pipelines[pipeline.id] = advanced
            for name in starting:
                job = self._ledger.jobs.get(name)
                assert job is not None
                run = _run(job, advanced.run, self._now, pipeline=pipeline.id)
                self.runs[run.key] = run

    def changes(self) -> Changes:
        ledger = self._ledger
        changed = [each for each in self.pipelines.values() if ledger.pipelines.get(each.id) != each]
        runs: Changes = [Change(ledger.runs, key, run) for key, run in self.runs.items()]
        # Of a job that was removed meanwhile nobody asks any more.
        kept = {each.id: each for each in changed if not each.over or ledger.jobs.get(each.job) is not None}
        return [*runs, *(Change(ledger.pipelines, each.id, kept.get(each.id)) for each in changed)]

    def _obstacle(self, node: Node) -> tuple[str, str] | None:
        job = self._ledger.jobs.get(node.job)
        if job is None:
            return FAILED, "the job was removed"
        if not node.outside:
            return None
        last = max([self._ledger.last_start(job), *self._starting(node.job)])
        stale = [each for each in node.outside if self._last_success(each) <= last]
        return (pipelines.SKIPPED, _stale(stale)) if stale else None

    def _starting(self, job: str) -> Iterable[float]:
        return (run.created for run in self.runs.values() if run.job == job)

    def _last_success(self, job_id: str) -> float:
        """0: never."""
        job = self._ledger.jobs.get(job_id)
        known = self._ledger.history_of(job).last_success if job is not None else None
        return max(known or 0.0, self._successes.get(job_id, 0.0))


def _stale(jobs: list[str]) -> str:
    names = ", ".join(jobs)
    has = "has" if len(jobs) == 1 else "have"
    return f"{names}, outside of this run, {has} not succeeded since it was started last: a run of that will start it"
