"""Waits for a request, makes one container, up to its exec, and ends: the memory that this takes goes with it.

It reads the bundle's `config.json`; it writes `keeper.json` and makes the two pipes of the container (`streams.py`).
The container becomes a child of the keeper, not of this process (CLONE_PARENT). The end of the agent's socket before
the start means that nobody would ever say "start": the container is killed, so that no half-made one is left. Should
the keeper die, this process dies too, and with it the socket that init waits on.
"""

from __future__ import annotations

import errno
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NoReturn

from agent.launcher import bundle as bundles
from agent.launcher import init, oci, record, streams
from agent.launcher import syscalls as sc
from agent.launcher.bundle import Bundle, BundleError
from agent.launcher.channel import MAX_MESSAGE, Message, SetupError, decode, failed, pair, receive, send
from agent.launcher.record import Exit, Keeper

TITLE = b"tepui-maker"
MADE, FAILED = 0, 1


class Aborted(Exception):
    """The agent took the container back, or ended, before the start."""


def run(requests: socket.socket, keeper: socket.socket, parent: int) -> NoReturn:
    """Ends with MADE when the program runs; with FAILED, and `exit.json` written, when it never will. The keeper is
    told which bundle it is as soon as that is known, and then gets what it shall pump."""
    code = os.EX_SOFTWARE
    try:
        _stay_with(parent)
        packet, descriptors, _, _ = socket.recv_fds(requests, MAX_MESSAGE, 1)
        request = decode(packet)
        if request is not None:
            keeper.send(request["bundle"].encode())
            requests.close()
            code = _make(request, socket.socket(fileno=descriptors[0]), keeper)
    finally:
        error = sys.exc_info()[1]
        if error is not None:  # a fault of ours: nobody above this frame would say so
            sys.excepthook(type(error), error, error.__traceback__)
        os._exit(code)


def _stay_with(parent: int) -> None:
    sc.prctl(sc.PR_SET_NAME, TITLE)
    sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before it could be noticed
        os.kill(os.getpid(), signal.SIGKILL)


def _make(request: Message, agent: socket.socket, keeper: socket.socket) -> int:
    try:
        _live(request, agent, keeper)
    except Aborted:
        record.write_exit(request["bundle"], Exit(at=time.time(), error="aborted before the start"))
        return FAILED
    except SetupError as error:
        _tell(agent, error.message())
        record.write_exit(request["bundle"], Exit(at=time.time(), error=str(error)))
        return FAILED
    return MADE


def _live(request: Message, agent: socket.socket, keeper: socket.socket) -> None:
    me = record.identify(os.getppid())
    assert me is not None
    directory, boot_id = request["bundle"], record.boot_id()
    with _step("write keeper.json"):
        record.write_keeper(directory, Keeper(me, boot_id, record.CREATING))
    bundle = _read_bundle(directory)
    stdout, stderr = streams.make(bundle, request["streams"], keeper)
    if (runtime := request.get("runtime")) is not None:
        return _live_by(runtime, bundle, (stdout, stderr), agent, Keeper(me, boot_id, record.CREATING))
    pid, pidfd, channel = _clone(bundle, stdout, stderr)
    container = record.identify(pid)
    try:
        _map_ids(bundle, pid)
        send(channel, {"op": "mapped"})
        with _step("write keeper.json"):
            record.write_keeper(directory, Keeper(me, boot_id, record.CREATED, container))
        _tell(agent, {"event": "created", "pid": pid})
        _await_start(agent, channel)
        with _step("write keeper.json"):
            record.write_keeper(directory, Keeper(me, boot_id, record.STARTING, container))
        _set_limits(bundle, pid)
        send(channel, {"op": "start"})
        _await_exec(channel)
    except (Aborted, SetupError):
        _kill(pidfd)
        raise
    _tell(agent, {"event": "started", "pid": pid})


