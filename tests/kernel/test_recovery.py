"""Whatever of an agent is killed, and whatever its node does to it: containers go on, and the books become right."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from model.task import TaskState
from tests.kernel.daemon import KEEPER, LAUNCHER, NodeDaemon, node_daemon, spec, until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("host_mounts", "one_loop")]

MANY = 100
COUNTING = "trap 'exit {code}' TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.5; done"
FOREVER = "echo started; exec sleep infinity"
RECONCILED_S = 2.0
MARGIN = 4  # of a machine that does other things beside


def alive(pids: set[int]) -> bool:
    return all(Path(f"/proc/{pid}").exists() for pid in pids)


def pids(node: NodeDaemon) -> dict[str, int]:
    return {known.spec.id: known.status.pid or 0 for known in node.known()}


def counted(text: str) -> bool:
    """From 0, each number once, whole lines."""
    lines = text.splitlines()
    return text.endswith("\n") and lines == [str(number) for number in range(len(lines))]


async def test_a_hundred_containers_survive_their_agent_launcher_and_keepers(tmp_path: Path) -> None:
    async with node_daemon(tmp_path) as node:
        codes = {f"count.{number}": number % 120 for number in range(MANY)}
        await node.run(*(spec(name, COUNTING.format(code=code)) for name, code in codes.items()))
        before = pids(node)
        for _ in range(2):
            node.kill()
            await restarted(node)
        for launcher in node.processes(LAUNCHER):
            os.kill(launcher, signal.SIGKILL)
        orphaned = kill_keepers(node, MANY // 4)
        node.kill()
        orphaned |= kill_keepers(node, MANY // 4)
        await restarted(node)
        assert pids(node) == before and alive(set(before.values()))
        assert node.in_state(TaskState.RUNNING) == codes.keys()
        for pid in before.values():
            os.kill(pid, signal.SIGTERM)
        await until(lambda: all(known.over for known in node.known()), "all have ended", node.tail)
        for known in node.known():
            lost = known.spec.id in orphaned
            assert known.status.exit_code == (None if lost else codes[known.spec.id])
            assert lost == (known.status.reason == "its exit code is lost: the keeper was killed")
            assert counted(node.output(known.spec.id)), node.output(known.spec.id)


async def restarted(node: NodeDaemon) -> None:
    began = time.monotonic()
    await until(lambda: not node.connected_now(), "the master has noticed")
    node.begin()
    await node.connected()
    assert time.monotonic() - began < MARGIN * RECONCILED_S


def kill_keepers(node: NodeDaemon, count: int) -> set[str]:
    """Of so many running tasks whose keeper lives; returns their ids."""
    keepers = node.keepers()
    living = set(node.processes(KEEPER))
    tasks = {record.container: task for task, record in node.records().items()}
    chosen = [name for name in sorted(keepers) if name in tasks and keepers[name].keeper.pid in living][:count]
    for name in chosen:
        os.kill(keepers[name].keeper.pid, signal.SIGKILL)
    return {tasks[name] for name in chosen}
