"""A task that goes over a limit fails, and says which."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from isolators.base import Container, IsolatorError, Limit
from isolators.cgroup.isolator import CgroupIsolator
from model.resources import Resources
from model.task import TaskState
from tests.kernel.agent import Agent, agent
from tests.kernel.sandbox import alive, task, until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("host_mounts")]

HOG = "x=0123456789; while :; do x=$x$x; done"
REASON = "memory limit 64 MiB exceeded (peak 64.0 MiB)"


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Agent]:
    async with agent(tmp_path / "agent") as made:
        yield made


async def test_a_task_over_its_memory_limit_fails_with_the_reason(node: Agent) -> None:
    ended = await node.run(task("web.1", "sh", "-c", HOG))
    assert (ended.state, ended.reason) == (TaskState.FAILED, REASON)
    assert ended.usage.mem_peak_bytes == 64 << 20
    assert ended.usage.cpu_s > 0


async def test_a_task_whose_child_was_killed_ends_as_a_whole(node: Agent) -> None:
    ended = await node.run(task("web.1", "sh", "-c", f"({HOG}); exec sleep infinity"))
    assert (ended.state, ended.reason) == (TaskState.FAILED, REASON)


async def test_a_limit_hit_just_before_the_exit_is_the_reason(node: Agent) -> None:
    """The exit and the news of the kill come at once, in either order: ten times, so that both are seen."""
    for number in range(10):
        ended = await node.run(task(f"web.{number}", "sh", "-c", f"({HOG}); exit 3"))
        assert (ended.state, ended.reason) == (TaskState.FAILED, REASON)


async def test_a_limit_hit_while_no_agent_ran_is_the_reason(tmp_path: Path) -> None:
    async with agent(tmp_path / "agent") as first:
        script = "trap go=1 USR1; while [ -z $go ]; do sleep 0.01; done; " + HOG
        spec = task("web.1", "sh", "-c", script)
        first.reconciler.assign(spec, kill=False)
        running = await first.reached("web.1", TaskState.RUNNING)
        pid = running.pid or 0
        await first.reconciler.close()
        await until(lambda: gone_when_told(pid), "container is gone")
        second = Agent(first.node, first.directories)
        await second.reconciler.recover()
        ended = await second.reached("web.1", TaskState.FINISHED)
        assert (ended.state, ended.reason) == (TaskState.FAILED, REASON)
        await second.reconciler.close()
        first.reconciler = second.reconciler


async def test_a_task_that_is_killed_is_killed_whatever_it_used(node: Agent) -> None:
    node.reconciler.assign(task("web.1", "sleep", "infinity"), kill=False)
    await node.reached("web.1", TaskState.RUNNING)
    node.reconciler.assign(task("web.1", "sleep", "infinity"), kill=True)
    ended = await node.reached("web.1", TaskState.FINISHED)
    assert (ended.state, ended.reason) == (TaskState.KILLED, "killed with SIGKILL at once: nothing in it heeds SIGTERM")


async def test_a_task_that_can_not_be_watched_runs_on(node: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(self: CgroupIsolator, container: Container) -> Limit | None:
        raise IsolatorError("watch memory: no")

    monkeypatch.setattr(CgroupIsolator, "watch", fails)
    ended = await node.run(task("web.1", "sh", "-c", "sleep 0.1; exit 3"))
    assert (ended.state, ended.reason) == (TaskState.FAILED, "exited with 3")


async def test_a_task_that_asks_for_nothing_is_refused(node: Agent) -> None:
    ended = await node.run(task("web.1", "true", resources=Resources(cpus=0, mem=64)))
    assert (ended.state, ended.reason) == (
        TaskState.REJECTED,
        "resources.cpus is 0: it must be from 1 to 1099511627776",
    )


def gone_when_told(pid: int) -> bool:
    """Again and again: what comes before the handler is there is ignored."""
    if alive(pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR1)
    return not alive(pid)
