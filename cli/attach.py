"""`tepui task attach`: what a task writes from now on, as it writes it. Ctrl-C, or Ctrl-P Ctrl-Q, leaves."""

from __future__ import annotations

import os
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from cli.channel import STDERR, Channel, opened
from cli.client import Client
from cli.problem import Problem

DETACH = b"\x10\x11"


def attach(client: Client, task: str) -> None:
    """Until the task has ended, or the person leaves."""
    with opened(client, f"/api/v1/tasks/{task}/attach", {}) as channel, _keys() as keyboard:
        left = threading.Event()
        if keyboard is not None:
            threading.Thread(target=_leave_on_keys, args=(keyboard, channel, left), daemon=True).start()
        try:
            _print(channel, left)
        except KeyboardInterrupt:
            return


def _print(channel: Channel, left: threading.Event) -> None:
    try:
        for message in channel.messages():
            if isinstance(message, tuple):
                out = sys.stderr if message[0] == STDERR else sys.stdout
                out.buffer.write(message[1])
                out.buffer.flush()
    except Problem:
        if not left.is_set():
            raise


@contextmanager
def _keys() -> Iterator[int | None]:
    """A terminal that gives each key as it is pressed, if there is one; as it was afterwards."""
    descriptor = sys.stdin.fileno()
    if not os.isatty(descriptor):
        yield None
        return
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor, termios.TCSANOW)
        _let_flow_keys_through(descriptor)
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)


def _let_flow_keys_through(descriptor: int) -> None:
    """Ctrl-Q is one."""
    mode = termios.tcgetattr(descriptor)
    mode[tty.IFLAG] &= ~termios.IXON
    termios.tcsetattr(descriptor, termios.TCSANOW, mode)


def _leave_on_keys(keyboard: int, channel: Channel, left: threading.Event) -> None:
    typed = b""
    while not typed.endswith(DETACH):
        if not (key := os.read(keyboard, 1)):
            return
        typed = (typed + key)[-len(DETACH) :]
    left.set()
    channel.close()
