"""Usage: what it costs to look once a second at what 300 containers take, as a share of one CPU.

Counted is the CPU time of the agent's process over some looks, with everything that a look reads: cgroups, layers and
links. Most containers have a link, as many as a block of addresses holds. The peer is what is promised. Everything
happens in network, mount and cgroup trees of a child process and is removed after it.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from agent.usage import INTERVAL_S, Sampler
from bench.apart import apart, report
from bench.density import CONTAINERS, RUN_DEADLINE_S, Idle, idle_rootfs
from bench.launch import underlay
from bench.report import Report, Row
from model.task import TaskSpec

LOOKS = 20
CONNECTED = 240  # a /24 has a few more addresses
SHARE_PERCENT = 5.0  # what is promised


def run() -> Report:
    return apart("bench.usage", RUN_DEADLINE_S)


async def measure(directory: Path) -> Report:
    rootfs = idle_rootfs(directory)
    await underlay()
    async with Connected(directory, rootfs) as agent:
        await agent.start(CONTAINERS)
        sampler = Sampler(agent.reconciler.living, agent.containers.usage)
        await sampler.look()
        began = time.process_time()
        for _ in range(LOOKS):
            await sampler.look()
        share = (time.process_time() - began) / LOOKS / INTERVAL_S * 100
        assert len(sampler.usages) == CONTAINERS
        await agent.end()
    return Report("usage", (Row("sample_300_share", "%", share, SHARE_PERCENT, "promised"),))


class Connected(Idle):
    """With links, as far as there are addresses."""

    def _task(self, name: str) -> TaskSpec:
        spec = super()._task(name)
        number = int(name.rpartition(".")[2])
        return replace(spec, network="overlay") if number < CONNECTED else spec


if __name__ == "__main__":
    report(measure)