def _live_by(runtime: str, bundle: Bundle, ends: tuple[int, int], agent: socket.socket, keeper: Keeper) -> None:
    """As `_live`, by another runtime (`oci.py`)."""
    with _step(f"have {runtime} create"):
        pid = oci.create(runtime, bundle, *ends)
        pidfd = os.pidfd_open(pid)
    container = record.identify(pid)
    try:
        with _step("write keeper.json"):
            record.write_keeper(bundle.directory, replace(keeper, phase=record.CREATED, container=container))
        _tell(agent, {"event": "created", "pid": pid})
        _expect_start(receive(agent))
        with _step("write keeper.json"):
            record.write_keeper(bundle.directory, replace(keeper, phase=record.STARTING, container=container))
        oci.start(runtime, bundle)
    except (Aborted, SetupError):
        _kill(pidfd)
        raise
    _tell(agent, {"event": "started", "pid": pid})


def _read_bundle(directory: str) -> Bundle:
    try:
        return bundles.read(directory)
    except OSError as error:
        raise failed("read bundle", error) from error
    except BundleError as error:
        raise SetupError(f"read bundle: {error}", directory, errno.EINVAL) from error


def _clone(bundle: Bundle, stdout: int, stderr: int) -> tuple[int, int, socket.socket]:
    """The cgroup namespace is not among these: its root is to be the cgroup that the agent puts the process in."""
    ours, theirs = pair()
    with _step("clone into namespaces"):
        pid, pidfd = sc.clone3(bundle.namespaces & ~sc.CLONE_NEWCGROUP | sc.CLONE_PARENT)
    if pid == 0:
        ours.close()
        init.run(bundle, theirs, stdout, stderr)
    for descriptor in (stdout, stderr):
        os.close(descriptor)
    theirs.close()
    return pid, pidfd, ours


def _map_ids(bundle: Bundle, pid: int) -> None:
    """A write to uid_map or gid_map must be one call, and is possible once."""
    with _step("map ids"):
        _write(f"/proc/{pid}/uid_map", "\n".join(str(entry) for entry in bundle.uid_maps))
        _write(f"/proc/{pid}/gid_map", "\n".join(str(entry) for entry in bundle.gid_maps))
    with _step("adjust OOM score"):
        _write(f"/proc/{pid}/oom_score_adj", str(bundle.process.oom_score_adj))


def _await_start(agent: socket.socket, channel: socket.socket) -> None:
    """Until the agent said `start` and init is ready, in either order. A failure of init waits for the agent's word:
    meanwhile isolators work on a process that lives, and none of them fails for want of it."""
    sockets = {agent.fileno(): agent, channel.fileno(): channel}
    poll = select.poll()
    for descriptor in sockets:
        poll.register(descriptor, select.POLLIN)
    answers: dict[int, Message | None] = {}
    while len(answers) < len(sockets):
        for descriptor, _ in poll.poll():
            poll.unregister(descriptor)
            answers[descriptor] = receive(sockets[descriptor])
            if descriptor == agent.fileno():
                _expect_start(answers[descriptor])
    _expect_ready(answers[channel.fileno()])


def _expect_start(message: Message | None) -> None:
    if message is None or message["op"] != "start":
        raise Aborted


def _expect_ready(message: Message | None) -> None:
    if message is None:
        raise SetupError("prepare container", "init", errno.ESRCH)
    if message["event"] == "error":
        raise SetupError(message["operation"], message["path"], message["errno"])


def _set_limits(bundle: Bundle, pid: int) -> None:
    """From outside, where CAP_SYS_RESOURCE counts, and last, for they would bind init's own set-up too."""
    for limit in bundle.process.rlimits:
        with _step(f"set {limit.kind}"):
            resource.prlimit(pid, getattr(resource, limit.kind), (limit.soft, limit.hard))


def _await_exec(channel: socket.socket) -> None:
    """The end of init's socket, which closes on exec, once init said that it would."""
    _expect_ready(receive(channel))
    message = receive(channel)
    if message is not None:
        _expect_ready(message)


def _kill(pidfd: int) -> None:
    """Returns when the container is gone. Only the keeper can reap it; its end is seen by all."""
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.poll()


def _tell(agent: socket.socket, message: Message) -> None:
    try:
        send(agent, message)
    except (BrokenPipeError, ConnectionResetError):
        return  # it ended, and learns from the record


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    finally:
        os.close(descriptor)


@contextmanager
def _step(operation: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise failed(operation, error) from error
