"""Limits CPU time, memory and number of processes of a container, and kills what is left of it.

Writes `<controller>/<prefix>/<container id>` in each tree of the node's control groups and nothing outside of the
prefix, so several agents can share a machine. All of it is learnt from the kernel: nothing is kept here.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from isolators.base import BundlePart, Container, Isolator, IsolatorError
from isolators.cgroup.grace import GracePeriod, own_procs
from isolators.cgroup.hierarchy import V1, V2, detect
from isolators.cgroup.limits import limits, oci_resources
from isolators.cgroup.tree import Cgroups
from isolators.cgroup.v1 import CgroupsV1
from isolators.cgroup.v2 import CgroupsV2
from isolators.mount import mount_points
from model.network import Address
from model.resources import Resources
from model.task import Usage

KILL_DEADLINE_S = 10.0
KILL_INTERVAL_S = 0.002


class CgroupIsolator(Isolator):
    name = "cgroup"

    def __init__(self, prefix: str, hierarchy: V1 | V2 | None = None) -> None:
        """`prefix` is a path below the root of each tree, such as `tepui/n1`. Raises Unsupported."""
        found = hierarchy or detect(mount_points())
        self._cgroups: Cgroups = CgroupsV1(found, prefix) if isinstance(found, V1) else CgroupsV2(found, prefix)
        self._grace = GracePeriod(own_procs(found, Path("/proc/self/cgroup").read_text()))

    async def recover(self, known: list[Container], orphans: list[str]) -> None:
        kept = {container.id for container in known}
        for name in self._cgroups.names():
            if name not in kept:
                await self._destroy(name)

    async def prepare(self, container: Container) -> BundlePart:
        self._grace.begin()
        limit = limits(container.task.resources, container.task.pids)
        with _operation("create cgroup", container.id):
            self._cgroups.create(container.id)
            self._cgroups.limit(container.id, limit)
        return {"linux": {"cgroupsPath": self._cgroups.path(container.id), "resources": oci_resources(limit)}}

    async def isolate(self, container: Container, pid: int) -> tuple[Address, ...]:
        await self._grace.over()
        with _operation(f"move process {pid} to cgroup", container.id):
            # By a thread: should the grace period have run out, this is the one to sleep.
            await asyncio.to_thread(self._cgroups.add, container.id, pid)
        return ()

    async def update(self, container: Container, resources: Resources) -> None:
        with _operation("resize cgroup", container.id):
            self._cgroups.limit(container.id, limits(resources, container.task.pids))

    async def usage(self, container: Container, usage: Usage) -> Usage:
        with _operation("read cgroup", container.id):
            seen = self._cgroups.usage(container.id)
        return replace(
            usage,
            cpu_s=seen.cpu_s,
            cpu_limit=seen.cpu_limit,
            mem_bytes=seen.mem_bytes,
            mem_limit_bytes=seen.mem_limit_bytes,
            pids=seen.pids,
            pids_limit=seen.pids_limit,
        )

    async def cleanup(self, container: Container) -> None:
        await self._destroy(container.id)

    async def _destroy(self, name: str) -> None:
        """Killed again and again, for a process may fork between the look and the kill; the cgroup can be removed when
        the last one has exited, which the kernel tells nobody about on version 1."""
        with _operation("remove cgroup", name):
            async with asyncio.timeout(KILL_DEADLINE_S):
                while True:
                    if self._removed(name):
                        return
                    await asyncio.sleep(KILL_INTERVAL_S)

    def _removed(self, name: str) -> bool:
        if self._cgroups.kill(name):
            return False
        try:
            self._cgroups.remove(name)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False
        return True


@contextmanager
def _operation(operation: str, name: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise IsolatorError(f"{operation} {name}: processes still live after {KILL_DEADLINE_S:g} s") from error
    except OSError as error:
        raise IsolatorError(f"{operation} {name}: {error}") from error
