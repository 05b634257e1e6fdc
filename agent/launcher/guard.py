"""The parent of one command in a running container: lets it in, waits for its end, and ends all that it left.

It is forked by the launcher for each request `enter`, and talks with the agent by the socket that came with it:

    agent   {"op": "streams"}                  with the command's stdin, stdout and stderr; none: it gets a terminal
    guard   {"event": "entering", "pid": P}    P waits, to be put into the container's cgroups
    agent   {"op": "start", "cgroup": DIR}     DIR holds P, and will hold what the command starts, and nothing else
    guard   {"event": "started"}               with the terminal's master, if there is one; or an error
    agent   {"op": "signal", "number": N}
    guard   {"event": "exited", "code": C} or {"event": "exited", "signal": S}

A command outlives nothing: when the agent's end closes, or this process dies, it ends. What it leaves behind gets
SIGHUP, and SIGKILL after a moment. The guard ends when nothing of it lives.

Nobody in the container can see this process; the way in, and what a command may do there, is in `enter.py`.
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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NoReturn

from agent.launcher import bundle as bundles
from agent.launcher import enter, record
from agent.launcher import syscalls as sc
from agent.launcher.bundle import Bundle, BundleError, Frame
from agent.launcher.channel import MAX_MESSAGE, Message, SetupError, decode, encode, failed, pair, receive, send
from agent.launcher.enter import Visit

TITLE = b"tepui-guard"
MOST_STREAMS = 3
HANGUP_GRACE_S = 2.0
KILL_INTERVAL_S = 0.01


class Aborted(Exception):
    """The agent has gone, or wants it no more."""


@dataclass(frozen=True, slots=True)
class Session:
    """A command that runs, and the cgroup with all that it has started."""

    pid: int
    cgroup: str


def run(request: Message, agent: socket.socket) -> NoReturn:
    """The guard's whole life; never returns."""
    try:
        _detach(agent)
        _let_in(request, agent)
    except Aborted:
        pass
    except SetupError as error:
        _tell(agent, error.message())
    finally:
        fault = sys.exc_info()[1]
        if fault is not None:  # nobody above this frame would say so
            sys.excepthook(type(fault), fault, fault.__traceback__)
        os._exit(0)


def _detach(agent: socket.socket) -> None:
    """Out of the launcher's session, with none of its descriptors."""
    os.setsid()
    os.chdir("/")
    sc.prctl(sc.PR_SET_NAME, TITLE)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    sc.close_all_but(agent.fileno())


def _let_in(request: Message, agent: socket.socket) -> None:
    visit = _visit(request, agent)
    channel, entering = _fork_entering(visit)
    cgroup = ""
    try:
        _tell(agent, {"event": "entering", "pid": entering})
        cgroup = _expect(agent, "start")["cgroup"]
        send(channel, {"op": "enter"})
        pid, terminal = _await_entered(channel)
        _limit(visit.bundle, pid)
        send(channel, {"op": "start"})
        _await_executing(channel)
        _tell(agent, {"event": "started"}, terminal)
        for descriptor in (*visit.streams, *terminal):
            os.close(descriptor)
        _watch(Session(pid, cgroup), agent)
    finally:
        channel.close()
        if cgroup:
            _end_all(cgroup)


def _visit(request: Message, agent: socket.socket) -> Visit:
    packet, streams, _, _ = socket.recv_fds(agent, MAX_MESSAGE, MOST_STREAMS)
    if decode(packet) is None:
        raise Aborted
    directory = request["bundle"]
    frame, bundle = _read_bundle(directory)
    return enter.visit(frame, bundle, request, _container(directory), tuple(streams))


def _read_bundle(directory: str) -> tuple[Frame, Bundle]:
    try:
        return bundles.read(directory)
    except OSError as error:
        raise failed("read bundle", error) from error
    except BundleError as error:
        raise SetupError(f"read bundle: {error}", directory, errno.EINVAL) from error


def _container(directory: str) -> int:
    """A pidfd of the container's first process. It was told to start, so its namespaces are complete."""
    keeper = record.read_keeper(directory)
    if keeper is None or keeper.container is None or keeper.phase != record.STARTING:
        raise SetupError("enter container", directory, errno.ESRCH)
    with _step("enter container"):
        pidfd = record.open_process(keeper.container)
    if pidfd is None:
        raise SetupError("enter container", directory, errno.ESRCH)
    return pidfd


