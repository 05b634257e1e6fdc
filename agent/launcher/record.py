"""What a keeper leaves on disk, so that an agent that starts later knows which processes are whose and how they ended.

`keeper.json` is written before the container's first process exists, and again at each phase:

    creating   the keeper lives; there may be a container
    created    its first process waits
    starting   it was told to go; from here on it may run, and does not run a second time

`exit.json` is written once, when the container has ended. Both are in memory (`Directories.run`), which outlives
every process that can be killed; after the next boot nothing that they name is alive.

A process is known by its pid, the time it started and the boot it started in: pids come back, all three together do
not.
"""

from __future__ import annotations

import errno
import json
import os
import time
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

KEEPER_FILE = "keeper.json"
EXIT_FILE = "exit.json"

CREATING = "creating"
CREATED = "created"
STARTING = "starting"


@dataclass(frozen=True, slots=True)
class Identity:
    """`start` is field 22 of /proc/PID/stat: clock ticks since the boot."""

    pid: int
    start: int


@dataclass(frozen=True, slots=True)
class Keeper:
    """`began` is when the phase became `starting`, by `clock`: its first process may have waited for long before."""

    keeper: Identity
    boot_id: str
    phase: str
    container: Identity | None = None
    began: float = 0.0


@dataclass(frozen=True, slots=True)
class Exit:
    """How a container ended: with an exit `code`, by a `signal`, or, when it never ran, with an `error`. `lost` means
    that nobody was there to see it: the keeper was killed, or the node went down. `at` is seconds since the epoch."""

    code: int | None = None
    signal: int | None = None
    at: float = 0.0
    error: str = ""
    lost: bool = False


def write_keeper(bundle: str, keeper: Keeper) -> None:
    _write(bundle, KEEPER_FILE, asdict(keeper))


def write_exit(bundle: str, ended: Exit) -> None:
    _write(bundle, EXIT_FILE, asdict(ended))


def read_keeper(bundle: str) -> Keeper | None:
    """None when there is none, or when it is from another boot: no process of it can live."""
    fields = _read(bundle, KEEPER_FILE)
    if fields is None or fields["boot_id"] != boot_id():
        return None
    container = fields["container"]
    return Keeper(
        keeper=Identity(**fields["keeper"]),
        boot_id=fields["boot_id"],
        phase=fields["phase"],
        container=Identity(**container) if container else None,
        began=fields.get("began", 0.0),
    )


def read_exit(bundle: str) -> Exit | None:
    fields = _read(bundle, EXIT_FILE)
    return Exit(**fields) if fields is not None else None


def identify(pid: int) -> Identity | None:
    """The process that has `pid` now; None when there is none or only its zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state, *fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in (b"Z", b"X") else Identity(pid, int(fields[18]))


def open_process(process: Identity) -> int | None:
    """A pidfd; None when it is gone. One whose last traces are just being removed has a pid and leads no thread group
    any more: EINVAL or ENOENT (pidfd_open(2))."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError as error:
        if error.errno not in (errno.ESRCH, errno.EINVAL, errno.ENOENT):
            raise
        return None
    if identify(process.pid) == process:
        return pidfd
    os.close(pidfd)
    return None


def clock() -> float:
    """Seconds since the boot. It goes on while the machine sleeps, and nobody sets it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def age(process: Identity) -> float:
    """Seconds since it was made, by `clock`."""
    return clock() - process.start / os.sysconf("SC_CLK_TCK")


def running_for(keeper: Keeper) -> float:
    """Seconds since its program was told to go, by `clock`."""
    return clock() - keeper.began


@cache
def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def _write(bundle: str, name: str, fields: dict[str, Any]) -> None:
    """Whole or not at all, for any reader at any time."""
    path = os.path.join(bundle, name)
    temporary = path + ".new"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(fields, file)
    os.replace(temporary, path)


def _read(bundle: str, name: str) -> dict[str, Any] | None:
    try:
        with open(os.path.join(bundle, name), encoding="utf-8") as file:
            fields: dict[str, Any] = json.load(file)
            return fields
    except FileNotFoundError:
        return None
