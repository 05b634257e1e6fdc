"""Waits for a request, makes one sandbox, then in it one container, up to its exec, and ends: the memory that this
takes goes with it.

It reads the bundle's `config.json`; it writes `keeper.json`, opens what of the node goes into the container and makes
its two pipes (`streams.py`). The container becomes a child of the keeper, not of this process (CLONE_PARENT). The end
of the agent's socket before the start means that nobody would ever say "start": the sandbox is killed, so that no
half-made one is left. Should the keeper die, this process dies too, and with it the socket that init waits on.
"""

from __future__ import annotations

import errno
import os
import pickle
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import NoReturn

from agent.launcher import bundle as bundles
from agent.launcher import idmap, init, join, oci, record, seccomp, streams
from agent.launcher import syscalls as sc
from agent.launcher.bundle import Bundle, BundleError, Frame
from agent.launcher.channel import MAX_MESSAGE, Message, SetupError, decode, failed, pair, receive, send, send_open
from agent.launcher.record import Exit, Keeper

TITLE = b"tepui-maker"
MADE, FAILED = 0, 1


@dataclass(frozen=True, slots=True)
class Sandbox:
    """`init` leads to its first process, `pid`, and `keeper` to its parent."""

    frame: Frame
    directory: str
    pid: int
    pidfd: int
    init: socket.socket
    keeper: socket.socket


class Told(SetupError):
    """By init, which then ends."""


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
    noted = Keeper(me, record.boot_id(), record.CREATING)
    _note(request["bundle"], noted)
    sandbox = _clone(_read_frame(request), request, keeper)
    try:
        noted = replace(noted, phase=record.CREATED, container=record.identify(sandbox.pid))
        _map_ids(sandbox)
        send(sandbox.init, {"op": "mapped"})
        _note(sandbox.directory, noted)
        _expect(sandbox.init, "ready")
        _tell(agent, {"event": "created", "pid": sandbox.pid})
        asked = _await(agent, ("fill", "hold"), sandbox.init)
        if asked["op"] == "hold":
            pid = _hold(sandbox, noted)
        elif (runtime := request.get("runtime")) is None:
            pid = _fill(sandbox, noted, agent, asked)
        else:
            pid = _fill_by(runtime, sandbox, noted, agent, asked)
    except (Aborted, SetupError):
        _kill(sandbox.pidfd)
        raise
    _tell(agent, {"event": "started", "pid": pid})


def _hold(sandbox: Sandbox, noted: Keeper) -> int:
    """It shall never get a task, but outlive the agent: what it has is a pod's."""
    _note(sandbox.directory, replace(noted, phase=record.STARTING, began=record.clock()))
    send(sandbox.init, {"op": "hold"})
    _expect(sandbox.init, "held")
    return sandbox.pid


def _fill(sandbox: Sandbox, noted: Keeper, agent: socket.socket, fill: Message) -> int:
    """Puts a task into it. Each side does what it can while the others are at work: init mounts, the agent sets limits
    and then says `start`."""
    try:
        return _execute(sandbox, noted, agent, fill)
    except (SetupError, BrokenPipeError, ConnectionResetError) as error:
        if isinstance(error, Told) or not _ended(sandbox.pidfd):
            raise
        # It was killed, which is not what the operation that met with it would say.
        raise SetupError("prepare container", "init", errno.ESRCH) from error


def _execute(sandbox: Sandbox, noted: Keeper, agent: socket.socket, fill: Message) -> int:
    bundle = _read_bundle(sandbox)
    send_open(sandbox.init, {"op": "move in"}, [_memory(bundle), *_open_sources(bundle)])
    ends = _connect(sandbox, bundle, fill)
    _adjust_oom_score(bundle, sandbox.pid)
    _await(agent, ("start",))
    _note(sandbox.directory, replace(noted, phase=record.STARTING, began=record.clock()))
    _expect(sandbox.init, "moved in")
    _set_limits(bundle, sandbox.pid)
    send_open(sandbox.init, {"op": "execute"}, ends)
    _await_exec(sandbox.init)
    return sandbox.pid


def _fill_by(runtime: str, sandbox: Sandbox, noted: Keeper, agent: socket.socket, fill: Message) -> int:
    """As `_fill`, by another runtime (`oci.py`), whose process joins the namespaces that the sandbox is for; the one
    that has waited in them is not needed any more. Returns the pid of the new one."""
    bundle = _read_bundle(sandbox)
    ends = _connect(sandbox, bundle, fill)
    _await(agent, ("start",))
    with _step(f"have {runtime} create"):
        pid = oci.create(runtime, sandbox.directory, bundle, sandbox.pid, (ends[0], ends[1]))
        pidfd = os.pidfd_open(pid)
    try:
        _note(
            sandbox.directory,
            replace(noted, phase=record.STARTING, began=record.clock(), container=record.identify(pid)),
        )
        with _step(f"have {runtime} start"):
            oci.start(runtime, sandbox.directory, bundle)
    except SetupError:
        _kill(pidfd)
        raise
    _kill(sandbox.pidfd)
    return pid


def _note(directory: str, keeper: Keeper) -> None:
    with _step("write keeper.json"):
        record.write_keeper(directory, keeper)


