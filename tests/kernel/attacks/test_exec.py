"""Attacks on what enters a running container: its memory, its executable, its descriptors and its output."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import resource
import sys
from pathlib import Path

import pytest

from agent.commands import Command, CommandFailed, Commands
from agent.containers import Containers, Directories
from agent.launcher import descriptors
from isolators.base import Container
from tests.kernel.attacks.attacker import INSIDE
from tests.kernel.sandbox import CGROUPS, Sandbox, exit_of, output, task, until

pytestmark = pytest.mark.anyio

ENTRIES = 30
LEAKED = 40
DEADLINE_S = 30.0
MIB = 1 << 20

# Runs in the container: whatever appears there that is still on its way in is looked into, traced and overwritten. What
# was taken counts only if it was on its way in afterwards too: then it becomes an ordinary process of the container.
HUNTER = """
import ctypes, json, os, time
libc = ctypes.CDLL(None, use_errno=True)
PTRACE_SEIZE = 0x4206
seen, taken = set(), set()
def entering(name):
    try:
        return open(f"/proc/{name}/comm").read().strip() in ("tepui-launcher", "tepui-guard")
    except OSError:
        return False
print("ready", flush=True)
while not os.path.exists("/tmp/stop"):
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        if not entering(name):
            continue
        seen.add(name)
        found = set()
        for path, flags in (("exe", os.O_RDONLY), ("mem", os.O_RDWR), ("environ", os.O_RDONLY), ("maps", os.O_RDONLY)):
            try:
                descriptor = os.open(f"/proc/{name}/{path}", flags)
                if path == "exe" or os.read(descriptor, 1):
                    found.add(path)
                os.close(descriptor)
            except OSError:
                pass
        for link in ("root", "cwd", "exe"):
            try:
                os.readlink(f"/proc/{name}/{link}")
                found.add("link " + link)
            except OSError:
                pass
        try:
            found.update("fd " + number for number in os.listdir(f"/proc/{name}/fd"))
        except OSError:
            pass
        if libc.ptrace(PTRACE_SEIZE, int(name), 0, 0) == 0:
            found.add("ptrace")
        if entering(name):
            taken |= found
print(json.dumps([len(seen), sorted(taken)]), flush=True)
"""
OVERWRITE = """
names = ["/proc/self/exe", "/proc/1/exe", os.path.realpath("/proc/self/exe")]
print(json.dumps([attempt(name, flags) for name in names for flags in (os.O_WRONLY, os.O_RDWR | os.O_TRUNC)]))
"""


@pytest.fixture
def commands(node: Sandbox) -> Commands:
    return Commands(Containers(Directories(node.state), node.isolators, node.launcher), node.launcher)


async def waiting(node: Sandbox, *argv: str) -> Container:
    container, _ = await node.start(task("attacker.1", *(argv or ("sleep", "infinity"))))
    return container


async def test_cve_2016_9962_what_enters_can_not_be_traced_or_looked_into(node: Sandbox, commands: Commands) -> None:
    """As root of the container, with the capability to trace whatever is in its own user namespace."""
    container = await waiting(node, "python3", "-I", "-S", "-c", HUNTER)
    await until(lambda: "ready" in output(container), "the hunter is ready")
    for _ in range(ENTRIES):
        await commands.run(container, ("true",))
    assert (await commands.run(container, ("touch", "/tmp/stop"))).code == 0
    await exit_of(container)
    seen, taken = json.loads(output(container).splitlines()[1])
    assert seen > 0, "the hunter has met nobody"
    assert taken == []


async def test_a_command_that_is_traced_by_the_container_ends_all_the_same(node: Sandbox, commands: Commands) -> None:
    """Its parent can not reap it as long as its tracer does not want to."""
    tracer = """
import ctypes, os, time
libc = ctypes.CDLL(None)
print("ready", flush=True)
while True:
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            libc.ptrace(0x4206, int(name), 0, 0)
"""
    container = await waiting(node, "python3", "-I", "-S", "-c", tracer)
    await until(lambda: "ready" in output(container), "the tracer is ready")
    for _ in range(3):
        async with asyncio.timeout(DEADLINE_S / 3):
            assert (await commands.run(container, ("sleep", "0.2"))).code == 0
    assert sessions(node, container) == []


async def test_a_command_that_is_stopped_on_its_way_in_is_given_up(node: Sandbox, commands: Commands) -> None:
    stopper = """
import os, signal
print("ready", flush=True)
while True:
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                os.kill(int(name), signal.SIGSTOP)
            except OSError:
                pass
