"""`tepui task exec` end to end: the program itself, as a person or a script uses it, through master and agent."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import termios
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from lab.cluster import MASTER
from tests.cluster import bed, traces
from tests.cluster.bed import Cluster, eventually
from tests.cluster.client import DEADLINE_S, command, run, running, tell, terminal

MIB = 1 << 20
OUTPUT_BYTES = 200 * MIB


@pytest.fixture
def task(cluster: Cluster) -> str:
    cluster.run(bed.command("/box", "echo started; exec sleep 3600", mem=64, env={"WHO": "box"}))
    return next(iter(cluster.await_running("/box", 1)))


def commands_of(cluster: Cluster, task: str) -> list[str]:
    """The cgroups of commands in the task's container."""
    node = cluster.tasks()[task]["node"]
    container = traces.bundle(cluster.lab, node, task).name
    found = Path("/sys/fs/cgroup/pids").glob(f"{cluster.lab.node(node).cgroup}/{container}/exec-*")
    return [path.name for path in found]


def test_output_errors_and_exit_code_are_the_commands(cluster: Cluster, task: str) -> None:
    done = run(cluster, "exec", task, "--", "sh", "-c", "echo out $WHO; echo err >&2; exit 5")
    assert (done.returncode, done.stdout, done.stderr) == (5, b"out box\n", b"err\n")
    done = run(
        cluster, "exec", "-e", "A=1 2", "-w", "/tmp", "-u", "1:2", task, "sh", "-c", 'echo "$A"; pwd; id -u; id -g'
    )
    assert (done.returncode, done.stdout) == (0, b"1 2\n/tmp\n1\n2\n"), done.stderr


def test_everybody_in_a_container_can_look_names_up(cluster: Cluster, task: str) -> None:
    """The agent's umask is nobody's else."""
    address = cluster.tasks()[task]["addresses"][0]
    done = run(cluster, "exec", "-u", "1:2", task, "--", "sh", "-c", "cat /etc/hosts /etc/resolv.conf")
    assert done.returncode == 0 and f"{address} box\n".encode() in done.stdout, done.stderr


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


def test_output_that_is_more_than_memory_is_held_by_nobody(cluster: Cluster, task: str) -> None:
    """Taken as fast as it comes, and by a client that stops for a while."""
    node = cluster.tasks()[task]["node"]
    before = [resident(cluster, MASTER, "master run"), resident(cluster, node, "agent run")]
    with running(cluster, "exec", task, "--", "head", "-c", str(OUTPUT_BYTES), "/dev/zero") as client:
        assert client.stdout is not None
        taken = len(client.stdout.read(MIB))
        bed.stays(lambda: client.poll() is None, "the command waits for its reader", 1.0)
        while part := client.stdout.read(MIB):
            taken += len(part)
        assert (client.wait(DEADLINE_S), taken) == (0, OUTPUT_BYTES)
    after = [resident(cluster, MASTER, "master run"), resident(cluster, node, "agent run")]
    assert all(now - then < 32 * MIB for then, now in zip(before, after, strict=True)), (before, after)


def resident(cluster: Cluster, node: str, daemon: str) -> int:
    """The most that the daemon has had in memory (VmHWM), reset with each question."""
    pid = cluster.lab.exec(node, ["pgrep", "-o", "-f", f"cli.main {daemon}"]).stdout.strip()
    status = cluster.lab.exec(node, ["cat", f"/proc/{pid}/status"]).stdout
    cluster.lab.exec(node, ["sh", "-c", f"echo 5 > /proc/{pid}/clear_refs"])
    return int(dict(line.split(":", 1) for line in status.splitlines())["VmHWM"].split()[0]) * 1024


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
