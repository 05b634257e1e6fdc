"""`tepui task exec`: a command in a task's container, with this program's streams or terminal for its own.

The main thread writes what comes. A second one reads what there is to send: input, and the signals and sizes that the
first one is told of by the kernel, through a socket that the interpreter writes their numbers to.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

from cli import terminal
from cli.channel import CHUNK_BYTES, STDERR, Channel, opened
from cli.client import Client
from cli.problem import Problem
from cli.terminal import Ended

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
ROOM = 0  # no signal has this number


def execute(client: Client, task: str, request: dict[str, Any], with_terminal: bool) -> int:
    """The command's exit code. `request` is that of master/rest/streams.py, without the terminal."""
    if with_terminal and not os.isatty(sys.stdin.fileno()):
        raise Problem("-t needs a terminal, and standard input is none")
    if with_terminal:
        request = {**request, "terminal": terminal.size()}
    try:
        with ExitStack() as stack:
            channel = stack.enter_context(opened(client, f"/api/v1/tasks/{task}/exec", request))
            signals = stack.enter_context(_told((signal.SIGWINCH,) if with_terminal else FORWARDED, channel))
            if with_terminal:
                stack.enter_context(terminal.raw(sys.stdin.fileno()))
            source = sys.stdin.fileno() if request["stdin"] else None
            threading.Thread(target=_send, args=(channel, source, signals), daemon=True).start()
            return _receive(channel)
    except Ended as ended:
        return 128 + ended.number
    except BrokenPipeError:  # nobody reads our output any more
        return 128 + signal.SIGPIPE


def _receive(channel: Channel) -> int:
    code = None
    for message in channel.messages():
        if isinstance(message, tuple):
            stream, data = message
            _write(2 if stream == STDERR else 1, data)
        else:
            code = message.get("exit", code)
    if code is None:
        raise Problem("the command's exit code is lost")
    return int(code)


def _write(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def _send(channel: Channel, source: int | None, signals: socket.socket) -> None:
    """Until the program ends."""
    while True:
        wanted = [signals.fileno()]
        if source is not None and channel.has_room:
            wanted.append(source)
        ready, _, _ = select.select(wanted, [], [])
        if signals.fileno() in ready:
            _tell(channel, signals.recv(1)[0])
        elif source is not None and (data := os.read(source, CHUNK_BYTES)):
            channel.feed(data)
        else:
            source = None
            channel.tell(eof=True)


def _tell(channel: Channel, number: int) -> None:
    if number == signal.SIGWINCH:
        channel.tell(resize=terminal.size())
    elif number != ROOM:
        channel.tell(signal=number)


@contextmanager
def _told(numbers: Sequence[int], channel: Channel) -> Iterator[socket.socket]:
    """A socket that the numbers of these signals can be read from as they come, and ROOM when there is some."""
    told, tell = socket.socketpair()
    tell.setblocking(False)
    before = signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)
    handlers = {number: signal.signal(number, _Once()) for number in numbers}
    channel.when_room(lambda: tell.send(bytes((ROOM,))))
    try:
        yield told
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


class _Once:
    """A signal goes to the command; the same one again means this program, should the command not heed it."""

    def __init__(self) -> None:
        self._seen = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._seen and number != signal.SIGWINCH:
            raise Ended(number)
        self._seen = True
