"""What a container can leave on a node: compared before and after, by a test that makes it fail."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path

from isolators.mount import mount_points
from tests.kernel.namespaces import ip
from tests.kernel.sandbox import cgroups

MARK = "TEPUI_TEST"


@dataclass(frozen=True, slots=True)
class Remains:
    mounts: frozenset[str]
    cgroups: frozenset[str]
    links: frozenset[str]
    processes: frozenset[str]
    files: frozenset[str]
    descriptors: frozenset[str]


def difference(before: Remains, now: Remains) -> str:
    """`+` for what there is more, `-` for what there is less."""
    one, other = ({thing for field in fields(each) for thing in getattr(each, field.name)} for each in (before, now))
    return ", ".join([f"+{thing}" for thing in sorted(other - one)] + [f"-{thing}" for thing in sorted(one - other)])


def look(state: Path, prefix: str, mark: str) -> Remains:
    """Of the mount and network namespace that the caller is in. Processes are those whose environment bears `mark`:
    the launcher's, and what comes from it."""
    return Remains(
        mounts=frozenset(str(point.path) for point in mount_points()),
        cgroups=frozenset(cgroups(prefix)),
        links=frozenset(link["ifname"] for link in ip("link")),
        processes=frozenset(_processes(mark)),
        # Logs stay until they are too old (agent/log_retention.py).
        files=frozenset(str(path) for path in state.rglob("*") if "logs" not in path.relative_to(state).parts[:-1]),
        descriptors=frozenset(_descriptors()),
    )


def _processes(mark: str) -> list[str]:
    """How many of each name: the launcher has a keeper ready that is not always the same process."""
    names: Counter[str] = Counter()
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            marked = f"{MARK}={mark}".encode() in (directory / "environ").read_bytes().split(b"\0")
            if marked and directory.name != str(os.getpid()):
                names[(directory / "comm").read_text().strip()] += 1
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return [f"{count} {name}" for name, count in names.items()]


def _descriptors() -> list[str]:
    """Files of cgroups and containers, and events: sockets and pipes come and go with asyncio's threads."""
    kinds = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
        if target.startswith(("/sys/fs/cgroup", "anon_inode:[eventfd]", "/tmp")):
            kinds.append(f"{name} {target}")
    return kinds
