"""Metronome's API over the jobs framework: the whole way from HTTP to tasks, with the cluster in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from frameworks.jobs.framework import Jobs
from frameworks.jobs.metrics import families
from frameworks.jobs.rest import PUBLIC, routers
from master.rest.app import create_app
from master.store.sqlite import SqliteStore
from model.metrics import expose
from model.task import TaskState
from tests.unit.cluster import Cluster, node, until
from tests.unit.jobs import MINUTE, NOON, OVERLAY, Clock
from tests.unit.jobs import jobs as living

pytestmark = pytest.mark.anyio
EXAMPLES = Path(__file__).parents[2] / "examples"
JOB: dict[str, Any] = {
    "id": "reports.daily",
    "description": "every day",
    "labels": {"team": "a"},
    "run": {"cmd": "true", "cpus": 0.1, "mem": 32, "disk": 0, "networks": OVERLAY},
}
OFTEN = {"id": "often", "cron": "* * * * *", "timezone": "Europe/Berlin"}
# All that Metronome's answers have (`models/package.scala`).
JOB_KEYS = "id description dependencies labels run schedules activeRuns history historySummary"
RUN_KEYS = {"id", "jobId", "status", "createdAt", "completedAt", "tasks"}
TASK_KEYS = {"id", "startedAt", "completedAt", "status"}
SUMMARY_KEYS = {"successCount", "failureCount", "lastSuccessAt", "lastFailureAt"}
SCHEDULE_KEYS = {"id", "cron", "timezone", "startingDeadlineSeconds", "concurrencyPolicy", "enabled", "nextRunAt"}


class Api:
    """A client of the API, and what is behind it."""

    def __init__(self, client: httpx2.AsyncClient, jobs: Jobs, cluster: Cluster, clock: Clock) -> None:
        self.client, self.jobs, self.cluster, self.clock = client, jobs, cluster, clock

    async def call(self, method: str, path: str, status: int = 200, **arguments: Any) -> Any:
        answer = await self.client.request(method, path, **arguments)
        assert answer.status_code == status, f"{answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    async def refused(self, method: str, path: str, status: int, **arguments: Any) -> dict[str, Any]:
        """In the shape that every error has; `details` by their paths."""
        body = await self.call(method, path, status, **arguments)
        assert set(body) <= {"message", "details"} and isinstance(body["message"], str)
        return {"message": body["message"], **{each["path"]: each["errors"] for each in body.get("details", ())}}

    async def over(self, run: dict[str, Any]) -> dict[str, Any]:
        key = f"{run['jobId']}/{run['id']}"
        await until(lambda: self.jobs.ledger.runs.get(key) is None)
        return dict(await self.call("GET", f"/v1/jobs/{run['jobId']}/runs/{run['id']}"))

    async def end(self, run: dict[str, Any], state: TaskState = TaskState.FINISHED, **attributes: Any) -> None:
        task = f"{run['jobId']}.{run['id']}.1"
        await until(lambda: task in self.cluster.tasks)
        self.cluster.advance(task, state, **attributes)


@pytest.fixture
async def api(store: SqliteStore) -> AsyncIterator[Api]:
    cluster, clock = Cluster(node("n1"), automatic=False), Clock()
    async with living(store, cluster, clock) as jobs:
        app = create_app(lambda token: token == "t", routers(jobs), PUBLIC)
        transport = httpx2.ASGITransport(app)
        headers = {"Authorization": "token=t"}
        async with httpx2.AsyncClient(transport=transport, base_url="https://master", headers=headers) as client:
            yield Api(client, jobs, cluster, clock)


async def test_jobs_are_made_read_changed_and_removed(api: Api) -> None:
    made = await api.call("POST", "/v1/jobs", 201, json=JOB)
    assert made["id"] == "reports.daily" and made["run"]["cmd"] == "true" and made["schedules"] == []
    assert (await api.call("GET", "/v1/jobs/reports.daily")) == made == (await api.call("GET", "/v1/jobs"))[0]
    assert (await api.refused("POST", "/v1/jobs", 409, json=JOB))["message"] == "Job with this id already exists"
    changed = await api.call("PUT", "/v1/jobs/reports.daily", json={**made, "description": None})
    assert "description" not in changed and changed["labels"] == {"team": "a"}
    other = await api.call("PUT", "/v1/jobs/reports.daily", json={"id": "something-else", "run": JOB["run"]})
    assert other["id"] == "reports.daily" and other["labels"] == {}
    assert (await api.call("DELETE", "/v1/jobs/reports.daily"))["id"] == "reports.daily"
    missing = "Job 'reports.daily' does not exist"
    for method in ("GET", "DELETE"):
        assert await api.refused(method, "/v1/jobs/reports.daily", 404) == {"message": missing}
    assert await api.refused("PUT", "/v1/jobs/reports.daily", 404, json=JOB) == {"message": missing}
    assert await api.call("GET", "/v1/jobs") == []


async def test_what_is_wrong_is_told_by_its_place(api: Api) -> None:
    run = {**JOB["run"], "mem": 1, "gpus": 2, "shell": True}
    found = await api.refused("POST", "/v1/jobs", 422, json={**JOB, "run": run, "owner": "me"})
    assert found["message"] == "Object is not valid"
    assert found["/run/gpus"] == ["is not supported by this version: nodes tell of no GPUs"]
    assert found["/run/shell"] == found["/owner"] == ["is not a known field"] and "/run/mem" in found
    bad = {**OFTEN, "cron": "0 0 30 2 *", "timezone": "Mars/Olympus"}
    found = await api.refused("POST", "/v1/jobs", 422, json={**JOB, "schedules": [bad]})
    assert set(found) == {"message", "/schedules(0)/cron", "/schedules(0)/timezone"}
    twice = {**JOB, "schedules": [OFTEN, OFTEN]}
    assert (await api.refused("POST", "/v1/jobs", 422, json=twice))["/schedules"] == ["two schedules have the same id"]
    assert (await api.refused("POST", "/v1/jobs", 400, content=b"{"))["message"] == "Invalid JSON"
    assert "/embed(0)" in await api.refused("GET", "/v1/jobs?embed=everything", 422)
    assert await api.call("GET", "/v1/jobs") == []


async def test_dependencies_are_looked_at_at_the_door(api: Api) -> None:
    a, b = {**JOB, "id": "a"}, {**JOB, "id": "b", "dependencies": [{"id": "a"}]}
    found = await api.refused("POST", "/v1/jobs", 422, json=b)
    assert found["/dependencies(0)/id"] == ["job 'a' does not exist"]
    await api.call("POST", "/v1/jobs", 201, json=a)
    assert (await api.call("POST", "/v1/jobs", 201, json=b))["dependencies"] == [{"id": "a"}]
    circle = await api.refused("PUT", "/v1/jobs/a", 422, json={**a, "dependencies": [{"id": "b"}]})
    assert circle["/dependencies"] == ["is a cycle: a -> b -> a"]
    blocked = await api.refused("DELETE", "/v1/jobs/a", 409)
    assert blocked == {"message": "Changes blocked by jobs that depend on it: b"}


async def test_of_two_changes_that_make_a_circle_one_is_refused(api: Api) -> None:
    for name in ("a", "b"):
        await api.call("POST", "/v1/jobs", 201, json={**JOB, "id": name})
    bodies = {"a": {**JOB, "dependencies": [{"id": "b"}]}, "b": {**JOB, "dependencies": [{"id": "a"}]}}
    answers = await asyncio.gather(*(api.client.put(f"/v1/jobs/{name}", json=body) for name, body in bodies.items()))
    assert sorted(answer.status_code for answer in answers) == [200, 422]


async def test_a_run_as_metronome_tells_of_it(api: Api) -> None:
    await api.call("POST", "/v1/jobs", 201, json=JOB)
    run = await api.call("POST", "/v1/jobs/reports.daily/runs", 201)
    assert set(run) == RUN_KEYS and run["jobId"] == "reports.daily" and run["status"] == "STARTING"
    assert run["createdAt"] == "2026-01-31T12:00:00.000+0000" and run["completedAt"] is None and run["tasks"] == []
    task = f"reports.daily.{run['id']}.1"
    await until(lambda: task in api.cluster.tasks)
    api.cluster.advance(task, TaskState.RUNNING)
    await until(lambda: api.jobs.live.started(task) is not None)
    path = f"/v1/jobs/reports.daily/runs/{run['id']}"
    (active,) = await api.call("GET", "/v1/jobs/reports.daily/runs")
    assert active == await api.call("GET", path) and active["status"] == "ACTIVE"
    assert set(active["tasks"][0]) == TASK_KEYS and active["tasks"][0]["status"] == "TASK_RUNNING"
    await api.end(run)
    over = await api.over(run)
    assert set(over) == RUN_KEYS and over["status"] == "SUCCESS" and over["completedAt"] == over["createdAt"]
    assert over["tasks"][0]["id"] == task and over["tasks"][0]["status"] == "TASK_FINISHED"
    assert over["tasks"][0]["startedAt"] == active["tasks"][0]["startedAt"] < over["tasks"][0]["completedAt"]
    assert await api.call("GET", "/v1/jobs/reports.daily/runs") == []
    missing = await api.refused("GET", "/v1/jobs/reports.daily/runs/none", 404)
    assert missing == {"message": "JobRun 'none' does not exist"}
    assert (await api.refused("POST", "/v1/jobs/none/runs", 404))["message"] == "Job 'none' does not exist"


async def test_embedding(api: Api) -> None:
    await api.call("POST", "/v1/jobs", 201, json={**JOB, "schedules": [OFTEN]})
    first = await api.call("POST", "/v1/jobs/reports.daily/runs", 201)
    await api.end(first)
    await api.over(first)
    second = await api.call("POST", "/v1/jobs/reports.daily/runs", 201)
    await api.end(second, TaskState.FAILED, exit_code=1)
    await api.over(second)
    third = await api.call("POST", "/v1/jobs/reports.daily/runs", 201)
    embed = [("embed", name) for name in ("activeRuns", "schedules", "historySummary", "history")]
    (job,) = await api.call("GET", "/v1/jobs", params=embed)
    assert set(job) == set(JOB_KEYS.split())
    assert [run["id"] for run in job["activeRuns"]] == [third["id"]]
    assert set(job["historySummary"]) == SUMMARY_KEYS
    assert (job["historySummary"]["successCount"], job["historySummary"]["failureCount"]) == (1, 1)
    assert job["historySummary"]["lastSuccessAt"] == "2026-01-31T12:00:00.000+0000"
    history = job["history"]
    assert history.items() >= job["historySummary"].items()
    (good,), (bad,) = history["successfulFinishedRuns"], history["failedFinishedRuns"]
    assert set(good) == {"id", "createdAt", "finishedAt", "tasks"} and good["id"] == first["id"]
    assert bad["id"] == second["id"] and bad["tasks"] == [f"reports.daily.{second['id']}.1"]
    assert set(job["schedules"][0]) == SCHEDULE_KEYS
    assert job == await api.call("GET", "/v1/jobs/reports.daily", params=embed)
    plain = await api.call("GET", "/v1/jobs/reports.daily")
    assert set(plain) == {"id", "description", "dependencies", "labels", "run", "schedules"}
    assert await api.call("PUT", "/v1/jobs/reports.daily", json=job) == plain, "what was read can be sent back"


async def test_runs_are_stopped(api: Api) -> None:
    await api.call("POST", "/v1/jobs", 201, json=JOB)
    run = await api.call("POST", "/v1/jobs/reports.daily/runs", 201)
    path = f"/v1/jobs/reports.daily/runs/{run['id']}/actions/stop"
    assert (await api.call("POST", path))["id"] == run["id"]
    over = await api.over(run)
    assert over["status"] == "KILLED" and over["tasks"] == []
    assert (await api.refused("POST", path, 404))["message"] == f"JobRun '{run['id']}' does not exist"


async def test_a_job_that_runs_is_not_removed_unless_its_runs_are_stopped(api: Api) -> None:
    await api.call("POST", "/v1/jobs", 201, json=JOB)
    run = await api.call("POST", "/v1/jobs/reports.daily/runs", 201)
    task = f"reports.daily.{run['id']}.1"
    await until(lambda: task in api.cluster.tasks)
    blocked = await api.refused("DELETE", "/v1/jobs/reports.daily", 409)
    assert blocked["message"] == "Changes blocked by 1 active run. Override with stopCurrentJobRuns=true"
    await api.call("DELETE", "/v1/jobs/reports.daily?stopCurrentJobRuns=True")
    await until(lambda: api.cluster.killed == [task])


async def test_a_run_with_something_different(api: Api) -> None:
    await api.call("POST", "/v1/jobs", 201, json={**JOB, "run": {**JOB["run"], "env": {"A": "1"}}})
    body = {"env": {"B": "2"}, "cmd": "false", "cpus": 0.2, "mem": None}
    run = await api.call("POST", "/v1/jobs/reports.daily/runs", 201, json=body)
    await until(lambda: len(api.cluster.accepted) == 1)
    (spec,) = api.cluster.accepted
    env = dict(spec.env)
    assert (env["A"], env["B"], spec.argv[-1], spec.resources.cpus) == ("1", "2", "false", 200)
    assert spec.id == f"reports.daily.{run['id']}.1"
    for bad, path in (
        ({"instances": 3}, "/instances"),
        ({"cpus": -1}, "/cpus"),
        ({"env": {"A": 1}}, "/env/A"),
        ({"cmd": "a", "args": ["b"]}, "/"),
    ):
        assert path in await api.refused("POST", "/v1/jobs/reports.daily/runs", 422, json=bad)
    await api.call("POST", "/v1/jobs/reports.daily/runs", 201, json={})
    await api.call("POST", "/v1/jobs/reports.daily/runs", 201, content=b"null")


async def test_schedules(api: Api) -> None:
    await api.call("POST", "/v1/jobs", 201, json=JOB)
    path = "/v1/jobs/reports.daily/schedules"
    made = await api.call("POST", path, 201, json={**OFTEN, "enabled": False})
    assert set(made) == SCHEDULE_KEYS and made["nextRunAt"] == "2026-01-31T12:01:00.000+0000"
    assert made["concurrencyPolicy"] == "ALLOW" and made["startingDeadlineSeconds"] == 900
    assert (await api.refused("POST", path, 409, json=OFTEN))["message"] == "A schedule with id often already exists"
    # As one of the clients writes paths and time zones.
    body = {"id": "often", "cron": "0 1 * * *", "timeZone": "America/New_York"}
    changed = await api.call("PUT", "/v1/jobs/reports.daily/schedules//often/", json=body)
    assert (changed["timezone"], changed["enabled"], changed["nextRunAt"]) == (
        "America/New_York",
        True,
        "2026-02-01T06:00:00.000+0000",
    )
    assert await api.call("PUT", f"{path}/often", json=changed) == changed
    assert await api.call("GET", path) == [changed] == [await api.call("GET", f"{path}/often")]
    assert (await api.call("GET", "/v1/jobs/reports.daily"))["schedules"] == [changed]
    for wrong, field in (({"cron": "0 0 30 2 *"}, "/cron"), ({"timezone": "Nowhere"}, "/timezone")):
        assert field in await api.refused("PUT", f"{path}/often", 422, json={**OFTEN, **wrong})
    assert await api.refused("GET", f"{path}/none", 404) == {"message": "Schedule 'none' does not exist"}
    await api.refused("PUT", f"{path}/none", 404, json=OFTEN)
    await api.refused("DELETE", f"{path}/none", 404)
    await api.refused("GET", "/v1/jobs/none/schedules", 404)
    assert await api.call("DELETE", f"{path}/often") is None
    assert await api.call("GET", path) == []


async def test_a_job_with_its_schedules_in_one(api: Api) -> None:
    made = await api.call("POST", "/v0/scheduled-jobs", 201, json={**JOB, "schedules": [OFTEN]})
    assert [each["id"] for each in made["schedules"]] == ["often"]
    other = {**OFTEN, "id": "other"}
    path = "/v0/scheduled-jobs/reports.daily"
    changed = await api.call("PUT", path, json={**JOB, "schedules": [other, {**OFTEN, "enabled": False}]})
    assert [(each["id"], each["enabled"]) for each in changed["schedules"]] == [("often", False), ("other", True)]
    assert (await api.call("PUT", "/v1/jobs/reports.daily", json=JOB))["schedules"] == changed["schedules"]
    assert (await api.call("PUT", path, json=JOB))["schedules"] == []
    await api.refused("PUT", "/v0/scheduled-jobs/none", 404, json=JOB)


async def test_the_queue(api: Api) -> None:
    assert await api.call("GET", "/v1/queue") == []
    await api.call("POST", "/v1/jobs", 201, json={**JOB, "run": {**JOB["run"], "cpus": 100}})
    run = await api.call("POST", "/v1/jobs/reports.daily/runs", 201)
    assert await api.call("GET", "/v1/queue") == [{"jobId": "reports.daily", "runs": [{"runId": run["id"]}]}]


async def test_info_leader_ping_and_metrics(api: Api) -> None:
    for alias in ("/service/metronome", "/metronome"):
        assert set(await api.call("GET", f"{alias}/info")) == {"version", "libVersion", "config"}
        assert (await api.call("GET", f"{alias}/leader")) == {"leader": "master"}
        ping = await api.client.get(f"{alias}/ping", headers={"Authorization": ""})
        assert ping.text == "pong"
        assert await api.call("GET", f"{alias}/v1/jobs") == []
    await api.call("POST", "/v1/jobs", 201, json=JOB)
    run = await api.call("POST", "/v1/jobs/reports.daily/runs", 201)
    await api.end(run)
    await api.over(run)
    metrics = await api.call("GET", "/v1/metrics")
    assert metrics["gauges"]["tepui_jobs"] == {"value": 1.0}
    assert metrics["counters"]["tepui_job_runs_ended_total.SUCCESS"] == {"count": 1}
    assert 'tepui_job_runs_ended_total{status="SUCCESS"} 1' in expose(families(api.jobs))


async def test_our_own_view_of_a_job(api: Api) -> None:
    await api.call("POST", "/v1/jobs", 201, json={**JOB, "schedules": [{**OFTEN, "concurrencyPolicy": "FORBID"}]})
    run = await api.call("POST", "/v1/jobs/reports.daily/runs", 201, json={"cpus": 100})
    await until(lambda: bool(api.cluster.declined) and "CPU" in api.cluster.declined[-1].reason)
    api.clock.now = NOON + MINUTE
    api.jobs.wake()
    await until(lambda: api.jobs.catalog.read_schedule("reports.daily", "often").due == api.clock.now)
    view = await api.call("GET", "/api/v1/jobs/reports.daily")
    assert set(view) == {"job", "schedules", "runs", "waiting", "pipeline"} and view["pipeline"] is None
    assert view["job"]["historySummary"]["successCount"] == 0
    (schedule,) = view["schedules"]
    assert schedule["lastDueAt"] == "2026-01-31T12:01:00.000+0000"
    assert schedule["skipped"] == {"dueAt": schedule["lastDueAt"], "reason": f"run {run['id']} is still active"}
    assert view["waiting"] == ["needs 100 CPU: 1 of 1 node has too little (most free: 4 CPU)"]
    (shown,) = view["runs"]
    assert shown["id"] == run["id"] and shown["waiting"] == view["waiting"] and shown["attempt"] == 1
    await api.call("POST", f"/v1/jobs/reports.daily/runs/{run['id']}/actions/stop")
    await api.over(run)
    over = (await api.call("GET", f"/api/v1/jobs/reports.daily/runs/{run['id']}"))["run"]
    assert over["status"] == "KILLED" and over["reason"] == "stopped by request" and over["waiting"] == []
    await api.refused("GET", "/api/v1/jobs/none", 404)
    await api.refused("GET", "/api/v1/jobs/reports.daily/runs/none", 404)


async def test_our_own_view_of_a_pipeline(api: Api) -> None:
    for name, depends_on in (("a", []), ("b", ["a"]), ("c", ["b"])):
        dependencies = [{"id": each} for each in depends_on]
        await api.call("POST", "/v1/jobs", 201, json={**JOB, "id": name, "dependencies": dependencies})
    graph = (await api.call("GET", "/api/v1/jobs/a"))["pipeline"]
    assert graph["id"] is None and {node["state"] for node in graph["nodes"]} == {graph["state"]} == {"NOT_RUN"}
    assert graph["edges"] == [{"from": "a", "to": "b"}, {"from": "b", "to": "c"}]
    run = await api.call("POST", "/v1/jobs/a/runs", 201)
    path = f"/api/v1/pipelines/{run['id']}"
    await api.end(run)
    await until(lambda: f"b.{run['id']}.1" in api.cluster.tasks)
    pipeline = (await api.call("GET", path))["pipeline"]
    assert [(node["job"], node["state"]) for node in pipeline["nodes"]] == [
        ("a", "SUCCESS"),
        ("b", "ACTIVE"),
        ("c", "WAITING"),
    ]
    assert pipeline["nodes"][2]["waiting"] == ["waits for b to succeed"] and pipeline["state"] == "ACTIVE"
    await api.end({"jobId": "b", "id": run["id"]}, TaskState.FAILED, exit_code=2)
    await until(lambda: api.jobs.pipeline(run["id"]).over)
    pipeline = (await api.call("GET", "/api/v1/pipelines?job=a"))["pipelines"][0]
    assert pipeline == (await api.call("GET", "/api/v1/jobs/c"))["pipeline"]
    assert [(node["state"], node["reason"]) for node in pipeline["nodes"]] == [
        ("SUCCESS", ""),
        ("FAILED", "failed: exit code 2"),
        ("BLOCKED", "b failed"),
    ]
    again = (await api.call("POST", f"{path}/rerun"))["pipeline"]
    assert again["state"] == "ACTIVE" and again["reruns"] == 1
    blocked = await api.refused("POST", f"{path}/rerun", 409)
    assert blocked["message"].startswith("Changes blocked: nothing of pipeline")
    stopped = (await api.call("POST", f"{path}/actions/stop"))["pipeline"]
    assert stopped["reason"] == "stopped by request" and stopped["nodes"][2]["state"] == "BLOCKED"
    for verb in ("rerun", "actions/stop"):
        missing = await api.refused("POST", f"/api/v1/pipelines/none/{verb}", 404)
        assert missing["message"] == "Pipeline 'none' does not exist"


async def test_events(api: Api) -> None:
    for name, depends_on in (("a", []), ("b", ["a"])):
        dependencies = [{"id": each} for each in depends_on]
        await api.call("POST", "/v1/jobs", 201, json={**JOB, "id": name, "dependencies": dependencies})
    run = await api.call("POST", "/v1/jobs/a/runs", 201)
    await api.end(run, TaskState.FAILED, exit_code=1)
    await until(lambda: api.jobs.pipeline(run["id"]).over)
    first = f"{api.jobs.events.newest.partition('-')[0]}-0"
    answer = await api.client.get("/api/v1/jobs/events?follow=false", headers={"Last-Event-ID": first})
    kinds = [line.removeprefix("event: ") for line in answer.text.splitlines() if line.startswith("event: ")]
    assert [kind for kind in kinds if kind != "job_run_updated"] == [
        "job_created",
        "job_run_started",
        "pipeline_started",
        "pipeline_failed",
        "job_run_failed",
    ]
    last = json.loads(answer.text.rpartition("data: ")[2])
    assert last["eventType"] == "job_run_failed" and last["jobRun"]["id"] == run["id"]


async def test_the_examples(api: Api) -> None:
    await api.call("POST", "/v1/jobs", 201, json=json.loads((EXAMPLES / "job.json").read_text()))
    (schedule,) = (await api.call("GET", "/v1/jobs/hello"))["schedules"]
    assert schedule["nextRunAt"] == "2026-01-31T13:00:00.000+0000"
