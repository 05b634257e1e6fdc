"""`tepui task exec` end to end: the program itself, as a person or a script uses it, through master and agent."""

from __future__ import annotations

import fcntl
import hashlib
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
from functools import partial
from pathlib import Path

import pytest

from lab.cluster import MASTER
from lab.daemons import TEPUI, admin_file
from tests.cluster import bed
from tests.cluster.bed import Cluster, eventually

DEADLINE_S = 30.0
MIB = 1 << 20


@pytest.fixture
def task(cluster: Cluster) -> str:
    cluster.run(bed.command("/box", "echo started; exec sleep 3600", mem=64, env={"WHO": "box"}))
    return next(iter(cluster.await_running("/box", 1)))


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


def commands_of(cluster: Cluster, task: str) -> list[str]:
    """The cgroups of commands in the task's container."""
    node = cluster.lab.node(cluster.tasks()[task]["node"])
    found = Path("/sys/fs/cgroup/pids").glob(f"{node.cgroup}/{task}/exec-*")
    return [path.name for path in found]


def test_output_errors_and_exit_code_are_the_commands(cluster: Cluster, task: str) -> None:
    done = run(cluster, "exec", task, "--", "sh", "-c", "echo out $WHO; echo err >&2; exit 5")
    assert (done.returncode, done.stdout, done.stderr) == (5, b"out box\n", b"err\n")
    done = run(
        cluster, "exec", "-e", "A=1 2", "-w", "/tmp", "-u", "1:2", task, "sh", "-c", 'echo "$A"; pwd; id -u; id -g'
    )
    assert (done.returncode, done.stdout) == (0, b"1 2\n/tmp\n1\n2\n"), done.stderr


def test_bytes_go_through_unchanged_both_ways(cluster: Cluster, task: str) -> None:
    data = os.urandom(10 * MIB)
    done = run(cluster, "exec", "-i", task, "--", "cat", data=data)
    assert (done.returncode, done.stderr, len(done.stdout)) == (0, b"", len(data))
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()


def test_input_is_passed_on_only_when_asked_for(cluster: Cluster, task: str) -> None:
    assert run(cluster, "exec", task, "--", "cat", data=b"not this").stdout == b""


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (("missing",), 127, b"execute: missing: No such file or directory"),
        (("/etc/passwd",), 126, b"execute: /etc/passwd: Permission denied"),
        (("sh", "-c", "kill -9 $$"), 137, b""),
    ],
)
def test_exit_codes_are_those_of_a_shell(
    cluster: Cluster, task: str, argv: Sequence[str], code: int, text: bytes
) -> None:
    done = run(cluster, "exec", task, "--", *argv)
    assert done.returncode == code and text in done.stderr


def test_what_can_not_be_asked_for_has_its_reason(cluster: Cluster, task: str) -> None:
    done = run(cluster, "exec", "nothing", "--", "true")
    assert (done.returncode, done.stderr) == (1, b"tepui: Task 'nothing' does not exist\n")
    done = run(cluster, "exec", "-t", task, "--", "true")
    assert (done.returncode, done.stderr) == (1, b"tepui: -t needs a terminal, and standard input is none\n")
    done = run(cluster, "exec", task, "--", "echo", "x" * 50_000)
    assert done.returncode == 1 and b"longer than 32768 bytes" in done.stderr


def test_a_shell_on_a_terminal(cluster: Cluster, task: str) -> None:
    with terminal(command(cluster, "exec", "-it", task, "--", "sh")) as shell:
        shell.expect("# ")
        shell.type("tty; stty size; echo $((6 * 7))\n")
        shell.expect("/dev/pts/0")
        shell.expect("30 100")
        shell.expect("42")
        shell.resize(50, 132)
        tell(shell.process, signal.SIGWINCH)
        shell.type("while [ \"$(stty size)\" != '50 132' ]; do sleep 0.05; done; echo re''sized\n")
        shell.expect("resized")
        shell.type("sleep 1000\n")
        shell.expect("sleep 1000")
        shell.type("\x03")
        shell.expect("# ")
        shell.type("exit 3\n")
        assert shell.process.wait(DEADLINE_S) == 3
        assert termios.tcgetattr(shell.master) == shell.before
    assert commands_of(cluster, task) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_terminal_is_restored_when_the_client_is_told_to_end(
    cluster: Cluster, task: str, number: signal.Signals
) -> None:
    with terminal(
        command(cluster, "exec", "-it", task, "--", "sh", "-c", "trap '' HUP; echo ready; sleep 1000")
    ) as shell:
        shell.expect("ready")
        assert termios.tcgetattr(shell.master) != shell.before
        tell(shell.process, number)
        assert shell.process.wait(DEADLINE_S) == 128 + number
        assert termios.tcgetattr(shell.master) == shell.before
    eventually(lambda: not commands_of(cluster, task), "the command has ended")


@pytest.mark.parametrize("script", ["sleep 1000", "trap '' HUP TERM INT; while :; do sleep 1; done", "cat /dev/zero"])
def test_a_client_that_is_killed_takes_the_command_along_and_not_the_task(
    cluster: Cluster, task: str, script: str
) -> None:
    before = cluster.tasks()
    with running(cluster, "exec", task, "--", "sh", "-c", f"echo ready; {script}") as client:
        assert client.stdout is not None and client.stdout.read(6) == b"ready\n"
        assert len(commands_of(cluster, task)) == 1
    eventually(lambda: not commands_of(cluster, task), "the command has ended")
    assert bed.same(before, cluster.tasks())


def test_signals_to_the_client_reach_the_command(cluster: Cluster, task: str) -> None:
    script = "trap 'echo told; exit 9' TERM; echo ready; while :; do sleep 0.05; done"
    with running(cluster, "exec", task, "--", "sh", "-c", script) as client:
        assert client.stdout is not None and client.stdout.read(6) == b"ready\n"
        tell(client, signal.SIGTERM)
        assert client.stdout.read() == b"told\n"
        assert client.wait(DEADLINE_S) == 9


def test_a_client_whose_command_does_not_read_can_be_ended(cluster: Cluster, task: str) -> None:
    with running(cluster, "exec", "-i", task, "--", "sh", "-c", "trap '' TERM; echo ready; sleep 1000") as client:
        assert client.stdout is not None and client.stdin is not None and client.stdout.read(6) == b"ready\n"
        os.set_blocking(client.stdin.fileno(), False)
        with suppress(BlockingIOError):
            while True:
                os.write(client.stdin.fileno(), bytes(65536))
        for _ in range(2):
            tell(client, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                client.wait(1)
        assert client.wait(DEADLINE_S) == 128 + signal.SIGTERM
    eventually(lambda: not commands_of(cluster, task), "the command has ended")


def test_commands_end_with_the_agent_and_the_master(cluster: Cluster, task: str) -> None:
    node = cluster.tasks()[task]["node"]
    for name, daemon in ((node, "agent"), (MASTER, "master")):
        with running(cluster, "exec", task, "--", "sh", "-c", "echo ready; sleep 1000") as client:
            assert client.stdout is not None and client.stdout.read(6) == b"ready\n"
            cluster.lab.kill_daemon(name, daemon)
            assert client.wait(DEADLINE_S) == 1
        eventually(partial(lambda: cluster.connected() >= {node}), f"{node} is back")
        eventually(lambda: not commands_of(cluster, task), "the command has ended")
    assert task in cluster.await_running("/box", 1)