def _fork_entering(visit: Visit) -> tuple[socket.socket, int]:
    ours, theirs = pair()
    with theirs, _step("fork"):
        pid = os.fork()
        if pid == 0:
            ours.close()
            enter.run(visit, theirs)
    return ours, pid


def _await_entered(channel: socket.socket) -> tuple[int, tuple[int, ...]]:
    """The command's pid, and its terminal's master."""
    packet, descriptors, _, _ = socket.recv_fds(channel, MAX_MESSAGE, 1)
    message = _checked(decode(packet))
    return message["pid"], tuple(descriptors)


def _limit(bundle: Bundle, pid: int) -> None:
    """From outside, where CAP_SYS_RESOURCE counts, as for the container's first process."""
    with _step("adjust OOM score"), open(f"/proc/{pid}/oom_score_adj", "w", encoding="ascii") as file:
        file.write(str(bundle.process.oom_score_adj))
    for limit in bundle.process.rlimits:
        with _step(f"set {limit.kind}"):
            resource.prlimit(pid, getattr(resource, limit.kind), (limit.soft, limit.hard))


def _await_executing(channel: socket.socket) -> None:
    """The end of the command's socket, which closes on exec, once it said that it would."""
    _checked(receive(channel))
    message = receive(channel)
    if message is not None:
        _checked(message)


def _watch(session: Session, agent: socket.socket) -> None:
    """Until the command has exited, or the agent has gone."""
    pidfd = os.pidfd_open(session.pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(agent, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if pidfd in ready:
            _tell(agent, _exited(session.pid))
            return
        number = _expect(agent, "signal")["number"]
        with suppress(ProcessLookupError):  # it has exited just now
            signal.pidfd_send_signal(pidfd, number)


def _exited(pid: int) -> Message:
    """From field 52 of /proc/PID/stat, which has what wait(2) would return: that one waits for as long as another
    process of the container traces this one."""
    with _step("read exit code"), open(f"/proc/{pid}/stat", "rb") as file:
        status = int(file.read().rpartition(b")")[2].split()[49])
    if os.WIFSIGNALED(status):
        return {"event": "exited", "signal": os.WTERMSIG(status)}
    return {"event": "exited", "code": os.WEXITSTATUS(status)}


def _end_all(cgroup: str) -> None:
    _signal_all(cgroup, signal.SIGHUP)
    deadline = time.monotonic() + HANGUP_GRACE_S
    while _processes(cgroup):
        if time.monotonic() > deadline:
            _signal_all(cgroup, signal.SIGKILL)
        _reap()
        time.sleep(KILL_INTERVAL_S)


def _signal_all(cgroup: str, number: signal.Signals) -> None:
    for pid in _processes(cgroup):
        with suppress(ProcessLookupError):
            _signal_member(pid, cgroup, number)


def _signal_member(pid: int, cgroup: str, number: signal.Signals) -> None:
    """Through a pidfd, opened before the list is read again: a pid that was reused meanwhile is not on it."""
    pidfd = os.pidfd_open(pid)
    try:
        if pid in _processes(cgroup):
            signal.pidfd_send_signal(pidfd, number)
    finally:
        os.close(pidfd)


def _processes(cgroup: str) -> list[int]:
    """None when the container, and with it the cgroup, is gone. 0 stands for one of another pid namespace."""
    try:
        with open(os.path.join(cgroup, "cgroup.procs"), encoding="ascii") as file:
            return [int(line) for line in file if line != "0\n"]
    except FileNotFoundError:
        return []
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        return []


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _expect(agent: socket.socket, operation: str) -> Message:
    message = receive(agent)
    if message is None or message["op"] != operation:
        raise Aborted
    return message


def _checked(message: Message | None) -> Message:
    if message is None:
        raise SetupError("enter container", "init", errno.ESRCH)
    if message["event"] == "error":
        raise SetupError(message["operation"], message["path"], message["errno"])
    return message


def _tell(agent: socket.socket, message: Message, descriptors: tuple[int, ...] = ()) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):  # it has gone, which is noticed elsewhere
        socket.send_fds(agent, [encode(message)], descriptors)


@contextmanager
def _step(operation: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise failed(operation, error) from error
