"""Whatever of an agent is killed, and whatever its node does to it: containers go on, and the books become right."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest

from model.health import HealthCheck, ProbeKind
from model.task import TaskState
from tests.kernel.agent import agent
from tests.kernel.daemon import KEEPER, LAUNCHER, NodeDaemon, cgroup_processes, node_daemon, spec, until
from tests.kernel.namespaces import run
from tests.kernel.sandbox import task

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("host_mounts", "one_loop")]

BOOT_ID = "/proc/sys/kernel/random/boot_id"
MANY = 100
COUNTING = "trap 'exit {code}' TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.5; done"
FOREVER = "echo started; exec sleep infinity"
RECONCILED_S = 2.0
MARGIN = 3  # of a machine whose caches others use too


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


async def test_after_a_reboot_nothing_is_left_of_the_old_boot_and_each_task_is_lost_once(tmp_path: Path) -> None:
    async with node_daemon(tmp_path) as node:
        tasks = {f"stays.{number}" for number in range(6)}
        await node.run(*(spec(name, FOREVER, "overlay" if name[-1] in "135" else "none") for name in tasks))
        before = pids(node)
        node.kill()
        (tmp_path / "boot_id").write_text(f"{uuid4()}\n")
        run("mount", "--bind", str(tmp_path / "boot_id"), BOOT_ID)
        node.begin()
        await node.connected()
        await until(lambda: node.in_state(TaskState.LOST) == tasks, "all are lost", node.tail)
        ends = [(status.task_id, status.sequence) for status in node.told if status.state.terminal]
        assert {task for task, _ in ends} == tasks and len(set(ends)) == len(tasks)
        assert not any(alive({pid}) for pid in before.values())
        assert not any(node.traces().values()) and cgroup_processes(node.prefix) == set()
        run("umount", BOOT_ID)


async def test_a_damaged_record_is_put_aside_by_its_name_and_costs_its_own_task_alone(tmp_path: Path) -> None:
    async with node_daemon(tmp_path) as node:
        await node.run(*(spec(name, FOREVER) for name in ("a", "b", "c")))
        before = pids(node)
        node.kill()
        (node.directories.tasks / "b.json").write_text("{nonsense")
        node.begin()
        await node.connected()
        await until(lambda: node.in_state(TaskState.LOST) == {"b"}, "it is lost", node.tail)
        assert node.in_state(TaskState.RUNNING) == {"a", "c"} and alive({before["a"], before["c"]})
        assert not alive({before["b"]}) and node.output("b") == "started\n"
        aside = node.directories.tasks / "b.damaged"
        assert aside.read_text() == "{nonsense"
        assert [event["path"] for event in node.events() if event["event"].startswith("checkpoint damaged")] == [
            str(aside)
        ]


async def test_a_second_agent_on_the_same_state_is_refused(tmp_path: Path) -> None:
    async with node_daemon(tmp_path) as node:
        await node.run(spec("a", FOREVER))
        first = node.process
        assert first is not None
        second = node.begin()
        assert await asyncio.to_thread(second.wait, 60) == 1
        node.process = first
        assert f"another agent (process {first.pid}) uses this state directory" in node.tail()
        assert first.poll() is None and node.in_state(TaskState.RUNNING) == {"a"} and alive(set(pids(node).values()))


async def test_a_state_directory_that_can_not_be_written_is_named_and_costs_no_container(tmp_path: Path) -> None:
    async with node_daemon(tmp_path) as node:
        await node.run(spec("a", FOREVER))
        before, state = pids(node), str(node.state)
        node.kill()
        run("mount", "--rbind", state, state)
        run("mount", "--make-rprivate", state)  # or what is mounted in it would go with the copy
        run("mount", "-o", "remount,bind,ro", state)
        refused = node.begin()
        assert await asyncio.to_thread(refused.wait, 60) == 1
        assert f"Read-only file system: '{state}" in node.tail()
        run("umount", "-l", state)
        node.begin()
        await node.connected()
        assert pids(node) == before and alive(set(before.values()))


async def test_a_full_disk_holds_up_what_must_be_written_down_and_nothing_else(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    run("mount", "-t", "tmpfs", "-o", "mode=0700,size=48m", "tmpfs", str(state))
    async with node_daemon(tmp_path, state) as node:
        await node.run(spec("a", FOREVER), spec("b", FOREVER))
        fill(state / "filler")
        await node.master.tasks.mark("a", drained=True)
        await node.master.tasks.add("n1", [spec("c", FOREVER)])
        await until(lambda: len(not_written(node)) == 2, "the master is told", node.tail)
        assert {text.split(":")[0] for text in not_written(node)} == {
            f"task {name} is not written down" for name in "ac"
        }
        assert node.in_state(TaskState.RUNNING) == {"a", "b"} and alive({pids(node)["a"]})
        node.kill()
        node.begin()
        await node.connected()
        assert node.in_state(TaskState.RUNNING) == {"a", "b"} and alive({pids(node)["a"]})
        (state / "filler").unlink()
        await until(lambda: node.in_state(TaskState.KILLED) == {"a"}, "its end is done", node.tail)
        await until(lambda: node.in_state(TaskState.RUNNING) == {"b", "c"}, "the other one runs", node.tail)
    run("umount", "-l", str(state))


async def test_a_node_that_has_less_and_permits_less_than_before_starts_and_says_so(tmp_path: Path) -> None:
    async with node_daemon(tmp_path, CAPABILITIES='["CAP_SYS_PTRACE"]') as node:
        await node.run(spec("a", FOREVER, capabilities_add=("CAP_SYS_PTRACE",)))
        before = pids(node)
        node.kill(signal.SIGTERM)
        node.settings |= {"CAPABILITIES": "[]", "MEM": "8", "ATTRIBUTES": '{"rack": "b"}'}
        node.begin()
        await node.connected()
        said = [event["reason"] for event in node.events() if event["event"] == "tasks no longer fit this node"]
        assert said == [
            "its tasks hold 8 MiB memory more than it has",
            "task a has capability CAP_SYS_PTRACE, which it no longer permits",
        ]
        assert pids(node) == before and node.in_state(TaskState.RUNNING) == {"a"}
        (view,) = node.master.nodes.all()
        assert view.node.resources.mem == 8 and view.node.attributes == (("rack", "b"),)


async def test_every_line_of_an_agents_log_says_whose_it_is(tmp_path: Path) -> None:
    async with node_daemon(tmp_path) as node:
        await node.master.tasks.add("n1", [spec("a", FOREVER, user="4294967295:0"), spec("b", FOREVER, "nowhere")])
        await until(lambda: all(known.over for known in node.known()), "both have failed", node.tail)
        lines = [json.loads(line) for line in node.log.read_text().splitlines()]
        assert {(line["daemon"], line["node"]) for line in lines} == {("agent", "n1")}
        assert {line["level"] for line in lines} <= {"info", "warning", "error"}
        assert {known.spec.id for known in node.known()} >= {line["task"] for line in lines if "task" in line}


@pytest.mark.parametrize("jump_s", [-86_400.0, 86_400.0])
async def test_a_clock_that_jumps_makes_no_grace_shorter_or_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    now, loop = time.time, asyncio.get_running_loop()
    check = HealthCheck(ProbeKind.COMMAND, argv=("true",), delay_s=0.0, interval_s=0.1, grace_s=60.0)
    async with agent(tmp_path / "state") as made:
        ignores = ("sh", "-c", "trap '' TERM; while :; do sleep 0.1; done")
        wanted = task("web.1", *ignores, kill_grace_s=1.0, health_checks=(check,))
        made.reconciler.assign(wanted, kill=False)
        await made.reached("web.1", TaskState.RUNNING)
        monkeypatch.setattr(time, "time", lambda: now() + jump_s)
        await until(lambda: made.reports[-1].healthy is True, "it is found to be well")
        began, sequence = loop.time(), made.reports[-1].sequence
        made.reconciler.assign(wanted, kill=True)
        ended = await made.reached("web.1", TaskState.FINISHED)
        assert 1.0 <= loop.time() - began < 10.0
        assert ended.reason == "killed with SIGKILL after 1 s of grace" and ended.sequence > sequence


async def restarted(node: NodeDaemon) -> None:
    await until(lambda: not node.connected_now(), "the master has noticed")
    process = node.begin()
    await node.connected()
    assert cpu_s(process.pid) < MARGIN * RECONCILED_S


def fill(file: Path) -> None:
    with suppress(OSError), file.open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(1 << 16))
    with suppress(OSError), file.open("ab", buffering=0) as filler:
        while True:
            filler.write(b"x")


def not_written(node: NodeDaemon) -> list[str]:
    (view,) = node.master.nodes.all()
    return [error for error in view.errors if "not written down" in error]


def cpu_s(pid: int) -> float:
    """CPU time, for that does not depend on what else the machine does; `script/bench recovery` takes the time."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def kill_keepers(node: NodeDaemon, count: int) -> set[str]:
    """Of so many running tasks whose keeper lives; returns their ids."""
    keepers = node.keepers()
    living = set(node.processes(KEEPER))
    tasks = {record.container: task for task, record in node.records().items()}
    chosen = [name for name in sorted(keepers) if name in tasks and keepers[name].keeper.pid in living][:count]
    for name in chosen:
        os.kill(keepers[name].keeper.pid, signal.SIGKILL)
    return {tasks[name] for name in chosen}
