"""How a task shares its node, beyond the amounts that are handed out as `Resources`.

The defaults are what suits a task that says nothing: no swap, no device but the harmless ones, no huge pages, every
CPU, and input and output as fast as the disk can.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class IoLimit:
    """Bytes and operations a second on one block device; 0: no limit. `device` is a path such as `/dev/sda`; empty:
    the one that the task's writable layer is on."""

    device: str = ""
    read_bps: int = 0
    write_bps: int = 0
    read_iops: int = 0
    write_iops: int = 0


@dataclass(frozen=True, slots=True)
class HugePages:
    """`size` as the kernel names it, `2MB`; `limit` in MiB."""

    size: str
    limit: int


@dataclass(frozen=True, slots=True)
class Device:
    """A device of the node that the task may open. `access` is `r`, `w` or `rw`."""

    path: str
    access: str = "rw"


@dataclass(frozen=True, slots=True)
class Tmpfs:
    """A file system in memory, which counts against the task's. `size` in MiB; `mode` as in chmod(1)."""

    destination: str
    size: int = 64
    mode: str = "1777"
    executable: bool = False


@dataclass(frozen=True, slots=True)
class TaskLimits:
    """`swap` is MiB beyond the memory limit. Above `mem_high` MiB the task is slowed down and its memory reclaimed
    before that of others (0: never). `oom_score_adj` says who dies first when the whole node is out of memory
    (proc_pid_oom_score_adj(5)). `cpuset` names CPUs as in `0-3,6`; empty: all. `cpu_burst_us` of quota may be saved
    for later in each period. `io_weight` is 1 to 1000 (0: the kernel's default). `cpu_limit` (thousandths) and
    `mem_limit` (MiB) are for a task that may use more than its share while nobody else needs it; 0: it may not. No
    limit is above what the node has, so a great number means all of it."""

    swap: int = 0
    mem_high: int = 0
    oom_score_adj: int = 500  # of -1000 to 1000: before the agent and the node's own daemons, which have 0 or less
    cpuset: str = ""
    cpu_burst_us: int = 0
    io: tuple[IoLimit, ...] = ()
    io_weight: int = 0
    huge_pages: tuple[HugePages, ...] = ()
    devices: tuple[Device, ...] = ()
    cpu_limit: int = 0
    mem_limit: int = 0
