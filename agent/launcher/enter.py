"""The way of a command into a running container, from its fork to its exec: the whole story, in order.

    [wait]    the agent puts this process into the container's cgroups; nothing of it ever runs outside of them
    join      all namespaces of the container's first process at once, and the ids of its root; a terminal is made there
    clone     the command's own process, a child of the guard: only a new one is in the container's pid namespace
    become    it gives up what it may not keep, exactly as the container's first process did (`init.py`)
    confine   from here on its system calls are filtered
    execute   the program; or `files.py`, which needs none

Until `become` it holds more than the container may get hold of, and the container's processes can see it. They can
neither trace it nor look into it: its memory is the node's (no program was executed in the user namespace), and it is
not dumpable, so they would need the capability to trace in the node's own user namespace (ptrace(2), "Ptrace access
mode checking"; CVE-2016-9962). It has no directory open, and no descriptor but its streams and the guard's socket.
Nothing is imported once the container's files are in sight.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import NoReturn

from agent.launcher import bundle as bundles
from agent.launcher import init
from agent.launcher import syscalls as sc
from agent.launcher.bundle import Bundle, BundleError, Frame, Process
from agent.launcher.channel import Message, SetupError, encode, failed, receive, send

SETUP_FAILED = 127
PTMX = "/dev/pts/ptmx"
TIOCSPTLCK = 0x40045431  # asm-generic/ioctls.h
TIOCGPTPEER = 0x5441
PLAIN = sc.RESOLVE_NO_SYMLINKS | sc.RESOLVE_NO_MAGICLINKS

Work = Callable[[], int] | None


@dataclass(frozen=True, slots=True)
class Visit:
    """`process` is that of the bundle, with what the request changes. `container` is a pidfd. Without `streams` the
    command gets a terminal of `rows` and `columns`. `files` are verb and path of `files.py`, instead of a program."""

    frame: Frame
    bundle: Bundle
    process: Process
    container: int
    streams: tuple[int, ...]
    rows: int
    columns: int
    files: tuple[str, str] | None


def visit(frame: Frame, bundle: Bundle, request: Message, container: int, streams: tuple[int, ...]) -> Visit:
    """The request has `argv`, `env` (an object), `cwd` (or null), `user` ([uid, gid, [group]] or null), `size`
    ([rows, columns]) and `files` ([verb, path] or null)."""
    process = replace(bundle.process, argv=tuple(request["argv"]), env={**bundle.process.env, **request["env"]})
    if request["cwd"] is not None:
        process = replace(process, cwd=request["cwd"])
    if request["user"] is not None:
        uid, gid, groups = request["user"]
        process = replace(process, uid=uid, gid=gid, groups=tuple(groups))
    rows, columns = request["size"]
    files = request["files"]
    return Visit(frame, bundle, process, container, streams, rows, columns, (files[0], files[1]) if files else None)


def run(visit: Visit, guard: socket.socket) -> NoReturn:
    """Never returns. The guard sees `entered` from this process, then `executing` from the command's, then the end of
    the socket; or an error."""
    try:
        _expect(guard, "enter")
        _own_streams(visit)
        work = _work(visit)
        _join(visit)
        terminal = _open_terminal(visit) if not visit.streams else None
        _clone(visit, terminal, guard, work)
    except SetupError as error:
        send(guard, error.message())
    finally:
        os._exit(SETUP_FAILED)


def _work(visit: Visit) -> Work:
    """Loaded here, for it is the last chance, and the first: launcher and keepers need not carry it."""
    if visit.files is None:
        return None
    from agent.launcher import files

    return partial(files.serve, *visit.files)


def _own_streams(visit: Visit) -> None:
    """They belong to the command's user, who may open them again by way of /dev/stdout."""
    with _step("hand over streams"):
        try:
            uid = bundles.outside(visit.frame.uid_maps, visit.process.uid)
            gid = bundles.outside(visit.frame.gid_maps, visit.process.gid)
        except BundleError as error:
            raise SetupError(f"hand over streams: {error}", "", errno.EINVAL) from error
        for descriptor in visit.streams:
            os.fchown(descriptor, uid, gid)


def _join(visit: Visit) -> None:
    with _step("enter namespaces"):
        sc.prctl(sc.PR_SET_DUMPABLE, 0)
        _import_nothing_more()
        sc.setns(visit.container, visit.frame.namespaces)
        os.close(visit.container)
    with _step("take ids of the container"):
        init.take_ids(0, 0, ())
        sc.prctl(sc.PR_SET_DUMPABLE, 0)


def _import_nothing_more() -> None:
    """What the interpreter would look for now lies in the container's files."""
    sys.path.clear()
    sys.meta_path.clear()


def _open_terminal(visit: Visit) -> tuple[int, int]:
    """Master and slave, of the container's own devpts. The slave is opened by its master, not by a path that something
    else could be at (CVE-2025-52565)."""
    with _step("make terminal"):
        master = sc.openat2(sc.AT_FDCWD, PTMX, os.O_RDWR | os.O_NOCTTY, PLAIN)
        if sc.fstatfs_type(master) != sc.DEVPTS_SUPER_MAGIC:
            raise OSError(errno.ENODEV, "not a terminal", PTMX)
        fcntl.ioctl(master, TIOCSPTLCK, struct.pack("i", 0))
        slave = fcntl.ioctl(master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", visit.rows, visit.columns, 0, 0))
        os.fchown(slave, visit.process.uid, -1)
    return master, slave


def _clone(visit: Visit, terminal: tuple[int, int] | None, guard: socket.socket, work: Work) -> None:
    with _step("clone into container"):
        pid, _ = sc.clone3(sc.CLONE_PARENT)
    if pid == 0:
        _command(visit, terminal, guard, work)
    masters = [terminal[0]] if terminal else []
    socket.send_fds(guard, [encode({"event": "entered", "pid": pid})], masters)


def _command(visit: Visit, terminal: tuple[int, int] | None, guard: socket.socket, work: Work) -> NoReturn:
    """Never returns."""
    try:
        _expect(guard, "start")
        with _step("connect streams"):
            _connect(visit, terminal)
        init.become(visit.process, visit.bundle.seccomp, guard.fileno())
        sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)
        send(guard, {"event": "executing"})  # fails when the guard died before it was asked to be told
        if visit.process.no_new_privileges:
            init.confine(visit.bundle.seccomp)
        if work is None:
            init.execute(visit.process)
        guard.close()  # as an exec would have done
        os._exit(work())
    except SetupError as error:
        send(guard, error.message())
    finally:
        os._exit(SETUP_FAILED)


def _connect(visit: Visit, terminal: tuple[int, int] | None) -> None:
    os.setsid()
    streams = visit.streams
    if terminal is not None:
        slave = terminal[1]
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        streams = (slave, slave, slave)
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)


def _expect(guard: socket.socket, operation: str) -> None:
    """The guard's end, or anything else it says, means that this command will not be."""
    message = receive(guard)
    if message is None or message["op"] != operation:
        os._exit(SETUP_FAILED)


@contextmanager
def _step(operation: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise failed(operation, error) from error
