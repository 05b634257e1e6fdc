"""A container whose start fails at any step leaves nothing, and the task says at which.

The same start is repeated; each time a later step fails, until it gets through. Steps of the agent are its own writes
and system calls, steps of the launcher (which is a process of its own) the system calls that strace makes fail.
"""

from __future__ import annotations

import asyncio
import builtins
import errno
import io
import itertools
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from isolators import mount
from isolators.base import Container, Isolator, IsolatorError, Sandbox
from isolators.network import NetworkIsolator
from model.limits import IoLimit, TaskLimits
from model.network import Block, Network, NetworkKind
from model.resources import Resources
from model.task import Rlimit, TaskSpec, TaskState, TaskStatus
from netns.driver import NetworkSpec
from netns.firewall.nftables import NftFirewall
from netns.link import VETH_PREFIX, read_names
from netns.netlink import Netlink
from netns.networks import Networks
from tests.kernel import remains
from tests.kernel.agent import Agent, agent
from tests.kernel.namespaces import run
from tests.kernel.remains import Remains
from tests.kernel.sandbox import INTERVAL_S, task, until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("host_mounts"), pytest.mark.timeout(600)]

UNDERLAY = ip_address("192.0.2.1")
NETWORK = Network("prod", NetworkKind.OVERLAY, (ip_network("100.64.0.0/11"),), vni=1024)
SPEC = NetworkSpec(NETWORK, (Block("prod", "n1", ip_network("100.64.1.0/24")),))
MOST_STEPS = 400
SETTLE_DEADLINE_S = 5.0


