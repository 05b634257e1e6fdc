"""What `tepui task show` says of a task, for each way in which it may be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cli.task_show import describe
from master.rest.cluster import task_json
from master.tasks import TaskRecord
from model.health import Health, HealthCheck, ProbeKind, Readiness, ReadinessCheck
from model.image import PullProgress
from model.signals import parse_signal, signal_name
from model.task import TaskSpec, TaskState, TaskStatus
from tests.unit.control import task

CHECKS = (HealthCheck(ProbeKind.HTTP, 80, "/health"), HealthCheck(ProbeKind.TCP, 81, max_failures=0))
READY = (ReadinessCheck("ready", ProbeKind.HTTPS, 80, "/ready"),)
SPEC = replace(task("web.1"), health_checks=CHECKS, readiness_checks=READY, kill_grace_s=30.0)


def shown(spec: TaskSpec = SPEC, killing: bool = False, **status: Any) -> dict[str, list[str]]:
    seen = replace(TaskStatus(spec.id, TaskState.RUNNING, 1, at=100.0, since=100.0), **status)
    lines: dict[str, list[str]] = {}
    for name, value in describe(task_json(TaskRecord(spec, "n1", seen, killing)), now=118.0):
        lines.setdefault(name, []).append(value)
    return lines


def test_a_task_that_runs() -> None:
    lines = shown(replace(SPEC, health_checks=(), readiness_checks=()), addresses=("100.64.0.2",), pid=4711)
    assert lines["state"] == ["RUNNING for 18 s"] and lines["address"] == ["100.64.0.2"] and lines["pid"] == ["4711"]
    assert not lines.keys() & {"health", "readiness", "reason"}


def test_what_its_checks_found() -> None:
    ill = Health(None, None, 110.0, 2, "HTTP status 503")
    lines = shown(health=(ill, Health(105.0, 106.0)), readiness=(Readiness(False, 503, cause="HTTP status 503"),))
    assert lines["health"] == [
        "http :80/health: ill, 2 of 3 failures in a row, the last: HTTP status 503",
        "tcp :81: well for 12 s",
    ]
    assert lines["readiness"] == ["https :80/ready: not ready (HTTP status 503)"]
    lines = shown(health=(Health(), Health(None, None, 1.0, 7, "refused")), readiness=(Readiness(True, 200),))
    assert lines["health"] == [
        "http :80/health: no result that counts yet (not asked)",
        "tcp :81: ill, 7 failures in a row, the last: refused",
    ]
    assert lines["readiness"] == ["https :80/ready: ready"]


def test_how_far_the_pull_of_its_image_is() -> None:
    progress = PullProgress("nginx:1.25", layers=5, layers_done=2, bytes=80 << 20, bytes_done=34 << 20)
    lines = shown(state=TaskState.PREPARING, message=progress.describe())
    assert lines["state"] == ["PREPARING for 18 s: pulls nginx:1.25: 2 of 5 layers, 34 of 80 MiB"]
    waits = replace(progress, note="registry down: refused; trying again in 2 s (2 of 6)").describe()
    assert waits == "pulls nginx:1.25: registry down: refused; trying again in 2 s (2 of 6)"


def test_how_far_its_end_has_come() -> None:
    assert shown(killing=True)["state"] == ["RUNNING for 18 s, leaving the VIPs"]
    asked = shown(killing=True, state=TaskState.KILLING, message="SIGTERM sent, 30 s of grace")
    assert asked["state"] == ["KILLING for 18 s: SIGTERM sent, 30 s of grace, 12 s left"]
    late = shown(killing=True, state=TaskState.KILLING, since=50.0, message="SIGKILL sent after 30 s of grace")
    assert late["state"] == ["KILLING for 1 min: SIGKILL sent after 30 s of grace"]
    over = shown(killing=True, state=TaskState.KILLED, reason="killed with SIGKILL after 30 s of grace")
    assert over["state"] == ["KILLED for 18 s"] and over["reason"] == ["killed with SIGKILL after 30 s of grace"]


@pytest.mark.parametrize(
    ("text", "number"),
    [("SIGTERM", 15), ("term", 15), ("15", 15), ("SIGQUIT", 3), ("RTMIN", 34), ("SIGRTMIN+3", 37), ("RTMAX-1", 63)],
)
def test_signals(text: str, number: int) -> None:
    assert parse_signal(text) == number


@pytest.mark.parametrize("text", ["", "SIG", "SIGNONE", "0", "65", "-1", "SIGRTMIN+99", "1.5", "SIG_DFL", "٣"])
def test_what_is_no_signal(text: str) -> None:
    with pytest.raises(ValueError, match="is no signal"):
        parse_signal(text)


def test_names_of_signals() -> None:
    assert (signal_name(15), signal_name(37)) == ("SIGTERM", "signal 37")
