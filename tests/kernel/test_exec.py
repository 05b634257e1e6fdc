"""Commands in running containers: what they are given, what binds them, their streams, and how they end."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.commands import Command, CommandFailed, Commands, Result, Running, Size
from agent.containers import Containers, Directories
from agent.launcher import descriptors
from isolators.base import Container
from model.task import Rlimit
from tests.kernel.sandbox import CGROUPS, Sandbox, alive, exit_of, root_directory, sandbox, task, until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("host_mounts")]

FOREVER = ("sleep", "infinity")
STUBBORN = ("sh", "-c", "trap '' HUP; while :; do sleep 1000; done")
KINDS = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
PROGRAMS = ("sh", "cat", "ls", "sleep", "id", "readlink")
PRIVILEGES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters", "Groups")
DEADLINE_S = 20.0


@dataclass
class Node:
    made: Sandbox
    commands: Commands

    async def start(self, *argv: str, **changes: Any) -> tuple[Container, int]:
        container, launch = await self.made.start(task("web.1", *(argv or FOREVER), **changes))
        return container, launch.pid

    async def shell(self, container: Container, script: str) -> str:
        result = await self.commands.run(container, ("sh", "-c", script))
        assert result.code == 0, result
        return result.output.decode()

    async def results(self, container: Container, command: Command, data: bytes = b"") -> tuple[int, bytes, bytes]:
        """Its exit code, output and errors, when it was given `data` to read."""
        async with asyncio.timeout(DEADLINE_S), self.commands.running(container, command) as running:
            assert running.stderr is not None
            feeding = asyncio.create_task(feed(running, data))
            out, err = await asyncio.gather(everything(running.stdout), everything(running.stderr))
            await feeding
            return await running.exited(), out, err


async def feed(running: Running, data: bytes) -> None:
    await descriptors.write(running.stdin, data)
    running.close_stdin()


async def everything(descriptor: int) -> bytes:
    data = bytearray()
    while part := await descriptors.read(descriptor):
        data += part
    return bytes(data)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    async with sandbox(state) as made:
        containers = Containers(Directories(state), made.isolators, made.launcher)
        yield Node(made, Commands(containers, made.launcher))


@pytest.fixture(params=["node", "directory"])
def rootfs(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "" if request.param == "node" else str(root_directory(tmp_path / "image", PROGRAMS))


async def test_it_is_in_the_containers_namespaces_and_cgroups(node: Node, rootfs: str) -> None:
    container, pid = await node.start(rootfs=rootfs)
    async with node.commands.running(container, Command(STUBBORN)):
        inside = next(other for other in processes(container, node) if other != pid)
        for kind in KINDS:
            assert os.readlink(f"/proc/{inside}/ns/{kind}") == os.readlink(f"/proc/{pid}/ns/{kind}"), kind
        assert os.readlink(f"/proc/{inside}/root") == os.readlink(f"/proc/{pid}/root")
        for first, own in zip(cgroups(pid), cgroups(inside), strict=True):
            assert own == first or (own.rpartition("/")[0] == first and ("pids" in own or own.startswith("0:")))


async def test_its_privileges_are_those_of_the_containers_program(node: Node, rootfs: str) -> None:
    container, pid = await node.start(rootfs=rootfs)
    own = await node.shell(container, "cat /proc/self/status")
    assert [field(own, name) for name in PRIVILEGES] == [field(proc(pid, "status"), name) for name in PRIVILEGES]
    assert (field(own, "NoNewPrivs"), field(own, "Seccomp")) == ("1", "2")


async def test_its_limits_are_those_of_the_containers_program(node: Node) -> None:
    container, pid = await node.start(rlimits=(Rlimit("RLIMIT_NOFILE", 100, 200), Rlimit("RLIMIT_CORE", 0, 0)))
    assert await node.shell(container, "cat /proc/self/limits") == proc(pid, "limits")
    assert await node.shell(container, "cat /proc/self/oom_score_adj") == proc(pid, "oom_score_adj")


async def test_environment_user_and_directory_are_the_containers_unless_asked_for(node: Node, rootfs: str) -> None:
    container, _ = await node.start(rootfs=rootfs, env=(("WHO", "me"), ("A", "1")), cwd="/tmp", user="1000:100")
    assert await node.shell(container, "echo $WHO $A; pwd; id -u; id -g") == "me 1\n/tmp\n1000\n100\n"
    asked = Command(("sh", "-c", "echo $WHO $A; pwd; id -u; id -g"), (("A", "2"),), "0:0", "/etc")
    assert await node.results(container, asked) == (0, b"me 2\n/etc\n0\n0\n", b"")
    assert field(await node.shell(container, "cat /proc/self/status"), "CapEff") == "0" * 16


async def test_users_are_looked_up_in_the_container(node: Node, tmp_path: Path) -> None:
    container, _ = await node.start(rootfs=str(root_directory(tmp_path / "image", ("sh", "sleep", "id"))))
    assert (await node.results(container, Command(("id", "-u"), user="web")))[1] == b"1000\n"
    with pytest.raises(CommandFailed, match="'nobody-here' is not in the container's /etc/passwd"):
        await node.results(container, Command(("id",), user="nobody-here"))


async def test_only_its_streams_are_open(node: Node) -> None:
    container, _ = await node.start()
    assert await node.shell(container, "ls /proc/$$/fd; readlink /proc/$$/fd/0 /proc/$$/fd/1 | cut -c -4") == (
        "0\n1\n2\npipe\npipe\n"
    )
    assert await node.shell(container, "echo out > /dev/stdout; echo err > /dev/stderr") == "out\nerr\n"


async def test_ten_megabytes_come_back_as_they_were(node: Node) -> None:
    container, _ = await node.start()
    data = os.urandom(10 << 20)
    code, out, err = await node.results(container, Command(("cat",)), data)
    assert (code, len(out), err) == (0, len(data), b"")
    assert hashlib.sha256(out).digest() == hashlib.sha256(data).digest()


async def test_output_and_errors_are_apart(node: Node) -> None:
    container, _ = await node.start()
    assert await node.results(container, Command(("sh", "-c", "echo out; echo err >&2; exit 3"))) == (
        3,
        b"out\n",
        b"err\n",
    )


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 255", 255), ("kill -TERM $$", 143), ("kill -KILL $$", 137)]
)
async def test_exit_codes_are_those_of_a_shell(node: Node, script: str, code: int) -> None:
    container, _ = await node.start()
    assert (await node.commands.run(container, ("sh", "-c", script))).code == code


@pytest.mark.parametrize(
    ("command", "code", "reason"),
    [
        (Command(("missing",)), 127, "execute: missing: No such file or directory"),
        (Command(("/bin/missing",)), 127, "execute: /bin/missing: No such file or directory"),
        (Command(("/etc/passwd",)), 126, "execute: /etc/passwd: Permission denied"),
        (Command(("true",), cwd="/missing"), 126, "change directory: /missing: No such file or directory"),
        (Command(("true",), user="65535:65536"), 126, "ids go up to 65535"),
    ],
)
async def test_what_can_not_be_executed_is_named(node: Node, command: Command, code: int, reason: str) -> None:
    container, _ = await node.start()
    with pytest.raises(CommandFailed, match=reason) as caught:
        await node.results(container, command)
    assert caught.value.code == code
    assert sessions(container, node) == []


async def test_a_terminal_is_the_containers_own(node: Node, rootfs: str) -> None:
    container, _ = await node.start(rootfs=rootfs, user="1000:100")
    script = "readlink /proc/self/fd/0; test -t 0 && test -t 2; echo $?; echo again > /dev/tty"
    code, text = await on_terminal(node, container, script)
    assert code == 0 and text.splitlines()[0].startswith("/dev/pts/") and text.splitlines()[1:] == ["0", "again"]


async def test_a_terminal_has_its_size_and_follows_it(node: Node) -> None:
    container, _ = await node.start()
    command = Command(
        ("sh", "-c", "tty; trap 'stty size' WINCH; stty size; while :; do sleep 0.1; done"), terminal=Size(24, 80)
    )
    async with asyncio.timeout(DEADLINE_S), node.commands.running(container, command) as running:
        assert await lines(running, 2) == ["/dev/pts/0", "24 80"]
        running.resize(Size(50, 132))
        assert await lines(running, 1) == ["50 132"]


async def test_keys_of_a_terminal_become_signals(node: Node) -> None:
    container, _ = await node.start()
    async with (
        asyncio.timeout(DEADLINE_S),
        node.commands.running(container, Command(("cat",), terminal=Size(24, 80))) as running,
    ):
        await descriptors.write(running.stdin, b"hello\n")
        assert await lines(running, 2) == ["hello", "hello"]
        await descriptors.write(running.stdin, b"\x03")
        assert await running.exited() == 128 + signal.SIGINT


async def test_signals_reach_the_command(node: Node) -> None:
    container, _ = await node.start()
    command = Command(("sh", "-c", "trap 'exit 9' USR1; echo ready; while :; do sleep 0.05; done"))
    async with asyncio.timeout(DEADLINE_S), node.commands.running(container, command) as running:
        assert await lines(running, 1) == ["ready"]
        await running.signal(signal.SIGUSR1)
        assert await running.exited() == 9


async def test_a_command_that_takes_too_long_ends_with_all_that_it_started(node: Node) -> None:
    """Also what ignores SIGHUP, has a session of its own and no parent any more."""
    container, pid = await node.start()
    before = set(processes(container, node))
    script = "trap '' HUP; (setsid sh -c 'trap \"\" HUP; sleep 1000' &) ; sleep 1000"
    assert await node.commands.run(container, ("sh", "-c", script), timeout_s=0.5) == Result(None, b"")
    assert alive(pid) and set(processes(container, node)) == before
    assert sessions(container, node) == []


async def test_what_a_command_leaves_behind_ends_with_it(node: Node) -> None:
    container, pid = await node.start()
    before = set(processes(container, node))
    assert (await node.commands.run(container, ("sh", "-c", "sleep 1000 & echo done"))) == Result(0, b"done\n")
    assert alive(pid) and set(processes(container, node)) == before


async def test_an_agent_that_dies_ends_the_command_and_not_the_container(node: Node) -> None:
    container, pid = await node.start()
    running = node.commands.running(container, Command(STUBBORN))
    command = await running.__aenter__()
    inside = next(other for other in processes(container, node) if other != pid)
    command._entered._guard.close()
    await until(lambda: not alive(inside), "the command has ended")
    assert alive(pid)
    await running.__aexit__(None, None, None)


async def test_a_guard_that_is_killed_takes_the_command_along(node: Node) -> None:
    container, pid = await node.start()
    before = set(processes(container, node))
    with pytest.raises(CommandFailed, match="exit code is lost"):
        async with node.commands.running(container, Command(("sh", "-c", "setsid sleep 1000 & sleep 1000"))) as running:
            await until(lambda: len(processes(container, node)) == len(before) + 3, "they run")
            os.kill(guard(node), signal.SIGKILL)
            await running.exited()
    assert alive(pid) and set(processes(container, node)) == before


async def test_a_container_that_ends_takes_the_command_along(node: Node) -> None:
    container, pid = await node.start()
    async with node.commands.running(container, Command(("sleep", "1000"))) as running:
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(DEADLINE_S):
            assert await running.exited() == 137
    await exit_of(container)
    with pytest.raises(CommandFailed, match="enter container"):
        await node.commands.run(container, ("true",))


async def test_many_at_once(node: Node) -> None:
    container, _ = await node.start()
    scripts = [node.commands.run(container, ("sh", "-c", f"exit {number}")) for number in range(12)]
    assert [result.code for result in await asyncio.gather(*scripts)] == list(range(12))
    assert sessions(container, node) == []


async def test_memory_of_a_command_counts_against_the_container(node: Node) -> None:
    container, _ = await node.start()
    result = await node.commands.run(container, ("sh", "-c", "x=0123456789; while :; do x=$x$x; done"))
    assert result.code == 137


async def on_terminal(node: Node, container: Container, script: str) -> tuple[int, str]:
    command = Command(("sh", "-c", script), terminal=Size(24, 80))
    async with asyncio.timeout(DEADLINE_S), node.commands.running(container, command) as running:
        text = await everything(running.stdout)
        return await running.exited(), text.decode().replace("\r\n", "\n")


async def lines(running: Running, count: int) -> list[str]:
    text = b""
    while text.count(b"\n") < count:
        text += await descriptors.read(running.stdout)
    return text.decode().splitlines()


def sessions(container: Container, node: Node) -> list[Path]:
    return list(CGROUPS.glob(f"*/{node.made.prefix}/{container.id}/exec-*"))


def processes(container: Container, node: Node) -> list[int]:
    """Of the container, in the node's numbers."""
    found: list[int] = []
    for directory, _, _ in os.walk(CGROUPS / "pids" / node.made.prefix / container.id):
        with suppress(OSError):  # it is gone
            found += map(int, Path(directory, "cgroup.procs").read_text().split())
    return found


def children(pid: int) -> list[int]:
    return [int(child) for child in proc(pid, f"task/{pid}/children").split()]


def cgroups(pid: int) -> list[str]:
    return proc(pid, "cgroup").splitlines()


def guard(node: Node) -> int:
    assert node.made.launcher.pid is not None
    (found,) = [pid for pid in children(node.made.launcher.pid) if proc(pid, "comm") == "tepui-guard\n"]
    return found


def proc(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


def field(status: str, name: str) -> str:
    return dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)[name].strip()
