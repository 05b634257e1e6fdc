"""An agent's part in one container's network, as a process that is killed at the step of a given number.

`python -m tests.kernel.killed VERB STATE PID STEP`: VERB is `attach` or `detach`, PID a process in the container's
network namespace. Ends by SIGKILL, or with 0 when there were fewer steps. A step is a change of the kernel or the disk,
transactions of nftables among them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from isolators.base import Container, Sandbox
from isolators.network import NetworkIsolator
from model.network import Block, Network, NetworkKind
from model.resources import Resources
from model.task import Bandwidth, Interface, Port, TaskSpec
from netns.driver import NetworkSpec
from netns.firewall.nftables import NftFirewall
from netns.firewall.table import Zone
from netns.link import vxlan_name
from netns.networks import Networks
from netns.nft.libnftables import Nftables
from tests.kernel.faults import Steps, steps_of

UNDERLAY = ip_address("192.0.2.1")
PROD = Network("prod", NetworkKind.OVERLAY, (ip_network("100.64.0.0/11"), ip_network("fd01:b::/64")), vni=1024)
BACK = Network("back", NetworkKind.BRIDGE, (ip_network("10.9.0.0/16"),))
SPECS = (
    NetworkSpec(PROD, tuple(Block("prod", "n1", ip_network(each)) for each in ("100.64.1.0/24", "fd01:b:0:0:1::/80"))),
    NetworkSpec(BACK, (Block("back", "n1", ip_network("10.9.1.0/24")),)),
)
TASK = TaskSpec(
    "web.1",
    "services",
    "/web",
    ("true",),
    Resources(),
    "prod",
    ports=(Port(80, host=8080),),
    interfaces=(Interface("back"),),
    bandwidth=Bandwidth(20_000_000, 10_000_000),
)


@dataclass(frozen=True, slots=True)
class Agent:
    driver: Networks
    firewall: NftFirewall
    isolator: NetworkIsolator


@dataclass
class Deadly(Steps):
    def step(self) -> None:
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        super().step()


def container(state: Path) -> Container:
    directory = state / "web"
    directory.mkdir(exist_ok=True)
    return Container(TASK, Sandbox("web", directory, directory, 100_000, "prod", interfaces=TASK.interfaces))


@asynccontextmanager
async def agent(state: Path, known: list[Container], boot: str = "boot-1") -> AsyncIterator[Agent]:
    """That has recovered, with those containers, and knows its networks."""
    firewall = NftFirewall()
    async with Networks(state, "n1", boot, UNDERLAY) as driver:
        made = Agent(driver, firewall, NetworkIsolator(driver, firewall))
        await made.isolator.recover(known, [])
        zones = (
            Zone(PROD, tuple(block.subnet for block in SPECS[0].blocks), vxlan_name(1024)),
            Zone(BACK, tuple(block.subnet for block in SPECS[1].blocks), ""),
        )
        await firewall.configure(zones, (), {}, frozenset())
        for spec in SPECS:
            await driver.configure(spec)
        yield made


async def attach(made: Agent, state: Path, pid: int) -> None:
    await made.isolator.isolate(container(state).sandbox, pid)
    await made.isolator.prepare(container(state))


async def detach(made: Agent, state: Path) -> None:
    await made.isolator.cleanup(container(state).sandbox)


async def _run(verb: str, state: Path, pid: int, step: int) -> None:
    steps = Deadly()
    steps_of(pytest.MonkeyPatch(), (Nftables, "run"), counting=steps)
    async with agent(state, [container(state)] if verb == "detach" else []) as made:
        steps.left = step
        await (attach(made, state, pid) if verb == "attach" else detach(made, state))


if __name__ == "__main__":
    asyncio.run(_run(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
