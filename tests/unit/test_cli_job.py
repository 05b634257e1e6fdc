"""`tepui job` against an API of the documented shape: what is sent, what is shown, and exit statuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Body
from fastapi.responses import PlainTextResponse

from cli import pipeline, waiting
from cli.job import ended
from cli.job_run import failure, latest_task, step
from cli.problem import Problem
from cli.schedule import next_due
from master.rest.errors import ApiError
from tests.unit.served import api_of, served, tepui

AT = "2026-01-31T12:00:00.000+0000"
LATER = "2026-01-31T12:00:30.000+0000"
NOW = 1769860860.0  # a minute after AT
RUN = "20260131120000k3x9qa7b"
NEEDS = "needs 4 CPU: 3 of 3 nodes have too little (most free: 1.5 CPU)"
SUMMARY = {"successCount": 2, "failureCount": 1, "lastSuccessAt": AT, "lastFailureAt": LATER}
SCHEDULE = {
    "id": "nightly",
    "cron": "0 3 * * *",
    "timezone": "UTC",
    "startingDeadlineSeconds": 900,
    "concurrencyPolicy": "ALLOW",
    "enabled": True,
}


def task(number: int = 1, **fields: Any) -> dict[str, Any]:
    made = {"id": f"load.{RUN}.{number}", "startedAt": AT, "completedAt": None, "status": "TASK_RUNNING"}
    return made | {"node": "n1", "exitCode": None, "message": ""} | fields


def run(status: str = "ACTIVE", **fields: Any) -> dict[str, Any]:
    made = {"id": RUN, "jobId": "load", "status": status, "createdAt": AT, "completedAt": LATER, "tasks": [task()]}
    return (
        made | {"attempt": 1, "schedule": None, "dueAt": None, "pipeline": None, "reason": "", "waiting": []} | fields
    )


def node(job: str, state: str, *after: str, **fields: Any) -> dict[str, Any]:
    made = {"job": job, "state": state, "run": None, "reason": "", "dependencies": list(after), "outside": []}
    return made | {"startedAt": None, "completedAt": None, "waiting": []} | fields


def pipe(state: str, *nodes: dict[str, Any], **fields: Any) -> dict[str, Any]:
    edges = [{"from": each, "to": node["job"]} for node in nodes for each in node["dependencies"]]
    made = {"id": RUN, "job": nodes[0]["job"], "state": state, "reason": "", "createdAt": AT, "completedAt": None}
    return made | {"schedule": None, "dueAt": None, "reruns": 0, "nodes": list(nodes), "edges": edges} | fields


ACTIVE = pipe(
    "ACTIVE",
    node("extract", "SUCCESS", startedAt=AT, completedAt=LATER),
    node("clean", "STARTING", "extract", waiting=[NEEDS]),
    node("load", "WAITING", "extract", "clean", waiting=["waits for clean"], outside=["other"]),
)
FAILED = pipe(
    "FAILED",
    node("extract", "SUCCESS", startedAt=AT, completedAt=LATER),
    node("clean", "FAILED", "extract", startedAt=AT, completedAt=LATER, reason="exit code 3"),
    node("load", "BLOCKED", "extract", "clean", reason="clean failed"),
    completedAt=LATER,
)


class Master:
    def __init__(self) -> None:
        self.runs = [run()]
        self.pipelines = [ACTIVE]
        self.asked: list[Any] = []
        self.pipeline: dict[str, Any] | None = None
        self.history: list[dict[str, Any]] = []
        router = self.router = APIRouter()
        router.post("/v1/jobs", status_code=201)(self.take)
        router.put("/v1/jobs/{job}")(self.take)
        router.delete("/v1/jobs/{job}")(self.remove)
        router.get("/v1/jobs")(self.jobs)
        router.get("/v1/jobs/{job}")(self.job)
        router.post("/v1/jobs/{job}/runs", status_code=201)(self.start)
        router.post("/v1/jobs/{job}/runs/{run}/actions/stop")(self.stop)
        router.get("/v1/jobs/{job}/schedules/{id}")(self.schedule)
        router.put("/v1/jobs/{job}/schedules/{id}")(self.keep)
        router.post("/v1/jobs/{job}/schedules", status_code=201)(self.take)
        router.delete("/v1/jobs/{job}/schedules/{id}")(self.drop)
        router.get("/v1/queue")(self.queue)
        router.get("/api/v1/jobs/{job}")(self.view)
        router.get("/api/v1/jobs/{job}/runs/{run}")(self.run)
        router.get("/api/v1/pipelines/{run}")(self.read_pipeline)
        router.post("/api/v1/pipelines/{run}/rerun")(self.rerun)
        router.post("/api/v1/pipelines/{run}/actions/stop")(self.stop_pipeline)
        router.get("/api/v1/tasks/{task}/log")(self.log)

    async def take(self, body: Annotated[dict[str, Any], Body()], job: str = "") -> dict[str, Any]:
        self.asked.append(body)
        if body.get("cron") == "never":
            raise ApiError(422, "Object is not valid", {"/cron": ["is never due"]})
        return SCHEDULE | {"id": "load"} | body

    async def keep(self, id: str, body: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
        self.asked.append(body)
        return body

    async def drop(self, id: str) -> PlainTextResponse:
        return PlainTextResponse("")

    async def remove(self, job: str, stopCurrentJobRuns: bool = False) -> dict[str, Any]:
        if not stopCurrentJobRuns:
            raise ApiError(409, "it runs")
        return {"id": job}

    async def jobs(self) -> list[dict[str, Any]]:
        schedules = [SCHEDULE | {"nextRunAt": AT}]
        idle = {"successCount": 0, "failureCount": 0, "lastSuccessAt": None, "lastFailureAt": None}
        return [
            {"id": "extract", "activeRuns": [1, 2], "historySummary": SUMMARY, "schedules": schedules},
            {
                "id": "load",
                "activeRuns": [],
                "historySummary": idle,
                "schedules": [],
                "dependencies": [{"id": "extract"}],
            },
        ]

    async def job(self, job: str) -> dict[str, Any]:
        finished = {"successfulFinishedRuns": self.history, "failedFinishedRuns": []}
        return {"id": job, "activeRuns": [], "history": SUMMARY | finished}

    async def start(self, job: str, body: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
        self.asked.append(body)
        return {"id": RUN, "jobId": job, "status": "STARTING", "tasks": []}

    async def stop(self, job: str, run: str) -> dict[str, Any]:
        self.asked.append(run)
        return {"id": run}

    async def queue(self) -> list[dict[str, Any]]:
        return [{"jobId": "load", "runs": [{"runId": RUN}]}]

    async def schedule(self, id: str) -> dict[str, Any]:
        return SCHEDULE | {"nextRunAt": AT}

    async def view(self, job: str) -> dict[str, Any]:
        skipped = {"dueAt": AT, "reason": "a run was under way"}
        schedules = [SCHEDULE | {"nextRunAt": None, "lastDueAt": AT, "skipped": skipped}]
        found = {"job": {"id": job, "historySummary": SUMMARY}, "schedules": schedules, "runs": self.runs}
        return found | {"waiting": [NEEDS], "pipeline": self.pipeline}

    async def run(self, job: str, run: str) -> dict[str, Any]:
        return {"run": self.runs.pop(0) if len(self.runs) > 1 else self.runs[0]}

    async def read_pipeline(self, run: str) -> dict[str, Any]:
        return {"pipeline": self.pipelines.pop(0) if len(self.pipelines) > 1 else self.pipelines[0]}

    async def rerun(self, run: str) -> dict[str, Any]:
        self.asked.append(f"rerun {run}")
        return {"pipeline": self.pipelines[0]}

    async def stop_pipeline(self, run: str) -> dict[str, Any]:
        self.asked.append(f"stop {run}")
        return {"pipeline": self.pipelines[0]}

    async def log(self, task: str) -> PlainTextResponse:
        return PlainTextResponse(f"log of {task}\n")


@pytest.fixture
def master(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Master]:
    monkeypatch.setattr(waiting, "POLL_S", 0.0)
    made = Master()
    with served(tmp_path, api_of(made.router), monkeypatch):
        yield made


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "job.json").write_text('{"id": "load", "run": {}}')
    return str(tmp_path / "job.json")


def test_a_pipeline_is_drawn_with_states() -> None:
    assert pipeline.drawing(ACTIVE, NOW, 80) == PICTURE.splitlines()[1:]
    assert pipeline.drawing(ACTIVE, NOW, 20) == [
        "extract  success, 30 s",
        "clean    starting          after extract",
        "load     waiting           after extract, clean",
    ]


def test_what_never_started_says_why() -> None:
    assert pipeline.because(node("load", "FAILED", reason="failed: exited with 3")) == "failed: exited with 3"
    assert list(pipeline.reasons(FAILED)) == ["clean: failed: exit code 3", "load: blocked: clean failed"]
    assert list(pipeline.reasons(ACTIVE)) == [
        f"clean: {NEEDS}",
        "load: also depends on other, of another pipeline",
        "load: waits for clean",
    ]


def test_a_pipeline_in_a_sentence() -> None:
    assert pipeline.summary(ACTIVE, NOW) == f"pipeline {RUN}: active for 1 min"
    assert (
        pipeline.summary(FAILED | {"reason": "stopped"}, NOW) == f"pipeline {RUN}: failed after 30 s, 30 s ago: stopped"
    )
    assert pipeline.summary(ACTIVE | {"id": None, "createdAt": None}, NOW) == "pipeline: has not been run"
    shown = pipeline.step(ACTIVE, NOW, 80)
    assert (shown.done, shown.total) == (1, 3)
    assert shown.text == f"1 of 3 jobs are over; clean starting; clean {NEEDS}"


def test_a_run_in_a_sentence() -> None:
    assert step(run("STARTING", waiting=[NEEDS])).text == f"load: starting: {NEEDS}"
    pulls = run("STARTING", tasks=[task(message="pulls x: 1 of 2 layers")], attempt=2)
    assert step(pulls).text == "load: starting, attempt 2: pulls x: 1 of 2 layers"
    assert failure(run("FAILED", tasks=[task(exitCode=3)])) == f"load: run {RUN} failed: exit code 3"
    assert failure(run("FAILED", reason="failed: exited with 3")) == f"load: run {RUN} failed: exited with 3"
    assert failure(run("KILLED", reason="stopped")) == f"load: run {RUN} killed: stopped"
    assert latest_task(run(tasks=[task(1), task(2)])).endswith(".2")
    with pytest.raises(Problem, match=f"has no task: {NEEDS.split('(')[0]}"):
        latest_task(run(tasks=[], waiting=[NEEDS]))


def test_when_a_schedule_is_due() -> None:
    assert next_due(SCHEDULE | {"nextRunAt": LATER}, NOW - 60) == "in 30 s"
    assert next_due(SCHEDULE, NOW) == "never" and next_due(SCHEDULE | {"enabled": False}, NOW) == "disabled"
    assert ended(SUMMARY, NOW) == "2 runs succeeded, the last 1 min ago; 1 did not, the last 30 s ago"


def test_run_waits_for_its_end(master: Master) -> None:
    master.runs = [run("STARTING"), run("STARTING", waiting=[NEEDS]), run("SUCCESS")]
    done = tepui("job", "run", "load", "--wait", "--env", "DAY=1", "--mem", "256")
    assert done.status == 0 and done.lines == [f"load: run {RUN}", "load: success after 30 s"]
    assert done.err == f"load: starting: {NEEDS}\n" and master.asked == [{"env": {"DAY": "1"}, "mem": 256}]
    master.runs = [run(), run("FAILED", tasks=[task(exitCode=3)])]
    done = tepui("job", "run", "load", "-w")
    assert (done.status, done.err.splitlines()[-1]) == (1, f"tepui: load: run {RUN} failed: exit code 3")
    master.runs = [run(), run("KILLED")]
    done = tepui("job", "run", "load", "-w", "--json")
    assert done.status == 1 and json.loads(done.out)["status"] == "KILLED"


def test_run_of_a_pipeline_waits_for_all_of_it(master: Master) -> None:
    master.runs, master.pipelines = [run(pipeline=RUN)], [ACTIVE, ACTIVE, FAILED]
    done = tepui("job", "run", "extract", "--wait")
    assert done.status == 1 and done.err.endswith(f"tepui: pipeline {RUN} failed: clean failed\n")
    assert "load: blocked: clean failed" in done.lines and any("✗ failed, 30 s" in line for line in done.lines)
    master.pipelines = [ACTIVE]
    done = tepui("job", "run", "extract")
    assert done.status == 0 and all(line in done.lines for line in PICTURE.splitlines()[1:])


def test_run_again_what_did_not_succeed(master: Master) -> None:
    assert "has not been run as part of a pipeline" in tepui("job", "rerun", "load").err
    master.pipeline, master.pipelines = FAILED, [pipe("SUCCESS", node("load", "SUCCESS"), completedAt=LATER)]
    assert tepui("job", "rerun", "load", "--wait").status == 0
    assert master.asked == [f"rerun {RUN}"]


def test_shown_and_listed(master: Master) -> None:
    master.pipeline = ACTIVE
    lines = tepui("job", "show", "load").lines
    assert lines[:4] == [
        "load  1 run under way",
        "schedule nightly: 0 3 * * * UTC, next never",
        "schedule nightly: was passed over last: a run was under way",
        next(line for line in lines if line.startswith("2 runs succeeded")),
    ]
    assert f"waiting: {NEEDS}" in lines and all(line in lines for line in PICTURE.splitlines()[2:4])
    listed = tepui("job", "list").lines
    assert listed[1].split()[:4] == ["extract", "2", "2", "1"] and listed[2].split()[-1] == "extract"
    assert tepui("job", "queue").lines[1].split() == ["load", RUN]
    assert tepui("job", "runs", "load").lines[1].split()[:3] == [RUN, "active", "1"]
    for command in ("list", "queue", "show load", "runs load", "history load", "schedule list load"):
        json.loads(tepui("job", *command.split(), "--json").out)


def test_stopped(master: Master) -> None:
    assert tepui("job", "stop", "load", "other").err == "tepui: load: run other is not under way\n"
    assert tepui("job", "stop", "load").lines == [f"load: run {RUN} is stopped"]
    master.runs = [run(pipeline=RUN)]
    assert tepui("job", "stop", "load", "--pipeline").lines == [f"load: run {RUN} is stopped with its pipeline"]
    assert master.asked == [RUN, f"stop {RUN}"]


def test_log_of_the_latest_task(master: Master) -> None:
    assert "has never been run" in tepui("job", "log", "load").err
    master.history = [{"id": RUN, "createdAt": AT, "finishedAt": LATER, "tasks": ["t"]}]
    master.runs = [run("SUCCESS", tasks=[task(1), task(2)])]
    assert tepui("job", "log", "load").out == f"log of load.{RUN}.2\n"
    assert tepui("job", "history", "load").lines[1].split()[:4] == [RUN, "success", "30", "s"]


def test_definitions(master: Master, file: str) -> None:
    assert tepui("job", "add", file).lines == ["load: is there"]
    assert tepui("job", "update", "load", file).lines == ["load: is changed"]
    assert tepui("job", "remove", "load").status == 1
    assert tepui("job", "remove", "load", "--stop").lines == ["load: is removed"]


def test_schedules(master: Master) -> None:
    done = tepui("job", "schedule", "add", "load", "nightly", "0 3 * * *", "--policy", "forbid", "--disabled")
    assert done.lines == ["load: nightly: 0 3 * * * UTC, disabled"]
    assert master.asked.pop() == SCHEDULE | {"concurrencyPolicy": "FORBID", "enabled": False}
    assert tepui("job", "schedule", "add", "load", "a", "0 3 * * *", "--policy", "SOME").status == 2
    assert "/cron: is never due" in tepui("job", "schedule", "add", "load", "a", "never").err
    master.asked.clear()
    assert tepui("job", "schedule", "disable", "load", "nightly").status == 0
    assert tepui("job", "schedule", "enable", "load", "nightly").status == 0
    assert master.asked == [SCHEDULE | {"enabled": False}, SCHEDULE]  # without when it is due
    assert tepui("job", "schedule", "list", "load").lines[1].split()[-5:] == ["a", "run", "was", "under", "way"]
    assert tepui("job", "schedule", "remove", "load", "nightly").lines == ["load: nightly is removed"]


PICTURE = """
  ┌──────────────────┐
  │ extract          │
  │ ✓ success, 30 s  │
  └─────────┬────────┘
            ├───┐
            ▼   │
┌────────────┐  │
│ clean      │  │
│ ○ starting │  │
└─────┬──────┘  │
      ▼         ▼
    ┌────────────┐
    │ load       │
    │ ○ waiting  │
    └────────────┘
"""
