"""What happens to jobs, by the names that Metronome has for it inside (`Event.scala`); it tells nobody, we do.

Pipelines, and due times that are passed over, are ours.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from frameworks.jobs.answers import finished_json, run_json, spec_json
from frameworks.jobs.job import Job
from frameworks.jobs.ledger import Ledger
from frameworks.jobs.pipeline import Pipeline
from frameworks.jobs.run import SUCCESS, Finished, Run
from frameworks.jobs.schedule import Scheduled, Skipped
from frameworks.jobs.times import format_time
from master.event_log import EventLog
from master.offers import TaskView


class JobEvents(EventLog):
    def job(self, kind: str, job: Job, ledger: Ledger) -> None:
        """`kind`: `job_created`, `job_updated` or `job_deleted`."""
        self._tell(kind, job=spec_json(job, ledger.schedules_of(job.id)))

    def started(self, run: Run) -> None:
        self._tell("job_run_started", jobRun=run_json(run, None, None, held=False))

    def updated(self, run: Run, view: TaskView | None, started: float | None) -> None:
        self._tell("job_run_updated", jobRun=run_json(run, view, started, held=False))

    def ended(self, finished: Finished) -> None:
        kind = "job_run_finished" if finished.status == SUCCESS else "job_run_failed"
        self._tell(kind, jobRun=finished_json(finished), reason=finished.reason)

    def pipeline(self, before: Pipeline | None, after: Pipeline) -> None:
        if before is None:
            kind = "pipeline_started"
        elif not after.over:
            kind = "pipeline_updated"
        else:
            kind = "pipeline_finished" if after.state == SUCCESS else "pipeline_failed"
        nodes = [{"job": node.job, "state": node.state, "reason": node.reason} for node in after.nodes]
        self._tell(kind, pipeline=after.id, job=after.job, state=after.state, nodes=nodes)

    def skipped(self, schedule: Scheduled, skipped: Skipped) -> None:
        due = format_time(skipped.due)
        self._tell("schedule_skipped", jobId=schedule.job, id=schedule.definition.id, dueAt=due, reason=skipped.reason)

    def _tell(self, kind: str, **said: Any) -> None:
        now = format_time(datetime.now(UTC).timestamp())
        self.publish(kind, {"eventType": kind, "timestamp": now, **said})
