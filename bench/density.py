"""Density: what many idle containers cost in memory, beside the memory that is theirs.

Counted is the proportional set size (PSS: of a page that n processes share each has 1/n) of agent, launcher and all
keepers, divided by the number of containers. The agent is the process of this bench, with all loaded that the daemon
loads. The peer is `runc run`, which stays as long as its container, as a keeper does, and has nobody beside it.
Everything happens in network, mount and cgroup trees of a child process and is removed after it.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.apart import apart, report
from bench.launch import Ours, underlay
from bench.report import Report, Row
from model.resources import Resources
from model.task import TaskSpec, TaskState, TaskStatus

CONTAINERS = 300
PEERS = 20
AGENT_MIB = 100.0  # what is promised
RUN_DEADLINE_S = 600
START_DEADLINE_S = 300.0
POLL_S = 0.01
OUR_PROCESSES = ("tepui-launcher", "tepui-keeper", "tepui-maker")
IDLE = "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n"


def run() -> Report:
    return apart("bench.density", RUN_DEADLINE_S)


async def measure(directory: Path) -> Report:
    rootfs = idle_rootfs(directory)
    with _runc(directory, rootfs) as peers:
        peer = sum(map(_pss_mib, peers)) / len(peers)
    importlib.import_module("cli.agent_daemon")
    await underlay()
    agent = Idle(directory, rootfs)
    async with agent:
        await agent.start(CONTAINERS)
        ours, alone = agent.pss_mib() / CONTAINERS, _pss_mib(os.getpid())
        await agent.end()
    return Report(
        "density",
        (
            Row("pss_per_container_mib", "MiB", ours, peer, "runc run"),
            Row("pss_agent_mib", "MiB", alone, AGENT_MIB, "promised"),
        ),
    )


class Idle(Ours):
    """An agent with containers that do nothing."""

    def __init__(self, directory: Path, rootfs: Path, network: str = "none") -> None:
        super().__init__(directory, rootfs)
        self._network = network

    async def start(self, count: int) -> None:
        loop = asyncio.get_running_loop()
        self._tasks = [self._task(f"idle.{number}") for number in range(count)]
        self._running = {task.id: loop.create_future() for task in self._tasks}
        self._ended = {task.id: loop.create_future() for task in self._tasks}
        for task in self._tasks:
            self.reconciler.assign(task, kill=False)
        async with asyncio.timeout(START_DEADLINE_S):
            await asyncio.gather(*self._running.values())

    async def end(self) -> None:
        ended = list(self._ended.values())
        for task in self._tasks:
            self.reconciler.assign(task, kill=True)
        async with asyncio.timeout(START_DEADLINE_S):
            await asyncio.gather(*ended)

    def forget(self) -> None:
        for task in self._tasks:
            self.reconciler.withdraw(task.id)

    def pss_mib(self) -> float:
        """Of this process, the launcher, and what came from it and is not a container."""
        launcher = self._launcher.pid
        assert launcher is not None
        return _pss_mib(os.getpid()) + sum(map(_pss_mib, _ours_below(launcher)))

    def _task(self, name: str) -> TaskSpec:
        return TaskSpec(
            id=name,
            framework="bench",
            owner="/bench",
            argv=("/idle",),
            resources=Resources(cpus=1, mem=4),
            network=self._network,
            rootfs=str(self._rootfs),
            kill_grace_s=0.0,
        )

    def _report(self, status: TaskStatus) -> None:
        running = self._running[status.task_id]
        if status.state.terminal and not running.done():
            running.set_exception(RuntimeError(f"{status.task_id}: {status.state.name}: {status.reason}"))
        elif status.state is TaskState.RUNNING:
            running.set_result(None)
        super()._report(status)


@contextmanager
def _runc(directory: Path, rootfs: Path) -> Iterator[list[int]]:
    """The processes that `runc run` leaves beside idle containers."""
    state = str(directory / "runc")
    names = [f"tepui-bench-{os.getpid()}-{number}" for number in range(PEERS)]
    started = []
    try:
        for name in names:
            bundle = _bundle(directory / name, rootfs, name)
            started.append(subprocess.Popen(["runc", "--root", state, "run", "--bundle", bundle, name]))
        for process in started:
            _until_idle(process.pid)
        yield [process.pid for process in started]
    finally:
        for name, process in zip(names, started, strict=False):
            subprocess.run(["runc", "--root", state, "kill", name, "KILL"], check=True)
            process.wait(START_DEADLINE_S)


def _bundle(bundle: Path, rootfs: Path, name: str) -> str:
    bundle.mkdir()
    subprocess.run(["runc", "spec", "--bundle", str(bundle)], check=True)
    file = bundle / "config.json"
    configuration: dict[str, Any] = json.loads(file.read_text())
    configuration["process"] |= {"args": ["/idle"], "terminal": False}
    configuration["root"] = {"path": str(rootfs), "readonly": True}
    configuration["linux"]["cgroupsPath"] = f"/{name}"
    file.write_text(json.dumps(configuration))
    return str(bundle)


def _until_idle(parent: int) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while "idle" not in map(_name, _children(parent)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"no container after {START_DEADLINE_S:g} s")
        time.sleep(POLL_S)


def _ours_below(pid: int) -> Iterator[int]:
    """This process and its descendants, as far as they are of the launcher's kind."""
    if _name(pid) in OUR_PROCESSES:
        yield pid
        for child in _children(pid):
            yield from _ours_below(child)


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def _pss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid} has no memory")


def idle_rootfs(directory: Path) -> Path:
    rootfs = directory / "rootfs"
    for name in ("dev", "etc", "proc", "run", "sys", "tmp"):
        (rootfs / name).mkdir(parents=True)
    source = directory / "idle.c"
    source.write_text(IDLE)
    subprocess.run(["gcc", "-O2", "-static", "-o", str(rootfs / "idle"), str(source)], check=True)
    return rootfs


if __name__ == "__main__":
    report(measure)
