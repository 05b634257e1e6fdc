"""What containers leave on a node, read from the kernel and the disk and from nowhere else.

With it a test compares what is there with what the API says should be: more is a leak, less is a loss.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lab import cgroups
from lab.cluster import Lab
from lab.record import Node


@dataclass(frozen=True, slots=True)
class Traces:
    """Task ids, except for `links`: how many veth pairs end in containers. `records` are checkpoints, which outlive the
    container until the master has heard of its end. Logs stay for longer. Sandboxes that wait for a task are not
    counted."""

    cgroups: frozenset[str]
    mounts: frozenset[str]
    leases: frozenset[str]
    directories: frozenset[str]
    records: frozenset[str]
    links: int


def of(tasks: frozenset[str]) -> Traces:
    """What must be there when just these run."""
    return Traces(tasks, tasks, tasks, tasks, tasks, len(tasks))


def read(lab: Lab, name: str) -> Traces:
    node, pid = lab.node(name), lab.status(name).pid
    spares, owners = _spares(node), {container: task for task, container in _containers(node).items()}

    def tasks(containers: frozenset[str]) -> frozenset[str]:
        """What belongs to no task is there by its own name."""
        return frozenset(owners.get(container, container) for container in containers - spares)

    return Traces(
        cgroups=tasks(_cgroups(node)),
        mounts=tasks(_mounts(node, pid)),
        leases=tasks(_leases(node)),
        directories=tasks(_entries(bundles(node, pid)) | _entries(node.state / "layers")),
        records=frozenset(Path(each).stem for each in _entries(node.state / "tasks")),
        links=_links(lab, name) - len(spares),
    )


def bundles(node: Node, pid: int) -> Path:
    """Which are in memory that only the node's own processes have mounted; `pid` is one of them."""
    return Path(f"/proc/{pid}/root{node.state}/run/containers")


def bundle(lab: Lab, name: str, task: str) -> Path:
    """Of the task's container, on the node of this name."""
    node = lab.node(name)
    return bundles(node, lab.status(name).pid) / _containers(node)[task]


def limits(node: Node, task: str) -> dict[str, int]:
    """As the files of cgroup version 1 say: the share of a CPU in microseconds a period, bytes, and processes."""
    files = {
        "cpu_quota_us": ("cpu", "cpu.cfs_quota_us"),
        "cpu_period_us": ("cpu", "cpu.cfs_period_us"),
        "mem_bytes": ("memory", "memory.limit_in_bytes"),
        "pids": ("pids", "pids.max"),
    }
    roots, container = {hierarchy.name: hierarchy for hierarchy in cgroups.hierarchies()}, _containers(node)[task]
    return {
        key: int((roots[controller] / node.cgroup / container / file).read_text())
        for key, (controller, file) in files.items()
    }


def _containers(node: Node) -> dict[str, str]:
    """By task."""
    found = {}
    for path in (node.state / "tasks").glob("*.json"):
        with suppress(FileNotFoundError):
            found[path.stem] = str(json.loads(path.read_text())["container"])
    return found


def _spares(node: Node) -> frozenset[str]:
    """What waits for a task was not executed yet, and has the name of who made it."""
    found = set()
    for path in (cgroups.unified().parent / "pids" / node.cgroup).glob("*/cgroup.procs"):
        with suppress(OSError, IndexError):
            if Path(f"/proc/{path.read_text().split()[0]}/comm").read_text() == "tepui-maker\n":
                found.add(path.parent.name)
    return frozenset(found)


def _cgroups(node: Node) -> frozenset[str]:
    """In any hierarchy: what one of them has forgotten counts."""
    return frozenset(
        path.name
        for hierarchy in cgroups.hierarchies()
        for path in (hierarchy / node.cgroup).glob("*")
        if path.is_dir()
    )


def _mounts(node: Node, pid: int) -> frozenset[str]:
    points = [Path(line.split()[4]) for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    containers = node.state / "run/containers"
    return frozenset(point.relative_to(containers).parts[0] for point in points if point.is_relative_to(containers))


def _leases(node: Node) -> frozenset[str]:
    files = [path for path in (node.state / "leases").glob("*/*") if path.suffix != ".rested"]
    return frozenset(json.loads(path.read_text())["container"] for path in files)


def _links(lab: Lab, name: str) -> int:
    links = json.loads(lab.exec(name, ["ip", "-j", "-d", "link"]).stdout)
    kinds = [link.get("linkinfo", {}).get("info_kind") for link in links if link["ifname"] != "eth0"]
    return kinds.count("veth")


def _entries(directory: Path) -> frozenset[str]:
    return frozenset(path.name for path in directory.iterdir()) if directory.is_dir() else frozenset()
