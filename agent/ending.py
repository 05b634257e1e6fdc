"""Who in a container is asked to end, and whether anybody there would notice.

The first process alone, as Docker does it, if it does anything about the signal. If not, the kernel drops it, for that
process is process 1 of its pid namespace (pid_namespaces(7)): a shell that waits for its child would sit through the
whole grace period, and the child would never hear of it. Then all others are asked, as Mesos did it. If there are none,
there is nothing to wait for: the signal would have ended such a process anywhere else.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from agent.launcher import record
from agent.launcher.record import Identity

# proc(5): masks of signals, bit 0 is signal 1. One that is blocked waits for who takes it with sigwait or signalfd.
MASKS = ("SigBlk:", "SigIgn:", "SigCgt:")


def ask(first: Identity, number: int) -> bool:
    """Send the signal to whom it concerns. False when nobody would notice it."""
    if record.identify(first.pid) != first:
        return True  # it has ended: so much for asking
    concerned = [first] if _heeds(first.pid, number) else list(_descendants(first.pid))
    for process in concerned:
        send(process, number)
    return bool(concerned)


def _heeds(pid: int, number: int) -> bool:
    """Whether it has a handler for the signal, waits for it, or was told to overlook it."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return True
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(MASKS)]
    return any(mask >> (number - 1) & 1 for mask in masks)


def _descendants(pid: int) -> Iterator[Identity]:
    """All that live. Who lost its parent is a child of the first process."""
    for child in _children(pid):
        process = record.identify(child)
        if process is not None and child in _children(pid):  # so it is the one that was a child
            yield process
            yield from _descendants(child)


def _children(pid: int) -> set[int]:
    found: set[int] = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found |= set(map(int, path.read_text().split()))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def send(process: Identity, number: int) -> None:
    """Through a pidfd, since by now the pid may be another process's."""
    pidfd = record.open_process(process)
    if pidfd is None:
        return
    try:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)
    finally:
        os.close(pidfd)
