"""Lets the wait that moving a process costs happen while there is something else to do.

A write to `cgroup.procs` takes a lock that every fork and exit reads (`cgroup_threadgroup_rwsem`). To take it for
writing the kernel waits for an RCU grace period, 5 to 10 ms; for some 10 ms afterwards further writes go without. So
when a container begins to be prepared this process moves into the cgroup that it is in, which changes nothing, and
when the container's own process is there to be moved, the wait is over.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import structlog

from isolators.cgroup.hierarchy import V1, V2

log = structlog.get_logger()


class GracePeriod:
    """One at a time is enough, for however many containers."""

    def __init__(self, procs: Path) -> None:
        self._procs = procs
        self._wait: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Returns at once; the waiting is done by a thread."""
        if self._wait is None or self._wait.done():
            self._wait = asyncio.create_task(asyncio.to_thread(self._stay))

    async def over(self) -> None:
        if self._wait is not None:
            await asyncio.wait({self._wait})

    def _stay(self) -> None:
        try:
            with self._procs.open("r+") as procs:
                procs.write(str(os.getpid()))
        except OSError as error:  # the move that counts just takes longer
            log.debug("cgroup grace period not begun", path=str(self._procs), error=error.strerror)


def own_procs(hierarchy: V1 | V2, memberships: str) -> Path:
    """`cgroup.procs` of the cgroup that /proc/self/cgroup (`memberships`) says this process is in."""
    controller, mount = ("", hierarchy.mount) if isinstance(hierarchy, V2) else hierarchy.mounts[0]
    for line in memberships.splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return mount / path.lstrip("/") / "cgroup.procs"
    return mount / "cgroup.procs"
