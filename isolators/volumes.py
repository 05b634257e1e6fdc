"""Volumes of a container: what they are on the node, and how they are bound into it.

Reads the task's `volumes`. Makes the directories of ephemeral ones in `Sandbox.layer`, which go with it and count as
what the container writes, and those of a pod's in the layer of its holder, where they count as the pod's own
(`disk.py`). Has the persistent ones made (`persistent.py`). The launcher binds them, with ids mapped, so that what one
container has written is the next one's, whatever ids the node gives them.

A host volume is the node's own, whose ids mean something there. Who may write to it does that as its owner: the task's
user is that one, and everybody else in the container, root too, is nobody. It is never root of the node. Who may only
read it sees what all users of the node may read.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from isolators import host_volume
from isolators.base import BundlePart, Container, Holder, Isolator, IsolatorError, Limit, Sandbox, Unsupported
from isolators.disk import PATIENCE, SHORTEST_INTERVAL_S, VOLUMES
from isolators.disk_usage import TooDeep
from isolators.persistent import MIB, VOLUME_IDS, InUse, PersistentVolumes
from isolators.process import user_of
from isolators.removal import remove_tree
from isolators.rights import Rights
from isolators.user import User
from model.volume import VolumeKind, VolumeMount, mount_problem, persistent

GUARDS = ("nosuid", "nodev")


class VolumesIsolator(Isolator):
    """Prepared after the file system, in which the task's user is looked up, and the workspace, in which some are."""

    name = "volumes"

    def __init__(self, state_directory: Path, kept: PersistentVolumes, rights: Rights) -> None:
        self._state_directory = state_directory
        self._kept = kept
        self._rights = rights
        self._open: dict[str, list[int]] = {}  # what the launcher is to bind, by container
        self._exceeded: dict[str, Limit] = {}

    async def recover(self, known: list[Container], orphans: list[str]) -> None:
        holders = {volume: each.id for each in known for volume in persistent(each.task.volumes)}
        await asyncio.to_thread(self._kept.recover, holders)

    async def prepare(self, container: Container) -> BundlePart:
        wanted = container.task.volumes
        if not wanted:
            return {}
        _check(container)
        user = user_of(container)
        try:
            # What is mounted in another volume comes after it.
            binds = [self._bind(container, each, user) for each in sorted(wanted, key=lambda each: each.destination)]
        except InUse as error:
            raise IsolatorError(str(error)) from error
        except OSError as error:
            raise IsolatorError(f"make volumes of {container.id}: {error.filename}: {error.strerror}") from error
        return {"mounts": binds}

    async def watch(self, container: Container) -> Limit | None:
        """The container runs, so what was open for it is bound."""
        self._close(container.id)
        sizes = {each.source: each for each in container.task.volumes if each.kind is VolumeKind.PERSISTENT}
        if not sizes or self._kept.quotas:
            return None
        while container.id not in self._exceeded:
            began = time.monotonic()
            for each in sizes.values():
                # By a thread: of a million files it takes seconds.
                if (limit := await asyncio.to_thread(self._measured, each)) is not None:
                    self._exceeded[container.id] = limit
            await asyncio.sleep(max(SHORTEST_INTERVAL_S, (time.monotonic() - began) * PATIENCE))
        return self._exceeded[container.id]

    async def exceeded(self, container: Container) -> Limit | None:
        return self._exceeded.get(container.id)

    async def cleanup(self, sandbox: Sandbox) -> None:
        self._close(sandbox.id)
        self._exceeded.pop(sandbox.id, None)
        self._kept.release(sandbox.id)
        try:
            if (sandbox.layer / VOLUMES).is_dir():
                await asyncio.to_thread(remove_tree, sandbox.layer / VOLUMES)
        except OSError as error:
            raise IsolatorError(f"remove volumes of {sandbox.id}: {error.filename}: {error.strerror}") from error

    def _bind(self, container: Container, wanted: VolumeMount, user: User) -> dict[str, Any]:
        match wanted.kind:
            case VolumeKind.HOST:
                return self._host(container, wanted, user)
            case VolumeKind.EPHEMERAL:
                return _own(container, wanted, _ephemeral(container.layer, wanted.source))
            case VolumeKind.POD:
                return _own(container, wanted, _ephemeral(_holder(container).layer, wanted.source))
            case VolumeKind.PERSISTENT:
                owner = user.uid, user.gid
                return _own(container, wanted, self._kept.take(wanted.source, container.id, wanted.size, owner))

    def _host(self, container: Container, wanted: VolumeMount, user: User) -> dict[str, Any]:
        descriptor = host_volume.open_host(wanted, self._rights.host_volumes, self._state_directory)
        self._open.setdefault(container.id, []).append(descriptor)
        # The open file and not its path, at which there may be another one when the launcher looks.
        bind = _mount(wanted, f"/proc/{os.getpid()}/fd/{descriptor}", ("rbind", wanted.propagation.value))
        if wanted.read_only:
            return bind
        owner = os.fstat(descriptor)
        return {
            **bind,
            "uidMappings": [_mapping(owner.st_uid, container.id_base + user.uid)],
            "gidMappings": [_mapping(owner.st_gid, container.id_base + user.gid)],
        }

    def _measured(self, wanted: VolumeMount) -> Limit | None:
        try:
            used = self._kept.used_bytes(wanted.source)
        except TooDeep as error:
            return Limit(f"size of volume {wanted.source} can not be held: {error}")
        if used <= wanted.size * MIB:
            return None
        return Limit(f"size {wanted.size} MiB of volume {wanted.source} exceeded ({used / MIB:.1f} MiB)")

    def _close(self, container: str) -> None:
        for descriptor in self._open.pop(container, ()):
            os.close(descriptor)


