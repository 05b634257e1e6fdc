"""The parent of one container: has it made, empties its pipes, waits for its end, writes that down in `exit.json`.

It is forked ahead of its time, and waits with its maker (`maker.py`) for a request. It has a session of its own and
needs neither agent nor launcher once the container has started.

It lives as long as the container, and there is one for each: so it does next to nothing. Whatever Python does writes
to pages that keepers would otherwise share with the launcher (every look at an object counts a reference in it), and
so the making, which does a lot, is done by the maker, whose memory goes with it.

A container survives its keeper (nothing asks the kernel for a signal at the parent's death). Only its exit code is
lost then.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from typing import NoReturn

from agent.launcher import maker, record, streams
from agent.launcher import syscalls as sc
from agent.launcher.channel import MAX_MESSAGE, pair
from agent.launcher.pump import Pump
from agent.launcher.record import Exit

TITLE = b"tepui-keeper"
WAKE_BYTES = 64


def run(requests: socket.socket) -> NoReturn:
    """The keeper's whole life; never returns. One request comes by `requests`, or its end."""
    try:
        _detach(requests)
        told, tell = pair()
        making = _fork_maker(requests, tell)
        requests.close()
        tell.close()
        _release_log()
        _keep(told, making)
    finally:
        error = sys.exc_info()[1]
        if error is not None:  # a fault of ours: nobody above this frame would say so
            sys.excepthook(type(error), error, error.__traceback__)
        os._exit(0)


def _detach(requests: socket.socket) -> None:
    """Out of the launcher's session, with none of its descriptors."""
    os.setsid()
    os.chdir("/")
    sc.prctl(sc.PR_SET_NAME, TITLE)
    sc.prctl(sc.PR_SET_CHILD_SUBREAPER, 1)  # what another runtime makes comes here when that has ended
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    sc.close_all_but(requests.fileno())


def _fork_maker(requests: socket.socket, tell: socket.socket) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        maker.run(requests, tell, parent)
    return pid


def _release_log() -> None:
    """Lets go of the agent's standard error: who reads the agent's output would wait for the container's end."""
    null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, 2)
    os.close(null)


def _keep(told: socket.socket, making: int) -> None:
    """The children are the maker and, once it has made it, the container. The maker tells which bundle it is."""
    charge = _Charge(told)
    statuses = charge.attend()
    directory = charge.directory
    made = os.waitstatus_to_exitcode(statuses.pop(making))
    if not directory or made == maker.FAILED:
        return  # there was nothing to make, or it has written why it was not made
    if made == maker.MADE or _started(directory):
        record.write_exit(directory, _exit(_status_of_container(directory, statuses)))
    else:
        record.write_exit(directory, Exit(at=time.time(), error="its maker was killed before the start"))


class _Charge:
    """What the maker `told` of: the bundle's directory, empty until it has told, and the container's pipes."""

    def __init__(self, told: socket.socket) -> None:
        self.directory = ""
        self._told = told
        self._streams: tuple[bytes, list[int]] = (b"", [])
        self._pumps: dict[int, Pump] = {}
        self._poll = select.poll()

    def attend(self) -> dict[int, int]:
        """Until no child is left, and so nobody who would write to the pipes. Returns how each child ended."""
        statuses: dict[int, int] = {}
        woken = _wake_on_child()
        for descriptor in (self._told.fileno(), woken):
            self._poll.register(descriptor, select.POLLIN)
        while _reap(statuses):
            for descriptor, _ in self._poll.poll():
                if descriptor == woken:
                    os.read(woken, WAKE_BYTES)
                elif descriptor == self._told.fileno():
                    self._hear()
                else:
                    self._pumping()[descriptor].move()
        while self._told.fileno() >= 0:
            self._hear()
        for pump in self._pumping().values():
            pump.drain()
        return statuses

    def _hear(self) -> None:
        """The directory, then what to pump, then the end."""
        packet, descriptors, _, _ = socket.recv_fds(self._told, MAX_MESSAGE, 2 * len(streams.NAMES))
        if not packet:
            self._poll.unregister(self._told)
            self._told.close()
        elif not descriptors:
            self.directory = packet.decode()
        else:
            self._streams = packet, descriptors
            for pipe in streams.pipes(descriptors):
                self._poll.register(pipe, select.POLLIN)

    def _pumping(self) -> dict[int, Pump]:
        """By pipe. Not before there is something to pump: a silent container's keeper need not copy the pages."""
        if not self._pumps and self._streams[0]:
            self._pumps = {pump.pipe: pump for pump in streams.pumps(*self._streams)}
        return self._pumps


def _wake_on_child() -> int:
    """A pipe that becomes readable with each SIGCHLD: poll can't miss it, whenever it comes."""
    woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    return woken


def _reap(statuses: dict[int, int]) -> bool:
    """Whether a child is left."""
    try:
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            statuses[ended[0]] = ended[1]
    except ChildProcessError:
        return False
    return True


def _status_of_container(directory: str, statuses: dict[int, int]) -> int:
    """The only one, unless another runtime was killed and left more to wait for."""
    keeper = record.read_keeper(directory)
    if keeper is None or keeper.container is None:
        return statuses.popitem()[1]
    return statuses[keeper.container.pid]


def _started(directory: str) -> bool:
    keeper = record.read_keeper(directory)
    return keeper is not None and keeper.phase == record.STARTING


def _exit(status: int) -> Exit:
    if os.WIFSIGNALED(status):
        return Exit(signal=os.WTERMSIG(status), at=time.time())
    return Exit(code=os.WEXITSTATUS(status), at=time.time())
