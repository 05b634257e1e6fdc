"""Containers for tests, made of isolators and launcher as an agent does it, without an agent."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agent import runtime
from agent.launcher import record
from agent.launcher.adopt import wait_exit
from agent.launcher.client import NATIVE, Launch, Launcher
from agent.launcher.record import Exit
from isolators import base
from isolators.base import BundlePart, Container, Isolator, merge
from isolators.capabilities import CapabilitiesIsolator
from isolators.cgroup.isolator import CgroupIsolator
from isolators.disk import DiskIsolator
from isolators.filesystem import FilesystemIsolator
from isolators.mount import mount_points
from isolators.namespaces import NamespacesIsolator
from isolators.privileges import PrivilegesIsolator
from isolators.process import ProcessIsolator
from isolators.rights import NO_RIGHTS, Rights
from isolators.rlimits import RlimitsIsolator
from isolators.seccomp import SeccompIsolator
from isolators.secrets import SecretsIsolator
from isolators.sysctls import SysctlsIsolator
from isolators.workspace import WorkspaceIsolator
from model.resources import Resources
from model.task import TaskSpec
from tests.kernel.cgroup_files import CGROUPS as CGROUPS
from tests.kernel.cgroup_files import directories, remove_prefix
from tests.patience import PATIENCE

DEADLINE_S = 20.0 * PATIENCE
INTERVAL_S = 0.01
ID_BASE = 1_000_000
Change = Callable[[dict[str, Any]], None]
PROGRAMS = ("sh", "cat", "ls", "touch", "true", "sleep", "stat", "id", "head")


@dataclass
class Sandbox:
    state: Path
    prefix: str
    launcher: Launcher
    isolators: list[Isolator]
    containers: list[Container] = field(default_factory=list)
    frames: dict[str, BundlePart] = field(default_factory=dict)

    def container(self, task: TaskSpec) -> Container:
        """Its directory is made; nothing else."""
        container = Container(
            task, base.Sandbox(task.id, self.state / task.id, self.state / task.id, ID_BASE, task.network)
        )
        container.directory.mkdir(mode=0o700)
        self.containers.append(container)
        return container

    async def create(self, container: Container, change: Change | None = None) -> Launch:
        """A sandbox for it."""
        frame = merge([await isolator.open(container.sandbox) for isolator in self.isolators])
        if change is not None:
            change(frame)
        self.frames[container.id] = frame
        launch = await self.launcher.create(container.directory, frame)
        for isolator in self.isolators:
            await isolator.isolate(container.sandbox, launch.pid)
        return launch

    async def prepare(self, container: Container, change: Change | None = None) -> None:
        parts = [await isolator.prepare(container) for isolator in self.isolators]
        config = merge([self.frames[container.id], *parts])
        if change is not None:
            change(config)
        (container.directory / "config.json").write_text(json.dumps(config))

    async def fill(self, container: Container, launch: Launch) -> None:
        await launch.fill(container.directory / "stdout", container.directory / "stderr")
        for isolator in self.isolators:
            await isolator.enforce(container)
        await launch.start()

    async def start(self, task: TaskSpec, change: Change | None = None) -> tuple[Container, Launch]:
        container = self.container(task)
        launch = await self.create(container)
        await self.prepare(container, change)
        await self.fill(container, launch)
        return container, launch

    async def run(self, task: TaskSpec) -> tuple[Exit, str]:
        """How it ended and what it wrote to standard output and error."""
        container, _ = await self.start(task)
        ended = await exit_of(container)
        return ended, output(container)

    async def clean(self) -> None:
        for container in self.containers:
            await runtime.delete(container.directory, container.id)
            for isolator in reversed(self.isolators):
                await isolator.cleanup(container.sandbox)


@asynccontextmanager
async def sandbox(state: Path, rights: Rights = NO_RIGHTS, by: str = NATIVE) -> AsyncIterator[Sandbox]:
    """Checks at its end that no mount, cgroup or process is left."""
    launcher = Launcher(by)
    prefix = f"tepui-test-{os.getpid()}"
    made = Sandbox(state, prefix, launcher, isolators_of(state, prefix, rights))
    try:
        yield made
    finally:
        await made.clean()
        for container in made.containers:
            await exit_of(container)
        await launcher.stop()
        left = cgroups(prefix)
        remove_prefix(prefix)
    assert left == []
    assert mounts_below(state) == []


def isolators_of(state: Path, prefix: str, rights: Rights = NO_RIGHTS) -> list[Isolator]:
    """Without the network's."""
    return [
        FilesystemIsolator(state),
        DiskIsolator(state),
        CgroupIsolator(prefix, rights),
        NamespacesIsolator(rights),
        WorkspaceIsolator(),
        ProcessIsolator(),
        CapabilitiesIsolator(rights),
        SeccompIsolator(rights),
        PrivilegesIsolator(),
        RlimitsIsolator(),
        SysctlsIsolator(),
        SecretsIsolator(state),
    ]


def task(name: str, *argv: str, **changes: Any) -> TaskSpec:
    plain = TaskSpec(name, "services", "/test", argv, Resources(cpus=500, mem=64), "none")
    return replace(plain, **changes)


def output(container: Container) -> str:
    return (container.directory / "stdout").read_text() + (container.directory / "stderr").read_text()


async def exit_of(container: Container) -> Exit:
    async with asyncio.timeout(DEADLINE_S):
        return await wait_exit(container.directory)


async def until(condition: Callable[[], object], what: str) -> None:
    """Polls. Fails the test with `what` after the deadline."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DEADLINE_S
    while not condition():
        assert loop.time() < deadline, f"not so after {DEADLINE_S:g} s: {what}"
        await asyncio.sleep(INTERVAL_S)


def alive(pid: int) -> bool:
    return record.identify(pid) is not None


def cgroups(prefix: str) -> list[str]:
    """Cgroups below the prefix in any tree."""
    return [str(path) for path in directories(prefix)]


def mounts_below(directory: Path) -> list[Path]:
    return [point.path for point in mount_points() if point.path.is_relative_to(directory)]


def root_directory(target: Path, programs: Iterable[str] = PROGRAMS) -> Path:
    """A small root file system of copies of the machine's programs and their libraries."""
    for name in ("bin", "etc", "tmp"):
        (target / name).mkdir(parents=True)
    (target / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\nweb:x:1000:1000::/:/bin/sh\n")
    for program in programs:
        found = shutil.which(program)
        assert found is not None, f"{program} is not on this machine"
        shutil.copy(found, target / "bin" / program)
        for library in _libraries(found):
            (target / library.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, target / library.lstrip("/"))
    target.chmod(0o755)
    return target


def _libraries(program: str) -> list[str]:
    listing = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    return re.findall(r"(/\S+) \(0x", listing)
