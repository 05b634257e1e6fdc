"""What a task's environment says about its logs, and which logs of ended tasks are removed."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from agent.launcher.pump import Limits
from agent.log_limits import MIB, LogPolicy
from agent.log_retention import EndedLog, Retention, due, keep_bounded
from cli.log_options import moment
from cli.problem import Problem
from cli.service_log import lines
from cli.task_table import short
from isolators.base import Unsupported
from model.resources import Resources
from model.task import TaskSpec

POLICY = LogPolicy(Limits(MIB, 2), 8 * MIB)


def task(**env: str) -> TaskSpec:
    prefixed = tuple((f"CONTAINER_LOGGER_{name}", value) for name, value in env.items())
    return TaskSpec("a", "services", "/a", ("true",), Resources(), "none", prefixed)


def test_a_task_says_as_in_mesos_how_much_is_kept() -> None:
    assert POLICY.of(task()) == (Limits(MIB, 2), Limits(MIB, 2))
    wanted = task(MAX_STDOUT_SIZE="512KB", LOGROTATE_STDOUT_OPTIONS="compress\nrotate 9\n", MAX_STDERR_SIZE="4MB")
    assert POLICY.of(wanted) == (Limits(MIB // 2, 10), Limits(4 * MIB, 2))


@pytest.mark.parametrize(
    ("env", "complaint"),
    [
        ({"MAX_STDOUT_SIZE": "10"}, "MAX_STDOUT_SIZE: '10' is not a size"),
        ({"MAX_STDERR_SIZE": "4095B"}, "MAX_STDERR_SIZE: '4095B' is not a size of at least 4096 bytes"),
        ({"MAX_STDOUT_SIZE": "-1MB"}, "is not a size"),
        ({"MAX_STDOUT_SIZE": "5MB"}, "stdout: 2 log files of 5242880 bytes are more than the 8 MiB"),
        ({"LOGROTATE_STDERR_OPTIONS": "rotate 8"}, "stderr: 9 log files of 1048576 bytes are more than"),
    ],
)
def test_what_can_not_be_is_refused_by_name(env: dict[str, str], complaint: str) -> None:
    with pytest.raises(Unsupported, match=complaint):
        POLICY.of(task(**env))


def test_logs_go_when_they_are_old_and_when_they_are_too_many() -> None:
    ended = [EndedLog(Path(str(age)), 1000.0 - age, 10) for age in (50, 0, 20, 5, 10)]

    def removed(age_s: float, size: int) -> list[str]:
        return [each.path.name for each in due(ended, Retention(age_s, size), 1000.0)]

    assert removed(100, 50) == []
    assert removed(15, 50) == ["20", "50"]
    assert removed(100, 25) == ["10", "20", "50"]
    assert removed(100, 0) == ["0", "5", "10", "20", "50"]


@pytest.mark.anyio
async def test_logs_of_tasks_that_live_stay(tmp_path: Path) -> None:
    for name in ("old", "new", "alive"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "stdout").write_bytes(bytes(100))
    for name in ("old", "alive"):
        os.utime(tmp_path / name, (time.time() - 100, time.time() - 100))
    keeping = asyncio.create_task(keep_bounded(tmp_path, Retention(50, MIB), lambda task: task != "alive"))
    async with asyncio.timeout(10):
        while (tmp_path / "old").exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    keeping.cancel()
    assert sorted(os.listdir(tmp_path)) == ["alive", "new"]


def test_since_is_a_duration_or_a_time() -> None:
    now = 1_000_000.0
    assert moment("10m", now) == now - 600 and moment("1h30m", now) == now - 5400 and moment("100d", now) == 0
    assert moment("1970-01-02T00:00:00Z", now) == 86400
    for wrong in ("10", "ten minutes", "10m ago", "", "9999999999999-01-01"):
        with pytest.raises(Problem, match="neither a duration"):
            moment(wrong, now)


def test_lines_of_a_service_have_the_names_of_tasks() -> None:
    assert list(lines([b"one\ntw", b"o\n", b"", b"three"])) == [b"one", b"two", b"three"]
    assert short("group_web.3f2a9c01-6b1e-4c0e") == "group_web.3f2a9c01"
