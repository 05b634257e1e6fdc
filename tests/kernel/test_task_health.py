"""Tasks that are checked by the agent that runs them, and how they are ended: real containers and real signals."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.launcher import record
from model.adjustment import adjustment_of
from model.health import HealthCheck, ProbeKind, ReadinessCheck
from model.task import TaskSpec, TaskState, TaskStatus
from tests.kernel.agent import Agent, agent
from tests.kernel.sandbox import alive, task, until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("host_mounts")]

CHECK = HealthCheck(
    ProbeKind.HTTP, 8080, "/health", grace_s=0.0, interval_s=0.1, timeout_s=5.0, delay_s=0.0, max_failures=3
)
COMMAND = replace(CHECK, kind=ProbeKind.COMMAND, argv=("sh", "-c", "test -e /tmp/well || { echo not well; exit 7; }"))
READY = ReadinessCheck("ready", ProbeKind.HTTP, 8080, "/health", interval_s=0.2, timeout_s=5.0, keep_response=True)
# Answers 503 until SIGUSR1 makes it well, and again after SIGUSR2.
SERVER = """
import http.server, signal
state = 503
def well(*_):
    global state
    state = 200
def ill(*_):
    global state
    state = 503
signal.signal(signal.SIGUSR1, well)
signal.signal(signal.SIGUSR2, ill)
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(state)
        self.end_headers()
        self.wfile.write(b"state")
