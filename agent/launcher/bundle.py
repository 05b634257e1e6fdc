"""Reads `config.json` of an OCI bundle into what the launcher performs (OCI runtime-spec 1.2, config.md).

The part of it that is the same for any task comes first, with the request for a sandbox: the `Frame`. The bundle, which
comes when there is a task, must agree with it.

Only what our isolators write is understood; anything else that changes how a container is confined is refused rather
than ignored, so that a bundle never runs with less isolation than it asks for.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from agent.launcher import seccomp
from agent.launcher import syscalls as sc
from agent.launcher.idmap import IdMap
from agent.launcher.mounts import Bind, Device, Filesystem, Mount, covers, id_maps, parse_mount

NAMESPACES = {
    "mount": sc.CLONE_NEWNS,
    "pid": sc.CLONE_NEWPID,
    "network": sc.CLONE_NEWNET,
    "ipc": sc.CLONE_NEWIPC,
    "uts": sc.CLONE_NEWUTS,
    "user": sc.CLONE_NEWUSER,
    "cgroup": sc.CLONE_NEWCGROUP,
}
# What a container may share with others, and the name that /proc/PID/ns has for it.
JOINABLE = {"user": "user", "network": "net", "ipc": "ipc", "pid": "pid"}
# Without these four a container is not one: there is no root to pivot in, or root inside is root outside.
REQUIRED = ("mount", "pid", "user", "ipc")

# capability.h, in order of number.
# fmt: off
CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)
# fmt: on


class BundleError(Exception):
    """The bundle asks for something that the launcher does not do. The text names the key."""


@dataclass(frozen=True, slots=True)
class Rlimit:
    kind: str
    soft: int
    hard: int


@dataclass(frozen=True, slots=True)
class Process:
    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    bounding: int
    effective: int
    permitted: int
    no_new_privileges: bool
    oom_score_adj: int
    rlimits: tuple[Rlimit, ...]


@dataclass(frozen=True, slots=True)
class Hidings:
    """Paths that are to be made read-only, or to be hidden."""

    read_only: tuple[str, ...]
    masked: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Frame:
    """What can be made before the task is known. `namespaces` are the kinds that the container does not share with the
    node; those in `joined` are those of a pod, and the rest are made. `tops` are the mounts that are not on another
    one, and `hidings` lies within these. `config` is what all of it was read from."""

    namespaces: int
    joined: int
    uid_maps: tuple[IdMap, ...]
    gid_maps: tuple[IdMap, ...]
    mounts: tuple[Mount, ...]
    tops: tuple[str, ...]
    hidings: Hidings
    config: dict[str, Any]

    @property
    def made(self) -> int:
        return self.namespaces & ~self.joined


@dataclass(frozen=True, slots=True)
class Bundle:
    """What is left to do in a sandbox."""

    rootfs: str
    read_only: bool
    hostname: str
    new_cgroup_namespace: bool
    mounts: tuple[Mount, ...]
    devices: tuple[Device, ...]
    hidings: Hidings
    process: Process
    sysctls: tuple[tuple[str, str], ...]
    seccomp: bytes  # a BPF program; empty: none is to be loaded

    @property
    def sources(self) -> tuple[Bind | Device, ...]:
        """What of the node's file system is to be seen in the container, in the order of mounting."""
        return tuple(mount for mount in (*self.mounts, *self.devices) if not isinstance(mount, Filesystem))


def parse_frame(config: dict[str, Any]) -> Frame:
    """Raises BundleError."""
    with _complaints():
        linux = config["linux"]
        mounts = tuple(parse_mount(mount) for mount in config.get("mounts", []))
        tops = _tops([mount.destination for mount in mounts])
        return Frame(
            namespaces=_namespaces(linux["namespaces"]),
            joined=_namespace_flags(entry["type"] for entry in linux["namespaces"] if "path" in entry),
            uid_maps=id_maps(linux["uidMappings"]),
            gid_maps=id_maps(linux["gidMappings"]),
            mounts=mounts,
            tops=tops,
            hidings=_hidings(linux, lambda path: _within(path, tops)),
            config=config,
        )


def parse(directory: str, config: bytes, program: bytes, frame: Frame) -> Bundle:
    """Of the contents of `config.json` and `seccomp.bpf`. Raises BundleError when it is not a bundle for us, or not one
    for a sandbox that was made of `frame`."""
    with _complaints():
        whole: dict[str, Any] = json.loads(config)
        linux = whole["linux"]
        return Bundle(
            rootfs=os.path.join(directory, whole["root"]["path"]),
            read_only=whole["root"].get("readonly", False),
            hostname=whole.get("hostname", ""),
            new_cgroup_namespace=bool(frame.namespaces & sc.CLONE_NEWCGROUP),
            mounts=tuple(parse_mount(mount) for mount in _added(whole, frame)),
            devices=tuple(_device(entry) for entry in linux.get("devices", [])),
            hidings=_hidings(linux, lambda path: path not in frame.hidings.read_only + frame.hidings.masked),
            process=_process(whole["process"]),
            sysctls=tuple(linux.get("sysctl", {}).items()),
            seccomp=seccomp.checked(program) if "seccomp" in linux else b"",
        )


