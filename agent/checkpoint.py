"""What the agent must know after it was killed at any line: one file a task, `<state>/tasks/<id>.json`.

Each write is whole or not at all (written beside, fsync'ed, renamed, directory fsync'ed) and is there before the kernel
is touched. One file a task, so that a damaged one costs one task; it is moved aside, not removed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from model.codec import Codec, Damaged
from model.task import Secret, TaskSpec, TaskStatus
from pki.files import PRIVATE, sync_directory, write_atomic

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """`kill`: the master wants its end. `acknowledged`: the last sequence that the master has on its disk.
    `id_base`: the first of the host user ids that the container's ids are mapped to. `end`: how it ended, when all that
    is left to do is to clear away."""

    spec: TaskSpec
    status: TaskStatus
    boot_id: str
    id_base: int
    kill: bool = False
    acknowledged: int = -1
    end: TaskStatus | None = None

    @property
    def over(self) -> bool:
        return self.status.state.terminal


CODEC = Codec(TaskRecord)


class Checkpoint:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def load(self) -> dict[str, TaskRecord]:
        records = {}
        for path in sorted(self._directory.glob("*.json")):
            try:
                records[path.stem] = CODEC.decode(path.read_bytes())
            except Damaged as error:
                aside = path.with_suffix(".damaged")
                path.rename(aside)
                log.error("checkpoint damaged, moved aside", path=str(aside), error=str(error))
        for unfinished in self._directory.glob(".*"):
            unfinished.unlink()
        return records

    def save(self, record: TaskRecord) -> None:
        write_atomic(self._path(record.spec.id), CODEC.encode(_without_secrets(record)), PRIVATE)

    def forget(self, task_id: str) -> None:
        self._path(task_id).unlink(missing_ok=True)
        sync_directory(self._directory)

    def _path(self, task_id: str) -> Path:
        return self._directory / f"{task_id}.json"


def _without_secrets(record: TaskRecord) -> TaskRecord:
    """Their names alone: what is on a disk can be found there long after the task."""
    names = tuple(Secret(secret.name, None) for secret in record.spec.secrets)
    image = record.spec.image and replace(record.spec.image, pull_config="")
    return replace(record, spec=replace(record.spec, secrets=names, image=image))