@dataclass
class Node:
    agent: Agent
    mark: str
    numbers: Iterator[int]

    def spec(self, **changes: Any) -> TaskSpec:
        """A task that asks for a bit of everything."""
        limits = TaskLimits(mem_high=32, cpuset="0", cpu_burst_us=1000, io=(IoLimit(read_bps=1 << 20),))
        asks: dict[str, Any] = {
            "network": "prod",
            "limits": limits,
            "rlimits": (Rlimit("RLIMIT_NOFILE", 100, 100),),
            "env": ((remains.MARK, self.mark),),
        }
        return task(f"web.{next(self.numbers)}", "true", **(asks | changes))

    async def ends(self, spec: TaskSpec) -> TaskStatus:
        """How the task ended, when the master has heard of it and the agent has forgotten it."""
        ended = await self.agent.run(spec)
        self.agent.reconciler.withdraw(spec.id)
        return ended

    def look(self) -> Remains:
        return remains.look(self.agent.directories.state, self.agent.node.prefix, self.mark)

    async def at_rest(self) -> Remains:
        """With a keeper ready for the next container, and without the link of the last: the kernel takes a while."""
        await until(lambda: "1 tepui-keeper" in self.look().processes, "a keeper is ready")
        await until(lambda: not read_names(VETH_PREFIX), "the last container's link is gone")
        return self.look()

    async def is_as_before(self, before: Remains, after_what: str) -> None:
        """Soon: a keeper ends a moment after it has written down how its container ended."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + SETTLE_DEADLINE_S
        while (now := self.look()) != before:
            assert loop.time() < deadline, f"{after_what}: {remains.difference(before, now)}"
            await asyncio.sleep(INTERVAL_S)


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    mark = str(tmp_path)
    monkeypatch.setenv(remains.MARK, mark)
    run("ip", "link", "add", "card", "type", "veth", "peer", "wire")
    run("ip", "addr", "add", f"{UNDERLAY}/24", "dev", "card")
    for link in ("card", "wire"):
        run("ip", "link", "set", link, "up")
    (tmp_path / "network").mkdir()
    async with (
        Networks(tmp_path / "network", "n1", "this-boot", UNDERLAY) as networks,
        agent(tmp_path / "agent") as made,
    ):
        await networks.configure(SPEC)
        made.node.isolators.append(NetworkIsolator(networks, NftFirewall()))
        found = Node(made, mark, itertools.count())
        assert (await found.ends(found.spec())).state is TaskState.FINISHED  # what is made once, is made by now
        yield found


@dataclass
class Fault:
    """The step that fails; `seen` counts them."""

    at: int = MOST_STEPS
    seen: int = 0
    what: str = ""

    def step(self, what: str) -> None:
        self.seen += 1
        if self.seen == self.at:
            self.what = what
            raise OSError(errno.EIO, os.strerror(errno.EIO), what)


async def test_a_fault_at_any_step_of_the_agent_leaves_nothing(node: Node, tmp_path: Path) -> None:
    before = await node.at_rest()
    for at in range(1, MOST_STEPS):
        with faults(Fault(at), tmp_path) as fault:
            ended = await node.ends(node.spec())
        await node.is_as_before(before, f"a fault at step {at}, {fault.what}")
        if fault.what == "":
            break
        assert ended.state in (TaskState.FAILED, TaskState.FINISHED), ended
    assert ended.state is TaskState.FINISHED and at > 50


@pytest.mark.parametrize("verb", ["open", "isolate", "prepare", "enforce", "usage"])
async def test_a_fault_of_any_isolator_is_the_reason_and_leaves_nothing(
    node: Node, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await node.at_rest()
    for isolator in node.agent.node.isolators:
        for after in (False, True):
            with monkeypatch.context() as patch:
                patch.setattr(isolator, verb, failing(isolator, verb, after=after))
                ended = await node.ends(node.spec())
            assert (ended.state, ended.reason) == (TaskState.FAILED, f"{verb} {isolator.name}: no")
            await node.is_as_before(before, ended.reason)


# With how many of each to fail in turn: the first few differ most.
SYSTEM_CALLS = (
    ("clone3", 1),
    ("fsopen", 2),
    ("fsconfig", 8),
    ("fsmount", 2),
    ("open_tree", 4),
    ("move_mount", 8),
    ("mount_setattr", 4),
    ("openat2", 8),
    ("mkdirat", 2),
    ("symlinkat", 2),
    ("rename", 3),
    ("mknodat", 2),
    ("chown", 2),
    ("setsid", 1),
    ("setgroups", 2),
    ("setresgid", 2),
    ("setresuid", 2),
    ("sethostname", 1),
    ("socketpair", 1),
    ("pivot_root", 1),
    ("umount2", 1),
    ("chdir", 2),
    ("dup2", 3),
    ("unshare", 1),
    ("close_range", 3),
    ("seccomp", 1),
    ("prlimit64", 2),
    ("sendto", 4),
    ("write", 6),
)


@pytest.mark.parametrize(("call", "times"), SYSTEM_CALLS)
async def test_a_fault_at_any_step_of_the_launcher_leaves_nothing(node: Node, call: str, times: int) -> None:
    before = await node.at_rest()
    await node.agent.node.launcher.start()
    states = set()
    for at in range(1, times + 1):
        with injected(node.agent.node.launcher.pid or 0, call, at):
            await node.ends(node.spec())  # by the keeper that was ready before
            ended = await node.ends(node.spec())
        assert ended.state in (TaskState.FAILED, TaskState.FINISHED), ended
        states.add(ended.state)
        assert (await node.ends(node.spec())).state is TaskState.FINISHED
        await node.is_as_before(before, f"a fault at {call} {at}: {ended.reason}")
    assert TaskState.FAILED in states


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"argv": ("/bin/missing",)}, TaskState.FAILED),
        ({"cwd": "/missing"}, TaskState.FAILED),
        ({"rootfs": "/missing"}, TaskState.REJECTED),
        ({"user": "nobody-at-all"}, TaskState.REJECTED),
        ({"network": "missing"}, TaskState.FAILED),
        ({"rlimits": (Rlimit("RLIMIT_NONSENSE", 1, 1),)}, TaskState.REJECTED),
        ({"resources": Resources(cpus=0, mem=64)}, TaskState.REJECTED),
        ({"resources": Resources(cpus=100, mem=-1)}, TaskState.REJECTED),
        ({"resources": Resources(cpus=100, mem=1 << 30)}, TaskState.REJECTED),
        ({"limits": TaskLimits(cpuset="63")}, TaskState.REJECTED),
        ({"limits": TaskLimits(cpuset="one")}, TaskState.REJECTED),
        ({"limits": TaskLimits(io=(IoLimit("/dev/missing", 1),))}, TaskState.REJECTED),
        ({"limits": TaskLimits(io_weight=5000)}, TaskState.REJECTED),
    ],
)
async def test_bad_input_is_refused_with_a_reason_and_leaves_nothing(
    node: Node, changes: dict[str, Any], state: TaskState
) -> None:
    before = await node.at_rest()
    ended = await node.ends(node.spec(**changes))
    assert ended.state is state and ended.reason, ended
    await node.is_as_before(before, ended.reason)


def failing(isolator: Isolator, verb: str, *, after: bool) -> Callable[..., Any]:
    works = getattr(isolator, verb)

    async def fails(what: Container | Sandbox, *arguments: Any) -> Any:
        if after:
            await works(what, *arguments)
        raise IsolatorError(f"{verb} {isolator.name}: no")

    return fails


@contextmanager
def faults(fault: Fault, state: Path) -> Iterator[Fault]:
    """Counts what the agent does to files of cgroups and containers, to mounts and to links. Its checkpoint and logs
    are not among them: what happens then has tests of its own."""

    def counts(path: Any) -> bool:
        text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
        places = (f"{state}/agent/run/containers", f"{state}/agent/layers", f"{state}/network")
        return text.startswith(("/sys/fs/cgroup/", *places))

    def on_path(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            if counts(path):
                fault.step(f"{name} {os.fsdecode(path)}")
            return function(path, *arguments, **options)

        return call

    def always(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            fault.step(f"{name} {arguments[0]}")
            return function(*arguments)

        return call

    async def apply(self: Netlink, operations: Any) -> None:
        for operation in operations:
            fault.step(operation.describe())
        await applied(self, operations)

    applied = Netlink.apply
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((builtins, "open"), (io, "open"), (os, "open"), (os, "mkdir"), (os, "chown")):
            patch.setattr(module, name, on_path(name, getattr(module, name)))
        for name in ("mount", "open_tree", "set_idmap", "move_mount"):
            patch.setattr(mount, name, always(name, getattr(mount, name)))
        patch.setattr(Netlink, "apply", apply)
        yield fault


@contextmanager
def injected(launcher: int, call: str, at: int) -> Iterator[None]:
    """The launcher, and each process that it makes, has its `at`-th call fail."""
    argv = ["strace", "--follow-forks", "--attach", str(launcher), "--output", "/dev/null"]
    process = subprocess.Popen(
        [*argv, f"--inject={call}:error=EIO:when={at}", f"--trace={call}"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        assert "attached" in process.stderr.readline()
        yield
    finally:
        process.terminate()
        process.communicate(timeout=20)
