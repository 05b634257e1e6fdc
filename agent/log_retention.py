"""Removes logs of tasks that have ended: those that are too old, and the oldest when all of them are too large.

A task's logs outlive the master's memory of it, for it is after its end that people ask what it said. The modification
time of their directory is when it ended (`containers.py`).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

log = structlog.get_logger()

INTERVAL_S = 60.0
BLOCK_BYTES = 512  # of st_blocks, whatever the file system's are (stat(2))


@dataclass(frozen=True, slots=True)
class Retention:
    """Of logs of ended tasks: for how many seconds they are kept, and how many bytes of disk they may take in all."""

    age_s: float
    size: int


@dataclass(frozen=True, slots=True)
class EndedLog:
    path: Path
    ended_at: float
    size: int


async def keep_bounded(logs: Path, retention: Retention, over: Callable[[str], bool]) -> None:
    """Until cancelled. `over` says whether a task has ended, or is not known."""
    while True:
        ended = await asyncio.to_thread(lambda: list(_ended(logs, over)))
        for each in due(ended, retention, time.time()):
            await asyncio.to_thread(_remove, each.path)
        await asyncio.sleep(INTERVAL_S)


def due(ended: Iterable[EndedLog], retention: Retention, now: float) -> list[EndedLog]:
    """Those to be removed. One that ended in the future, as the clock is now, is as good as one of today."""
    total = 0
    removed = []
    for each in sorted(ended, key=lambda each: each.ended_at, reverse=True):
        total += each.size
        if total > retention.size or now - each.ended_at > retention.age_s:
            removed.append(each)
    return removed


def _ended(logs: Path, over: Callable[[str], bool]) -> Iterator[EndedLog]:
    for entry in os.scandir(logs):
        if over(entry.name):
            yield EndedLog(Path(entry.path), entry.stat().st_mtime, _size(entry.path))


def _size(directory: str) -> int:
    return sum(entry.stat(follow_symlinks=False).st_blocks for entry in os.scandir(directory)) * BLOCK_BYTES


def _remove(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except OSError as error:
        log.error("log of an ended task not removed", path=str(path), error=str(error))
