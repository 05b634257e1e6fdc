"""What `tepui explain` makes of what the API says."""

from __future__ import annotations

from typing import Any

from cli.explanation import of_job, of_pod, of_service
from tests.unit.test_cli_job import ACTIVE, AT, FAILED, LATER, NEEDS, NOW, SCHEDULE, run, task

SERVICE: dict[str, Any] = {"tasks": [], "waiting": []}
APP = {"id": "/web", "tasksRunning": 1, "instances": 1}
QUIET = {
    "health": [],
    "readiness": [],
    "killing": False,
    "paused": False,
    "message": "",
    "node": "n1",
    "since": NOW - 12,
}
JOB: dict[str, Any] = {"job": {"id": "load"}, "schedules": [], "runs": [], "waiting": [], "pipeline": None}


def test_a_service_that_is_well_is_fine() -> None:
    running = {**QUIET, "id": "web.1", "state": "RUNNING"}
    found = of_service(SERVICE | {"tasks": [running]}, APP, [], None, "", NOW)
    assert found.fine and found.summary == "1 of 1 running" and found.last == ()


def test_what_tasks_are_at_is_told() -> None:
    pulls = {**QUIET, "id": "web.12345678-9", "state": "PREPARING", "message": "pulls x: 1 of 2 layers"}
    ill = {**QUIET, "id": "web.2", "state": "RUNNING", "health": [{"alive": False, "cause": "HTTP status 500"}]}
    unready = {**QUIET, "id": "web.3", "state": "RUNNING", "readiness": [{"ready": False}], "paused": True}
    found = of_service(SERVICE | {"tasks": [pulls, ill, unready]}, APP, [], None, "", NOW)
    assert [text for _, text in found.wrong] == [
        "web.12345678 on n1: PREPARING for 12 s: pulls x: 1 of 2 layers",
        "web.2 on n1: RUNNING for 12 s; ill: HTTP status 500",
        "web.3 on n1: RUNNING for 12 s; not ready; paused",
    ]


def test_each_node_has_the_last_word() -> None:
    offers = [{"offer": {"agentId": node}, "message": text} for node, text in (("n2", "a"), ("n1", "b"), ("n2", "c"))]
    found = of_service(SERVICE, APP, [], {"lastUnusedOffers": offers}, "", NOW)
    assert found.wrong == (("refused", "by n1: b"), ("refused", "by n2: c"))


def test_what_failed_last_is_told_of_what_is_fine_too() -> None:
    failure = {"timestamp": AT, "taskId": "web.12345678-9", "host": "n1", "message": "failed: exit code 1"}
    found = of_service(SERVICE, APP | {"lastTaskFailure": failure}, [], None, "no such file", NOW)
    assert found.fine and found.last[0] == ("last failure", "1 min ago: web.12345678 on n1: failed: exit code 1")
    assert found.last[1] == ("last words", "no such file")


def test_a_pod() -> None:
    ended = {"terminatedAt": AT, "instanceID": "pod.instance-1", "message": "one: failed: exit code 1"}
    status: dict[str, Any] = {
        "id": "/pod",
        "instances": [{"status": "STABLE"}, {"status": "DEGRADED"}],
        "terminationHistory": [ended],
    }
    status |= {"spec": {"scaling": {"instances": 2}}}
    found = of_pod({"status": status, "tasks": [], "waiting": [NEEDS]}, [], None, "", NOW)
    assert found.summary == "1 of 2 stable" and found.wrong == (("waiting", NEEDS),)
    assert found.last == (("last failure", "1 min ago: pod.instance-1: one: failed: exit code 1"),)


def test_a_job_that_waits_for_others_or_was_blocked() -> None:
    found = of_job(JOB | {"pipeline": ACTIVE}, None, "", NOW)
    (word, sentence), *_ = found.wrong
    assert word == "pipeline" and sentence.endswith("waiting; waits for clean") and not found.fine
    blocked = of_job(JOB | {"pipeline": FAILED}, None, "", NOW)
    assert blocked.wrong[0][1].endswith("blocked: clean failed")


def test_a_job_that_is_not_due_is_fine() -> None:
    due = SCHEDULE | {"nextRunAt": "2026-01-31T12:02:00.000+0000", "skipped": None}
    found = of_job(JOB | {"schedules": [due]}, None, "", NOW)
    assert found.fine and found.summary == "no run under way; nightly in 1 min"
    skipped = due | {"skipped": {"dueAt": AT, "reason": "a run was under way"}}
    assert of_job(JOB | {"schedules": [skipped]}, None, "", NOW).last[0][1] == "schedule nightly: a run was under way"


def test_a_job_whose_last_run_failed_tells_why() -> None:
    failed = run("FAILED", completedAt=LATER, tasks=[task(exitCode=3)])
    found = of_job(JOB, failed, "no such table", NOW)
    assert [text for _, text in found.last] == [f"30 s ago: run {failed['id']} failed: exit code 3", "no such table"]
