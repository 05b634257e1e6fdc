"""CPU time: the share when CPUs are scarce, the quota that holds always, and what of it may be saved for later.

The kernel refuses a burst that is greater than the quota, so the burst is taken away before the quota changes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from cgroupspy.controllers import CpuAcctController, CpuController
from cgroupspy.interfaces import DictFile, IntegerFile

from isolators.cgroup.controller import Controller, Files, Opener, QuotaFile, has_file, open_files
from isolators.cgroup.limits import PERIOD_US, Limits
from model.task import Usage


class CpuFilesV1(CpuController):  # type: ignore[misc]
    """scheduler/sched-bwc.rst"""

    cfs_burst_us = IntegerFile("cpu.cfs_burst_us")


class CpuFilesV2(Files):  # type: ignore[misc]
    """cgroup-v2.rst, "CPU Interface Files"."""

    weight = IntegerFile("cpu.weight")
    max = QuotaFile("cpu.max")
    max_burst = IntegerFile("cpu.max.burst")
    stat = DictFile("cpu.stat", readonly=True)


class CpuV1(Controller):
    name = "cpu"

    def limit(self, directory: Path, limits: Limits) -> None:
        files = open_files(CpuFilesV1, directory)
        bursts = has_file(directory, "cpu.cfs_burst_us")
        files.shares = limits.shares
        if bursts and files.cfs_burst_us:
            files.cfs_burst_us = 0
        files.cfs_period_us = PERIOD_US
        files.cfs_quota_us = limits.quota_us
        if bursts and limits.burst_us:
            files.cfs_burst_us = limits.burst_us

    def usage(self, directory: Path, usage: Usage, opened: Opener) -> Usage:
        files = opened(CpuFilesV1, directory)
        quota, throttled = files.cfs_quota_us, files.stat["throttled_time"]
        limit = None if quota is None else quota / files.cfs_period_us
        return replace(usage, cpu_limit=limit, cpu_throttled_s=throttled / 1e9)


class CpuacctV1(Controller):
    """cgroup-v1/cpuacct.rst"""

    name = "cpuacct"

    def usage(self, directory: Path, usage: Usage, opened: Opener) -> Usage:
        files: Any = opened(CpuAcctController, directory)
        return replace(usage, cpu_s=files.usage / 1e9)


class CpuV2(Controller):
    name = "cpu"

    def limit(self, directory: Path, limits: Limits) -> None:
        files = open_files(CpuFilesV2, directory)
        bursts = has_file(directory, "cpu.max.burst")
        files.weight = limits.weight
        if bursts and files.max_burst:
            files.max_burst = 0
        files.max = (limits.quota_us, PERIOD_US)
        if bursts and limits.burst_us:
            files.max_burst = limits.burst_us

    def usage(self, directory: Path, usage: Usage, opened: Opener) -> Usage:
        files = opened(CpuFilesV2, directory)
        quota, period = files.max
        stat = files.stat
        return replace(
            usage,
            cpu_s=stat["usage_usec"] / 1e6,
            cpu_limit=None if quota is None else quota / period,
            cpu_throttled_s=stat.get("throttled_usec", 0) / 1e6,
        )
