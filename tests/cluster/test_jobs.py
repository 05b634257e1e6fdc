"""Jobs, end to end: runs and their logs, schedules across a master that dies, and pipelines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.bed import Cluster, Json, eventually


@pytest.fixture
def jobs(cluster: Cluster) -> Iterator[Cluster]:
    """Removes every job afterwards."""
    yield cluster
    for job in cluster.get("/v1/jobs"):
        for name in ({"id": other["id"], "dependencies": [], "run": other["run"]} for other in cluster.get("/v1/jobs")):
            cluster.call("PUT", f"/v1/jobs/{name['id']}", json=name)
        cluster.call("DELETE", f"/v1/jobs/{job['id']}", params={"stopCurrentJobRuns": "true"})


def job(name: str, cmd: str, *dependencies: str, **run: object) -> Json:
    small: Json = {"cpus": 0.05, "mem": 32, "disk": 0, "networks": [{"mode": "container", "name": "overlay"}]}
    depends_on = [{"id": each} for each in dependencies]
    return {"id": name, "dependencies": depends_on, "run": {**small, "cmd": cmd, **run}}


def start(cluster: Cluster, definition: Json) -> Json:
    cluster.call("POST", "/v1/jobs", json=definition)
    return dict(cluster.call("POST", f"/v1/jobs/{definition['id']}/runs"))


def over(cluster: Cluster, run: Json) -> Json:
    """The run, in our own view, once it is over."""
    path = f"/api/v1/jobs/{run['jobId']}/runs/{run['id']}"

    def known() -> Json | None:
        found = cluster.get(path)["run"]
        return found if found["completedAt"] else None

    return eventually(known, f"{run['jobId']} {run['id']} is over") or {}


def test_a_run_succeeds_and_its_log_is_there_after_the_end(jobs: Cluster) -> None:
    run = over(jobs, start(jobs, job("says", "echo first words; echo last words")))
    assert run["status"] == "SUCCESS" and run["tasks"][0]["exitCode"] == 0
    (task,) = run["tasks"]
    eventually(lambda: task["id"] not in jobs.tasks(), "the master has forgotten the task")
    assert jobs.log_of(task["id"]) == "first words\nlast words\n"
    history = jobs.get("/v1/jobs/says?embed=history")["history"]
    assert history["successCount"] == 1 and history["successfulFinishedRuns"][0]["tasks"] == [task["id"]]
