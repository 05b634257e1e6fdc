"""Launching a container: from the moment its assignment reaches the agent until its program runs.

Ours is the agent without its session: the checkpoint, every isolator, the launcher and the overlay's address, in user
namespaces of their own. The peers (`bench/runtimes.py`) are `runc run` after the CNI plug-ins `bridge` and `host-local`
have added the same container, and `crun run` without any network. All take turns. The program is for all the same
static binary, which prints the clock as soon as it runs. Everything happens in network, mount and cgroup trees of a
child process and is removed after it.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
import uuid
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Self

from pyroute2 import AsyncIPRoute

from agent.checkpoint import Checkpoint
from agent.containers import Containers, Directories
from agent.fetch.fetcher import Fetcher
from agent.images.images import Images, Places
from agent.images.secrets import PullSecrets
from agent.launcher.client import Launcher
from agent.provision import Provision
from agent.reconciler import Reconciler
from agent.sandboxes import Sandboxes
from bench.apart import apart, report
from bench.report import Report, Row, percentile
from bench.runtimes import Crun, Peer, RuncWithCni
from isolators import mount
from isolators.persistent import PersistentVolumes
from isolators.rights import NO_RIGHTS
from isolators.standard import standard_isolators
from model.network import Block, Network, NetworkKind, Vtep, vtep_mac
from model.resources import Resources
from model.task import TaskSpec, TaskState, TaskStatus
from netns.driver import NetworkSpec
from netns.firewall.nftables import NftFirewall
from netns.networks import Networks

RUNS = 50
WARM_UP = 3
RUN_DEADLINE_S = 300
LAUNCH_DEADLINE_S = 10.0
LIMITS = Resources(cpus=100, mem=64)
CLOCK = """
#include <stdio.h>
#include <time.h>
int main(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    printf("%lld\\n", now.tv_sec * 1000000000LL + now.tv_nsec);
    return 0;
}
"""


def run() -> Report:
    return apart("bench.launch", RUN_DEADLINE_S)


async def measure(directory: Path) -> Report:
    rootfs = rootfs_of_clock(directory)
    await underlay()
    peers: dict[str, Peer] = {"runc+cni": RuncWithCni(directory, rootfs), "crun, no network": Crun(directory, rootfs)}
    ours: list[float] = []
    theirs: dict[str, list[float]] = {name: [] for name in peers}
    async with Ours(directory, rootfs) as agent:
        for turn in range(WARM_UP + RUNS):
            ours.append(await agent.launch())
            for name, peer in peers.items():
                theirs[name].append(await asyncio.to_thread(peer.launch, turn))
    return Report("launch", tuple(_row(percent, ours, name, theirs[name]) for name in peers for percent in (50, 99)))


def _row(percent: int, ours: list[float], name: str, theirs: list[float]) -> Row:
    label = f"start_p{percent}" if "cni" in name else f"start_p{percent}_crun"
    return Row(label, "ms", percentile(ours[WARM_UP:], percent), percentile(theirs[WARM_UP:], percent), name)


class Ours:
    def __init__(self, directory: Path, rootfs: Path) -> None:
        self._rootfs = rootfs
        self._directories = Directories(directory / "agent")
        self._launcher = Launcher()
        self._ended: dict[str, asyncio.Future[TaskStatus]] = {}

    async def __aenter__(self) -> Self:
        self._directories.mount_run()
        self._directories.make()
        node, address, boot_id = "n1", ip_address("10.77.0.11"), str(uuid.uuid4())
        self._networks = Networks(self._directories.state, node, boot_id, address)
        await self._networks.__aenter__()
        await self._networks.configure(_overlay(node))
        await self._launcher.start()
        state, local = self._directories.state, (self._directories.state.parent,)
        cgroup = f"tepui-bench-{os.getpid()}"
        isolators = standard_isolators(
            state, self._networks, NftFirewall(), PersistentVolumes(state), cgroup, NO_RIGHTS
        )
        self._images = Images(Places(state / "images", self._directories.bundles, state, local))
        await self._images.open()
        provision = Provision(self._images, Fetcher(state / "fetch", local), PullSecrets({}))
        self.containers = Containers(self._directories, isolators, self._launcher, provision=provision)
        checkpoint, ready = Checkpoint(self._directories.tasks), asyncio.Event()
        ready.set()
        self._sandboxes = Sandboxes(self.containers, ready)
        capacity = Resources(cpus=2000, mem=2048)
        self.reconciler = Reconciler(
            self.containers, self._sandboxes, checkpoint, boot_id, capacity, self._report, ready
        )
        await self.reconciler.recover()
        self._sandboxes.begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.reconciler.close()
        await self._sandboxes.close()
        await self._images.close()
        await self._launcher.stop()
        await self._networks.__aexit__(None, None, None)
        _remove_cgroups(f"tepui-bench-{os.getpid()}")
        mount.unmount(self._directories.run)

    async def launch(self, **changes: Any) -> float:
        """Milliseconds from the assignment to the program's first word. `changes` are of the task."""
        plain = TaskSpec(
            id=f"bench.{uuid.uuid4()}",
            framework="bench",
            owner="/bench",
            argv=("/clock",),
            resources=LIMITS,
            network="overlay",
            rootfs=str(self._rootfs),
        )
        task = replace(plain, **changes)
        ended = self._ended[task.id] = asyncio.get_running_loop().create_future()
        begin = time.monotonic_ns()
        self.reconciler.assign(task, kill=False)
        status = await asyncio.wait_for(ended, LAUNCH_DEADLINE_S)
        if status.state is not TaskState.FINISHED:
            raise RuntimeError(f"{task.id}: {status.state.name}: {status.reason}")
        printed = self._directories.log(task.id, "stdout").read_text()
        self.reconciler.withdraw(task.id)
        return (int(printed) - begin) / 1e6

    def _report(self, status: TaskStatus) -> None:
        if status.state.terminal:
            self._ended.pop(status.task_id).set_result(status)


def rootfs_of_clock(directory: Path) -> Path:
    rootfs = directory / "rootfs"
    for name in ("dev", "etc", "proc", "run", "sys", "tmp"):
        (rootfs / name).mkdir(parents=True)
    source = directory / "clock.c"
    source.write_text(CLOCK)
    subprocess.run(["gcc", "-O2", "-static", "-o", str(rootfs / "clock"), str(source)], check=True)
    return rootfs


async def underlay() -> None:
    """A link with this node's address, as a network card would be."""
    async with AsyncIPRoute() as route:
        await route.link("add", ifname="under0", kind="veth", peer={"ifname": "under1"})
        index = (await route.link_lookup(ifname="under0"))[0]
        await route.addr("add", index=index, address="10.77.0.11", prefixlen=24)
        for name in ("lo", "under0", "under1"):
            await route.link("set", index=(await route.link_lookup(ifname=name))[0], state="up")


def _overlay(node: str) -> NetworkSpec:
    network = Network("overlay", NetworkKind.OVERLAY, (ip_network("100.64.0.0/11"),), 24, vni=1024)
    block = Block("overlay", "n2", ip_network("100.64.1.0/24"))
    peer = Vtep("overlay", "n2", ip_address("10.77.0.12"), vtep_mac("n2", 1024), (block,))
    return NetworkSpec(network, (Block("overlay", node, ip_network("100.64.0.0/24")),), (peer,))


def _remove_cgroups(prefix: str) -> None:
    for hierarchy in Path("/sys/fs/cgroup").glob(f"*/{prefix}"):
        hierarchy.rmdir()


if __name__ == "__main__":
    report(measure)
