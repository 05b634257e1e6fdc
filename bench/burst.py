"""A hundred containers at once: how long a node takes to start them all, with an address each, and to end them all.

Given is the time for one, that of all divided by their number. The peer is what is promised: 60 a second, on two cores.
Everything happens in network, mount and cgroup trees of a child process and is removed after it.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import structlog

from bench.density import Idle, idle_rootfs
from bench.launch import underlay
from bench.report import Report, Row, from_json

CONTAINERS = 100
ROUNDS = 5
PROMISED_MS = 1000 / 60
RUN_DEADLINE_S = 300


def run() -> Report:
    # A child in namespaces of its own: the overlay's links and the mounts go with it.
    argv = ["unshare", "--net", "--mount", "--propagation", "private", sys.executable, "-m", "bench.burst"]
    root = str(Path(__file__).resolve().parents[1])
    done = subprocess.run(argv, cwd=root, stdout=subprocess.PIPE, text=True, check=True, timeout=RUN_DEADLINE_S)
    return from_json(json.loads(done.stdout))


async def measure(directory: Path) -> Report:
    await underlay()
    starts, ends = [], []
    agent = Idle(directory, idle_rootfs(directory), network="overlay")
    async with agent:
        for _ in range(ROUNDS):
            begin = time.monotonic()
            await agent.start(CONTAINERS)
            started = time.monotonic()
            await agent.end()
            starts.append(started - begin)
            ends.append(time.monotonic() - started)
            agent.forget()
    rows = (
        Row(what, "ms", statistics.median(seconds) / CONTAINERS * 1000, PROMISED_MS, "promised")
        for what, seconds in (("start_100_each", starts), ("end_100_each", ends))
    )
    return Report("burst", tuple(rows))


def main() -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # stdout is for the report
    directory = Path(tempfile.mkdtemp(prefix="tepui-bench-", dir="/var/tmp"))
    try:
        report = asyncio.run(measure(directory))
    finally:
        shutil.rmtree(directory)
    print(json.dumps(report.to_json()))


if __name__ == "__main__":
    main()
