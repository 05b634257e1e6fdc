"""The fork server: reads requests from the agent, forks a keeper for each, reaps keepers. It ends with the agent.

A request is one packet with one socket, on which the answer goes, so that requests never wait for one another:

    {"op": "create", "bundle": DIR, "stdout": FILE, "stderr": FILE}    see keeper.py
    {"op": "userns", "base": B, "count": N}                            answered here, with a descriptor

One thread, no state. What Python has loaded is frozen before the first fork: a garbage collection in a keeper would
write to every object's header, and so copy pages that all keepers share.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket

from agent.launcher import keeper, record
from agent.launcher import syscalls as sc
from agent.launcher.channel import MAX_MESSAGE, Message, decode, failed, pair, send

TITLE = b"tepui-launcher"


def serve(agent: socket.socket) -> None:
    """Until the agent's end of the socket closes."""
    sc.prctl(sc.PR_SET_NAME, TITLE)
    woken = _wake_on_child()
    record.boot_id()  # read once, for all keepers
    gc.disable()
    gc.freeze()
    poll = select.poll()
    poll.register(agent, select.POLLIN)
    poll.register(woken, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if woken.fileno() in ready:
            woken.recv(MAX_MESSAGE)
            _reap()
        if agent.fileno() in ready and not _serve_one(agent):
            return


def _serve_one(agent: socket.socket) -> bool:
    packet, descriptors, _, _ = socket.recv_fds(agent, MAX_MESSAGE, 1)
    request = decode(packet)
    if request is None:
        return False
    with socket.socket(fileno=descriptors[0]) as answer:
        if request["op"] == "create":
            _fork_keeper(request, answer)
        else:
            _answer_userns(request, answer)
    return True


def _fork_keeper(request: Message, answer: socket.socket) -> None:
    try:
        pid = os.fork()
    except OSError as error:
        send(answer, failed("fork keeper", error).message())
        return
    if pid == 0:
        keeper.run(request, answer)


def _answer_userns(request: Message, answer: socket.socket) -> None:
    try:
        descriptor = make_userns(request["base"], request["count"])
    except OSError as error:
        send(answer, failed("make user namespace", error).message())
        return
    socket.send_fds(answer, [b'{"event": "userns"}'], [descriptor])
    os.close(descriptor)


def make_userns(base: int, count: int) -> int:
    """A user namespace without processes: the one that was its first is gone when this returns."""
    ours, theirs = pair()
    pid, pidfd = sc.clone3(sc.CLONE_NEWUSER)
    if pid == 0:
        ours.close()
        theirs.recv(1)
        os._exit(0)
    try:
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{pid}/{name}", "w", encoding="ascii") as file:
                file.write(f"0 {base} {count}")
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        theirs.close()
        ours.close()
        os.waitpid(pid, 0)
        os.close(pidfd)


def _wake_on_child() -> socket.socket:
    """A socket that becomes readable with each SIGCHLD: poll can't miss it, whenever it comes."""
    woken, waker = socket.socketpair()
    for end in (woken, waker):
        end.setblocking(False)
    signal.set_wakeup_fd(waker.detach(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    return woken


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return
