"""What the agent must know after it was killed at any line: one file a task, `<state>/tasks/<id>.json`.

Each write is whole or not at all (written beside, fsync'ed, renamed, directory fsync'ed) and is there before the kernel
is touched. One file a task, so that a damaged one costs one task; it is moved aside, not removed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from model.adjustment import Adjustment
from model.codec import Codec, Damaged
from model.task import Secret, TaskSpec, TaskStatus
from pki.files import PRIVATE, sync_directory, write_atomic, write_unsynced

log = structlog.get_logger()

DAMAGED = ".damaged"


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """`kill`: the master wants its end. `acknowledged`: the last sequence that the master has on its disk.
    `container`: the id of its container, when it has got one, and `id_base` the first of the node's user ids that the
    container's ids are mapped to. `holder`: the id of the sandbox of its pod, when it has joined that; `quota` is then
    the number that its container alone has (see `Sandbox`). `fate`: why it ends because of its pod. `end`: how it
    ended, when all that is left to do is to clear away. `adjustment`: one that was not dealt with yet."""

    spec: TaskSpec
    status: TaskStatus
    boot_id: str
    container: str = ""
    id_base: int = 0
    kill: bool = False
    acknowledged: int = -1
    end: TaskStatus | None = None
    adjustment: Adjustment | None = None
    holder: str = ""
    quota: int = 0
    fate: str = ""

    @property
    def over(self) -> bool:
        return self.status.state.terminal


CODEC = Codec(TaskRecord)


class Checkpoint:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lives = directory.with_name("lives")
        self.damaged: frozenset[str] = frozenset()  # ids of tasks of which nothing is known but that they were here
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def new_life(self) -> int:
        """A number that is greater than that of any agent that was here before this one."""
        lives = self._past_lives()
        try:
            write_atomic(self._lives, str(lives + 1).encode(), PRIVATE)
        except OSError as error:  # nothing was written under this number yet: it is good for this once
            log.error("number of lives not written down", path=str(self._lives), error=str(error))
        return lives

    def _past_lives(self) -> int:
        try:
            return int(self._lives.read_text(encoding="ascii"))
        except FileNotFoundError:
            return 0
        except ValueError:
            log.error("number of lives damaged, going on from the clock", path=str(self._lives))
            return int(time.time())  # nobody starts once a second for that long

    def load(self) -> dict[str, TaskRecord]:
        records = {}
        for path in sorted(self._directory.glob("*.json")):
            try:
                records[path.stem] = CODEC.decode(path.read_bytes())
            except Damaged as error:
                aside = path.with_suffix(DAMAGED)
                path.rename(aside)
                log.error("checkpoint damaged, moved aside", path=str(aside), error=str(error))
        self.damaged = frozenset(path.stem for path in self._directory.glob(f"*{DAMAGED}"))
        for unfinished in self._directory.glob(".*"):
            unfinished.unlink()
        return records

    def save(self, record: TaskRecord) -> None:
        write_atomic(self._path(record.spec.id), CODEC.encode(_without_secrets(record)), PRIVATE)

    def begin(self, record: TaskRecord) -> Callable[[], None]:
        """Writes the first record of a task. It is on disk when what this returns has returned: that waits, and may do
        so in a thread. Until then a power cut may leave a damaged file of a task that nobody has heard of."""
        path = self._path(record.spec.id)
        descriptor = write_unsynced(path, CODEC.encode(_without_secrets(record)), PRIVATE)

        def sync() -> None:
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            sync_directory(self._directory)

        return sync

    def forget(self, task_id: str) -> None:
        self._path(task_id).unlink(missing_ok=True)
        sync_directory(self._directory)

    def _path(self, task_id: str) -> Path:
        return self._directory / f"{task_id}.json"


def _without_secrets(record: TaskRecord) -> TaskRecord:
    """Their names alone: what is on a disk can be found there long after the task."""
    names = tuple(Secret(secret.name, None) for secret in record.spec.secrets)
    return replace(record, spec=replace(record.spec, secrets=names))
