"""Metronome's REST API for jobs (`/v1/...`, `/v0/scheduled-jobs`). Answers have Metronome's keys and no others."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Query, Request, Response
from starlette.responses import PlainTextResponse

from frameworks.jobs.answers import finished_json, history_json, run_json, schedule_json, spec_json, summary_json
from frameworks.jobs.bodies import JobBody, parsed
from frameworks.jobs.definition import Overrides
from frameworks.jobs.framework import Jobs
from frameworks.jobs.job import Job
from frameworks.jobs.metrics import metronome_json
from frameworks.jobs.own_view import own_view
from frameworks.jobs.refusals import known_run, told
from frameworks.jobs.run import Run
from frameworks.jobs.schedule import ScheduleDefinition
from master.rest.flag import Flag

METRONOME_VERSION = "0.6.48"  # of the API: clients choose their calls by it
# Where DC/OS has its Metronome, and where its proxies often put it.
ALIASES = ("/service/metronome", "/metronome")
PUBLIC = tuple(alias + "/ping" for alias in ALIASES)

Json = dict[str, Any]
Embed = Annotated[list[Literal["activeRuns", "schedules", "history", "historySummary"]], Query()]


def routers(jobs: Jobs) -> list[APIRouter]:
    api = MetronomeApi(jobs)
    metronome, aliases = api.router(), APIRouter(include_in_schema=False)
    for alias in ALIASES:
        aliases.include_router(metronome, prefix=alias)
        aliases.include_router(api.of_itself(), prefix=alias)
    return [metronome, aliases, own_view(jobs)]


class MetronomeApi:
    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    def router(self) -> APIRouter:
        router = APIRouter(tags=["jobs"])
        router.get("/v1/jobs")(self.list_jobs)
        router.post("/v1/jobs", status_code=201)(self.create)
        router.get("/v1/jobs/{job_id}")(self.show)
        router.put("/v1/jobs/{job_id}")(self.update)
        router.delete("/v1/jobs/{job_id}")(self.delete)
        router.get("/v1/jobs/{job_id}/schedules")(self.schedules)
        router.post("/v1/jobs/{job_id}/schedules", status_code=201)(self.add_schedule)
        router.get("/v1/jobs/{job_id}/schedules/{schedule_id}")(self.schedule)
        router.put("/v1/jobs/{job_id}/schedules/{schedule_id}")(self.update_schedule)
        router.delete("/v1/jobs/{job_id}/schedules/{schedule_id}")(self.delete_schedule)
        router.get("/v1/jobs/{job_id}/runs")(self.runs)
        router.post("/v1/jobs/{job_id}/runs", status_code=201)(self.start)
        router.get("/v1/jobs/{job_id}/runs/{run_id}")(self.run)
        router.post("/v1/jobs/{job_id}/runs/{run_id}/actions/stop")(self.stop)
        router.post("/v0/scheduled-jobs", status_code=201)(self.create)
        router.put("/v0/scheduled-jobs/{job_id}")(self.update_with_schedules)
        router.get("/v1/queue")(self.queue)
        router.get("/v1/metrics")(self.metrics)
        router.get("/info")(self.info)
        router.get("/leader")(self.leader)
        return router

    def of_itself(self) -> APIRouter:
        """What is everybody's where there is no alias before it."""
        router = APIRouter(tags=["jobs"])
        router.get("/ping", response_class=PlainTextResponse)(self.ping)
        return router

    async def ping(self) -> str:
        return "pong"

    async def info(self) -> Json:
        return {"version": METRONOME_VERSION, "libVersion": METRONOME_VERSION, "config": {}}

    async def leader(self, request: Request) -> Json:
        return {"leader": request.url.netloc}

    async def metrics(self) -> Json:
        return metronome_json(self._jobs)

    async def list_jobs(self, embed: Embed = []) -> list[Json]:  # noqa: B006 - FastAPI copies it
        jobs = sorted(self._jobs.ledger.jobs, key=lambda job: job.id)
        return [await self._embedding(job, embed) for job in jobs]

    async def show(self, job_id: str, embed: Embed = []) -> Json:  # noqa: B006 - FastAPI copies it
        with told(job_id):
            return await self._embedding(self._jobs.catalog.read(job_id), embed)

    async def create(self, body: JobBody) -> Json:
        with told(body.id):
            return self._spec(await self._jobs.catalog.create(body.definition, body.schedules))

    async def update(self, job_id: str, body: Annotated[Json, Body()]) -> Json:
        """Schedules have paths of their own, and stay as they are."""
        wanted = parsed(JobBody, {**body, "id": job_id})
        with told(job_id):
            return self._spec(await self._jobs.catalog.update(job_id, wanted.definition))

    async def update_with_schedules(self, job_id: str, body: Annotated[Json, Body()]) -> Json:
        wanted = parsed(JobBody, {**body, "id": job_id})
        with told(job_id):
            return self._spec(await self._jobs.catalog.update(job_id, wanted.definition, wanted.schedules))

    async def delete(self, job_id: str, stop: Annotated[Flag, Query(alias="stopCurrentJobRuns")] = False) -> Json:
        with told(job_id):
            return spec_json(await self._jobs.catalog.remove(job_id, stop), ())

    async def schedules(self, job_id: str) -> list[Json]:
        with told(job_id):
            return [schedule_json(each, self._jobs.clock()) for each in self._jobs.catalog.schedules(job_id)]

    async def schedule(self, job_id: str, schedule_id: str) -> Json:
        with told(job_id):
            return schedule_json(self._jobs.catalog.read_schedule(job_id, schedule_id), self._jobs.clock())

    async def add_schedule(self, job_id: str, body: ScheduleDefinition) -> Json:
        with told(job_id):
            return schedule_json(await self._jobs.catalog.add_schedule(job_id, body), self._jobs.clock())

    async def update_schedule(self, job_id: str, schedule_id: str, body: Annotated[Json, Body()]) -> Json:
        wanted = parsed(ScheduleDefinition, {**body, "id": schedule_id})
        with told(job_id):
            return schedule_json(await self._jobs.catalog.update_schedule(job_id, wanted), self._jobs.clock())

    async def delete_schedule(self, job_id: str, schedule_id: str) -> Response:
        with told(job_id):
            await self._jobs.catalog.remove_schedule(job_id, schedule_id)
        return Response()

    async def runs(self, job_id: str) -> list[Json]:
        """Those that are not over."""
        with told(job_id):
            self._jobs.catalog.read(job_id)
        return self._active(job_id)

    async def start(self, job_id: str, body: Overrides | None = None) -> Json:
        with told(job_id):
            return self._run(await self._jobs.start(job_id, body or Overrides()))

    async def run(self, job_id: str, run_id: str) -> Json:
        found = await known_run(self._jobs, job_id, run_id)
        return self._run(found) if isinstance(found, Run) else finished_json(found)

    async def stop(self, job_id: str, run_id: str) -> Json:
        with told(job_id):
            return self._run(await self._jobs.stop(f"{job_id}/{run_id}"))

    async def queue(self) -> list[Json]:
        """Runs that have no task yet, by their jobs."""
        waiting: dict[str, list[Json]] = {}
        for run in self._jobs.ledger.runs:
            if self._jobs.live.view(run.task) is None:
                waiting.setdefault(run.job, []).append({"runId": run.id})
        return [{"jobId": job, "runs": runs} for job, runs in waiting.items()]

    async def _embedding(self, job: Job, embed: list[Any]) -> Json:
        answer, history = self._spec(job), self._jobs.ledger.history_of(job)
        if "activeRuns" in embed:
            answer["activeRuns"] = self._active(job.id)
        if "historySummary" in embed:
            answer["historySummary"] = summary_json(history)
        if "history" in embed:
            answer["history"] = history_json(history, await self._jobs.ledger.finished(job.id))
        return answer

    def _spec(self, job: Job) -> Json:
        return spec_json(job, self._jobs.ledger.schedules_of(job.id), self._jobs.clock())

    def _active(self, job_id: str) -> list[Json]:
        return [self._run(run) for run in self._jobs.ledger.runs_of(job_id)]

    def _run(self, run: Run) -> Json:
        live = self._jobs.live
        return run_json(run, live.view(run.task), live.started(run.task), self._jobs.held(run))
