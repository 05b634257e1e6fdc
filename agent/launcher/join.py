"""Clones the first process of a container that is in a pod: it has some of the pod's namespaces.

A namespace is joined by a process of its own, which then clones and ends, since the maker needs the node's yet and
there is no way back out of a user namespace. Whose namespaces they are is known by the holder's own note (`record.py`),
so that a pid that came back leads nowhere.

What this makes can be seen by the pod's other containers when they share their processes; `enter.py` says why they can
do no more than that.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import NoReturn

from agent.launcher import record
from agent.launcher import syscalls as sc
from agent.launcher.bundle import Frame
from agent.launcher.channel import MAX_MESSAGE, SetupError, decode, encode, failed, pair, send

FAILED = 127


def clone(frame: Frame, holder: str, first: Callable[[], NoReturn]) -> tuple[int, int]:
    """Has `first` run as the first process of a container. `holder` is the directory of the pod's sandbox. Returns the
    process's pid and a pidfd. Both processes are siblings of the caller. Raises SetupError and OSError."""
    pidfd = _open_holder(frame, holder)
    ours, theirs = pair()
    with ours:
        with theirs:
            pid, joining = sc.clone3(sc.CLONE_PARENT)
            if pid == 0:
                ours.close()
                _join(frame, pidfd, theirs, first)
        os.close(pidfd)
        os.close(joining)
        packet, descriptors, _, _ = socket.recv_fds(ours, MAX_MESSAGE, 1, socket.MSG_CMSG_CLOEXEC)
    message = decode(packet)
    if message is None:
        raise SetupError("join namespaces", holder, errno.ESRCH)
    if message["event"] == "error":
        raise SetupError(message["operation"], message["path"] or holder, message["errno"])
    return message["pid"], descriptors[0]


def _open_holder(frame: Frame, directory: str) -> int:
    keeper = record.read_keeper(directory)
    held = keeper.container if keeper is not None else None
    if held is None or not all(path.startswith(f"/proc/{held.pid}/") for path in _paths(frame)):
        raise SetupError("join namespaces", directory, errno.ESRCH)
    pidfd = record.open_process(held)
    if pidfd is None:
        raise SetupError("join namespaces", directory, errno.ESRCH)
    return pidfd


def _paths(frame: Frame) -> list[str]:
    return [entry["path"] for entry in frame.config["linux"]["namespaces"] if "path" in entry]


def _join(frame: Frame, holder: int, maker: socket.socket, first: Callable[[], NoReturn]) -> NoReturn:
    """Never returns."""
    try:
        sc.prctl(sc.PR_SET_DUMPABLE, 0)
        sc.setns(holder, frame.joined)
        os.close(holder)
        pid, pidfd = sc.clone3(frame.made & ~sc.CLONE_NEWCGROUP | sc.CLONE_PARENT)
        if pid == 0:
            maker.close()
            first()
        socket.send_fds(maker, [encode({"event": "cloned", "pid": pid})], [pidfd])
    except OSError as error:
        send(maker, failed("join namespaces", error).message())
    finally:
        os._exit(FAILED)
