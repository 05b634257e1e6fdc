"""What a container may use, in the kernel's units, computed from the task alone. Both versions write these numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from model.resources import Resources

MIB = 1 << 20
PERIOD_US = 100_000  # the kernel's own default: sched-bwc.rst
MIN_QUOTA_US = 1_000  # less is refused by the kernel
MIN_MEMORY_MIB = 4  # below, a process is killed before it executes anything
MIN_SHARES, MAX_SHARES = 2, 262_144


@dataclass(frozen=True, slots=True)
class Limits:
    shares: int
    quota_us: int
    memory_bytes: int
    pids: int

    @property
    def weight(self) -> int:
        """cgroup v2's 1 to 10000 for v1's 2 to 262144 shares, linearly, as runc and systemd convert it."""
        return 1 + (self.shares - MIN_SHARES) * 9999 // (MAX_SHARES - MIN_SHARES)


def limits(resources: Resources, pids: int) -> Limits:
    """One CPU is 1000 thousandths is 1024 shares. The quota always holds: a task gets what it asked for, and no more
    by luck of its neighbours."""
    return Limits(
        shares=min(max(resources.cpus * 1024 // 1000, MIN_SHARES), MAX_SHARES),
        quota_us=max(resources.cpus * PERIOD_US // 1000, MIN_QUOTA_US),
        memory_bytes=max(resources.mem, MIN_MEMORY_MIB) * MIB,
        pids=pids,
    )


def oci_resources(limit: Limits) -> dict[str, Any]:
    """`linux.resources` of the OCI runtime specification (config-linux.md)."""
    return {
        "cpu": {"shares": limit.shares, "quota": limit.quota_us, "period": PERIOD_US},
        "memory": {"limit": limit.memory_bytes, "swap": limit.memory_bytes},
        "pids": {"limit": limit.pids},
    }
