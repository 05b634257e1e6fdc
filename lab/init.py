"""Process 1 of a lab node: makes the node's namespaces, then starts daemons and starts them again when they end.

Run as `python -I -S init.py NAME CGROUP SOCKET`. It imports the standard library only, because every process of the
node hangs on it. When it is killed the kernel kills the whole node, and its namespaces and mounts go with it: that is
how a node loses power.

Commands come through SOCKET, one JSON object a connection; the answer is always what runs (`status`), or `error`:

    {"do": "start", "name": ..., "argv": [...], "env": {...}, "log": PATH}
    {"do": "kill" | "hold", "name": ..., "signal": N}    hold: do not start it again until it is released
    {"do": "release", "name": ...}
    {"do": "status"}
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESTART_DELAY_S = 0.2
COMMAND_DEADLINE_S = 1.0
COMMAND_SIZE = 1 << 17

# linux/sched.h, linux/mount.h, linux/sockios.h, linux/if.h
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1

BOOT_ID = "/proc/sys/kernel/random/boot_id"

libc = ctypes.CDLL(None, use_errno=True)


@dataclass(slots=True)
class Daemon:
    """`due` is when it may be started next, on the monotonic clock."""

    argv: list[str]
    env: dict[str, str]
    log: str
    held: bool = False
    pid: int | None = None
    starts: int = 0
    due: float = 0.0


@dataclass(slots=True)
class Node:
    boot_id: str
    daemons: dict[str, Daemon] = field(default_factory=dict)


def main(name: str, cgroup: str, control: str) -> None:
    # First of all: whoever removes the lab finds this process, and everything it starts, in the cgroup.
    Path(cgroup, "cgroup.procs").write_text("0")
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.bind(control)  # /run is another one afterwards
    unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET)
    if os.fork() != 0:
        os._exit(0)
    boot_id = become_node(name)
    # Answering means: the node is made. The peer credentials of the socket are those of this process, from here on.
    server.listen()
    supervise(Node(boot_id), server)


def become_node(name: str) -> str:
    """Everything a machine has to itself. Returns the boot id."""
    os.setsid()
    os.chdir("/")
    socket.sethostname(name)
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755")
    os.mkdir("/run/lock")
    # The kernel lets a user namespace mount a proc only where one is visible that nothing is mounted over.
    os.mkdir("/run/proc")
    mount("proc", "/run/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    boot_id = str(uuid.uuid4())
    Path("/run/boot_id").write_text(boot_id + "\n")
    mount("/run/boot_id", BOOT_ID, None, MS_BIND)
    set_loopback_up()
    return boot_id


def supervise(node: Node, server: socket.socket) -> None:
    wakeup, woken = socket.socketpair()
    for end in (wakeup, woken):
        end.setblocking(False)
    signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    while True:
        start_due(node)
        ready, _, _ = select.select([server, wakeup], [], [], next_start(node))
        if wakeup in ready:
            wakeup.recv(4096)
            reap(node)
        if server in ready:
            answer_one(node, server)


def start_due(node: Node) -> None:
    now = time.monotonic()
    for name, daemon in node.daemons.items():
        if daemon.pid is None and not daemon.held and daemon.due <= now:
            start(name, daemon)


def start(name: str, daemon: Daemon) -> None:
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, daemon.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    ignored_by_python = [signal.SIGPIPE, signal.SIGXFSZ]
    try:
        daemon.pid = os.posix_spawnp(
            daemon.argv[0],
            daemon.argv,
            {**os.environ, **daemon.env},
            file_actions=actions,
            setsid=True,
            setsigdef=ignored_by_python,
        )
        daemon.starts += 1
    except OSError as error:
        print(f"start {name}: {daemon.argv[0]}: {error.strerror}", file=sys.stderr, flush=True)
        daemon.due = time.monotonic() + RESTART_DELAY_S


def next_start(node: Node) -> float | None:
    """Seconds until a daemon is to be started; None when none is."""
    due = [daemon.due for daemon in node.daemons.values() if daemon.pid is None and not daemon.held]
    return max(0.0, min(due) - time.monotonic()) if due else None


def reap(node: Node) -> None:
    """Daemons, and the orphans that come to process 1."""
    by_pid = {daemon.pid: (name, daemon) for name, daemon in node.daemons.items()}
    while (ended := wait_any()) is not None:
        if ended[0] not in by_pid:
            continue
        name, daemon = by_pid[ended[0]]
        daemon.pid = None
        daemon.due = time.monotonic() + RESTART_DELAY_S
        print(f"{name} ended: {os.waitstatus_to_exitcode(ended[1])}", file=sys.stderr, flush=True)


def wait_any() -> tuple[int, int] | None:
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, status) if pid else None


def answer_one(node: Node, server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.settimeout(COMMAND_DEADLINE_S)
        try:
            command = json.loads(connection.recv(COMMAND_SIZE))
            perform(node, command)
            answer = status(node)
        except (KeyError, ValueError, ProcessLookupError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        except OSError:
            return  # the peer is gone
        send(connection, answer)


def send(connection: socket.socket, answer: dict[str, Any]) -> None:
    try:
        connection.send(json.dumps(answer).encode())
    except OSError as error:
        print(f"answer: {error.strerror}", file=sys.stderr, flush=True)


def perform(node: Node, command: dict[str, Any]) -> None:
    match command["do"]:
        case "start":
            start_new(node, command)
        case "hold":
            node.daemons[command["name"]].held = True
            send_signal(node.daemons[command["name"]], command["signal"])
        case "release":
            node.daemons[command["name"]].held = False
        case "kill":
            send_signal(node.daemons[command["name"]], command["signal"])
        case "status":
            pass
        case other:
            raise ValueError(f"no such command: {other}")


def start_new(node: Node, command: dict[str, Any]) -> None:
    if command["name"] in node.daemons:
        raise ValueError(f"there is a daemon {command['name']} already")
    node.daemons[command["name"]] = Daemon(command["argv"], command["env"], command["log"])
    start_due(node)


def send_signal(daemon: Daemon, number: int) -> None:
    # It is our child and not yet waited for, so the pid can't be another process's.
    if daemon.pid is not None:
        os.kill(daemon.pid, number)


def status(node: Node) -> dict[str, Any]:
    daemons = {
        name: {"pid": daemon.pid, "held": daemon.held, "starts": daemon.starts} for name, daemon in node.daemons.items()
    }
    return {"boot_id": node.boot_id, "daemons": daemons}


def set_loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP))


def unshare(flags: int) -> None:
    if libc.unshare(flags) != 0:
        raise failed("unshare", hex(flags))


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    arguments = [text.encode() if text is not None else None for text in (source, target, kind)]
    if libc.mount(*arguments, ctypes.c_ulong(flags), options.encode()) != 0:
        raise failed("mount", target)


def failed(operation: str, what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), f"{operation} {what}")


if __name__ == "__main__":
    main(*sys.argv[1:])
