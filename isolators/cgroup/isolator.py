"""Limits what a container takes of its node (CPU time, memory, processes, input and output, huge pages, devices),
pauses it, and kills what is left of it.

Writes `<controller>/<prefix>/<container id>` in each tree of the node's control groups and nothing outside of the
prefix, so several agents can share a machine. All of it is learnt from the kernel: nothing is kept here.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from isolators.base import BundlePart, Container, Isolator, IsolatorError, Limit, Sandbox, Unsupported
from isolators.cgroup import devices, tree
from isolators.cgroup.hierarchy import V1, V2, detect
from isolators.cgroup.limits import MIB, Limits, Throttle, check, limits, oci_resources
from isolators.cgroup.tree import Cgroups
from isolators.cgroup.v1 import CgroupsV1
from isolators.cgroup.v2 import CgroupsV2
from isolators.mount import mount_points
from isolators.rights import NO_RIGHTS, Rights
from model.network import Address
from model.resources import Resources
from model.task import Usage

KILL_DEADLINE_S = 10.0
KILL_INTERVAL_S = 0.002
OOM_LOOKS, OOM_INTERVAL_S = 100, 0.01
FREEZE_DEADLINE_S = 10.0
FREEZE_INTERVAL_S = 0.002


class CgroupIsolator(Isolator):
    name = "cgroup"

    def __init__(self, prefix: str, rights: Rights = NO_RIGHTS, hierarchy: V1 | V2 | None = None) -> None:
        """`prefix` is a path below the root of each tree, such as `tepui/n1`. Raises Unsupported."""
        found = hierarchy or detect(mount_points())
        self._cgroups: Cgroups = CgroupsV1(found, prefix) if isinstance(found, V1) else CgroupsV2(found, prefix)
        self._rights = rights

    async def recover(self, known: list[Container], orphans: list[str]) -> None:
        kept = {container.id for container in known}
        for name in self._cgroups.names():
            if name not in kept:
                await self._destroy(name)
            else:
                await self._end_sessions(name)

    async def open(self, sandbox: Sandbox) -> BundlePart:
        with _operation("create cgroup", sandbox.id):
            self._cgroups.create(sandbox.id)
        return {"linux": {"cgroupsPath": self._cgroups.path(sandbox.id)}}

    async def isolate(self, sandbox: Sandbox, pid: int) -> tuple[Address, ...]:
        with _operation(f"move process {pid} to cgroup", sandbox.id):
            # By a thread: a move waits for a grace period of the kernel (cgroup_threadgroup_rwsem), 5 to 10 ms.
            await asyncio.to_thread(self._cgroups.add, sandbox.id, pid)
        return ()

    async def prepare(self, container: Container) -> BundlePart:
        limit = self._limits(container, container.task.resources)
        return {
            "process": {"oomScoreAdj": container.task.limits.oom_score_adj},
            "linux": {
                "resources": oci_resources(limit),
                "devices": [devices.node(device) for device in container.task.limits.devices],
            },
        }

    async def enforce(self, container: Container) -> None:
        await self.update(container, container.task.resources)

    async def join(self, container: Container, session: str, pid: int) -> Path:
        directory = self._cgroups.sessions(container.id) / session
        with _operation(f"move process {pid} to cgroup", container.id):
            tree.make(directory)
            await asyncio.to_thread(self._cgroups.add, container.id, pid)
            await asyncio.to_thread(tree.join, directory, pid)
        return directory

    async def leave(self, container: Container, session: str) -> None:
        with _operation(f"end {session} in", container.id):
            await _kill_and_remove(self._cgroups.sessions(container.id) / session)

    async def watch(self, container: Container) -> Limit | None:
        with _operation("watch memory of", container.id), closing(self._cgroups.oom_news(container.id)) as news:
            limit = await self.exceeded(container)
            while limit is None:
                await _readable(news.fileno())
                news.drain()
                limit = await self._soon_exceeded(container)
        return limit

    async def exceeded(self, container: Container) -> Limit | None:
        with _operation("read memory of", container.id):
            if not self._cgroups.oom_kills(container.id):
                return None
            usage = self._cgroups.usage(container.id, Usage())
        limit = (usage.mem_limit_bytes or 0) // MIB
        return Limit(f"memory limit {limit} MiB exceeded (peak {usage.mem_peak_bytes / MIB:.1f} MiB)")

    async def update(self, container: Container, resources: Resources) -> None:
        limit = self._limits(container, resources)
        try:
            with _refusals(container.id):
                self._cgroups.limit(container.id, limit)
        except OSError as error:
            raise self._not_resized(container, limit, error) from error

    async def pause(self, container: Container) -> None:
        with _operation("freeze", container.id):
            self._cgroups.freeze(container.id, True)
            deadline = asyncio.get_running_loop().time() + FREEZE_DEADLINE_S
            while not self._cgroups.frozen(container.id):  # nobody is told of it on version 1
                if asyncio.get_running_loop().time() > deadline:
                    self._cgroups.freeze(container.id, False)
                    raise IsolatorError(f"freeze {container.id}: not done after {FREEZE_DEADLINE_S:g} s")
                await asyncio.sleep(FREEZE_INTERVAL_S)

    async def resume(self, container: Container) -> None:
        with _operation("thaw", container.id):
            self._cgroups.freeze(container.id, False)

    async def usage(self, container: Container, usage: Usage) -> Usage:
        with _operation("read cgroup", container.id):
            return self._cgroups.usage(container.id, usage)

    async def cleanup(self, sandbox: Sandbox) -> None:
        await self._destroy(sandbox.id)

    def _limits(self, container: Container, resources: Resources) -> Limits:
        """Raises Unsupported for what this task, or any, can not have here."""
        check(container.task, resources)
        wanted = container.task.limits
        for device in wanted.devices:
            if device.path not in self._rights.devices:
                raise Unsupported(f"limits.devices {device.path}: is not a device that this node lends to tasks")
        rules = (*devices.DEFAULT, *map(devices.rule, wanted.devices))
        throttles = [
            Throttle(
                devices.disk(limit, container.layer.parent),
                limit.read_bps,
                limit.write_bps,
                limit.read_iops,
                limit.write_iops,
            )
            for limit in wanted.io
        ]
        return limits(container.task, resources, throttles, rules)

    async def _end_sessions(self, name: str) -> None:
        """Those of an agent that was killed together with their guards."""
        directory = self._cgroups.sessions(name)
        for session in tree.children(directory):
            with _operation(f"end {session} in", name):
                await _kill_and_remove(directory / session)

    def _not_resized(self, container: Container, limit: Limits, error: OSError) -> IsolatorError:
        if error.errno == errno.EBUSY:
            with suppress(OSError):
                used = self._cgroups.usage(container.id, Usage()).mem_bytes
                if used > limit.memory_bytes:
                    in_use = f"{used / MIB:.1f} MiB are in use, and can't be reclaimed"
                    return Unsupported(f"memory limit {limit.memory_bytes // MIB} MiB: {in_use}")
        return IsolatorError(f"resize cgroup {container.id}: {error}")

    async def _soon_exceeded(self, container: Container) -> Limit | None:
        """On version 1 the news comes before the kernel has chosen whom to kill (mem_cgroup_oom), or kills nobody."""
        for _ in range(OOM_LOOKS):
            if (limit := await self.exceeded(container)) is not None:
                return limit
            await asyncio.sleep(OOM_INTERVAL_S)
        return None

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


async def _kill_and_remove(directory: Path) -> None:
    async with asyncio.timeout(KILL_DEADLINE_S):
        while True:
            if _killed_and_removed(directory):
                return
            await asyncio.sleep(KILL_INTERVAL_S)


def _killed_and_removed(directory: Path) -> bool:
    """False while a process in it has not quite ended."""
    if tree.kill_all(directory):
        return False
    try:
        tree.remove(directory)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)


@contextmanager
def _refusals(name: str) -> Iterator[None]:
    """What the kernel will never take is no failure that might pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENODEV, errno.EOPNOTSUPP):
            raise
        raise Unsupported(f"limit {name}: {error.strerror}: {error.filename}") from error


@contextmanager
def _operation(operation: str, name: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise IsolatorError(f"{operation} {name}: processes still live after {KILL_DEADLINE_S:g} s") from error
    except OSError as error:
        raise IsolatorError(f"{operation} {name}: {error}") from error
