"""Control groups version 1: one tree for each controller (cgroup-v1/cgroups.rst).

A container is the same path in each tree. Its processes go into all of them, one write each: a write moves one process
of one tree, and there is no transaction across trees.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cgroupspy.controllers import Controller, CpuAcctController, CpuController, MemoryController
from cgroupspy.interfaces import IntegerFile

from isolators.cgroup import tree
from isolators.cgroup.hierarchy import V1
from isolators.cgroup.limits import PERIOD_US, Limits
from model.task import Usage

UNLIMITED_BYTES = 1 << 62  # memory.limit_in_bytes without a limit reads as the largest multiple of a page


class PidsController(Controller):  # type: ignore[misc]
    """cgroup-v1/pids.rst"""

    max = tree.LimitFile("pids.max")
    current = IntegerFile("pids.current", readonly=True)


CONTROLLERS: dict[str, type[Controller]] = {
    "cpu": CpuController,
    "cpuacct": CpuAcctController,
    "memory": MemoryController,
    "pids": PidsController,
}


class CgroupsV1:
    """Implements `tree.Cgroups`."""

    def __init__(self, hierarchy: V1, prefix: str) -> None:
        self._prefix = prefix
        self._bases = {kind: mount / prefix for kind, mount in hierarchy.mounts}

    def create(self, name: str) -> None:
        for base in dict.fromkeys(self._bases.values()):  # controllers that share a mount share its cgroups
            base.mkdir(parents=True, exist_ok=True)
            tree.make(base / name)

    def limit(self, name: str, limits: Limits) -> None:
        group = self._group(name)
        group.cpu.shares = limits.shares
        group.cpu.cfs_period_us = PERIOD_US
        group.cpu.cfs_quota_us = limits.quota_us
        group.pids.max = limits.pids
        _limit_memory(group.memory, limits.memory_bytes)

    def add(self, name: str, pid: int) -> None:
        for base in dict.fromkeys(self._bases.values()):
            tree.open_group(name, {"pids": base / name}, CONTROLLERS).pids.procs = [pid]

    def usage(self, name: str) -> Usage:
        group = self._group(name)
        quota = group.cpu.cfs_quota_us
        memory = group.memory.limit_in_bytes
        return Usage(
            cpu_s=group.cpuacct.usage / 1e9 if "cpuacct" in self._bases else 0.0,
            cpu_limit=None if quota is None else quota / group.cpu.cfs_period_us,
            mem_bytes=group.memory.usage_in_bytes,
            mem_limit_bytes=None if memory is None or memory >= UNLIMITED_BYTES else memory,
            pids=group.pids.current,
            pids_limit=group.pids.max,
        )

    def kill(self, name: str) -> bool:
        """One tree after the other: a process that was being added may be in some of them only."""
        killed = [tree.kill_all(base / name) for base in self._bases.values()]
        return any(killed)

    def remove(self, name: str) -> None:
        for base in self._bases.values():
            tree.remove(base / name)

    def names(self) -> list[str]:
        return sorted({name for base in self._bases.values() for name in tree.children(base)})

    def path(self, name: str) -> str:
        return f"/{self._prefix}/{name}"

    def _group(self, name: str) -> Any:
        return tree.open_group(name, {kind: base / name for kind, base in self._bases.items()}, CONTROLLERS)


def _limit_memory(memory: Any, limit: int) -> None:
    """Memory and swap together may never be less than memory alone, so the order depends on the direction. Without
    swap accounting the kernel has no such file."""
    swap = Path(memory.filepath(b"memory.memsw.limit_in_bytes").decode())
    if not swap.exists():
        memory.limit_in_bytes = limit
        return
    growing = limit > (memory.limit_in_bytes or 0)
    for name in ("memsw_limit_in_bytes", "limit_in_bytes") if growing else ("limit_in_bytes", "memsw_limit_in_bytes"):
        setattr(memory, name, limit)
