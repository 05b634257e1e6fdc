"""Control groups version 2: one tree with all controllers (cgroup-v2.rst).

Controllers are switched on for the cgroups below, from the top of the tree down to the prefix. No process is ever in
the prefix itself, for a cgroup with controllers for its children can not have any ("No Internal Process Constraint").
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

from cgroupspy.controllers import Controller
from cgroupspy.interfaces import BaseFileInterface, DictFile, FlagFile, IntegerFile

from isolators.cgroup import tree
from isolators.cgroup.hierarchy import REQUIRED, V2
from isolators.cgroup.limits import PERIOD_US, Limits
from model.task import Usage


class QuotaFile(BaseFileInterface):  # type: ignore[misc]
    """`QUOTA PERIOD` in microseconds, QUOTA may be `max`: (quota or None, period) here."""

    def sanitize_get(self, value: str) -> tuple[int | None, int]:
        quota, period = value.split()
        return None if quota == "max" else int(quota), int(period)

    def sanitize_set(self, value: tuple[int | None, int]) -> str:
        quota, period = value
        return f"{'max' if quota is None else quota} {period}"


class Core(Controller):  # type: ignore[misc]
    """cgroup-v2.rst, "Core Interface Files"."""

    subtree_control = BaseFileInterface("cgroup.subtree_control")
    events = DictFile("cgroup.events", readonly=True)
    kill = FlagFile("cgroup.kill", writeonly=True)


class CpuV2(Controller):  # type: ignore[misc]
    weight = IntegerFile("cpu.weight")
    max = QuotaFile("cpu.max")
    stat = DictFile("cpu.stat", readonly=True)


class MemoryV2(Controller):  # type: ignore[misc]
    max = tree.LimitFile("memory.max")
    swap_max = tree.LimitFile("memory.swap.max")
    current = IntegerFile("memory.current", readonly=True)


class PidsV2(Controller):  # type: ignore[misc]
    max = tree.LimitFile("pids.max")
    current = IntegerFile("pids.current", readonly=True)


CONTROLLERS: dict[str, type[Controller]] = {"core": Core, "cpu": CpuV2, "memory": MemoryV2, "pids": PidsV2}


class CgroupsV2:
    """Implements `tree.Cgroups`."""

    def __init__(self, hierarchy: V2, prefix: str) -> None:
        self._mount = hierarchy.mount
        self._prefix = prefix
        self._base = hierarchy.mount / prefix

    def create(self, name: str) -> None:
        self._base.mkdir(parents=True, exist_ok=True)
        below = self._base.relative_to(self._mount).parents
        for directory in (*(self._mount / parent for parent in reversed(below)), self._base):
            _open(directory).core.subtree_control = " ".join(f"+{controller}" for controller in REQUIRED)
        tree.make(self._base / name)

    def limit(self, name: str, limits: Limits) -> None:
        group = _open(self._base / name)
        group.cpu.weight = limits.weight
        group.cpu.max = (limits.quota_us, PERIOD_US)
        group.memory.max = limits.memory_bytes
        if Path(group.memory.filepath(b"memory.swap.max").decode()).exists():  # not without CONFIG_SWAP
            group.memory.swap_max = 0
        group.pids.max = limits.pids

    def add(self, name: str, pid: int) -> None:
        _open(self._base / name).core.procs = [pid]

    def usage(self, name: str) -> Usage:
        group = _open(self._base / name)
        quota, period = group.cpu.max
        return Usage(
            cpu_s=group.cpu.stat["usage_usec"] / 1e6,
            cpu_limit=None if quota is None else quota / period,
            mem_bytes=group.memory.current,
            mem_limit_bytes=group.memory.max,
            pids=group.pids.current,
            pids_limit=group.pids.max,
        )

    def kill(self, name: str) -> bool:
        """cgroup.kill (Linux 5.14) takes the cgroups below too, and no fork escapes it."""
        core = _open(self._base / name).core
        try:
            populated = bool(core.events["populated"])
            if populated:
                core.kill = True
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise
            return False
        return populated

    def remove(self, name: str) -> None:
        tree.remove(self._base / name)

    def names(self) -> list[str]:
        return sorted(tree.children(self._base))

    def path(self, name: str) -> str:
        return f"/{self._prefix}/{name}"


def _open(directory: Path) -> Any:
    return tree.open_group(directory.name, dict.fromkeys(CONTROLLERS, directory), CONTROLLERS)
