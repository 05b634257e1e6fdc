"""The parent of one container: has it made, waits for its end, writes that down in `exit.json`.

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
import signal
import socket
import sys
import time
from typing import NoReturn

from agent.launcher import maker, record
from agent.launcher import syscalls as sc
from agent.launcher.record import Exit

TITLE = b"tepui-keeper"
PATH_MAX = 4096


def run(requests: socket.socket) -> NoReturn:
    """The keeper's whole life; never returns. One request comes by `requests`, or its end."""
    try:
        _detach(requests)
        told, tell = os.pipe()
        making = _fork_maker(requests, tell)
        requests.close()
        os.close(tell)
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


def _fork_maker(requests: socket.socket, tell: int) -> int:
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


def _keep(told: int, making: int) -> None:
    """The children are the maker and, once it has made it, the container. The maker has told which bundle it is."""
    statuses: dict[int, int] = {}
    while (ended := _wait()) is not None:
        statuses[ended[0]] = ended[1]
    directory = os.read(told, PATH_MAX).decode()
    made = os.waitstatus_to_exitcode(statuses.pop(making))
    if not directory or made == maker.FAILED:
        return  # there was nothing to make, or it has written why it was not made
    if made == maker.MADE or _started(directory):
        record.write_exit(directory, _exit(_status_of_container(directory, statuses)))
    else:
        record.write_exit(directory, Exit(at=time.time(), error="its maker was killed before the start"))


def _wait() -> tuple[int, int] | None:
    try:
        return os.wait()
    except ChildProcessError:
        return None


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
