"""What containers leave on a node, read from the kernel and the disk and from nowhere else.

With it a test compares what is there with what the API says should be: more is a leak, less is a loss.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from lab import cgroups
from lab.cluster import Lab
from lab.record import Node


@dataclass(frozen=True, slots=True)
class Traces:
    """Task ids, except for `links`: how many veth pairs end in containers. `records` are checkpoints, which
    outlive the container until the master has heard of its end. Logs stay for longer."""

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
    node = lab.node(name)
    return Traces(
        cgroups=_cgroups(node),
        mounts=_mounts(node, lab.status(name).pid),
        leases=_leases(node),
        directories=_entries(node.state / "containers"),
        records=frozenset(Path(each).stem for each in _entries(node.state / "tasks")),
        links=_links(lab, name),
    )


def limits(node: Node, task: str) -> dict[str, int]:
    """As the files of cgroup version 1 say: the share of a CPU in microseconds a period, bytes, and processes."""
    files = {
        "cpu_quota_us": ("cpu", "cpu.cfs_quota_us"),
        "cpu_period_us": ("cpu", "cpu.cfs_period_us"),
        "mem_bytes": ("memory", "memory.limit_in_bytes"),
        "pids": ("pids", "pids.max"),
    }
    roots = {hierarchy.name: hierarchy for hierarchy in cgroups.hierarchies()}
    return {
        key: int((roots[controller] / node.cgroup / task / file).read_text())
        for key, (controller, file) in files.items()
    }


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
    containers = node.state / "containers"
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
