"""The person's terminal while it belongs to a command elsewhere. Every key goes there; afterwards it is as it was."""

from __future__ import annotations

import os
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

FATAL = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class Ended(Exception):
    """By a signal to this program."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def raw(descriptor: int) -> Iterator[None]:
    """Also when the block ends by an error, or by a signal that would end the program (Ended)."""
    before = termios.tcgetattr(descriptor)
    handlers = {number: signal.signal(number, _end) for number in FATAL}
    try:
        tty.setraw(descriptor, termios.TCSAFLUSH)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def size() -> dict[str, int]:
    """As the API has it. Nothing is known of a terminal that is none."""
    try:
        found = os.get_terminal_size(sys.stdin.fileno())
    except OSError:
        return {"rows": 24, "columns": 80}
    return {"rows": found.lines, "columns": found.columns}


def _end(number: int, frame: FrameType | None) -> None:
    raise Ended(number)