def _read_frame(request: Message) -> Frame:
    try:
        frame = bundles.parse_frame(request["frame"])
        if frame.joined and "holder" not in request:
            raise BundleError("linux/namespaces: there is no pod whose namespaces could be joined")
        return frame
    except BundleError as error:
        raise SetupError(f"read frame: {error}", request["bundle"], errno.EINVAL) from error


def _clone(frame: Frame, request: Message, keeper: socket.socket) -> Sandbox:
    """The cgroup namespace is not among these: its root is to be the cgroup that the agent puts the process in."""
    directory = request["bundle"]

    def first() -> NoReturn:
        ours.close()
        init.run(frame, directory, theirs)

    with _step("clone into namespaces"):
        ours, theirs = pair()
        if frame.joined:
            pid, pidfd = join.clone(frame, request["holder"], first)
        else:
            pid, pidfd = sc.clone3(frame.made & ~sc.CLONE_NEWCGROUP | sc.CLONE_PARENT)
            if pid == 0:
                first()
    theirs.close()
    return Sandbox(frame, directory, pid, pidfd, ours, keeper)


def _read_bundle(sandbox: Sandbox) -> Bundle:
    with _step("read bundle"):
        config = _contents(os.path.join(sandbox.directory, "config.json"))
        program = seccomp.read(sandbox.directory)
    try:
        return bundles.parse(sandbox.directory, config, program, sandbox.frame)
    except BundleError as error:
        raise SetupError(f"read bundle: {error}", sandbox.directory, errno.EINVAL) from error


def _memory(bundle: Bundle) -> int:
    """For init, which can't open the files: it may be larger than a message, and is read once."""
    descriptor = os.memfd_create("bundle")
    os.write(descriptor, pickle.dumps(bundle))
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _connect(sandbox: Sandbox, bundle: Bundle, fill: Message) -> list[int]:
    """What is to be its stdout and stderr. From now on the keeper has their other ends."""
    frame, process = sandbox.frame, bundle.process
    try:
        owner = bundles.outside(frame.uid_maps, process.uid), bundles.outside(frame.gid_maps, process.gid)
    except BundleError as error:
        raise SetupError(f"connect streams: {error}", sandbox.directory, errno.EINVAL) from error
    return streams.make(sandbox.directory, owner, fill["streams"], sandbox.keeper)


def _open_sources(bundle: Bundle) -> list[int]:
    """The root file system, then what is bound into it: copies of mounts, attached nowhere."""
    with _step("open root file system"):
        trees = [sc.copy_tree(bundle.rootfs, recursive=True)]
    for source in bundle.sources:
        with _step(source.describe()):
            trees.append(source.opened().tree)
    return trees


def _map_ids(sandbox: Sandbox) -> None:
    if sandbox.frame.joined & sc.CLONE_NEWUSER:
        return  # in a pod it has been done
    with _step("map ids"):
        idmap.write(sandbox.pid, sandbox.frame.uid_maps, sandbox.frame.gid_maps)


def _await(agent: socket.socket, operations: tuple[str, ...], *others: socket.socket) -> Message:
    """The agent's word. The others have nothing to say meanwhile: if they do, they ended."""
    poll = select.poll()
    for each in (agent, *others):
        poll.register(each, select.POLLIN)
    ready = {descriptor for descriptor, _ in poll.poll()}
    if agent.fileno() not in ready:
        raise SetupError("wait for a task", "init", errno.ESRCH)
    message = receive(agent)
    if message is None or message["op"] not in operations:
        raise Aborted
    return message


def _adjust_oom_score(bundle: Bundle, pid: int) -> None:
    with _step("adjust OOM score"):
        _write(f"/proc/{pid}/oom_score_adj", str(bundle.process.oom_score_adj))


def _set_limits(bundle: Bundle, pid: int) -> None:
    """From outside, where CAP_SYS_RESOURCE counts, and when it has moved in, for they would bind that too."""
    for limit in bundle.process.rlimits:
        with _step(f"set {limit.kind}"):
            resource.prlimit(pid, getattr(resource, limit.kind), (limit.soft, limit.hard))


def _await_exec(channel: socket.socket) -> None:
    """The end of init's socket, which closes on exec, once init said that it would."""
    _expect(channel, "executing")
    message = receive(channel)
    if message is not None:
        raise _told(message)


def _expect(channel: socket.socket, event: str) -> None:
    message = receive(channel)
    if message is None:
        raise SetupError("prepare container", "init", errno.ESRCH)
    if message["event"] != event:
        raise _told(message)


def _told(message: Message) -> Told:
    return Told(message["operation"], message["path"], message["errno"])


def _kill(pidfd: int) -> None:
    """Returns when the container is gone. Only the keeper can reap it; its end is seen by all."""
    with suppress(ProcessLookupError):  # another runtime that fails may have ended all that is in the cgroup
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    _ended(pidfd, None)


def _ended(pidfd: int, patience_ms: int | None = 0) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(patience_ms))


def _tell(agent: socket.socket, message: Message) -> None:
    try:
        send(agent, message)
    except (BrokenPipeError, ConnectionResetError):
        return  # it ended, and learns from the record


def _contents(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


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
