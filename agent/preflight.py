"""What a machine must have to run an agent. Checked first, so that nothing is changed when something lacks."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

FILESYSTEMS = ("overlay", "tmpfs", "proc", "sysfs", "mqueue", "devpts")
NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "user", "cgroup")
V1_CONTROLLERS = ("cpu", "memory", "pids")
PROGRAMS = {"iptables": "iptables"}  # program -> Debian package


class NotFit(Exception):
    """This machine can not run an agent. The text says what lacks, all of it, and what helps."""


def check(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> None:
    """Raises NotFit."""
    if os.geteuid() != 0:
        raise NotFit("the agent needs root: run it with sudo")
    lacking = [*_filesystems(proc), *_namespaces(proc), *_controllers(cgroups), *_programs()]
    if lacking:
        raise NotFit("this machine lacks " + "; ".join(lacking))


def _filesystems(proc: Path) -> list[str]:
    known = {line.split()[-1] for line in (proc / "filesystems").read_text().splitlines()}
    return [f"the file system {name} (modprobe {name})" for name in FILESYSTEMS if name not in known]


def _namespaces(proc: Path) -> list[str]:
    return [f"{name} namespaces in its kernel" for name in NAMESPACES if not (proc / "self/ns" / name).exists()]


def _controllers(cgroups: Path) -> list[str]:
    unified = cgroups / "cgroup.controllers"
    present = set(unified.read_text().split()) if unified.exists() else {path.name for path in cgroups.glob("*")}
    return [f"the cgroup controller {name} (mounted)" for name in V1_CONTROLLERS if name not in present]


def _programs() -> list[str]:
    return [f"{name} (apt-get install {package})" for name, package in PROGRAMS.items() if shutil.which(name) is None]
