"""A container's limits as the kernel has them, read from whichever version of control groups this machine has.

`None` is no limit. The names are the kernel's own; what they mean is in cgroup-v2.rst and in cgroup-v1/.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from isolators.cgroup.hierarchy import V1, detect
from isolators.mount import mount_points

CGROUPS = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60


class CgroupFiles(Protocol):
    def memory_max(self) -> int | None: ...

    def swap_max(self) -> int | None: ...

    def memory_high(self) -> int | None: ...

    def cpu_quota_us(self) -> int | None: ...

    def cpu_burst_us(self) -> int: ...

    def cpu_used_us(self) -> int: ...

    def cpu_throttled(self) -> int:
        """How often."""

    def pids_max(self) -> int | None: ...

    def io_max(self) -> dict[str, int]:
        """Of the one device that is limited: `rbps`, `wbps`, `riops`, `wiops`."""

    def huge_pages_max(self, size: str) -> int | None: ...


def files(prefix: str, name: str) -> CgroupFiles:
    if isinstance(detect(mount_points()), V1):
        return FilesV1(f"{prefix}/{name}")
    return FilesV2(CGROUPS / prefix / name)


def directories(prefix: str) -> list[Path]:
    """The cgroups of containers below a prefix, in any tree."""
    return [*CGROUPS.glob(f"{prefix}/*/"), *CGROUPS.glob(f"*/{prefix}/*/")]


def remove_prefix(prefix: str) -> None:
    for path in (*CGROUPS.glob(prefix), *CGROUPS.glob(f"*/{prefix}")):
        path.rmdir()


@dataclass(frozen=True, slots=True)
class FilesV1:
    path: str

    def memory_max(self) -> int | None:
        return _number(self._read("memory", "memory.limit_in_bytes"))

    def swap_max(self) -> int | None:
        both, memory = _number(self._read("memory", "memory.memsw.limit_in_bytes")), self.memory_max()
        return None if both is None or memory is None else both - memory

    def memory_high(self) -> int | None:
        return _number(self._read("memory", "memory.soft_limit_in_bytes"))

    def cpu_quota_us(self) -> int | None:
        return _number(self._read("cpu", "cpu.cfs_quota_us"))

    def cpu_burst_us(self) -> int:
        return int(self._read("cpu", "cpu.cfs_burst_us"))

    def cpu_used_us(self) -> int:
        return int(self._read("cpuacct", "cpuacct.usage")) // 1000

    def cpu_throttled(self) -> int:
        return _pairs(self._read("cpu", "cpu.stat"))["nr_throttled"]

    def pids_max(self) -> int | None:
        return _number(self._read("pids", "pids.max"))

    def io_max(self) -> dict[str, int]:
        names = {"rbps": "read_bps", "wbps": "write_bps", "riops": "read_iops", "wiops": "write_iops"}
        lines = {key: self._read("blkio", f"blkio.throttle.{name}_device").split() for key, name in names.items()}
        return {key: int(words[1]) for key, words in lines.items() if words}

    def huge_pages_max(self, size: str) -> int | None:
        return _number(self._read("unified", f"hugetlb.{size}.max"))

    def _read(self, tree: str, name: str) -> str:
        return (CGROUPS / tree / self.path / name).read_text().strip()


@dataclass(frozen=True, slots=True)
class FilesV2:
    directory: Path

    def memory_max(self) -> int | None:
        return _number(self._read("memory.max"))

    def swap_max(self) -> int | None:
        return _number(self._read("memory.swap.max"))

    def memory_high(self) -> int | None:
        return _number(self._read("memory.high"))

    def cpu_quota_us(self) -> int | None:
        return _number(self._read("cpu.max").split()[0])

    def cpu_burst_us(self) -> int:
        return int(self._read("cpu.max.burst"))

    def cpu_used_us(self) -> int:
        return _pairs(self._read("cpu.stat"))["usage_usec"]

    def cpu_throttled(self) -> int:
        return _pairs(self._read("cpu.stat"))["nr_throttled"]

    def pids_max(self) -> int | None:
        return _number(self._read("pids.max"))

    def io_max(self) -> dict[str, int]:
        pairs = dict(word.split("=") for word in self._read("io.max").split()[1:])
        return {key: int(value) for key, value in pairs.items() if value != "max"}

    def huge_pages_max(self, size: str) -> int | None:
        return _number(self._read(f"hugetlb.{size}.max"))

    def _read(self, name: str) -> str:
        return (self.directory / name).read_text().strip()


def _number(text: str) -> int | None:
    if text in ("max", "-1") or int(text) > UNLIMITED:
        return None
    return int(text)


def _pairs(text: str) -> dict[str, int]:
    return {name: int(value) for name, value in (line.split() for line in text.splitlines())}
