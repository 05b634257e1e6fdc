"""curl in the shape of the documents of Metronome's API, and of what its clients were seen to send."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.clients.curl import Curl
from tests.cluster import bed
from tests.cluster.bed import Cluster, eventually

Json = dict[str, Any]
BELOW = ("", "/service/metronome")
EXAMPLES = sorted(path for path in (bed.ROOT / "examples").glob("*.json") if "run" in json.loads(path.read_text()))
EMBEDDED = "embed=activeRuns&embed=schedules&embed=historySummary"
NIGHTLY: Json = {"id": "nightly", "cron": "0 3 * * *", "concurrencyPolicy": "ALLOW", "enabled": True}


def job(line: str, job_id: str = "t.a") -> Json:
    networks = [{"mode": "container", "name": "overlay"}]
    return {"id": job_id, "run": {"cmd": line, "cpus": 0.1, "mem": 32, "disk": 0, "networks": networks}}


@pytest.fixture(params=BELOW, ids=["bare", "service"])
def curl(request: pytest.FixtureRequest, cluster: Cluster, authority: Any) -> Curl:
    return Curl(cluster, authority, request.param)


def test_reads_of_an_empty_cluster(curl: Curl) -> None:
    for path in f"/v1/jobs?{EMBEDDED}", "/v1/jobs/", "//v1//jobs", "/v1/queue":
        assert (curl("GET", path).status, curl("GET", path).json) == (200, []), path
    assert "version" in curl("GET", "/info").json and "leader" in curl("GET", "/leader").json
    assert curl("GET", "/ping").text == "pong" and curl("GET", "/v1/metrics").status == 200


def test_runs(curl: Curl) -> None:
    created = curl("POST", "/v1/jobs", "--header", "Transfer-Encoding: chunked", data={**job("exit 0"), "labels": None})
    assert created.status == 201 and created.json["id"] == "t.a"
    started = curl("POST", "/v1/jobs//t.a/runs")
    run = started.json
    assert started.status == 201 and {"id", "jobId", "createdAt", "status"} <= run.keys() and run["jobId"] == "t.a"
    history = eventually(lambda: finished(curl), "the run has ended")
    assert history["successCount"] == 1 and history["lastSuccessAt"]
    assert [each["id"] for each in history["successfulFinishedRuns"]] == [run["id"]]
    assert curl("PUT", "/v1/jobs/t.a", data=job("exec sleep 3600")).json["run"]["cmd"] == "exec sleep 3600"
    run = curl("POST", "/v1/jobs/t.a/runs", data={}).json
    assert [each["id"] for each in curl("GET", "/v1/jobs/t.a/runs").json] == [run["id"]]
    assert curl("GET", f"/v1/jobs/t.a/runs/{run['id']}").json["jobId"] == "t.a"
    blocked = curl("DELETE", "/v1/jobs/t.a")
    assert blocked.status == 409 and blocked.json["message"].startswith("Changes blocked")
    stopped = curl("POST", f"/v1/jobs/t.a/runs/{run['id']}/actions/stop")
    assert stopped.status == 200, stopped
    (listed,) = curl("GET", f"/v1/jobs?{EMBEDDED}").json
    assert listed["historySummary"]["successCount"] == 1 and listed["schedules"] == []
    assert curl("DELETE", "/v1/jobs//t.a?stopCurrentJobRuns=True").status == 200
    missing = curl("GET", "/v1/jobs/t.a")
    assert missing.status == 404 and "t.a" in missing.json["message"]


def test_schedules(curl: Curl) -> None:
    """The time zone has two names, of which one is one client's."""
    curl("POST", "/v1/jobs", data=job("exit 0"))
    for zone, path in ("timezone", "schedules"), ("timeZone", "schedules//"):
        made = curl("POST", f"/v1/jobs/t.a/{path}", data={**NIGHTLY, zone: "Europe/Berlin"})
        assert made.status == 201 and made.json["timezone"] == "Europe/Berlin", made
        assert {"id", "cron", "concurrencyPolicy", "enabled", "nextRunAt"} <= made.json.keys()
        changed = curl("PUT", "/v1/jobs/t.a/schedules//nightly", data={**NIGHTLY, "enabled": False})
        assert changed.status == 200 and changed.json["enabled"] is False
        assert [each["id"] for each in curl("GET", "/v1/jobs/t.a/schedules").json] == ["nightly"]
        assert curl("GET", "/v1/jobs/t.a/schedules/nightly/").json["cron"] == "0 3 * * *"
        assert curl("DELETE", "/v1/jobs/t.a/schedules/nightly").status == 200
        assert curl("GET", "/v1/jobs/t.a/schedules/nightly").status == 404
    both = curl("PUT", "/v0/scheduled-jobs/t.a", data={**job("exit 0"), "schedules": [NIGHTLY]})
    assert both.status == 200 and [each["id"] for each in curl("GET", "/v1/jobs/t.a/schedules").json] == ["nightly"]


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"cron": "0 0 30 2 *"}, "/cron"),
        ({"cron": "61 * * * *"}, "/cron"),
        ({"cron": ""}, "/cron"),
        ({"timezone": "Europe/Nowhere"}, "/timezone"),
        ({"timezone": "../../etc/passwd"}, "/timezone"),
        ({"concurrencyPolicy": "MAYBE"}, "/concurrencyPolicy"),
        ({"startingDeadlineSeconds": -1}, "/startingDeadlineSeconds"),
        ({"id": "A B"}, "/id"),
        ({"colour": "red"}, "/colour"),
    ],
)
def test_bad_schedule_names_its_field(cluster: Cluster, authority: Any, change: Json, path: str) -> None:
    curl = Curl(cluster, authority)
    curl("POST", "/v1/jobs", data=job("exit 0"))
    refused = curl("POST", "/v1/jobs/t.a/schedules", data={**NIGHTLY, **change})
    assert (refused.status, [each["path"] for each in refused.json["details"]]) == (422, [path]), refused
    assert curl("GET", "/v1/jobs/t.a/schedules").json == []


