"""The lab's cgroups: `tepui-lab/LAB/NODE` in every hierarchy belongs to the node's agent, and below
`tepui-lab/LAB/_init` of the unified hierarchy are the nodes themselves, so that no process of a lab escapes its end.

A cgroup can't be mistaken for another one, as a recorded pid can, and it is there after a crash. Hence nothing of what
runs is written down: to end a lab is to kill and remove one subtree.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from pathlib import Path

from lab.errors import LabError

KILL_DEADLINE_S = 10.0
POLL_INTERVAL_S = 0.005


def hierarchies() -> list[Path]:
    """Where cgroup file systems are mounted, version 1 and 2."""
    return [Path(target) for target, kind in _mounts() if kind in ("cgroup", "cgroup2")]


def unified() -> Path:
    """The version 2 hierarchy; a hybrid system has it too. Raises LabError where there is none."""
    for target, kind in _mounts():
        if kind == "cgroup2":
            return Path(target)
    raise LabError("needs a cgroup2 file system: mount one, as systemd does, at /sys/fs/cgroup/unified")


def create(path: str) -> Path:
    """A cgroup of the unified hierarchy, for processes to join."""
    cgroup = unified() / path
    cgroup.mkdir(parents=True)
    return cgroup


def kill(path: str) -> None:
    """SIGKILL everything in the cgroup and below. Accepts one that is not there."""
    with suppress(FileNotFoundError):
        (unified() / path / "cgroup.kill").write_text("1")


def remove(path: str) -> bool:
    """Kill and remove the subtree in all hierarchies. Returns whether there was one."""
    roots = [hierarchy / path for hierarchy in hierarchies() if (hierarchy / path).is_dir()]
    deadline = time.monotonic() + KILL_DEADLINE_S
    while left := [root for root in roots if root.is_dir()]:
        # Again each time: a process that was just being started may have joined since.
        kill(path)
        busy = [failure for root in left for failure in _remove_tree(root)]
        if busy and time.monotonic() > deadline:
            raise LabError(f"remove cgroup {busy[0]}: still in use after {KILL_DEADLINE_S:g} s")
        if busy:
            time.sleep(POLL_INTERVAL_S)
    return bool(roots)


def remove_empty(path: str) -> None:
    """Remove what other labs share with us, unless one still does."""
    for hierarchy in hierarchies():
        try:
            (hierarchy / path).rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EBUSY, errno.ENOTEMPTY):
                raise


def _remove_tree(root: Path) -> list[Path]:
    """Removes cgroups, deepest first. Returns those that are in use."""
    busy = []
    for directory, _, _ in os.walk(root, topdown=False):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            busy.append(Path(directory))
    return busy


def _mounts() -> list[tuple[str, str]]:
    """Target and type of each mount (proc_pid_mountinfo(5): the type follows the lone hyphen)."""
    mounts = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        mounts.append((fields[4], fields[fields.index("-", 6) + 1]))
    return mounts
