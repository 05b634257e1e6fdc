"""The fork server: reads requests from the agent, gives each to a keeper, reaps keepers. It ends with the agent.

A request is one packet with one socket, on which the answer goes, so that requests never wait for one another:

    {"op": "create", "bundle": DIR, "frame": CONFIG}    see keeper.py and, for the frame, bundle.py; for one in a pod
                                                        with "holder": DIR, see join.py
    {"op": "enter", "bundle": DIR, ...}                 see guard.py

A keeper is forked before it is needed, so that a request need not wait for a fork; the next one only when nothing has
been asked for a moment, since forking takes time from those that are being made.

One thread, and no state but the spare keeper. What Python has loaded is frozen before the first fork: a garbage
collection in a keeper would write to every object's header, and so copy pages that all keepers share.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
from dataclasses import dataclass

from agent.launcher import guard, keeper, record
from agent.launcher import syscalls as sc
from agent.launcher.channel import MAX_MESSAGE, Message, decode, failed, pair, send

TITLE = b"tepui-launcher"
QUIET_MS = 30


@dataclass(frozen=True, slots=True)
class Spare:
    """A keeper that waits for its request, which it gets by `requests`."""

    pid: int
    requests: socket.socket


def serve(agent: socket.socket) -> None:
    """Until the agent's end of the socket closes."""
    sc.prctl(sc.PR_SET_NAME, TITLE)
    _ignore_nothing()
    woken = _wake_on_child()
    record.boot_id()  # read once, for all keepers
    gc.disable()
    gc.freeze()
    poll = select.poll()
    poll.register(agent, select.POLLIN)
    poll.register(woken, select.POLLIN)
    spare = _spare_keeper()
    while True:
        ready = {descriptor for descriptor, _ in poll.poll(None if spare else QUIET_MS)}
        if not ready:
            spare = _spare_keeper()
        if woken.fileno() in ready:
            woken.recv(MAX_MESSAGE)
            spare = _reap(spare)
        if agent.fileno() in ready:
            packet, descriptors, _, _ = socket.recv_fds(agent, MAX_MESSAGE, 1)
            if not packet:
                signal.set_wakeup_fd(-1)
                return
            with socket.socket(fileno=descriptors[0]) as answer:
                spare = _serve_one(packet, answer, spare)


def _serve_one(packet: bytes, answer: socket.socket, spare: Spare | None) -> Spare | None:
    """Returns the spare keeper, unless it has got something to do."""
    request = decode(packet)
    assert request is not None
    if request["op"] == "enter":
        _guard(request, answer)
        return spare
    _hand_over(packet, answer, spare)
    return None


def _hand_over(packet: bytes, answer: socket.socket, spare: Spare | None) -> None:
    try:
        _give(packet, answer, spare)
    except OSError as error:
        send(answer, failed("fork keeper", error).message())


def _give(packet: bytes, answer: socket.socket, spare: Spare | None) -> None:
    """To the spare keeper; to a new one when that was killed."""
    if spare is not None:
        with spare.requests as requests:
            try:
                socket.send_fds(requests, [packet], [answer.fileno()])
                return
            except (BrokenPipeError, ConnectionResetError):
                pass
    with _fork_keeper().requests as requests:
        socket.send_fds(requests, [packet], [answer.fileno()])


def _spare_keeper() -> Spare | None:
    """None when the node has no room for it now: who then asks for a container hears of it."""
    try:
        return _fork_keeper()
    except OSError:
        return None


def _fork_keeper() -> Spare:
    ours, theirs = pair()
    with theirs:
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            raise
        if pid == 0:
            keeper.run(theirs)
    return Spare(pid, ours)


def _guard(request: Message, answer: socket.socket) -> None:
    try:
        pid = os.fork()
    except OSError as error:
        send(answer, failed("fork guard", error).message())
        return
    if pid == 0:
        guard.run(request, answer)


def _ignore_nothing() -> None:
    """Who has started the agent in the background of a shell has it ignore SIGQUIT, and so would every container. What
    Python itself ignores is given back later (`init.py`)."""
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _wake_on_child() -> socket.socket:
    """A socket that becomes readable with each SIGCHLD: poll can't miss it, whenever it comes."""
    woken, waker = socket.socketpair()
    for end in (woken, waker):
        end.setblocking(False)
    signal.set_wakeup_fd(waker.detach(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    return woken


def _reap(spare: Spare | None) -> Spare | None:
    """Returns the spare keeper, unless that is among those who have ended."""
    try:
        while (ended := os.waitpid(-1, os.WNOHANG)[0]) != 0:
            if spare is not None and ended == spare.pid:
                spare.requests.close()
                spare = None
    except ChildProcessError:
        pass
    return spare
