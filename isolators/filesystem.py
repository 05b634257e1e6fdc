"""The root file system: an overlay that the agent mounts at `Container.rootfs`, and what is mounted inside of it.

Reads the task's `rootfs`, and makes `upper` and `work` in `Sandbox.layer` (what the container writes; gone with it),
and in `Sandbox.directory` the attachment points `lower`, empty afterwards, and `rootfs`. The containers of a pod that
share IPC share a /dev/shm, which is mounted at `shm` in the directory of the pod's sandbox.

Without `task.rootfs` the lower layer is the node's own `/`, as the container's unprivileged ids see it: /etc/shadow
stays closed, for the node's root is nobody inside. It must never be idmapped, which would make the container's root
the owner of the node's files. With `task.rootfs` the lower layer is an idmapped clone of that directory, so that ids in
the image mean ids in the container and no file is copied or changed for it. An image has several such layers.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from isolators import layers, mount
from isolators.base import BundlePart, Container, Isolator, IsolatorError, Sandbox, Unsupported
from isolators.mount_points import make_points
from model.limits import Tmpfs
from model.mounts import MOST_MIB, tmpfs_problem
from model.network import Address

POINTS = ("lower", "rootfs")  # where something is mounted
SHARED = "shm"
LAYERS = ("upper", "work")

# Docker's defaults (moby, oci/defaults.go), the interrupt counters, and what tells of the node's temperature and power.
MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/class/powercap",
    "/sys/devices/virtual/powercap",
    "/sys/devices/system/cpu/cpu0/thermal_throttle",
    "/sys/class/thermal",
    "/sys/devices/virtual/thermal",
    "/sys/firmware",
)
READ_ONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/pressure", "/proc/sys", "/proc/sysrq-trigger")

TEMPORARY_MIB = 64  # of a tmpfs, and at least this; its pages count against the container's memory limit too


class FilesystemIsolator(Isolator):
    name = "filesystem"

    def __init__(self, state_directory: Path) -> None:
        """`state_directory` is the agent's, and above every `Sandbox.directory`; containers don't see it."""
        if set(str(state_directory)) & set(",:\\"):
            raise ValueError(f"state directory {state_directory}: overlay mounts can't have , : or \\ in a path")
        self._state_directory = state_directory
        self._namespaces: dict[str, int] = {}  # the user namespaces of sandboxes that have no task yet, open
        self._unmounts: dict[str, asyncio.Task[None]] = {}  # of lower layers, under way or done

    async def recover(self, known: list[Container], orphans: list[str]) -> None:
        kept = {container.directory / name for container in known for name in ("rootfs", SHARED)}
        for point in reversed(mount.mount_points()):
            if point.path.is_relative_to(self._state_directory) and _is_ours(point.path) and point.path not in kept:
                mount.unmount(point.path)

    async def open(self, sandbox: Sandbox) -> BundlePart:
        try:
            for path in (*_points(sandbox), *(sandbox.layer / name for name in LAYERS)):
                path.mkdir(mode=0o700)
            _give_upper(sandbox)
        except OSError as error:
            raise _failed("make root file system", sandbox, error) from error
        return {
            "mounts": _common_mounts(sandbox),
            "linux": {"maskedPaths": list(MASKED_PATHS), "readonlyPaths": list(READ_ONLY_PATHS)},
        }

    async def isolate(self, sandbox: Sandbox, pid: int) -> tuple[Address, ...]:
        try:
            self._namespaces[sandbox.id] = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _failed("open user namespace", sandbox, error) from error
        return ()

    async def prepare(self, container: Container) -> BundlePart:
        _check(container)
        try:
            self._mount(container)
            _mount_shared(container)
        except OSError as error:
            raise _failed("mount root file system", container.sandbox, error) from error
        return self.part(container)

    async def enforce(self, container: Container) -> None:
        """The overlay has a copy of its own. By a thread, and nobody waits for it before `cleanup`: an unmount takes a
        grace period of the kernel."""
        if container.task.rootfs or container.layers:
            unmount = asyncio.to_thread(mount.unmount, container.directory / "lower")
            self._unmounts[container.id] = asyncio.create_task(unmount)

    def part(self, container: Container) -> BundlePart:
        """What `prepare` returns; nothing is made for it."""
        own = [] if container.task.rootfs or container.layers else [str(self._state_directory)]
        return {
            "root": {"path": str(container.rootfs), "readonly": container.task.read_only},
            "mounts": _mounts(container),
            "linux": {"maskedPaths": own},
        }

    async def cleanup(self, sandbox: Sandbox) -> None:
        self._close_namespace(sandbox)
        try:
            if sandbox.id in self._unmounts:
                await self._unmounts.pop(sandbox.id)
            for path in (*_points(sandbox), sandbox.directory / SHARED):
                mount.unmount(path)
        except OSError as error:
            raise _failed("unmount root file system", sandbox, error) from error

    def _mount(self, container: Container) -> None:
        lower = container.directory / "lower"
        if container.layers:
            with layers.attached(container.layers, lower, self._namespaces[container.id]) as directories:
                _mount_overlay(directories, container)
        elif container.task.rootfs:
            self._attach_idmapped(Path(container.task.rootfs), lower, container)
            _mount_overlay(str(lower), container)
        else:
            make_points(container)
            _mount_overlay("/", container)
        self._close_namespace(container.sandbox)

    def _attach_idmapped(self, source: Path, target: Path, container: Container) -> None:
        tree = _open_rootfs(source, container)
        try:
            mount.set_idmap(tree, self._namespaces[container.id], source)
            mount.move_mount(tree, target)
        finally:
            os.close(tree)

    def _close_namespace(self, sandbox: Sandbox) -> None:
        descriptor = self._namespaces.pop(sandbox.id, None)
        if descriptor is not None:
            os.close(descriptor)


def _check(container: Container) -> None:
    task = container.task
    if not 1 <= task.shm <= MOST_MIB:
        raise Unsupported(f"shm is {task.shm}: it must be from 1 to {MOST_MIB}")
    for wanted in task.tmpfs:
        if said := tmpfs_problem(wanted):
            raise Unsupported(f"tmpfs {wanted.destination!r}: {said}")


def _open_rootfs(source: Path, container: Container) -> int:
    if not source.is_dir():
        raise Unsupported(f"root file system of {container.task.id}: {source} is not a directory on this node")
    return mount.open_tree(source)


def _give_upper(sandbox: Sandbox) -> None:
    """The merged root has owner and mode of the upper layer's: the container's root may add to its `/`."""
    upper = sandbox.layer / "upper"
    os.chown(upper, sandbox.id_base, sandbox.id_base)
    upper.chmod(0o755)


def _mount_overlay(lower: str, container: Container) -> None:
    """`volatile`: nobody reads the upper layer after the container, so nothing of it has to reach the disk; without
    it each unmount waits for all dirty pages of the node. Device files of the lower layer stay dead (MS_NODEV)."""
    upper, work = (container.layer / name for name in LAYERS)
    data = f"lowerdir={lower},upperdir={upper},workdir={work},volatile"
    mount.mount("overlay", container.rootfs, "overlay", mount.MS_NOSUID | mount.MS_NODEV, data)


def _mount_shared(container: Container) -> None:
    """By the first container of the pod that asks for it, which thereby says how large it is."""
    point = _shared_memory(container)
    if point is not None and not os.path.ismount(point):
        flags = mount.MS_NOSUID | mount.MS_NODEV | mount.MS_NOEXEC
        point.mkdir(mode=0o700)
        mount.mount("tmpfs", point, "tmpfs", flags, f"mode=1777,size={container.task.shm}m")


def _shared_memory(container: Container) -> Path | None:
    holder = container.sandbox.holder
    return holder.directory / SHARED if holder is not None and "ipc" in holder.kinds else None


def _common_mounts(sandbox: Sandbox) -> list[dict[str, Any]]:
    plain = ["nosuid", "nodev", "noexec"]
    terminal = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
    return [
        _new("proc", "/proc", plain),
        _new("tmpfs", "/dev", ["nosuid", "strictatime", "mode=755", "size=64k"]),
        _new("devpts", "/dev/pts", terminal),
        _new("mqueue", "/dev/mqueue", plain),
        _sysfs(sandbox),
        _new("tmpfs", "/run", ["nosuid", "nodev", "mode=755", f"size={TEMPORARY_MIB}m"]),
    ]


def _mounts(container: Container) -> list[dict[str, Any]]:
    task, size = container.task, max(TEMPORARY_MIB, container.task.resources.mem)
    guards = ["nosuid", "nodev", "noexec"]
    memory = _new("tmpfs", "/dev/shm", [*guards, "mode=1777", f"size={task.shm}m"])
    if shared := _shared_memory(container):
        memory = {"destination": "/dev/shm", "type": "bind", "source": str(shared), "options": ["bind", *guards]}
    return [
        memory,
        _new("tmpfs", "/tmp", ["nosuid", "nodev", "mode=1777", f"size={size}m"]),
        *map(_tmpfs, task.tmpfs),
    ]


def _tmpfs(wanted: Tmpfs) -> dict[str, Any]:
    guards = ["nosuid", "nodev"] if wanted.executable else ["nosuid", "nodev", "noexec"]
    return _new("tmpfs", wanted.destination, [*guards, f"mode={wanted.mode}", f"size={wanted.size}m"])


def _sysfs(sandbox: Sandbox) -> dict[str, Any]:
    """A sysfs shows a network namespace, so only who owns one may mount it; else the node's is bound."""
    options = ["nosuid", "nodev", "noexec", "ro"]
    if sandbox.network != "host":
        return _new("sysfs", "/sys", options)
    return {"destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind", *options]}


def _new(kind: str, destination: str, options: list[str]) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": kind, "options": options}


def _is_ours(path: Path) -> bool:
    return path.name in (*POINTS, SHARED)


def _points(sandbox: Sandbox) -> list[Path]:
    return [sandbox.directory / name for name in POINTS]


def _failed(operation: str, sandbox: Sandbox, error: OSError) -> IsolatorError:
    return IsolatorError(f"{operation} of {sandbox.id}: {error.filename}: {error.strerror}")