def _check(container: Container) -> None:
    task = container.task
    for wanted in task.volumes:
        said = mount_problem(wanted)
        if wanted.kind is VolumeKind.POD and container.sandbox.holder is None:
            said = "the task is in no pod"
        if said:
            raise Unsupported(f"volume at {wanted.destination!r}: {said}")
    taken = [each.destination for each in task.tmpfs] + [each.destination for each in task.volumes]
    for destination in taken:
        if taken.count(destination) > 1:
            raise Unsupported(f"two volumes at {destination}")


def _holder(container: Container) -> Holder:
    assert container.sandbox.holder is not None  # `_check`
    return container.sandbox.holder


def _ephemeral(layer: Path, name: str) -> Path:
    """For all users of its containers, as /tmp is. One that is there is left as it is: another container of the pod may
    have changed its mode. Nobody in a container can give it to root, whose it is until it is finished."""
    path = layer / VOLUMES / name
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    if path.stat().st_uid == 0:
        path.chmod(0o1777)
        os.chown(path, VOLUME_IDS, VOLUME_IDS)
    return path


def _own(container: Container, wanted: VolumeMount, source: Path) -> dict[str, Any]:
    """Of a directory of the agent's: all of the container's ids are those of the volume."""
    mapping = [_mapping(VOLUME_IDS, container.id_base, container.id_count)]
    bind = _mount(wanted, str(source), ("bind", wanted.propagation.value))
    return {**bind, "uidMappings": mapping, "gidMappings": mapping}


def _mount(wanted: VolumeMount, source: str, options: tuple[str, ...]) -> dict[str, Any]:
    mode = "ro" if wanted.read_only else "rw"
    return {
        "destination": wanted.destination,
        "type": "bind",
        "source": source,
        "options": [*options, mode, *GUARDS],
    }


def _mapping(on_disk: int, in_container: int, size: int = 1) -> dict[str, int]:
    """config.md, "Mounts": from the ids of the source to what they are on the node where it is mounted."""
    return {"containerID": on_disk, "hostID": in_container, "size": size}
