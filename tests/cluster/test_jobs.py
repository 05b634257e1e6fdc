"""Jobs, end to end: runs and their logs, schedules across a master that dies, and pipelines."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from lab.cluster import MASTER
from tests.cluster import bed
from tests.cluster.bed import ROOT, Cluster, Json, eventually

PIPELINE = sorted((ROOT / "examples" / "pipeline").glob("*.json"))
MINUTE_DEADLINE_S = 90.0
KILLS_BEFORE_S, KILLS_AFTER_S = 1.0, 2.5  # of the due time


@pytest.fixture
def jobs(cluster: Cluster) -> Iterator[Cluster]:
    """Removes every job afterwards."""
    yield cluster
    while known := cluster.get("/v1/jobs"):
        needed = {each["id"] for job in known for each in job["dependencies"]}
        for job in known:
            if job["id"] not in needed:
                cluster.call("DELETE", f"/v1/jobs/{job['id']}", params={"stopCurrentJobRuns": "true"})


def job(name: str, cmd: str, *dependencies: str, **run: object) -> Json:
    small: Json = {"cpus": 0.05, "mem": 32, "disk": 0, "networks": [{"mode": "container", "name": "overlay"}]}
    depends_on = [{"id": each} for each in dependencies]
    return {
        "id": name,
        "dependencies": depends_on,
        "run": {"taskKillGracePeriodSeconds": 0.2, **small, "cmd": cmd, **run},
    }


def start(cluster: Cluster, definition: Json) -> Json:
    cluster.call("POST", "/v1/jobs", json=definition)
    return dict(cluster.call("POST", f"/v1/jobs/{definition['id']}/runs"))


def known(cluster: Cluster, run: Json) -> Json:
    """The run in our own view."""
    return dict(cluster.get(f"/api/v1/jobs/{run['jobId']}/runs/{run['id']}")["run"])


def over(cluster: Cluster, run: Json) -> Json:
    def ended() -> Json | None:
        found = known(cluster, run)
        return found if found["completedAt"] else None

    return eventually(ended, f"{run['jobId']} {run['id']} is over") or {}


def pipeline(cluster: Cluster, run: Json) -> Json:
    return dict(cluster.get(f"/api/v1/pipelines/{run['id']}")["pipeline"])


def states(cluster: Cluster, run: Json) -> dict[str, str]:
    return {node["job"]: node["state"] for node in pipeline(cluster, run)["nodes"]}


def test_a_run_succeeds_and_its_log_is_there_after_the_end(jobs: Cluster) -> None:
    run = over(jobs, start(jobs, job("says", "echo first words; echo last words")))
    assert run["status"] == "SUCCESS" and run["tasks"][0]["exitCode"] == 0
    (task,) = run["tasks"]
    eventually(lambda: task["id"] not in jobs.tasks(), "the master has forgotten the task")
    assert jobs.log_of(task["id"]) == "first words\nlast words\n"
    history = jobs.get("/v1/jobs/says?embed=history")["history"]
    assert history["successCount"] == 1 and history["successfulFinishedRuns"][0]["tasks"] == [task["id"]]


def test_logs_of_finished_runs_are_bounded_by_their_node() -> None:
    """The oldest go first. The run is known all the same."""
    with bed.started(1, agents={"n1": {"TEPUI_AGENT_LOG_KEEP_MIB": "1"}}) as cluster:
        line = "head -c 900000 /dev/zero | tr '\\0' x; echo"
        cluster.call("POST", "/v1/jobs", json=job("writes", line))
        runs = [over(cluster, cluster.call("POST", "/v1/jobs/writes/runs")) for _ in range(2)]
        first, second = (run["tasks"][0]["id"] for run in runs)
        sizes = [len(cluster.log_of(task)) for task in (first, second)]
        assert sizes == [900001, 900001]
        cluster.lab.kill_daemon("n1", "agent")  # it looks when it begins, and then once a minute
        first_kept, second_kept = (f"/api/v1/tasks/{task}/log" for task in (first, second))

        def one_is_left() -> bool:
            kept = cluster.request("GET", second_kept)
            return kept.status_code == 200 and cluster.request("GET", first_kept).status_code == 404

        eventually(one_is_left, "the oldest log is removed, and the other one is there")
        assert len(cluster.log_of(second)) == 900001
        assert known(cluster, runs[0])["status"] == "SUCCESS"


def test_a_run_that_fails_is_tried_until_it_succeeds(jobs: Cluster) -> None:
    line = 'case "$MESOS_TASK_ID" in *.1) echo no; exit 7;; *) echo yes;; esac'
    run = over(jobs, start(jobs, job("tries", line, restart={"policy": "ON_FAILURE"})))
    assert run["status"] == "SUCCESS" and run["attempt"] == 2
    assert [task["exitCode"] for task in run["tasks"]] == [7, 0]
    assert [jobs.log_of(task["id"]) for task in run["tasks"]] == ["no\n", "yes\n"]
    failed = over(jobs, start(jobs, job("fails", "exit 3")))
    assert (failed["status"], failed["reason"], failed["attempt"]) == ("FAILED", "failed: exited with 3", 1)


def test_a_run_is_stopped(jobs: Cluster) -> None:
    run = start(jobs, job("sleeps", "exec sleep 3600"))
    eventually(lambda: known(jobs, run)["status"] == "ACTIVE", "it is active")
    (task,) = eventually(lambda: known(jobs, run)["tasks"], "it has a task")
    eventually(lambda: jobs.tasks().get(task["id"], {}).get("state") == "RUNNING", "it runs")
    jobs.call("POST", f"/v1/jobs/sleeps/runs/{run['id']}/actions/stop")
    assert over(jobs, run)["status"] == "KILLED"
    eventually(lambda: not jobs.tasks(), "its task is gone")


def test_a_run_goes_on_while_the_master_is_away(jobs: Cluster) -> None:
    """One that ends meanwhile, and one that goes on: both are found again, and neither has a second task."""
    short = start(jobs, job("short", "sleep 1; echo done"))
    long = start(jobs, job("long", "exec sleep 3600"))
    for run in (short, long):
        eventually(partial(_runs, jobs, run), f"{run['jobId']} runs")
    (pid,) = (task["pid"] for task in jobs.tasks().values() if task["owner"] == "long")
    jobs.lab.kill_daemon(MASTER, "master")
    assert over(jobs, short)["status"] == "SUCCESS"
    assert known(jobs, long)["status"] == "ACTIVE"
    (again,) = (task["pid"] for task in jobs.tasks().values() if task["owner"] == "long")
    assert again == pid and len(known(jobs, long)["tasks"]) == len(known(jobs, short)["tasks"]) == 1


def _runs(cluster: Cluster, run: Json) -> bool:
    return any(task["owner"] == run["jobId"] and task["state"] == "RUNNING" for task in cluster.tasks().values())


def test_a_schedule_has_one_run_at_its_time_though_the_master_is_killed_around_it(jobs: Cluster) -> None:
    jobs.call("POST", "/v1/jobs", json=job("minutely", "echo ran"))
    jobs.call("POST", "/v1/jobs", json=job("after", "echo ran after", "minutely"))
    schedule = {"id": "each", "cron": "* * * * *", "timezone": "Europe/Berlin"}
    due = jobs.call("POST", "/v1/jobs/minutely/schedules", json=schedule)["nextRunAt"]
    at = datetime.strptime(due, "%Y-%m-%dT%H:%M:%S.%f%z").timestamp()
    eventually(lambda: time.time() > at - KILLS_BEFORE_S, "it is nearly due", MINUTE_DEADLINE_S)
    while time.time() < at + KILLS_AFTER_S:
        jobs.lab.kill_daemon(MASTER, "master")
        time.sleep(0.1)
    path = "/v1/jobs/{}?embed=history&embed=activeRuns"
    eventually(lambda: jobs.get(path.format("after"))["history"]["successCount"] == 1, "both have run")
    jobs.call("PUT", "/v1/jobs/minutely/schedules/each", json={**schedule, "enabled": False})
    if datetime.now(UTC).timestamp() > at + 60:
        pytest.fail("this machine is too slow to look at one due time alone")
    for name in ("minutely", "after"):
        seen = jobs.get(path.format(name))
        assert seen["history"]["successCount"] == 1 and seen["activeRuns"] == []
        (run,) = seen["history"]["successfulFinishedRuns"]
        assert len(run["tasks"]) == 1
    assert known(jobs, {"jobId": "minutely", "id": run["id"]})["dueAt"] == due
    view = jobs.get("/api/v1/jobs/minutely")["schedules"][0]
    assert view["lastDueAt"] == due and view["enabled"] is False


def test_a_branch_of_a_pipeline_that_fails_and_is_run_again(jobs: Cluster) -> None:
    """What the branch needs is given to its job before the second time."""
    for definition in (
        job("extract", "echo extracted"),
        job("left", "exit 1", "extract"),
        job("right", "echo right", "extract"),
        job("load", "echo loaded", "left", "right"),
    ):
        jobs.call("POST", "/v1/jobs", json=definition)
    run = jobs.call("POST", "/v1/jobs/extract/runs")
    eventually(lambda: pipeline(jobs, run)["state"] == "FAILED", "the pipeline has ended")
    assert states(jobs, run) == {"extract": "SUCCESS", "left": "FAILED", "right": "SUCCESS", "load": "BLOCKED"}
    (load,) = (node for node in pipeline(jobs, run)["nodes"] if node["job"] == "load")
    assert load["reason"] == "left failed" and load["run"] is None
    jobs.call("PUT", "/v1/jobs/left", json=job("left", "echo left", "extract"))
    jobs.lab.kill_daemon(MASTER, "master")
    eventually(lambda: bool(jobs.get("/v1/jobs")), "the next master answers")
    jobs.call("POST", f"/api/v1/pipelines/{run['id']}/rerun")
    eventually(lambda: pipeline(jobs, run)["state"] == "SUCCESS", "the pipeline has succeeded")
    counts = {name: jobs.get(f"/v1/jobs/{name}?embed=historySummary")["historySummary"] for name in states(jobs, run)}
    assert {name: each["successCount"] for name, each in counts.items()} == dict.fromkeys(states(jobs, run), 1)
    again = known(jobs, {"jobId": "load", "id": f"{run['id']}-2"})
    assert jobs.log_of(again["tasks"][0]["id"]) == "loaded\n"


@pytest.mark.parametrize("path", [ROOT / "examples" / "job.json"], ids=lambda path: path.stem)
def test_the_example(jobs: Cluster, path: Path) -> None:
    run = over(jobs, start(jobs, json.loads(path.read_text())))
    assert run["status"] == "SUCCESS"
    assert jobs.log_of(run["tasks"][0]["id"]).endswith(f"run {run['tasks'][0]['id']}\n")


def test_the_example_of_a_pipeline(jobs: Cluster) -> None:
    for path in PIPELINE:
        jobs.call("POST", "/v1/jobs", json=json.loads(path.read_text()))
    run = jobs.call("POST", "/v1/jobs/sales.extract/runs")
    eventually(lambda: pipeline(jobs, run)["state"] == "SUCCESS", "the pipeline has succeeded")
    assert set(states(jobs, run).values()) == {"SUCCESS"} and len(states(jobs, run)) == len(PIPELINE) == 4