def read(directory: str) -> tuple[Frame, Bundle]:
    """Of a container that was made. Raises OSError and BundleError."""
    with open(os.path.join(directory, "config.json"), "rb") as file:
        config = file.read()
    with _complaints():
        frame = parse_frame(json.loads(config))
    return frame, parse(directory, config, seccomp.read(directory), frame)


def _added(config: dict[str, Any], frame: Frame) -> list[dict[str, Any]]:
    """The mounts that the sandbox does not have. Raises BundleError when it has others, or is another one."""
    begun, mounts = frame.config.get("mounts", []), config.get("mounts", [])
    for key in ("namespaces", "uidMappings", "gidMappings"):
        if config["linux"][key] != frame.config["linux"][key]:
            raise BundleError(f"linux/{key}: is not that of the sandbox")
    if mounts[: len(begun)] != begun:
        raise BundleError("mounts: do not begin with those of the sandbox")
    return list(mounts[len(begun) :])


def _tops(paths: list[str]) -> tuple[str, ...]:
    return tuple(path for path in paths if not _within(path, [above for above in paths if above != path]))


def _within(path: str, directories: Iterable[str]) -> bool:
    return any(covers(directory, path) for directory in directories)


def _hidings(linux: dict[str, Any], wanted: Callable[[str], bool]) -> Hidings:
    read_only, masked = (linux.get(key, []) for key in ("readonlyPaths", "maskedPaths"))
    return Hidings(tuple(filter(wanted, read_only)), tuple(filter(wanted, masked)))


@contextmanager
def _complaints() -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"config.json: {type(error).__name__} {error}") from error


def outside(maps: tuple[IdMap, ...], inside: int) -> int:
    """The node's id of an id in the container. Raises BundleError when there is none."""
    for entry in maps:
        if entry.inside <= inside < entry.inside + entry.count:
            return entry.outside + inside - entry.inside
    raise BundleError(f"id {inside} is not mapped in linux/uidMappings or linux/gidMappings")


def _namespaces(entries: list[dict[str, str]]) -> int:
    types = [entry["type"] for entry in entries]
    for entry in entries:
        if entry["type"] not in NAMESPACES or ("path" in entry and not _is_joinable(entry)):
            raise BundleError(f"linux/namespaces: can't join or make {entry}")
    missing = [name for name in REQUIRED if name not in types]
    if missing:
        raise BundleError(f"linux/namespaces: {', '.join(missing)} missing")
    return _namespace_flags(types)


def _namespace_flags(types: Iterable[str]) -> int:
    return sum(NAMESPACES[name] for name in set(types))


def _is_joinable(entry: dict[str, str]) -> bool:
    """Whose namespace it is the launcher is told too, and makes sure of (`join.py`)."""
    name = JOINABLE.get(entry["type"])
    return name is not None and re.fullmatch(rf"/proc/[1-9][0-9]*/ns/{name}", entry["path"]) is not None


def _device(entry: dict[str, Any]) -> Device:
    """One element of `linux.devices` (config-linux.md, "Devices")."""
    path, kind = entry["path"], entry["type"]
    if kind not in ("c", "b") or os.path.normpath(path) != path or not path.startswith("/dev/"):
        raise BundleError(f"linux/devices: can't make {entry}")
    return Device(path, kind, entry["major"], entry["minor"])


def _process(process: dict[str, Any]) -> Process:
    user = process["user"]
    capabilities = process["capabilities"]
    if capabilities.get("ambient") or capabilities.get("inheritable"):
        raise BundleError("process/capabilities: ambient and inheritable must be empty")
    if not process["args"] or process.get("terminal"):
        raise BundleError("process: args must not be empty, terminal must be false")
    return Process(
        argv=tuple(process["args"]),
        env=dict(entry.split("=", 1) for entry in process.get("env", [])),
        cwd=process["cwd"],
        uid=user["uid"],
        gid=user["gid"],
        groups=tuple(user.get("additionalGids", [])),
        bounding=_mask(capabilities.get("bounding", [])),
        effective=_mask(capabilities.get("effective", [])),
        permitted=_mask(capabilities.get("permitted", [])),
        no_new_privileges=process.get("noNewPrivileges", False),
        oom_score_adj=process.get("oomScoreAdj", 0),
        rlimits=tuple(Rlimit(limit["type"], limit["soft"], limit["hard"]) for limit in process.get("rlimits", [])),
    )


def _mask(names: list[str]) -> int:
    return sum(1 << CAPABILITIES.index(name.removeprefix("CAP_")) for name in set(names))
