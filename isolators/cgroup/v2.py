"""Control groups version 2: one tree with all controllers (cgroup-v2.rst).

Controllers are switched on for the cgroups below, from the top of the tree down to the prefix. No process is ever in
the prefix itself, for a cgroup with controllers for its children can not have any ("No Internal Process Constraint").
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path

from cgroupspy.interfaces import BaseFileInterface, DictFile, FlagFile

from isolators.cgroup import tree
from isolators.cgroup.controller import Controller, Files, open_files
from isolators.cgroup.cpu import CpuV2
from isolators.cgroup.cpuset import CpusetV2
from isolators.cgroup.device_list import DevicesV2
from isolators.cgroup.freezer import FreezerV2
from isolators.cgroup.hierarchy import REQUIRED, V2, v2_controllers
from isolators.cgroup.hugetlb import Hugetlb
from isolators.cgroup.io import IoV2
from isolators.cgroup.kept import KeptFiles
from isolators.cgroup.limits import Limits
from isolators.cgroup.memory import MemoryV2, OomNews
from isolators.cgroup.pids import Pids
from model.task import Usage

CONTROLLERS: tuple[Controller, ...] = (CpuV2(), MemoryV2(), Pids(), CpusetV2(), IoV2(), Hugetlb("max"))


class Core(Files):  # type: ignore[misc]
    """cgroup-v2.rst, "Core Interface Files"."""

    subtree_control = BaseFileInterface("cgroup.subtree_control")
    events = DictFile("cgroup.events", readonly=True)
    kill = FlagFile("cgroup.kill", writeonly=True)


class CgroupsV2:
    """Implements `tree.Cgroups`."""

    def __init__(self, hierarchy: V2, prefix: str) -> None:
        self._mount = hierarchy.mount
        self._kept = KeptFiles()
        self._prefix = prefix
        self._base = hierarchy.mount / prefix
        offered = {*REQUIRED, *v2_controllers(hierarchy.mount)}
        self._controllers = [controller for controller in CONTROLLERS if controller.name in offered]

    def create(self, name: str) -> None:
        self._base.mkdir(parents=True, exist_ok=True)
        switch_on([controller.name for controller in self._controllers], self._base, self._mount)
        tree.make(self._base / name)

    def limit(self, name: str, limits: Limits) -> None:
        for controller in (*self._controllers, DevicesV2()):
            controller.limit(self._base / name, limits)

    def add(self, name: str, pid: int) -> None:
        tree.join(self._base / name, pid)

    def sessions(self, name: str) -> Path:
        return self._base / name

    def usage(self, name: str, usage: Usage) -> Usage:
        for controller in self._controllers:
            usage = controller.usage(self._base / name, usage, self._kept.files)
        return usage

    def oom_kills(self, name: str) -> int:
        return MemoryV2().oom_kills(self._base / name)

    def oom_news(self, name: str) -> OomNews:
        return MemoryV2().oom_news(self._base / name)

    def freeze(self, name: str, wanted: bool) -> None:
        FreezerV2().freeze(self._base / name, wanted)

    def frozen(self, name: str) -> bool:
        return FreezerV2().frozen(self._base / name)

    def kill(self, name: str) -> bool:
        """cgroup.kill (Linux 5.14) takes the cgroups below too, and no fork escapes it."""
        core = open_files(Core, self._base / name)
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
        self._kept.forget(self._base / name)
        tree.remove(self._base / name)

    def names(self) -> list[str]:
        return sorted(tree.children(self._base))

    def path(self, name: str) -> str:
        return f"/{self._prefix}/{name}"


def switch_on(controllers: Iterable[str], base: Path, top: Path) -> None:
    """For the cgroups below `base`, which means in each cgroup from `top`, the root of the tree, down to it."""
    wanted = " ".join(f"+{controller}" for controller in controllers)
    above = [top / parent for parent in reversed(base.relative_to(top).parents)]
    for directory in (*above, base):
        open_files(Core, directory).subtree_control = wanted
