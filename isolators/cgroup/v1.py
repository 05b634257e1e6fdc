"""Control groups version 1: one tree for each controller (cgroup-v1/cgroups.rst).

A container is the same path in each tree. Its processes go into all of them, one write each: a write moves one process
of one tree, and there is no transaction across trees. On a hybrid node the version 2 tree is one more, for the
controllers that no version 1 mount took.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from isolators.cgroup import tree
from isolators.cgroup.controller import Controller
from isolators.cgroup.cpu import CpuacctV1, CpuV1
from isolators.cgroup.cpuset import CpusetV1
from isolators.cgroup.device_list import DevicesV1
from isolators.cgroup.freezer import FreezerV1
from isolators.cgroup.hierarchy import V1, v2_controllers
from isolators.cgroup.hugetlb import Hugetlb
from isolators.cgroup.io import BlkioV1
from isolators.cgroup.kept import KeptFiles
from isolators.cgroup.limits import Limits
from isolators.cgroup.memory import MemoryV1, OomNews
from isolators.cgroup.pids import Pids
from isolators.cgroup.v2 import switch_on
from model.task import Usage

CONTROLLERS: tuple[Controller, ...] = (
    CpuV1(),
    CpuacctV1(),
    CpusetV1(),
    Pids(),
    MemoryV1(),
    BlkioV1(),
    DevicesV1(),
    FreezerV1(),
    Hugetlb("limit_in_bytes"),
)
# What a hybrid node may have in version 2 only, of what we use.
UNIFIED: tuple[Controller, ...] = (Hugetlb("max"),)


class CgroupsV1:
    """Implements `tree.Cgroups`."""

    def __init__(self, hierarchy: V1, prefix: str) -> None:
        self._prefix = prefix
        self._kept = KeptFiles()
        self._unified = hierarchy.unified
        mounts = dict(hierarchy.mounts)
        self._controllers = [(each, mounts[each.name]) for each in CONTROLLERS if each.name in mounts]
        self._switched: list[str] = []
        if self._unified is not None:
            offered = v2_controllers(self._unified)
            self._controllers += [(each, self._unified) for each in UNIFIED if each.name in offered]
            self._switched = [each.name for each in UNIFIED if each.name in offered]
        self._memory = mounts["memory"] / prefix
        self._pids = mounts["pids"] / prefix
        self._freezer = mounts["freezer"] / prefix if "freezer" in mounts else None
        # Controllers that share a mount share its cgroups.
        self._bases = [mount / prefix for mount in dict.fromkeys(mount for _, mount in self._controllers)]

    def create(self, name: str) -> None:
        for base in self._bases:
            if not base.is_dir():
                self._make_base(base)
            tree.make(base / name)
        for controller, mount in self._controllers:
            controller.enter(mount / self._prefix / name, mount)

    def _make_base(self, base: Path) -> None:
        base.mkdir(parents=True, exist_ok=True)
        if self._unified is not None and base.is_relative_to(self._unified):
            switch_on(self._switched, base, self._unified)

    def limit(self, name: str, limits: Limits) -> None:
        for controller, mount in self._controllers:
            controller.limit(mount / self._prefix / name, limits)

    def add(self, name: str, pid: int) -> None:
        for base in self._bases:
            tree.join(base / name, pid)

    def sessions(self, name: str) -> Path:
        """Of the controller that counts all below as its own."""
        return self._pids / name

    def usage(self, name: str, usage: Usage) -> Usage:
        for controller, mount in self._controllers:
            usage = controller.usage(mount / self._prefix / name, usage, self._kept.files)
        return usage

    def oom_kills(self, name: str) -> int:
        return MemoryV1().oom_kills(self._memory / name)

    def oom_news(self, name: str) -> OomNews:
        return MemoryV1().oom_news(self._memory / name)

    def freeze(self, name: str, wanted: bool) -> None:
        if wanted or self._freezer is not None:
            FreezerV1().freeze(self._freezer_of(name), wanted)

    def frozen(self, name: str) -> bool:
        return FreezerV1().frozen(self._freezer_of(name))

    def kill(self, name: str) -> bool:
        """One tree after the other: a process that was being added may be in some of them only. A process that is
        frozen dies when it is let go."""
        killed = [tree.kill_all(base / name) for base in self._bases]
        if any(killed) and self._freezer is not None:
            with suppress(FileNotFoundError):
                self.freeze(name, False)
        return any(killed)

    def remove(self, name: str) -> None:
        for base in self._bases:
            self._kept.forget(base / name)
            tree.remove(base / name)

    def names(self) -> list[str]:
        return sorted({name for base in self._bases for name in tree.children(base)})

    def path(self, name: str) -> str:
        return f"/{self._prefix}/{name}"

    def _freezer_of(self, name: str) -> Path:
        if self._freezer is None:
            raise FileNotFoundError("the freezer controller is not mounted on this node")
        return self._freezer / name
