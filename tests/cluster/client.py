"""`tepui task ...` as a person or a script uses it: the program itself, on the master's node, with pipes or a
terminal.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from lab.cluster import MASTER
from lab.daemons import TEPUI, admin_file
from tests.cluster.bed import Cluster

DEADLINE_S = 30.0


def command(cluster: Cluster, *arguments: str) -> list[str]:
    return cluster.lab.command(MASTER, [*TEPUI, "task", *arguments], {"TEPUI_ADMIN": str(admin_file(cluster.lab))})


def run(cluster: Cluster, *arguments: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command(cluster, *arguments), input=data, capture_output=True, timeout=DEADLINE_S)


@contextmanager
def running(cluster: Cluster, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    argv = command(cluster, *arguments)
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


class Terminal:
    """A person's, with a program on it."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.master, slave = pty.openpty()
        self.resize(30, 100)
        self.before = termios.tcgetattr(self.master)
        self.process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)
        self.text = ""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def expect(self, text: str) -> None:
        """Reads until it is there, and forgets everything up to there."""
        end = time.monotonic() + DEADLINE_S
        while text not in self.text:
            ready, _, _ = select.select([self.master], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{text!r} has not come: {self.text!r}"
            with suppress(OSError):
                self.text += os.read(self.master, 65536).decode(errors="replace")
        self.text = self.text.partition(text)[2]

    def close(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)
        os.close(self.master)


@contextmanager
def terminal(argv: Sequence[str]) -> Iterator[Terminal]:
    made = Terminal(argv)
    try:
        yield made
    finally:
        made.close()


def tell(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """The client itself, which is a child of what puts it on its node."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), number)