def test_jobs_that_wait_for_each_other(cluster: Cluster, authority: Any) -> None:
    curl = Curl(cluster, authority)
    curl("POST", "/v1/jobs", data=job("exit 0", "a"))
    curl("POST", "/v1/jobs", data={**job("exit 0", "b"), "dependencies": [{"id": "a"}]})
    refused = curl("PUT", "/v1/jobs/a", data={**job("exit 0", "a"), "dependencies": [{"id": "b"}]})
    assert refused.status == 422 and "/dependencies" in refused.text, refused
    assert "dependencies" not in curl("GET", "/v1/jobs/a").json or not curl("GET", "/v1/jobs/a").json["dependencies"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(cluster: Cluster, authority: Any, path: Any) -> None:
    """Made, run to its end, read, sent back as it was read, and removed."""
    curl, definition = Curl(cluster, authority), json.loads(path.read_text())
    made = curl("POST", "/v0/scheduled-jobs", data=definition)
    assert made.status == 201, made
    name = definition["id"]
    assert curl("POST", f"/v1/jobs/{name}/runs").status == 201
    eventually(lambda: finished(curl, name), "the run has ended")
    read = curl("GET", f"/v1/jobs/{name}").json
    assert read["run"].items() >= {key: definition["run"][key] for key in ("cmd", "cpus", "mem")}.items()
    assert curl("PUT", f"/v1/jobs/{name}", data=read).json == read
    assert curl("DELETE", f"/v1/jobs/{name}?stopCurrentJobRuns=true").status == 200


def finished(curl: Curl, name: str = "t.a") -> Json | None:
    history: Json = curl("GET", f"/v1/jobs/{name}?embed=history").json["history"]
    return history if history["successfulFinishedRuns"] else None
