"""Talks to process 1 of a node (`lab/init.py`) through its socket.

The node's pid is asked of the kernel for each use: it is the peer of the socket. A node that is off refuses.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.errors import LabError

ANSWER_DEADLINE_S = 5.0
BOOT_DEADLINE_S = 10.0
POLL_INTERVAL_S = 0.005
ANSWER_SIZE = 1 << 17
UCRED = "3i"  # struct ucred: pid, uid, gid


@dataclass(frozen=True, slots=True)
class DaemonStatus:
    """`pid` is that in the node; None while it does not run. `starts` counts from 1."""

    pid: int | None
    held: bool
    starts: int


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """`pid` is that of the node's process 1, in the caller's pid namespace."""

    pid: int
    boot_id: str
    daemons: Mapping[str, DaemonStatus]


def wait_ready(control: Path) -> NodeStatus:
    """Returns when the node is made. Raises LabError when it is not by the deadline."""
    deadline = time.monotonic() + BOOT_DEADLINE_S
    while (status := find(control)) is None:
        if time.monotonic() > deadline:
            raise LabError(f"boot {control.stem}: not up after {BOOT_DEADLINE_S:g} s")
        time.sleep(POLL_INTERVAL_S)
    return status


def find(control: Path) -> NodeStatus | None:
    """None when the node is off."""
    try:
        return ask(control, do="status")
    except (FileNotFoundError, ConnectionRefusedError):
        return None


def ask(control: Path, **command: Any) -> NodeStatus:
    """One command, and what runs afterwards. Raises LabError when it is refused, OSError when the node is off."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(ANSWER_DEADLINE_S)
        sock.connect(str(control))
        pid, _, _ = struct.unpack(UCRED, sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(UCRED)))
        sock.send(json.dumps(command).encode())
        data = sock.recv(ANSWER_SIZE)
    if not data:
        raise ConnectionRefusedError(f"{control.stem} went away")
    answer = json.loads(data)
    if "error" in answer:
        raise LabError(f"{command['do']} {command.get('name', '')} on {control.stem}: {answer['error']}")
    daemons = {name: DaemonStatus(**daemon) for name, daemon in answer["daemons"].items()}
    return NodeStatus(pid, answer["boot_id"], daemons)
