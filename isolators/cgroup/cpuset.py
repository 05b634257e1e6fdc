"""Which CPUs a container runs on, and which memory nodes it takes its pages from: all, unless the task names CPUs.

On version 1 a new cgroup has neither and takes no process until it has both, so each gets its parent's. In version 2
an empty list means the parent's; but a list can not be emptied again while processes live there (ENOSPC).
"""

from __future__ import annotations

import errno
from pathlib import Path

from cgroupspy.controllers import CpuSetController
from cgroupspy.interfaces import CommaDashSetFile

from isolators.cgroup.controller import Controller, Files, has_file, open_files
from isolators.cgroup.limits import Limits


class CpusetFilesV2(Files):  # type: ignore[misc]
    """cgroup-v2.rst, "Cpuset Interface Files"."""

    cpus = CommaDashSetFile("cpuset.cpus")
    cpus_effective = CommaDashSetFile("cpuset.cpus.effective", readonly=True)


class CpusetV1(Controller):
    """cgroup-v1/cpusets.rst"""

    name = "cpuset"

    def enter(self, directory: Path, top: Path) -> None:
        below = [path for path in reversed(directory.parents) if path != top and path.is_relative_to(top)]
        for path in (*below, directory):
            _inherit(path)

    def limit(self, directory: Path, limits: Limits) -> None:
        files, above = (open_files(CpuSetController, path) for path in (directory, directory.parent))
        wanted = set(limits.cpus) or above.cpus
        _require(wanted, above.cpus, directory)
        if files.cpus != wanted:
            files.cpus = wanted


class CpusetV2(Controller):
    name = "cpuset"

    def limit(self, directory: Path, limits: Limits) -> None:
        if not has_file(directory, "cpuset.cpus"):
            return
        files, above = (open_files(CpusetFilesV2, path) for path in (directory, directory.parent))
        wanted, there = set(limits.cpus), above.cpus_effective
        _require(wanted, there, directory)
        if not wanted and files.cpus:
            wanted = there
        if files.cpus != wanted:
            files.cpus = wanted


def _inherit(directory: Path) -> None:
    files, above = (open_files(CpuSetController, path) for path in (directory, directory.parent))
    if not files.cpus:
        files.cpus = above.cpus
    if not files.mems:
        files.mems = above.mems


def _require(wanted: set[int], there: set[int], directory: Path) -> None:
    """Version 2 takes a CPU that is not there and ignores it."""
    if missing := wanted - there:
        text = ", ".join(map(str, sorted(missing)))
        raise OSError(errno.EINVAL, f"CPU {text} is not one that containers of this node may use", str(directory))
