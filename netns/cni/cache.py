"""What is attached, on disk: before a plug-in is executed the record says so, and after it what it answered.

    <directory>/attachments/<container>:<interface>/record   JSON, see `Record`
    <directory>/attachments/<container>:<interface>/netns    see `netns/cni/namespace.py`
    <directory>/networks/<name>                              JSON, see `Setting`

A record has all that undoing needs: the configuration and the version as they were, so a network may change or go
meanwhile. A crash leaves a record that says how far it got, and the plug-ins up to there get a DEL. A plug-in may be at
work still when a crash has ended the agent: it holds a lock on the directory, which `Cache.hold` waits for.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import structlog

from netns.cni.conflist import Json
from netns.cni.execute import LIMIT_S
from netns.cni.namespace import let_go
from netns.durable import sync_directory, write_durably

RECORD, NAMESPACE = "record", "netns"
UNFINISHED = ".new-"
POLL_S = 0.05

T = TypeVar("T")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Setting:
    """How a network is to be made: its conflist, and the version that its plug-ins agreed on."""

    network: str
    cni: str
    version: str


@dataclass(frozen=True, slots=True)
class Record:
    """An attachment. The first `attempted` plug-ins have been executed, or are about to be; `result` is that of the
    last one that was done. `namespace` is the inode of the container's."""

    container: str
    interface: str
    setting: Setting
    namespace: int
    capabilities: Json = field(default_factory=dict)
    attempted: int = 0
    result: Json | None = None
    complete: bool = False


class Cache:
    """Everything is read once and kept in memory. Writing waits for the disk."""

    def __init__(self, directory: Path) -> None:
        self._attachments = directory / "attachments"
        self._networks = directory / "networks"
        self.settings: dict[str, Setting] = {}
        self.records: dict[tuple[str, str], Record] = {}
        for path in _entries(self._networks):
            if (setting := _read(path, _setting)) is not None:
                self.settings[setting.network] = setting
        for path in _entries(self._attachments):
            if not (path / RECORD).exists():  # the crash was before the first plug-in, or after the last
                self._clear(path)
            elif (record := _read(path / RECORD, _record)) is not None:
                self.records[record.container, record.interface] = record
        self._inherited = set(self.records)  # of an earlier agent

    def of(self, container: str) -> list[Record]:
        return [record for (owner, _), record in sorted(self.records.items()) if owner == container]

    def namespace(self, container: str, interface: str) -> Path:
        return self._directory(container, interface) / NAMESPACE

    async def put(self, record: Record) -> None:
        path = self._directory(record.container, record.interface) / RECORD
        self.records[record.container, record.interface] = record
        await asyncio.to_thread(write_durably, path, json.dumps(asdict(record)).encode())

    async def drop(self, record: Record) -> None:
        await asyncio.to_thread(self._clear, self._directory(record.container, record.interface))
        self.records.pop((record.container, record.interface), None)

    async def configure(self, setting: Setting) -> None:
        if self.settings.get(setting.network) != setting:
            content = json.dumps(asdict(setting)).encode()
            await asyncio.to_thread(write_durably, self._networks / setting.network, content)
            self.settings[setting.network] = setting

    async def remove(self, network: str) -> None:
        await asyncio.to_thread((self._networks / network).unlink, missing_ok=True)
        self.settings.pop(network, None)

    @asynccontextmanager
    async def hold(self, record: Record) -> AsyncIterator[int]:
        """The lock of the attachment, a descriptor that its plug-ins inherit. What holds it for longer than a plug-in
        may run is no plug-in, but a daemon that one has started."""
        directory = self._directory(record.container, record.interface)
        if not directory.is_dir():
            directory.mkdir(mode=0o700, parents=True)
            for parent in (directory.parent, directory.parent.parent):
                sync_directory(parent)
        key = record.container, record.interface
        patience_s = LIMIT_S if key in self._inherited else 0.0
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            deadline = time.monotonic() + patience_s
            while not _locked(fd):
                if time.monotonic() >= deadline:
                    break
                await asyncio.sleep(POLL_S)
            self._inherited.discard(key)
            yield fd
        finally:
            os.close(fd)
            with suppress(OSError):
                directory.rmdir()  # when there is no record

    def _directory(self, container: str, interface: str) -> Path:
        return self._attachments / f"{container}:{interface}"  # neither has a colon

    def _clear(self, directory: Path) -> None:
        """The record last of what matters: while it is there, this is done again."""
        if directory.exists():
            let_go(directory / NAMESPACE)
            for path in list(directory.iterdir()):
                path.unlink()
            directory.rmdir()
            sync_directory(directory.parent)


def _entries(directory: Path) -> list[Path]:
    try:
        paths = sorted(directory.iterdir())
    except FileNotFoundError:
        return []
    return [path for path in paths if not path.name.startswith(UNFINISHED)]


def _setting(content: dict[str, Any]) -> Setting:
    return Setting(**content)


def _record(content: dict[str, Any]) -> Record:
    return Record(**{**content, "setting": Setting(**content["setting"])})


def _read(path: Path, parse: Callable[[dict[str, Any]], T]) -> T | None:
    """Files are made whole: one that can not be read is of a disk that failed. It stays, for a person to look at."""
    try:
        return parse(json.loads(path.read_bytes()))
    except (ValueError, TypeError, KeyError) as error:
        log.error("a file can not be read: what plug-ins made is not undone", file=str(path), reason=str(error))
        return None


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
