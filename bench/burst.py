"""A hundred containers at once: how long a node takes to start them all, with an address each, and to end them all.

Given is the time for one, that of all divided by their number. The peer is what is promised: 60 a second, on two cores.
Everything happens in network, mount and cgroup trees of a child process and is removed after it.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from bench.apart import apart, report
from bench.density import Idle, idle_rootfs
from bench.launch import underlay
from bench.report import Report, Row

CONTAINERS = 100
ROUNDS = 5
PROMISED_MS = 1000 / 60
RUN_DEADLINE_S = 300


def run() -> Report:
    return apart("bench.burst", RUN_DEADLINE_S)


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


if __name__ == "__main__":
    report(measure)
