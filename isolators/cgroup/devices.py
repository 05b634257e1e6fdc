"""Devices: which ones a container may open, and where the node's are found.

Everything is denied but what a program expects to find (runc's default set) and what the task names. In a user
namespace nobody makes device files, so no rule allows `m`; these rules hold when a device file gets in by another way.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isolators.base import Unsupported
from model.limits import Device, IoLimit

SYSFS_BLOCK = Path("/sys/dev/block")


@dataclass(frozen=True, slots=True)
class Rule:
    """`kind` is `c` or `b`; `minor` None: all of the major. `access` is made of `r` and `w`."""

    kind: str
    major: int
    minor: int | None
    access: str = "rw"

    def __str__(self) -> str:
        """As `devices.allow` takes it (cgroup-v1/devices.rst)."""
        return f"{self.kind} {self.major}:{'*' if self.minor is None else self.minor} {self.access}"

    def oci(self) -> dict[str, Any]:
        """An element of `linux.resources.devices` (config-linux.md, "Allowed Device list")."""
        minor = {} if self.minor is None else {"minor": self.minor}
        return {"allow": True, "type": self.kind, "major": self.major, **minor, "access": self.access}


# null, zero, full, random, urandom; tty, console, ptmx; pseudo terminals (devices.txt).
DEFAULT = (
    *(Rule("c", 1, minor) for minor in (3, 5, 7, 8, 9)),
    *(Rule("c", 5, minor) for minor in (0, 1, 2)),
    Rule("c", 136, None),
)


def rule(device: Device) -> Rule:
    """The rule that lets a task open a device of the node. Raises Unsupported that says why it can't be."""
    if not device.access or set(device.access) - set("rw") or len(set(device.access)) != len(device.access):
        raise Unsupported(f"limits.devices {device.path}: access {device.access!r} must be r, w or rw")
    status = _stat("limits.devices", device.path)
    if stat.S_ISCHR(status.st_mode):
        kind = "c"
    elif stat.S_ISBLK(status.st_mode):
        kind = "b"
    else:
        raise Unsupported(f"limits.devices {device.path}: is not a device")
    return Rule(kind, os.major(status.st_rdev), os.minor(status.st_rdev), device.access)


def node(device: Device) -> dict[str, Any]:
    """An element of `linux.devices` (config-linux.md, "Devices")."""
    found = rule(device)
    return {"path": device.path, "type": found.kind, "major": found.major, "minor": found.minor}


def disk(limit: IoLimit, layer: Path) -> str:
    """`major:minor` of the disk that a limit is about; `layer` is where the task's files are written. Raises
    Unsupported."""
    if not limit.device:
        return whole_disk(os.stat(layer).st_dev, str(layer))
    status = _stat("limits.io", limit.device)
    if not stat.S_ISBLK(status.st_mode):
        raise Unsupported(f"limits.io {limit.device}: is not a block device")
    return whole_disk(status.st_rdev, limit.device)


def whole_disk(number: int, path: str, sysfs: Path = SYSFS_BLOCK) -> str:
    """The kernel limits disks, not partitions (blkg_conf_open_bdev). Raises Unsupported."""
    entry = sysfs / f"{os.major(number)}:{os.minor(number)}"
    try:
        disk = entry.resolve(strict=True)
        return ((disk.parent if (disk / "partition").exists() else disk) / "dev").read_text().strip()
    except FileNotFoundError as error:
        raise Unsupported(f"limits.io {path}: is on no disk of this node that could be limited") from error


def _stat(field: str, path: str) -> os.stat_result:
    """No link is followed: what a device file is called and what it is are said in one place."""
    if not path.startswith("/dev/") or os.path.normpath(path) != path:
        raise Unsupported(f"{field} {path!r}: must be a path below /dev")
    try:
        return os.stat(path, follow_symlinks=False)
    except OSError as error:
        raise Unsupported(f"{field} {path}: {error.strerror} on this node") from error
