"""What a container may use, in the kernel's units, computed from the task alone. Both versions write these numbers.

What can not be is refused here, before anything was made: the text names the field and says what would do.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from isolators.base import Unsupported
from isolators.cgroup.devices import Rule
from model.resources import Resources
from model.task import TaskSpec

MIB = 1 << 20
PERIOD_US = 100_000  # the kernel's own default: sched-bwc.rst
MIN_QUOTA_US = 1_000  # less is refused by the kernel
MIN_MEMORY_MIB = 4  # below, a process is killed before it executes anything
MIN_SHARES, MAX_SHARES = 2, 262_144
MAX_AMOUNT = 1 << 40  # of CPU thousandths, MiB, bytes a second: far above any node, far below the kernel's overflow
MAX_PIDS = 1 << 22  # PID_MAX_LIMIT, linux/threads.h
MAX_IO_WEIGHT = 1000  # of BFQ and of the OCI runtime specification
NODE_CPUS = (os.cpu_count() or 1) * 1000
NODE_MIB = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MIB
MAX_CPU = 8191  # CONFIG_NR_CPUS goes up to 8192


@dataclass(frozen=True, slots=True)
class Throttle:
    """Limits on the block device `device`, as `major:minor`. 0: none."""

    device: str
    read_bps: int = 0
    write_bps: int = 0
    read_iops: int = 0
    write_iops: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """`cpus` empty: all of the node's. `high_bytes` 0: none. `io_weight` 0: the kernel's default. `huge_pages` of a
    size that is not named: none."""

    shares: int
    quota_us: int
    memory_bytes: int
    pids: int
    burst_us: int = 0
    cpus: frozenset[int] = frozenset()
    swap_bytes: int = 0
    high_bytes: int = 0
    io: tuple[Throttle, ...] = ()
    io_weight: int = 0
    huge_pages: tuple[tuple[str, int], ...] = ()
    devices: tuple[Rule, ...] = ()

    @property
    def weight(self) -> int:
        """cgroup v2's 1 to 10000 for v1's 2 to 262144 shares, linearly, as runc and systemd convert it."""
        return 1 + (self.shares - MIN_SHARES) * 9999 // (MAX_SHARES - MIN_SHARES)


def limits(
    task: TaskSpec, resources: Resources, throttles: Sequence[Throttle] = (), rules: Sequence[Rule] = ()
) -> Limits:
    """One CPU is 1000 thousandths is 1024 shares. The quota always holds: a task gets what it asked for, and no more
    by luck of its neighbours, unless it asked for that (`cpu_limit`). Raises Unsupported."""
    check(task, resources)
    wanted = task.limits
    cpus = max(resources.cpus, min(wanted.cpu_limit, NODE_CPUS))
    quota = max(cpus * PERIOD_US // 1000, MIN_QUOTA_US)
    if wanted.cpu_burst_us > quota:
        raise Unsupported(f"limits.cpu_burst_us is {wanted.cpu_burst_us}: it can't exceed the quota of {quota}")
    return Limits(
        shares=min(max(resources.cpus * 1024 // 1000, MIN_SHARES), MAX_SHARES),
        quota_us=quota,
        memory_bytes=max(resources.mem, min(wanted.mem_limit, NODE_MIB), MIN_MEMORY_MIB) * MIB,
        pids=task.pids,
        burst_us=wanted.cpu_burst_us,
        cpus=parse_cpus(wanted.cpuset),
        swap_bytes=wanted.swap * MIB,
        high_bytes=wanted.mem_high * MIB,
        io=tuple(throttles),
        io_weight=wanted.io_weight,
        huge_pages=tuple((pages.size, pages.limit * MIB) for pages in wanted.huge_pages),
        devices=tuple(rules),
    )


def check(task: TaskSpec, resources: Resources) -> None:
    """Raises Unsupported that names the first field that no node can honour."""
    wanted = task.limits
    _within("resources.cpus", resources.cpus, 1, MAX_AMOUNT)
    _within("resources.mem", resources.mem, 1, MAX_AMOUNT)
    _within("resources.disk", resources.disk, 0, MAX_AMOUNT)
    _within("pids", task.pids, 1, MAX_PIDS)
    _within("limits.swap", wanted.swap, 0, MAX_AMOUNT)
    _within("limits.mem_high", wanted.mem_high, 0, max(resources.mem, wanted.mem_limit))
    _within("limits.cpu_limit", wanted.cpu_limit, 0, MAX_AMOUNT)
    _within("limits.mem_limit", wanted.mem_limit, 0, MAX_AMOUNT)
    _within("limits.oom_score_adj", wanted.oom_score_adj, 0, 1000)
    _within("limits.cpu_burst_us", wanted.cpu_burst_us, 0, MAX_AMOUNT)
    _within("limits.io_weight", wanted.io_weight, 0, MAX_IO_WEIGHT)
    for limit in wanted.io:
        for field in ("read_bps", "write_bps", "read_iops", "write_iops"):
            _within(f"limits.io.{field}", getattr(limit, field), 0, MAX_AMOUNT)
    for pages in wanted.huge_pages:
        _within(f"limits.huge_pages.{pages.size}", pages.limit, 0, MAX_AMOUNT)


def parse_cpus(text: str) -> frozenset[int]:
    """`0-3,6` as the numbers it names (cpuset(7), "List format"). Raises Unsupported."""
    named: set[int] = set()
    for part in text.split(",") if text else ():
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or not part.isascii():
            raise Unsupported(f"limits.cpuset {text!r}: {part!r} is neither a number nor a range")
        begin, end = int(first), int(last or first)
        if not begin <= end <= MAX_CPU:
            raise Unsupported(f"limits.cpuset {text!r}: {part!r} is no range of CPUs from 0 to {MAX_CPU}")
        named.update(range(begin, end + 1))
    return frozenset(named)


def oci_resources(limit: Limits) -> dict[str, Any]:
    """`linux.resources` of the OCI runtime specification (config-linux.md)."""
    memory = {"limit": limit.memory_bytes, "swap": limit.memory_bytes + limit.swap_bytes}
    cpu: dict[str, Any] = {"shares": limit.shares, "quota": limit.quota_us, "period": PERIOD_US}
    if limit.burst_us:
        cpu["burst"] = limit.burst_us
    if limit.cpus:
        cpu["cpus"] = ",".join(map(str, sorted(limit.cpus)))
    resources: dict[str, Any] = {"cpu": cpu, "memory": memory, "pids": {"limit": limit.pids}}
    if limit.high_bytes:
        memory["reservation"] = limit.high_bytes
    if limit.huge_pages:
        resources["hugepageLimits"] = [{"pageSize": size, "limit": amount} for size, amount in limit.huge_pages]
    if limit.io or limit.io_weight:
        resources["blockIO"] = _oci_io(limit)
    if limit.devices:
        resources["devices"] = [{"allow": False, "access": "rwm"}, *(rule.oci() for rule in limit.devices)]
    return resources


def _oci_io(limit: Limits) -> dict[str, Any]:
    part: dict[str, Any] = {"weight": limit.io_weight} if limit.io_weight else {}
    for field, key in (
        ("read_bps", "throttleReadBpsDevice"),
        ("write_bps", "throttleWriteBpsDevice"),
        ("read_iops", "throttleReadIOPSDevice"),
        ("write_iops", "throttleWriteIOPSDevice"),
    ):
        rates = [(throttle.device, getattr(throttle, field)) for throttle in limit.io]
        numbers = [(*map(int, device.split(":")), rate) for device, rate in rates if rate]
        if numbers:
            part[key] = [{"major": major, "minor": minor, "rate": rate} for major, minor, rate in numbers]
    return part


def _within(field: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise Unsupported(f"{field} is {value}: it must be from {least} to {most}")
