"""Input and output on block devices: bytes and operations a second, weight, and what was read and written.

What the page cache writes back later is charged to a container in version 2 only (cgroup-v2.rst, "Writeback"): on
version 1 the limits hold for reading and for direct writing, and what was throttled has been counted. A weight needs
the I/O scheduler BFQ on the disk in either version.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from cgroupspy.interfaces import BaseFileInterface

from isolators.cgroup.controller import Controller, Files, Opener, has_file
from isolators.cgroup.limits import Limits, Throttle
from model.task import Usage

FIELDS_V1 = {
    "read_bps": "blkio.throttle.read_bps_device",
    "write_bps": "blkio.throttle.write_bps_device",
    "read_iops": "blkio.throttle.read_iops_device",
    "write_iops": "blkio.throttle.write_iops_device",
}
FIELDS_V2 = {"read_bps": "rbps", "write_bps": "wbps", "read_iops": "riops", "write_iops": "wiops"}


class IoFilesV1(Files):  # type: ignore[misc]
    io_service_bytes = BaseFileInterface("blkio.throttle.io_service_bytes", readonly=True)


class IoFilesV2(Files):  # type: ignore[misc]
    stat = BaseFileInterface("io.stat", readonly=True)


class BlkioV1(Controller):
    """cgroup-v1/blkio-controller.rst"""

    name = "blkio"

    def limit(self, directory: Path, limits: Limits) -> None:
        for field, name in FIELDS_V1.items():
            wanted = {throttle.device: getattr(throttle, field) for throttle in limits.io}
            for device, rate in changes(_rates(directory / name), wanted):
                (directory / name).write_text(f"{device} {rate}")
        _weigh(directory, ("blkio.bfq.weight", "blkio.weight"), limits.io_weight)

    def usage(self, directory: Path, usage: Usage, opened: Opener) -> Usage:
        read = written = 0
        for line in opened(IoFilesV1, directory).io_service_bytes.splitlines():
            match line.split():
                case [_, "Read", count]:
                    read += int(count)
                case [_, "Write", count]:
                    written += int(count)
        return replace(usage, io_read_bytes=read, io_write_bytes=written)


class IoV2(Controller):
    """cgroup-v2.rst, "IO Interface Files"."""

    name = "io"

    def limit(self, directory: Path, limits: Limits) -> None:
        wanted = {throttle.device: throttle for throttle in limits.io}
        limited = [line.split()[0] for line in _lines(directory / "io.max")]
        for device in dict.fromkeys([*limited, *wanted]):
            (directory / "io.max").write_text(max_line(wanted.get(device, Throttle(device))))
        _weigh(directory, ("io.bfq.weight", "io.weight"), limits.io_weight)

    def usage(self, directory: Path, usage: Usage, opened: Opener) -> Usage:
        counts = [_pairs(line) for line in opened(IoFilesV2, directory).stat.splitlines()]
        read, written = (sum(count.get(key, 0) for count in counts) for key in ("rbytes", "wbytes"))
        return replace(usage, io_read_bytes=read, io_write_bytes=written)


def changes(actual: Mapping[str, int], wanted: Mapping[str, int]) -> list[tuple[str, int]]:
    """What to write so that the devices' rates are those that are wanted; 0 lifts a limit."""
    return [
        (device, wanted.get(device, 0))
        for device in dict.fromkeys([*actual, *wanted])
        if wanted.get(device, 0) != actual.get(device, 0)
    ]


def max_line(throttle: Throttle) -> str:
    """`8:0 rbps=1048576 wbps=max riops=max wiops=max`"""
    rates = (f"{key}={getattr(throttle, field) or 'max'}" for field, key in FIELDS_V2.items())
    return f"{throttle.device} {' '.join(rates)}"


def _weigh(directory: Path, names: Iterable[str], weight: int) -> None:
    """In the first of the files that is there, where it is not so already: the kernel's default is 100."""
    file = next((directory / name for name in names if has_file(directory, name)), None)
    if file is None:
        if weight:
            raise OSError(errno.EOPNOTSUPP, "this node's kernel weighs no input and output", str(directory))
    elif (weight or 100) != _weight(file):
        file.write_text(str(weight or 100))


def _weight(file: Path) -> int:
    """`100`, or `default 100` where devices can have weights of their own."""
    return int(file.read_text().splitlines()[0].split()[-1])


def _rates(file: Path) -> dict[str, int]:
    return {device: int(rate) for device, rate in (line.split() for line in _lines(file))}


def _pairs(line: str) -> dict[str, int]:
    """`8:0 rbytes=1 wbytes=2 ...`; a device that counts nothing has no pairs."""
    pairs = (word.split("=") for word in line.split()[1:] if "=" in word)
    return {key: int(value) for key, value in pairs}


def _lines(file: Path) -> list[str]:
    """None where the kernel was built without it."""
    try:
        return file.read_text().splitlines()
    except FileNotFoundError:
        return []
