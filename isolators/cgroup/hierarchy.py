"""Which control groups this node has: which controller is mounted where, in which version.

A node is `v2` when its unified tree offers cpu, memory and pids. Everything else with these three on version 1 mounts
is version 1 to us, also a hybrid whose unified tree holds other controllers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from isolators.base import Unsupported
from isolators.mount import MountPoint

REQUIRED = ("cpu", "memory", "pids")
# What a task that asks for it needs, and more than that where the node has it. On v1 the time used is counted by a
# controller of its own, cpuacct.
OPTIONAL = ("cpuacct", "cpuset", "blkio", "devices", "freezer", "hugetlb")


@dataclass(frozen=True, slots=True)
class V1:
    """Mount point of each controller that we use; two may share one (`/sys/fs/cgroup/cpu,cpuacct`). `unified` is the
    version 2 tree beside them, where there is one: it has the controllers that no version 1 mount took."""

    mounts: tuple[tuple[str, Path], ...]
    unified: Path | None = None


@dataclass(frozen=True, slots=True)
class V2:
    mount: Path


def detect(points: Iterable[MountPoint]) -> V1 | V2:
    """From the node's mounts. Raises Unsupported that names the controllers that are missing."""
    found = list(points)
    v1 = {controller: point.path for point in found for controller in _v1_controllers(point)}
    unified = next((point.path for point in found if point.kind == "cgroup2"), None)
    missing = [controller for controller in REQUIRED if controller not in v1]
    if not missing:
        return V1(tuple(v1.items()), unified)
    if unified is not None and not set(REQUIRED) - set(v2_controllers(unified)):
        return V2(unified)
    raise Unsupported(f"cgroup controllers {', '.join(missing)} are not mounted on this node")


def v2_controllers(mount: Path) -> list[str]:
    """Those that a version 2 tree offers."""
    try:
        return (mount / "cgroup.controllers").read_text().split()
    except FileNotFoundError:
        return []


def _v1_controllers(point: MountPoint) -> list[str]:
    if point.kind != "cgroup":
        return []
    return [option for option in point.options if option in REQUIRED + OPTIONAL]