http.server.HTTPServer(("127.0.0.1", 8080), Answer).serve_forever()
"""
WELL, ILL = signal.SIGUSR1, signal.SIGUSR2
SLEEP = ("sh", "-c", "trap 'echo > /tmp/well' USR1; while :; do sleep 0.01; done")
PYTHON = os.path.realpath(sys.executable)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Agent]:
    async with agent(tmp_path / "agent") as made:
        yield made


def server(**fields: Any) -> TaskSpec:
    return task("web.1", PYTHON, "-I", "-S", "-c", SERVER, kill_grace_s=0.1, **fields)


async def seen(node: Agent, condition: Callable[[TaskStatus], object], what: str) -> TaskStatus:
    """The first report for which it is true."""
    await until(lambda: any(condition(status) for status in node.reports), what)
    return next(status for status in node.reports if condition(status))


def inside(status: TaskStatus, path: str) -> Path:
    return Path(f"/proc/{status.pid}/root{path}")


async def test_a_task_becomes_well_ill_and_well_again(node: Agent) -> None:
    node.reconciler.assign(server(health_checks=(replace(CHECK, grace_s=60.0),)), kill=False)
    running = await seen(node, lambda status: status.state is TaskState.RUNNING, "it runs")
    assert running.healthy is None
    ignored = await seen(node, lambda status: status.health and "503" in status.health[0].cause, "it answers")
    assert ignored.healthy is None and ignored.health[0].failures == 0
    os.kill(running.pid or 0, WELL)
    well = await seen(node, lambda status: status.healthy, "it is well")
    assert well.since == running.since and well.sequence > running.sequence
    os.kill(running.pid or 0, ILL)
    ill = await seen(node, lambda status: status.health and status.health[0].failures >= 4, "it is ill")
    assert ill.healthy is False and ill.health[0].cause == "HTTP status 503"
    assert alive(running.pid or 0), "the agent itself ends no task for its health"
    os.kill(running.pid or 0, WELL)
    await seen(node, lambda status: status.sequence > ill.sequence and status.healthy, "it is well again")


async def test_a_command_is_run_inside(node: Agent) -> None:
    node.reconciler.assign(task("web.1", *SLEEP, health_checks=(COMMAND,), kill_grace_s=0.1), kill=False)
    ill = await seen(node, lambda status: status.healthy is False, "it is ill")
    assert ill.health[0].cause == "exit code 7: not well"
    os.kill(ill.pid or 0, WELL)
    await seen(node, lambda status: status.healthy, "it is well")


async def test_a_command_that_takes_too_long_is_ended(node: Agent) -> None:
    slow = replace(COMMAND, argv=("sh", "-c", "sleep 3599"), timeout_s=0.3)
    node.reconciler.assign(task("web.1", "sleep", "infinity", health_checks=(slow,), kill_grace_s=0.1), kill=False)
    ill = await seen(node, lambda status: status.healthy is False, "it is ill")
    assert ill.health[0].cause == "no end within 0.3 s"


async def test_readiness_with_what_was_answered(node: Agent) -> None:
    node.reconciler.assign(server(readiness_checks=(READY,)), kill=False)
    not_yet = await seen(node, lambda status: status.readiness and status.readiness[0].status, "it answers")
    assert (not_yet.readiness[0].ready, not_yet.readiness[0].status) == (False, 503)
    os.kill(not_yet.pid or 0, WELL)
    ready = await seen(node, lambda status: status.readiness and status.readiness[0].ready, "it is ready")
    assert ready.readiness[0].body == "state" and ready.healthy is None


async def test_a_paused_task_is_asked_nothing(node: Agent) -> None:
    spec = server(health_checks=(replace(CHECK, timeout_s=0.3),))
    node.reconciler.assign(spec, kill=False)
    answering = await seen(node, lambda status: status.health and "503" in status.health[0].cause, "it answers")
    os.kill(answering.pid or 0, WELL)
    await seen(node, lambda status: status.healthy, "it is well")
    node.reconciler.assign(spec, kill=False, adjustment=adjustment_of(spec, paused=True, number=1))
    await seen(node, lambda status: status.paused, "it is paused")
    told, asked = len(node.reports), asyncio.get_running_loop().time()
    await until(lambda: asyncio.get_running_loop().time() > asked + 1.0, "ten intervals have passed")
    node.reconciler.assign(spec, kill=False, adjustment=adjustment_of(spec, number=2))
    await seen(node, lambda status: status.adjustment == 2, "it goes on")
    assert all(status.healthy for status in node.reports[told:])


async def test_the_next_agent_goes_on_from_what_was_known(node: Agent) -> None:
    checks = (CHECK, replace(CHECK, kind=ProbeKind.TCP))
    node.reconciler.assign(server(health_checks=checks), kill=False)
    ill = await seen(node, lambda status: status.health and status.health[0].failures >= 3, "it is ill")
    await seen(node, lambda status: status.health and status.health[1].alive, "it listens")
    await node.reconciler.close()
    last = node.reports[-1]
    second = Agent(node.node, node.directories)
    try:
        await second.reconciler.recover()
        first = second.reports[0]
        assert first.sequence > last.sequence and first.healthy is False
        assert first.health[0].failures >= ill.health[0].failures and first.health[1].alive
        failures = first.health[0].failures
        later = await seen(second, lambda status: status.health[0].failures > failures, "it is checked again")
        assert later.health[0].failures <= 2 * failures
    finally:
        second.reconciler.assign(server(health_checks=checks), kill=True)
        await second.reached("web.1", TaskState.FINISHED)
        await second.reconciler.close()
        node.reconciler.books.records.clear()


# The last three have no handler in the first process: its children are asked, or there is nobody to wait for.
KILLS = [
    ("trap 'exit 3' TERM; while :; do sleep 0.01; done", {}, "exited with 3", 3),
    ("trap 'exit 4' USR1; while :; do sleep 0.01; done", {"kill_signal": "USR1"}, "exited with 4", 4),
    ("trap '' TERM; while :; do sleep 0.01; done", {}, "killed with SIGKILL after 0.2 s of grace", None),
    ("while :; do sleep 3597; exit 5; done", {}, "exited with 5", 5),
    ("(while :; do sleep 3596; exit 6; done); exit $?", {}, "exited with 143", 143),
    ("while :; do exec sleep 3595; done", {}, "killed with SIGKILL at once: nothing in it heeds SIGTERM", None),
]


@pytest.mark.parametrize(("script", "fields", "reason", "code"), KILLS)
async def test_how_a_kill_ends(node: Agent, script: str, fields: dict[str, Any], reason: str, code: int | None) -> None:
    ready = "echo > /tmp/ready; "
    spec = task("web.1", "sh", "-c", script.replace("while", ready + "while", 1), kill_grace_s=0.2, **fields)
    running = await begun(node, spec)
    node.reconciler.assign(spec, kill=True)
    killing = await seen(node, lambda status: status.message, "the signal is sent")
    asked = f"{'SIGUSR1' if fields else 'SIGTERM'} sent, 0.2 s of grace"
    assert killing.message == ("SIGKILL sent" + reason.partition("SIGKILL")[2] if "at once" in reason else asked)
    ended = await node.reached("web.1", TaskState.FINISHED)
    assert (ended.state, ended.reason, ended.exit_code, ended.message) == (TaskState.KILLED, reason, code, "")
    assert not alive(running.pid or 0)


# Each leaves a process behind that no longer has anything to do with its parent.
DAEMONS = {
    "double fork": "import os; os.fork() and os._exit(0); os.setsid(); os.fork() and os._exit(0)",
    "own group": "import os; os.setpgid(0, 0)",
    "no signal": "import signal; [signal.signal(n, signal.SIG_IGN) for n in range(1, 65) if n not in (9, 19, 32, 33)]",
    "stopped": "import os, signal; os.fork() or os.kill(os.getpid(), signal.SIGSTOP)",
}


@pytest.mark.parametrize("daemon", DAEMONS)
async def test_nothing_survives(node: Agent, daemon: str) -> None:
    program = f"{DAEMONS[daemon]}\nimport time\nopen('/tmp/ready', 'w').close()\ntime.sleep(3598)"
    script = f"trap '' TERM; {PYTHON} -I -S -c \"$PROGRAM\" & sleep infinity & wait; wait"
    spec = task("web.1", "sh", "-c", script, env=(("PROGRAM", program),), kill_grace_s=0.1)
    running = await begun(node, spec)
    pids = members(running)
    assert len(pids) >= 3
    node.reconciler.assign(spec, kill=True)
    await node.reached("web.1", TaskState.FINISHED)
    assert [pid for pid in pids if alive(pid)] == []


async def test_a_signal_that_does_not_exist(node: Agent) -> None:
    ended = await node.run(task("web.1", "true", kill_signal="SIGNONE"))
    assert (ended.state, ended.reason) == (TaskState.REJECTED, "kill signal: 'SIGNONE' is no signal")


async def begun(node: Agent, spec: TaskSpec) -> TaskStatus:
    """Its program has written /tmp/ready."""
    node.reconciler.assign(spec, kill=False)
    running = await seen(node, lambda status: status.state is TaskState.RUNNING, "it runs")
    await until(inside(running, "/tmp/ready").exists, "its program is ready")
    return running


def members(status: TaskStatus) -> list[int]:
    """All processes in the container's pid namespace, as the node numbers them."""
    namespace = os.readlink(f"/proc/{status.pid}/ns/pid")
    found = []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdecimal() and os.readlink(f"/proc/{entry}/ns/pid") == namespace:
                found.append(int(entry))
        except OSError:
            continue
    return [pid for pid in found if record.identify(pid) is not None]