"""
    container = await waiting(node, "python3", "-I", "-S", "-c", stopper)
    await until(lambda: "ready" in output(container), "it is ready")
    for _ in range(3):
        async with asyncio.timeout(DEADLINE_S / 3):
            assert (await commands.run(container, ("sleep", "60"), timeout_s=0.5)).code is None
    assert sessions(node, container) == []


async def test_cve_2019_5736_the_executable_of_what_enters_is_not_overwritten(
    node: Sandbox, commands: Commands
) -> None:
    """The command is whatever executes it: the node's interpreter."""
    container = await waiting(node)
    before = digest(sys.executable)
    program = f"{INSIDE}\nimport json\n{OVERWRITE}"
    result = await commands.run(container, ("/proc/self/exe", "-I", "-S", "-c", program))
    assert set(json.loads(result.output.splitlines()[0])) <= {"EACCES", "EROFS"}, result
    assert digest(sys.executable) == before


async def test_cve_2024_21626_descriptors_of_what_enters_lead_nowhere(node: Sandbox, commands: Commands) -> None:
    leaked = [os.open("/", os.O_RDONLY | os.O_DIRECTORY) for _ in range(LEAKED)]
    try:
        for descriptor in leaked:
            os.set_inheritable(descriptor, True)
        container = await waiting(node)
        for number in range(3, 16):
            with pytest.raises(CommandFailed, match="change directory"):
                async with commands.running(container, Command(("pwd",), cwd=f"/proc/self/fd/{number}")):
                    pass
        listing = "import os; print(sorted(map(int, os.listdir('/proc/self/fd')))[:-1])"
        assert (await commands.run(container, ("python3", "-I", "-S", "-c", listing))).output == b"[0, 1, 2]\n"
    finally:
        for descriptor in leaked:
            os.close(descriptor)


async def test_cve_2022_29162_nothing_is_inheritable_for_a_command(node: Sandbox, commands: Commands) -> None:
    container = await waiting(node)
    for user in ("0:0", "1000:1000"):
        async with commands.running(container, Command(("cat", "/proc/self/status"), user=user)) as running:
            text = await descriptors.read(running.stdout)
        assert b"CapInh:\t0000000000000000" in text and b"CapAmb:\t0000000000000000" in text


@pytest.mark.parametrize("user", ["4294967296", "-1", "0x0", " 0", "+0", "4294967295:0", "65536", "0:65536"])
async def test_cve_2026_30892_users_of_commands_are_parsed_strictly(
    node: Sandbox, commands: Commands, user: str
) -> None:
    container = await waiting(node)
    with pytest.raises(CommandFailed, match="user"):
        async with commands.running(container, Command(("id",), user=user)):
            pass


async def test_cve_2022_31030_output_takes_no_memory(node: Sandbox, commands: Commands) -> None:
    """A GiB of it, that nobody wants to have, and commands that come and go."""
    container = await waiting(node)
    before = resident()
    async with asyncio.timeout(DEADLINE_S):
        result = await commands.run(container, ("head", "-c", str(1 << 30), "/dev/zero"), timeout_s=DEADLINE_S)
    assert result.code == 0 and len(result.output) == 4096
    for _ in range(ENTRIES):
        await commands.run(container, ("true",))
    assert resident() - before < 16 * MIB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < 64 * MIB


async def test_cve_2025_64329_commands_leave_nothing_open(node: Sandbox, commands: Commands) -> None:
    container = await waiting(node)
    await commands.run(container, ("true",))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(ENTRIES):
        await commands.run(container, ("true",))
        with pytest.raises(CommandFailed):
            await commands.run(container, ("missing",))
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_program_of_the_container_can_not_stop_its_session_from_ending(
    node: Sandbox, commands: Commands
) -> None:
    """It forks all the time, in sessions of their own, deaf to SIGHUP."""
    container = await waiting(node)
    bomb = "trap '' HUP; f() { while :; do (setsid sh -c \"trap '' HUP; sleep 0.01\" &) ; done; }; f"
    result = await commands.run(container, ("sh", "-c", bomb), timeout_s=1.0)
    assert result.code is None
    assert sessions(node, container) == []


def sessions(node: Sandbox, container: Container) -> list[Path]:
    return list(CGROUPS.glob(f"*/{node.prefix}/{container.id}/exec-*"))


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def digest(path: str) -> str:
    return hashlib.sha256(Path(path).resolve().read_bytes()).hexdigest()
