"""What both versions have in common: the contract that the isolator uses, and what is done with directories of cgroups
and the processes in them.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from isolators.cgroup.limits import Limits
from isolators.cgroup.memory import OomNews
from model.task import Usage


class Cgroups(Protocol):
    """The containers' cgroups below one prefix, in one version. Names are container ids. Methods raise OSError."""

    def create(self, name: str) -> None: ...

    def limit(self, name: str, limits: Limits) -> None:
        """In place; lowering memory below what is used fails."""

    def add(self, name: str, pid: int) -> None: ...

    def sessions(self, name: str) -> Path:
        """Where cgroups for parts of a container's processes can be made, which bound nothing further."""

    def usage(self, name: str, usage: Usage) -> Usage:
        """`usage` with all that is counted here."""

    def oom_kills(self, name: str) -> int:
        """How many processes the kernel has killed at the memory limit."""

    def oom_news(self, name: str) -> OomNews: ...

    def freeze(self, name: str, wanted: bool) -> None:
        """Begins to stop all processes, or lets them go on."""

    def frozen(self, name: str) -> bool: ...

    def kill(self, name: str) -> bool:
        """Sends SIGKILL to whatever is in it; False when nothing is."""

    def remove(self, name: str) -> None:
        """Accepts what is not there; OSError with EBUSY while anything lives in it."""

    def names(self) -> list[str]: ...

    def path(self, name: str) -> str:
        """As in /proc/PID/cgroup."""


def make(directory: Path) -> None:
    directory.mkdir(mode=0o755)


def join(directory: Path, pid: int) -> None:
    (directory / "cgroup.procs").write_text(str(pid))


def remove(directory: Path) -> None:
    """With the cgroups below; what is not there is fine."""
    for path, _, _ in os.walk(directory, topdown=False):
        try:
            os.rmdir(path)
        except FileNotFoundError:
            continue


def children(directory: Path) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(directory) if entry.is_dir()]
    except FileNotFoundError:
        return []


def kill_all(directory: Path) -> bool:
    """SIGKILL to each process in a cgroup and those below; False when there was none."""
    killed = False
    for path, _, _ in os.walk(directory):
        for pid in _processes(Path(path)):
            killed = True
            _kill_member(pid, Path(path))
    return killed


def _kill_member(pid: int, directory: Path) -> None:
    """Through a pidfd, opened before the list is read again: a pid that was reused meanwhile is not on it."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        if error.errno not in (errno.ESRCH, errno.EINVAL, errno.ENOENT):  # not ESRCH: it is just being removed
            raise
        return
    try:
        if pid in _processes(directory):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        os.close(pidfd)


def _processes(directory: Path) -> Iterator[int]:
    """0 stands for a process of another pid namespace, which is not ours to kill."""
    try:
        text = (directory / "cgroup.procs").read_text()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise
        return
    yield from (int(line) for line in text.split() if line != "0")
