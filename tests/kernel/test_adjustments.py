"""A task that runs is resized and paused in place: by the agent, on real cgroups, and never halfway."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from model.adjustment import Adjustment, adjustment_of
from model.resources import Resources
from model.task import TaskSpec, TaskState, TaskStatus
from tests.kernel.agent import Agent, agent
from tests.kernel.sandbox import alive, task, until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("host_mounts")]

MIB = 1 << 20
COUNT = "i=0; while :; do i=$((i+1)); echo $i > /tmp/count; done"
CATCH = "trap 'echo caught; exit 7' TERM; echo ready; while :; do sleep 0.01; done"
HOLD = "head -c 40M /dev/zero > /dev/shm/held; echo held; sleep infinity"


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Agent]:
    async with agent(tmp_path / "state") as made:
        yield made


async def running(node: Agent, spec: TaskSpec) -> TaskStatus:
    node.reconciler.assign(spec, kill=False)
    return await node.reached(spec.id, TaskState.RUNNING)


async def adjusted(node: Agent, spec: TaskSpec, adjustment: Adjustment) -> TaskStatus:
    node.reconciler.assign(spec, kill=False, adjustment=adjustment)
    return await answered(node, spec, adjustment.number)


async def answered(node: Agent, spec: TaskSpec, number: int) -> TaskStatus:
    def answers() -> list[TaskStatus]:
        return [status for status in node.reports if status.task_id == spec.id and status.adjustment == number]

    await until(answers, f"adjustment {number} is answered")
    return answers()[0]


def cpu_ticks(pid: int) -> int:
    """Time spent (proc_pid_stat(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


async def test_limits_change_without_a_restart(node: Agent) -> None:
    spec = task("web.1", "sleep", "infinity", resources=Resources(cpus=500, mem=64))
    before = await running(node, spec)
    wanted = replace(adjustment_of(spec, number=1), resources=Resources(cpus=250, mem=128), pids=77)
    after = await adjusted(node, spec, wanted)
    assert (after.refused, after.pid, after.state) == ("", before.pid, TaskState.RUNNING)
    assert (after.usage.cpu_limit, after.usage.mem_limit_bytes, after.usage.pids_limit) == (0.25, 128 * MIB, 77)


async def test_less_memory_than_is_used_is_refused_and_nothing_is_changed(node: Agent) -> None:
    spec = task("web.1", "sh", "-c", HOLD, resources=Resources(cpus=500, mem=64))
    await running(node, spec)
    log = node.directories.log(spec.id, "stdout")
    await until(lambda: "held" in log.read_text(), "the memory is held")
    wanted = replace(adjustment_of(spec, number=1), resources=Resources(cpus=100, mem=16), pids=77)
    after = await adjusted(node, spec, wanted)
    assert after.refused.startswith("memory limit 16 MiB: 4") and "are in use" in after.refused
    assert (after.usage.cpu_limit, after.usage.mem_limit_bytes, after.usage.pids_limit) == (0.5, 64 * MIB, spec.pids)
    assert node.reconciler.books.records[spec.id].spec == spec


async def test_what_the_node_can_never_have_is_refused(node: Agent) -> None:
    spec = task("web.1", "sleep", "infinity")
    await running(node, spec)
    wanted = replace(adjustment_of(spec, number=1), resources=Resources(cpus=100, mem=1 << 30))
    assert "too little, even when empty" in (await adjusted(node, spec, wanted)).refused


async def test_a_paused_task_stands_still_until_it_is_resumed(node: Agent) -> None:
    spec = task("web.1", "sh", "-c", COUNT)
    before = await running(node, spec)
    assert before.pid is not None
    pid = before.pid
    await until(lambda: cpu_ticks(pid) > 1, "it works")
    paused = await adjusted(node, spec, adjustment_of(spec, paused=True, number=1))
    assert paused.paused and paused.state is TaskState.RUNNING
    ticks = cpu_ticks(pid)
    await adjusted(node, spec, replace(adjustment_of(spec, paused=True, number=2), pids=99))  # paused it stays
    assert cpu_ticks(pid) == ticks
    assert not (await adjusted(node, spec, adjustment_of(spec, number=3))).paused
    await until(lambda: cpu_ticks(pid) > ticks + 1, "it works again")


async def test_a_paused_task_sees_the_signal_that_ends_it(node: Agent) -> None:
    spec = task("web.1", "sh", "-c", CATCH, kill_grace_s=15.0)
    await running(node, spec)
    log = node.directories.log(spec.id, "stdout")
    await until(lambda: "ready" in log.read_text(), "the trap is set")
    await adjusted(node, spec, adjustment_of(spec, paused=True, number=1))
    node.reconciler.assign(spec, kill=True)
    end = await node.reached(spec.id, TaskState.FINISHED)
    assert (end.state, end.exit_code, end.paused) == (TaskState.KILLED, 7, False)
    assert "caught" in log.read_text()


async def test_an_agent_that_was_killed_in_the_middle_goes_on(node: Agent) -> None:
    spec = task("web.1", "sleep", "infinity", resources=Resources(cpus=500, mem=64))
    before = await running(node, spec)
    await node.reconciler.close()
    # On disk, and half of it in the kernel, is how the agent left it.
    wanted = replace(adjustment_of(spec, paused=True, number=1), resources=Resources(cpus=250, mem=64))
    node.reconciler.assign(spec, kill=False, adjustment=wanted)
    record = node.reconciler.books.records[spec.id]
    container = node.containers.container(replace(record, spec=replace(spec, resources=wanted.resources)))
    await node.containers.update(container)
    again = Agent(node.node, node.directories)
    await again.reconciler.recover()
    try:
        after = await answered(again, spec, 1)
        assert (after.paused, after.usage.cpu_limit, after.pid) == (True, 0.25, before.pid)
        again.reconciler.assign(spec, kill=True)
        assert (await again.reached(spec.id, TaskState.FINISHED)).state is TaskState.KILLED
    finally:
        await again.reconciler.close()
        node.reconciler.books.records.clear()
    assert before.pid is not None and not alive(before.pid)
