"""Persistent volumes: which there are, on which node, and which are to be destroyed; in memory and in the store
(`volumes/<id>`), the store first.

A volume begins with the first task that uses it, in the same transaction. It holds its disk on its node, used or not,
until the node has said that it is gone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from master.store.base import Delete, Put, Store
from master.tasks import Tasks, active
from model.codec import Codec
from model.resources import Resources
from model.task import TaskSpec
from model.volume import VOLUME_ID, PersistentVolume, VolumeKind, persistent

log = structlog.get_logger()

PREFIX = "volumes/"


@dataclass(frozen=True, slots=True)
class VolumeRecord:
    """`destroying`: its node is to destroy it, when no task uses it any more."""

    volume: PersistentVolume
    node: str
    destroying: bool = False


CODEC = Codec(VolumeRecord)
# Of the volume as it is now; None: it is gone.
Listener = Callable[[str, VolumeRecord | None], None]


class Volumes:
    def __init__(self, store: Store, tasks: Tasks) -> None:
        self._store = store
        self._tasks = tasks
        self._records: dict[str, VolumeRecord] = {}
        self._listeners: list[Listener] = []
        self._claimed: set[str] = set()  # by tasks that are on the way to the store

    async def load(self) -> None:
        for entry in await self._store.range(PREFIX):
            record = CODEC.decode(entry.value)
            self._records[record.volume.id] = record

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def get(self, volume_id: str) -> VolumeRecord | None:
        return self._records.get(volume_id)

    def all(self) -> list[VolumeRecord]:
        return sorted(self._records.values(), key=lambda record: record.volume.id)

    def reserved(self, node: str) -> Resources:
        return Resources(disk=sum(each.volume.size for each in self._records.values() if each.node == node))

    def of(self, framework: str) -> list[VolumeRecord]:
        return [record for record in self.all() if record.volume.framework == framework]

    def user(self, record: VolumeRecord) -> str:
        """The id of the task that uses it; empty when none does."""
        users = (each.spec for each in active(self._tasks.on(record.node)))
        return next((spec.id for spec in users if record.volume.id in persistent(spec.volumes)), "")

    def busy(self, record: VolumeRecord) -> bool:
        """Whether a task uses it, or is about to."""
        return bool(self.user(record)) or record.volume.id in self._claimed

    def users(self, records: Iterable[VolumeRecord]) -> dict[str, str]:
        """The same for many, by the ids of volumes that are used."""
        nodes = {record.node for record in records}
        specs = (each.spec for node in nodes for each in active(self._tasks.on(node)))
        return {volume: spec.id for spec in specs for volume in persistent(spec.volumes)}

    @contextmanager
    def claimed(
        self, node: str, framework: str, tasks: Sequence[TaskSpec], made: Sequence[PersistentVolume]
    ) -> Iterator[list[Put]]:
        """Holds the volumes of `tasks` while these are written down, together with what it gives: that of new ones,
        which are there when the block has ended. Raises ValueError when they can't be had."""
        for volume in made:
            if not VOLUME_ID.fullmatch(volume.id) or volume.framework != framework or volume.size < 1:
                raise ValueError(f"volume {volume.id!r}: not one for {framework}")
        had = {each.volume.id: each.volume for each in self._usable(node, framework)}
        claimed = _claims(node, tasks, had | {volume.id: volume for volume in made}, self._taken(node))
        records = [VolumeRecord(volume, node) for volume in made]
        self._claimed |= claimed
        try:
            yield [Put(PREFIX + each.volume.id, CODEC.encode(each), expected=0) for each in records]
            for record in records:
                self._publish(record.volume.id, record)
        finally:
            self._claimed -= claimed
            for record in [self._records[volume] for volume in claimed if volume in self._records]:
                if record.destroying:  # it had to wait for how this ends
                    self._publish(record.volume.id, record)

    async def destroy(self, volume_id: str) -> VolumeRecord | None:
        """Also of one that is in use: that is for who asks to know. None when there is no such volume."""
        record = self._records.get(volume_id)
        if record is None or record.destroying:
            return record
        after = dataclasses.replace(record, destroying=True)
        await self._store.transaction(Put(PREFIX + volume_id, CODEC.encode(after)))
        log.info("volume is to be destroyed", volume=volume_id, node=record.node)
        self._publish(volume_id, after)
        return after

    async def removed(self, node: str, volume_id: str) -> None:
        """The node says that it is gone. Old news, and what it was not asked for, change nothing."""
        record = self._records.get(volume_id)
        if record is None or record.node != node or not record.destroying:
            return
        await self._store.transaction(Delete(PREFIX + volume_id))
        log.info("volume is destroyed", volume=volume_id, node=node)
        self._publish(volume_id, None)

    async def forget_node(self, node: str) -> int:
        """The node will not come back, and nor will what was on it. Returns how many volumes that were."""
        gone = [record.volume.id for record in self.all() if record.node == node]
        if gone:
            await self._store.transaction(*(Delete(PREFIX + volume_id) for volume_id in gone))
        for volume_id in gone:
            log.info("volume is lost", volume=volume_id, node=node)
            self._publish(volume_id, None)
        return len(gone)

    def _usable(self, node: str, framework: str) -> Iterator[VolumeRecord]:
        for record in self._records.values():
            if record.node == node and record.volume.framework == framework and not record.destroying:
                yield record

    def _taken(self, node: str) -> set[str]:
        used = {volume for each in active(self._tasks.on(node)) for volume in persistent(each.spec.volumes)}
        return used | self._claimed

    def _publish(self, volume_id: str, after: VolumeRecord | None) -> None:
        if after is None:
            self._records.pop(volume_id, None)
        else:
            self._records[volume_id] = after
        for listener in self._listeners:
            listener(volume_id, after)


def _claims(node: str, tasks: Sequence[TaskSpec], there: Mapping[str, PersistentVolume], taken: set[str]) -> set[str]:
    """The volumes that the tasks use: all of them `there`, and none `taken`. Raises ValueError."""
    claims: set[str] = set()
    for task in tasks:
        mounts = [mount for mount in task.volumes if mount.kind is VolumeKind.PERSISTENT]
        for mount in mounts:
            if (volume := there.get(mount.source)) is None:
                raise ValueError(f"task {task.id}: volume {mount.source} is not on node {node}")
            if mount.size != volume.size:
                raise ValueError(f"task {task.id}: volume {mount.source} has another size")
            if mount.source in taken | claims:
                raise ValueError(f"task {task.id}: volume {mount.source} is in use")
        claims |= {mount.source for mount in mounts}
    return claims
