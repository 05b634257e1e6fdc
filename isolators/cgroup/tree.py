"""What both versions have in common: the contract that the isolator uses, cgroupspy's nodes for single cgroups, and
the file descriptors that cgroupspy lacks.

cgroupspy's `Tree()` reads every cgroup of the node and fails when one vanishes meanwhile. Here a `Node` is opened for
the one cgroup that is needed, by its path.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from cgroupspy.controllers import Controller
from cgroupspy.interfaces import BaseFileInterface
from cgroupspy.nodes import Node, NodeControlGroup

from isolators.cgroup.limits import Limits
from model.task import Usage


class LimitFile(BaseFileInterface):  # type: ignore[misc]
    """A number, or `max` for none: None here."""

    def sanitize_get(self, value: str) -> int | None:
        return None if value == "max" else int(value)

    def sanitize_set(self, value: int | None) -> str:
        return "max" if value is None else str(value)


class Cgroups(Protocol):
    """The containers' cgroups below one prefix, in one version. Names are container ids. Methods raise OSError."""

    def create(self, name: str) -> None: ...

    def limit(self, name: str, limits: Limits) -> None:
        """In place; lowering memory below what is used fails."""

    def add(self, name: str, pid: int) -> None: ...

    def usage(self, name: str) -> Usage: ...

    def kill(self, name: str) -> bool:
        """Sends SIGKILL to whatever is in it; False when nothing is."""

    def remove(self, name: str) -> None:
        """Accepts what is not there; OSError with EBUSY while anything lives in it."""

    def names(self) -> list[str]: ...

    def path(self, name: str) -> str:
        """As in /proc/PID/cgroup."""


def open_group(name: str, directories: dict[str, Path], controllers: dict[str, type[Controller]]) -> NodeControlGroup:
    """cgroupspy's view of one cgroup: `group.memory.limit_in_bytes`. Opens nothing yet."""
    group = NodeControlGroup(name.encode())
    for kind, directory in directories.items():
        node = Node(str(directory))
        node.controller_type = kind.encode()
        node.controller = controllers[kind](node)
        group.add_node(node)
    return group


def make(directory: Path) -> None:
    directory.mkdir(mode=0o755)


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
    except ProcessLookupError:
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
