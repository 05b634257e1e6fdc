"""Destroys persistent volumes when the master says so, and only then.

A volume that the master does not mention is kept: its books may be those of before, and what is gone is gone. To be
destroyed, a volume is named in the node's desired state until the agent has said that it is gone. It says so in every
session anew; the master forgets the volume when it hears it, and then the item goes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from isolators.persistent import PersistentVolumes

log = structlog.get_logger()

RETRY_S = 2.0  # one that is still in use, or could not be removed


class VolumeRemovals:
    def __init__(self, volumes: PersistentVolumes, wake: Callable[[], None]) -> None:
        """`wake` is called when there is more in `removed`."""
        self._volumes = volumes
        self._wake = wake
        self._due: set[str] = set()
        self._changed = asyncio.Event()
        self.removed: set[str] = set()  # of those that the master names, what is gone

    def put(self, volume: str) -> None:
        if volume not in self.removed:
            self._due.add(volume)
            self._changed.set()

    def withdraw(self, volume: str) -> None:
        """The master knows that it is gone; or it has changed its mind, which may be too late."""
        self._due.discard(volume)
        self.removed.discard(volume)

    def keep_only(self, volumes: set[str]) -> None:
        for volume in (self._due | self.removed) - volumes:
            self.withdraw(volume)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._changed.clear()
            for volume in sorted(self._due):
                await self._attempt(volume)
            try:
                async with asyncio.timeout(RETRY_S if self._due else None):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _attempt(self, volume: str) -> None:
        if self._volumes.held(volume):  # by a task that was lost while the node was away, and is about to end
            return
        try:
            await asyncio.to_thread(self._volumes.remove, volume)
        except OSError as error:
            log.error("volume not removed, trying again", volume=volume, error=str(error))
            return
        log.info("volume removed", volume=volume)
        if volume in self._due:
            self._due.discard(volume)
            self.removed.add(volume)
            self._wake()
