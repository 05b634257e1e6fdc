"""What a machine must have to run an agent. Checked first, so that nothing is changed when something lacks."""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

from agent.launcher.client import NATIVE
from isolators.base import Unsupported
from isolators.cgroup.hierarchy import detect
from isolators.mount import parse_mountinfo

FILESYSTEMS = ("overlay", "tmpfs", "proc", "sysfs", "mqueue", "devpts")
NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "user", "cgroup")
PROGRAMS = {"iptables": "iptables"}  # program -> Debian package
LIBRARIES = {"libseccomp.so.2": "libseccomp2", "libnftables.so.1": "nftables"}


class NotFit(Exception):
    """This machine can not run an agent. The text says what lacks, all of it, and what helps."""


def check(proc: Path = Path("/proc")) -> None:
    """Raises NotFit."""
    if os.geteuid() != 0:
        raise NotFit("the agent needs root: run it with sudo")
    lacking = [
        *_filesystems(proc),
        *_namespaces(proc),
        *_controllers(proc),
        *_seccomp(proc),
        *_programs(),
        *_libraries(),
    ]
    if lacking:
        raise NotFit("this machine can not run an agent: " + "; ".join(lacking))


def check_runtime(name: str) -> None:
    """That the runtime the configuration names is here. Raises NotFit."""
    if name != NATIVE and shutil.which(name) is None:
        raise NotFit(f'runtime = "{name}": this machine lacks {name} (apt-get install {name})')


def _filesystems(proc: Path) -> list[str]:
    known = {line.split()[-1] for line in (proc / "filesystems").read_text().splitlines()}
    return [f"it lacks the file system {name} (modprobe {name})" for name in FILESYSTEMS if name not in known]


def _namespaces(proc: Path) -> list[str]:
    return [f"its kernel lacks {name} namespaces" for name in NAMESPACES if not (proc / "self/ns" / name).exists()]


def _controllers(proc: Path) -> list[str]:
    try:
        detect(parse_mountinfo((proc / "self/mountinfo").read_text(errors="surrogateescape")))
    except Unsupported as error:
        return [str(error)]
    return []


def _seccomp(proc: Path) -> list[str]:
    return [] if (proc / "sys/kernel/seccomp/actions_avail").exists() else ["its kernel lacks seccomp filters"]


def _programs() -> list[str]:
    return [
        f"it lacks {name} (apt-get install {package})"
        for name, package in PROGRAMS.items()
        if shutil.which(name) is None
    ]


def _libraries() -> list[str]:
    return [f"it lacks {name} (apt-get install {package})" for name, package in LIBRARIES.items() if not _loads(name)]


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
