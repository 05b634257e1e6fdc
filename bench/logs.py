"""Logs: what it costs to keep what a container writes, and what its agent feels of it.

A container writes `MEGABYTES` as fast as it can, its keeper pumps them into rotated files, and the agent reads those
as it does for somebody who follows. The peer is conmon, which stands beside podman's containers and keeps logs of the
same size, with the same program under runc, a root directory and no limits. Counted are the seconds from the start to
the end of the container, and the CPU time of the program and of what pumps together; of the agent, how late its event
loop was and by how much its memory grew, beside what is promised. Everything happens in network, mount and cgroup trees
of a child process and is removed after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from agent.launcher.pump import DEFAULT_LIMITS
from agent.log_reader import LogReader
from bench.apart import apart, report
from bench.launch import Ours, underlay
from bench.report import Report, Row, percentile
from model.resources import Resources
from model.task import TaskSpec, TaskState, TaskStatus

MEGABYTES = 1000
LATE_MS = 100.0  # what is promised of the loop
GROWTH_MIB = 16.0  # and of the memory
TICK_S = 0.005
POLL_S = 0.1
RUNS = 3
RUN_DEADLINE_S = 600
ENDS_DEADLINE_S = 120.0
# Lines of 100 bytes, a MB at a time.
WRITER = """
#include <string.h>
#include <unistd.h>
int main(void) {
    static char block[1000000];
    memset(block, 'x', sizeof block);
    for (int end = 99; end < sizeof block; end += 100) block[end] = '\\n';
    for (int count = 0; count < MEGABYTES; count++)
        for (long done = 0; done < sizeof block;) {
            long wrote = write(1, block + done, sizeof block - done);
            if (wrote < 0) return 1;
            done += wrote;
        }
    return 0;
}
"""


def run() -> Report:
    return apart("bench.logs", RUN_DEADLINE_S)


async def measure(directory: Path) -> Report:
    rootfs = _rootfs(directory)
    await underlay()
    late: list[float] = []
    ours: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    async with Writing(directory, rootfs) as agent:
        await agent.write("warm-up")
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(RUNS):
            ticking = asyncio.create_task(_tick(late))
            ours.append(await agent.write(f"write.{number}"))
            ticking.cancel()
            theirs.append(await asyncio.to_thread(_conmon, directory, rootfs, number))
        growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
    seconds, cpu = (percentile([sample[kind] for sample in ours], 50) for kind in (0, 1))
    peer_seconds, peer_cpu = (percentile([sample[kind] for sample in theirs], 50) for kind in (0, 1))
    return Report(
        "logs",
        (
            Row("write_1000_mb", "s", seconds, peer_seconds, "conmon"),
            Row("write_1000_mb_cpu", "s", cpu, peer_cpu, "conmon"),
            Row("agent_late_p99", "ms", percentile(late, 99), LATE_MS, "promised"),
            Row("agent_growth", "MiB", growth, GROWTH_MIB, "promised"),
        ),
    )


class Writing(Ours):
    async def write(self, name: str) -> tuple[float, float]:
        """Seconds, and CPU seconds, of one container that writes, while it is followed."""
        ended = self._ended[name] = asyncio.get_running_loop().create_future()
        before = self._cpu_s()
        began = time.monotonic()
        self.reconciler.assign(self._task(name), kill=False)
        following = asyncio.create_task(self._follow(name))
        status: TaskStatus = await asyncio.wait_for(ended, ENDS_DEADLINE_S)
        took = time.monotonic() - began
        following.cancel()
        if status.state is not TaskState.FINISHED:
            raise RuntimeError(f"{name}: {status.state.name}: {status.reason}")
        return took, self._cpu_s() - before

    async def _follow(self, name: str) -> None:
        path = self._directories.log(name, "stdout")
        while not path.exists():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(TICK_S)
        with contextlib.closing(LogReader(path)) as reader:
            while True:
                while reader.read():  # noqa: ASYNC110 - others shall have their turn
                    await asyncio.sleep(0)
                await asyncio.sleep(POLL_S)

    def _cpu_s(self) -> float:
        """Of the launcher's children that have ended, and of theirs: proc(5), cutime and cstime."""
        fields = Path(f"/proc/{self._launcher.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")

    def _task(self, name: str) -> TaskSpec:
        resources = Resources(cpus=2000, mem=64)
        return TaskSpec(name, "bench", "/bench", ("/writer",), resources, "none", rootfs=str(self._rootfs))


async def _tick(late: list[float]) -> None:
    """By how many milliseconds the loop was late, again and again."""
    while True:
        due = time.monotonic() + TICK_S
        await asyncio.sleep(TICK_S)
        late.append((time.monotonic() - due) * 1000)


def _conmon(directory: Path, rootfs: Path, number: int) -> tuple[float, float]:
    """As ours. Its program waits, made, when the clock starts."""
    name = f"tepui-bench-{os.getpid()}-{number}"
    bundle, state = directory / name, str(directory / "runc")
    _write_bundle(bundle, rootfs, name)
    argv = ["conmon", "--sync", "--cid", name, "--cuuid", name, "--name", name, "--runtime", shutil.which("runc") or ""]
    argv += ["--bundle", str(bundle), "--exit-dir", str(bundle), "--socket-dir-path", str(bundle), "--full-attach"]
    argv += ["--container-pidfile", str(bundle / "pid"), "--log-path", f"k8s-file:{bundle / 'log'}"]
    argv += ["--log-size-max", str(DEFAULT_LIMITS.size), "--runtime-arg", "--root", "--runtime-arg", state]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + ENDS_DEADLINE_S
    while subprocess.run(["runc", "--root", state, "state", name], capture_output=True).returncode:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{name} was not made")
    began = time.monotonic()
    subprocess.run(["runc", "--root", state, "start", name], check=True)
    _, status, usage = os.wait4(process.pid, 0)
    took = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    subprocess.run(["runc", "--root", state, "delete", "--force", name], check=True)
    return took, usage.ru_utime + usage.ru_stime


def _write_bundle(bundle: Path, rootfs: Path, name: str) -> None:
    bundle.mkdir()
    subprocess.run(["runc", "spec", "--bundle", str(bundle)], check=True)
    file = bundle / "config.json"
    configuration: dict[str, Any] = json.loads(file.read_text())
    configuration["process"] |= {"args": ["/writer"], "terminal": False}
    configuration["root"] = {"path": str(rootfs), "readonly": True}
    configuration["linux"]["cgroupsPath"] = f"/{name}"
    file.write_text(json.dumps(configuration))


def _rootfs(directory: Path) -> Path:
    rootfs = directory / "rootfs"
    for name in ("dev", "etc", "proc", "run", "sys", "tmp"):
        (rootfs / name).mkdir(parents=True)
    source = directory / "writer.c"
    source.write_text(WRITER)
    program = str(rootfs / "writer")
    subprocess.run(["gcc", "-O2", "-static", f"-DMEGABYTES={MEGABYTES}", "-o", program, str(source)], check=True)
    return rootfs


if __name__ == "__main__":
    report(measure)
