"""Containers of an earlier agent: who is alive, and how the others ended.

All is learnt from the bundle's directory (see record.py) and the kernel. A pid is believed only together with the
process's start time, and waited for through a pidfd, which can not come to mean another process.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.launcher import record
from agent.launcher.descriptors import readable
from agent.launcher.record import Exit, Identity

__all__ = ["Adopted", "Exit", "look", "wait_exit"]


@dataclass(frozen=True, slots=True)
class Adopted:
    """A container whose first process `pid` is alive. `started`: it was told to go, so it runs or is about to."""

    pid: int
    started: bool


def look(bundle: Path) -> Adopted | None:
    """What lives of this bundle now; None when nothing does (`wait_exit` then says at once how it ended)."""
    keeper = record.read_keeper(str(bundle))
    if keeper is None or keeper.container is None or record.identify(keeper.container.pid) != keeper.container:
        return None
    return Adopted(keeper.container.pid, keeper.phase == record.STARTING)


async def wait_exit(bundle: Path, orphaned: Callable[[], None] = lambda: None) -> Exit:
    """Returns when neither the container nor its keeper lives. Has no deadline: containers run as long as they do.
    `orphaned` is called when the keeper is gone and the container is not."""
    keeper = record.read_keeper(str(bundle))
    if keeper is not None:
        await _gone(keeper.keeper)
        keeper = record.read_keeper(str(bundle)) or keeper  # it may have made its container since
        if keeper.container is not None:
            if record.identify(keeper.container.pid) == keeper.container:
                orphaned()
            await _gone(keeper.container)
    return record.read_exit(str(bundle)) or Exit(lost=True)


async def _gone(process: Identity) -> None:
    pidfd = record.open_process(process)
    if pidfd is None:
        return
    try:
        await readable(pidfd)
    finally:
        os.close(pidfd)
