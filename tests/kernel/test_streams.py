"""What real containers write: through rotation, a full disk, and the death of whoever empties their pipes."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from agent.launcher import record
from agent.launcher.pump import Limits
from agent.launcher.streams import open_fifo
from agent.log_limits import LogPolicy
from agent.log_reader import LogReader
from model.task import TaskState
from tests.kernel.agent import Agent, agent
from tests.kernel.sandbox import alive, task, until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("host_mounts")]

LINES = 20_000
PIPE_BYTES = 64 * 1024
# Every line has a number, so that none can be lost, come twice, or be torn without being seen.
COUNT = f"i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo $i; done"
SLOWLY = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done"
AWAIT = "trap go=1 USR1; await() { while [ -z $go ]; do sleep 0.01; done; }"
SMALL = {"CONTAINER_LOGGER_MAX_STDOUT_SIZE": "8KB", "CONTAINER_LOGGER_LOGROTATE_STDOUT_OPTIONS": "rotate 1"}


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Agent]:
    async with agent(tmp_path) as made:
        yield made


async def test_every_line_is_there_when_the_task_has_ended(node: Agent) -> None:
    ended = await node.run(task("web.1", "sh", "-c", f"{COUNT}; echo bad >&2; exit 3"))
    assert (ended.state, ended.exit_code) == (TaskState.FAILED, 3)
    assert read(node, "web.1").split() == [b"%d" % number for number in range(1, LINES + 1)]
    assert read(node, "web.1", "stderr") == b"bad\n"


async def test_streams_can_be_opened_again_by_any_user(node: Agent) -> None:
    script = "echo one; echo two > /dev/stdout; echo three > /dev/stderr; cat /dev/stdin; test -p /dev/stdout"
    ended = await node.run(task("web.1", "sh", "-c", script, user="1000:1000"))
    assert ended.state is TaskState.FINISHED, ended
    assert (read(node, "web.1"), read(node, "web.1", "stderr")) == (b"one\ntwo\n", b"three\n")


async def test_a_task_may_say_how_much_of_it_is_kept(node: Agent) -> None:
    await node.run(task("web.1", "sh", "-c", COUNT, env=tuple(SMALL.items())))
    files = sorted(path.name for path in (node.directories.logs / "web.1").glob("stdout*") if path.suffix != ".index")
    assert files == ["stdout", "stdout.1"]
    kept = read(node, "web.1")
    assert 8192 < len(kept) <= 2 * 8192 and kept.endswith(b"\n%d\n" % LINES)


async def test_more_than_the_node_keeps_is_refused(node: Agent) -> None:
    env = (("CONTAINER_LOGGER_MAX_STDERR_SIZE", "1GB"),)
    ended = await node.run(task("web.1", "true", env=env))
    assert ended.state is TaskState.REJECTED and "256 MiB that this node keeps" in ended.reason
    ended = await node.run(task("web.2", "true", env=(("CONTAINER_LOGGER_MAX_STDOUT_SIZE", "much"),)))
    assert ended.state is TaskState.REJECTED and "env CONTAINER_LOGGER_MAX_STDOUT_SIZE: 'much'" in ended.reason


async def test_the_agent_goes_on_where_a_killed_keeper_stopped(node: Agent) -> None:
    spec = task("web.1", "sh", "-c", SLOWLY, env=tuple(SMALL.items()), kill_grace_s=0.0)
    node.reconciler.assign(spec, kill=False)
    await node.reached("web.1", TaskState.RUNNING)
    await until(lambda: last_line(node, "web.1") > 20, "it writes")
    keeper = keeper_of(node, "web.1")
    os.kill(keeper, signal.SIGKILL)
    before = last_line(node, "web.1")
    await until(lambda: last_line(node, "web.1") > before + 20, "its lines are read again")
    node.reconciler.assign(spec, kill=True)
    await node.reached("web.1", TaskState.KILLED)
    lines = [int(line) for line in read(node, "web.1").split()]
    assert lines == list(range(1, len(lines) + 1)) and not alive(keeper)


async def test_a_container_without_keeper_and_agent_waits_and_loses_nothing(node: Agent) -> None:
    """It fills the pipe, stands still, and goes on when there is an agent again."""
    spec = task("web.1", "sh", "-c", f"{AWAIT}; echo go; await; {COUNT}")
    node.reconciler.assign(spec, kill=False)
    running = await node.reached("web.1", TaskState.RUNNING)
    await until(lambda: read(node, "web.1") == b"go\n", "it has begun")
    os.kill(keeper_of(node, "web.1"), signal.SIGKILL)
    await node.reconciler.close()
    os.kill(running.pid or 0, signal.SIGUSR1)
    await until(lambda: waiting_bytes(node, "web.1") > PIPE_BYTES - 4096, "the pipe is full")
    assert read(node, "web.1") == b"go\n"
    second = replace(node, reports=[], heard=asyncio.Event())
    await second.reconciler.recover()
    await second.reached("web.1", TaskState.FAILED)  # its exit code is lost with its keeper
    assert read(node, "web.1").split()[1:] == [b"%d" % number for number in range(1, LINES + 1)]
    await second.reconciler.close()
    node.reconciler.books.records.clear()


async def test_a_full_disk_stops_no_container(tmp_path: Path) -> None:
    """It goes on, what it writes meanwhile is counted, and said when there is room again."""
    async with agent(tmp_path) as node:
        with small_disk(node.directories.logs):
            script = f"{AWAIT}; {COUNT}; touch /tmp/written; await; sleep 1.1; echo again; echo again"
            node.reconciler.assign(task("web.1", "sh", "-c", script), kill=False)
            running = await node.reached("web.1", TaskState.RUNNING)
            await until(Path(f"/proc/{running.pid}/root/tmp/written").exists, "all is written")
            assert os.statvfs(node.directories.logs).f_bavail == 0
            (node.directories.logs / "ballast").unlink()
            os.kill(running.pid or 0, signal.SIGUSR1)
            ended = await node.reached("web.1", TaskState.FINISHED)
            assert ended.state is TaskState.FINISHED, ended
            kept, notice, rest = read(node, "web.1").partition(b"\n[")
            count, _, end = rest.partition(b" bytes were dropped here: No space left on device]\n")
            total = sum(len(b"%d\n" % number) for number in range(1, LINES + 1))
            assert notice and len(kept) + int(count) == total and end == b"again\nagain\n"


async def test_a_container_that_writes_without_end_takes_no_more_disk_than_it_may(tmp_path: Path) -> None:
    """And the agent's loop is not held up by a reader that follows it."""
    async with agent(tmp_path) as node:
        policy = LogPolicy(Limits(size=1 << 20, files=2))
        node.containers._log_policy = policy
        spec = task("web.1", "sh", "-c", "exec cat /dev/zero", kill_grace_s=0.0)
        node.reconciler.assign(spec, kill=False)
        await node.reached("web.1", TaskState.RUNNING)
        directory = node.directories.logs / "web.1"
        await until(lambda: (directory / "stdout.1").exists(), "its log is rotated")
        base = last_offset(directory)
        await until(lambda: last_offset(directory) > base + (64 << 20), "it goes on")
        sizes = [path.stat().st_size for path in directory.glob("stdout*") if path.suffix != ".index"]
        assert sum(sizes) <= 2 << 20
        node.reconciler.assign(spec, kill=True)
        await node.reached("web.1", TaskState.KILLED)


def read(node: Agent, name: str, stream: str = "stdout") -> bytes:
    reader = LogReader(node.directories.log(name, stream))
    try:
        return b"".join(iter(reader.read, b""))
    finally:
        reader.close()


def last_line(node: Agent, name: str) -> int:
    lines = read(node, name).splitlines()
    return int(lines[-1]) if lines else 0


def last_offset(directory: Path) -> int:
    reader = LogReader(directory / "stdout", 0)
    reader.close()
    return reader._offset


def keeper_of(node: Agent, name: str) -> int:
    keeper = record.read_keeper(str(bundle_of(node, name)))
    assert keeper is not None
    return keeper.keeper.pid


def bundle_of(node: Agent, name: str) -> Path:
    container = node.reconciler.running(name)
    assert container is not None
    return container.directory


def waiting_bytes(node: Agent, name: str) -> int:
    pipe = open_fifo(str(bundle_of(node, name) / "stdout.fifo"))
    try:
        return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)
    finally:
        os.close(pipe)


@contextmanager
def small_disk(directory: Path) -> Iterator[None]:
    """With next to no room, until the file `ballast` is removed."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "none", str(directory)], check=True)
    try:
        (directory / "ballast").write_bytes(bytes(192 << 10))
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)
