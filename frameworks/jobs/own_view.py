"""Our own view of jobs, runs and pipelines (`/api/v1/...`): what Metronome has no words for, above all why something
waits or did not start.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from frameworks.jobs import pipeline as pipelines
from frameworks.jobs.answers import finished_json, run_json, schedule_json, spec_json, summary_json
from frameworks.jobs.framework import Jobs
from frameworks.jobs.job import Job
from frameworks.jobs.pipeline import Node, Pipeline
from frameworks.jobs.refusals import known_run, told
from frameworks.jobs.run import Attempt, Finished, Run
from frameworks.jobs.schedule import Scheduled
from frameworks.jobs.times import time_or_none
from master.rest.event_stream import LastEventId, stream

Json = dict[str, Any]
NOT_RUN = "NOT_RUN"
SENTENCES = 20


def own_view(jobs: Jobs) -> APIRouter:
    router = APIRouter(prefix="/api/v1", tags=["jobs"])
    view = _View(jobs)

    @router.get("/jobs/events", response_model=None)
    async def events(last_event_id: LastEventId = "", follow: bool = True) -> StreamingResponse:
        """From now on, or from where the reader was."""
        return stream(jobs.events.read(last_event_id or jobs.events.newest, follow))

    @router.get("/jobs/{job_id}")
    async def job(job_id: str) -> Json:
        with told(job_id):
            return view.job(jobs.catalog.read(job_id))

    @router.get("/jobs/{job_id}/runs/{run_id}")
    async def run(job_id: str, run_id: str) -> Json:
        return {"run": view.run(await known_run(jobs, job_id, run_id))}

    @router.get("/pipelines")
    async def list_pipelines(job: str | None = None) -> Json:
        known = list(jobs.ledger.pipelines) if job is None else jobs.ledger.pipelines_of(job)
        newest = sorted(known, key=lambda each: each.created, reverse=True)
        return {"pipelines": [view.pipeline(each) for each in newest]}

    @router.get("/pipelines/{run}")
    async def pipeline(run: str) -> Json:
        with told():
            return {"pipeline": view.pipeline(jobs.pipeline(run))}

    @router.post("/pipelines/{run}/actions/stop")
    async def stop(run: str) -> Json:
        with told():
            return {"pipeline": view.pipeline(await jobs.stop_pipeline(run))}

    @router.post("/pipelines/{run}/rerun")
    async def rerun(run: str) -> Json:
        with told():
            return {"pipeline": view.pipeline(await jobs.rerun(run))}

    return router


class _View:
    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    def job(self, job: Job) -> Json:
        ledger, now = self._jobs.ledger, self._jobs.clock()
        schedules, runs = ledger.schedules_of(job.id), ledger.runs_of(job.id)
        waiting = dict.fromkeys(sentence for run in runs for sentence in self._jobs.waiting(run))
        return {
            "job": spec_json(job, schedules, now) | {"historySummary": summary_json(ledger.history_of(job))},
            "schedules": [self._schedule(each, now) for each in schedules],
            "runs": [self.run(run) for run in runs],
            "waiting": list(waiting)[:SENTENCES],
            "pipeline": self._pipeline_of(job),
        }

    def _schedule(self, scheduled: Scheduled, now: float) -> Json:
        skipped = scheduled.skipped
        said = {"dueAt": time_or_none(skipped.due), "reason": skipped.reason} if skipped is not None else None
        return schedule_json(scheduled, now) | {"lastDueAt": time_or_none(scheduled.due), "skipped": said}

    def run(self, run: Run | Finished) -> Json:
        if isinstance(run, Finished):
            own = finished_json(run) | {"reason": run.reason, "waiting": []}
            attempts = run.tasks
        else:
            live = self._jobs.live
            own = run_json(run, live.view(run.task), live.started(run.task), self._jobs.held(run))
            own |= {"reason": run.stopping, "waiting": self._jobs.waiting(run)}
            attempts = run.ended
        details = {each.task: _details(each) for each in attempts}
        tasks = [task | (details.get(task["id"]) or self._details(task["id"])) for task in own["tasks"]]
        return own | {
            "tasks": tasks,
            "attempt": run.attempt,
            "schedule": run.schedule or None,
            "dueAt": time_or_none(run.due),
            "pipeline": run.pipeline or None,
        }

    def _details(self, task: str) -> Json:
        view = self._jobs.live.view(task)
        return {
            "node": view.node if view is not None else "",
            "exitCode": view.status.exit_code if view is not None else None,
            "message": (view.status.message or view.status.reason) if view is not None else "",
        }

    def pipeline(self, pipeline: Pipeline) -> Json:
        return {
            "id": pipeline.id,
            "job": pipeline.job,
            "state": pipeline.state,
            "reason": pipeline.stopped,
            "createdAt": time_or_none(pipeline.created),
            "completedAt": time_or_none(pipeline.completed),
            "schedule": pipeline.schedule or None,
            "dueAt": time_or_none(pipeline.due),
            "reruns": pipeline.reruns,
            "nodes": [self._node(node, pipeline) for node in pipeline.nodes],
            "edges": _edges(pipeline),
        }

    def _node(self, node: Node, pipeline: Pipeline) -> Json:
        run = self._jobs.ledger.runs.get(f"{node.job}/{node.run}") if node.state == pipelines.RUNNING else None
        shown = self.run(run) if run is not None else None
        return {
            "job": node.job,
            "state": shown["status"] if shown is not None else node.state,
            "run": node.run or None,
            "reason": shown["reason"] if shown is not None else node.reason,
            "dependencies": list(node.dependencies),
            "outside": list(node.outside),
            "startedAt": time_or_none(node.started),
            "completedAt": time_or_none(node.completed),
            "waiting": shown["waiting"] if shown is not None else pipelines.waits_for(node, pipeline),
        }

    def _pipeline_of(self, job: Job) -> Json | None:
        """The last one that it was part of; before the first, the graph."""
        ledger = self._jobs.ledger
        if job.id not in ledger.dependents and not job.definition.dependencies:
            return None
        known = [each for each in ledger.pipelines if each.node(job.id) is not None]
        if known:
            return self.pipeline(max(known, key=lambda each: each.created))
        nodes = pipelines.nodes_of(job.id, ledger.dependencies, ledger.dependents)
        graph = self.pipeline(Pipeline("", job.id, 0.0, nodes))
        shown = [node | {"state": NOT_RUN, "waiting": []} for node in graph["nodes"]]
        return graph | {"id": None, "state": NOT_RUN, "createdAt": None, "nodes": shown}


def _details(attempt: Attempt) -> Json:
    return {"node": attempt.node, "exitCode": attempt.exit_code, "message": attempt.message}


def _edges(pipeline: Pipeline) -> list[Json]:
    return [{"from": each, "to": node.job} for node in pipeline.nodes for each in node.dependencies]
