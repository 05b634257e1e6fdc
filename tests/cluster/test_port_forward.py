"""`tepui task port-forward` and `tepui task attach`, end to end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from lab.cluster import MASTER
from tests.cluster import bed
from tests.cluster.bed import Cluster, eventually
from tests.cluster.client import DEADLINE_S, command, run, running, tell, terminal

MIB = 1 << 20
PORT = 9000

# Answers what it was sent, once its client has sent all; on the loopback of the container alone.
SERVER = """
import socketserver
class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.read())
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
with Server(("127.0.0.1", 9000), Echo) as server:
    print("ready", flush=True)
    server.serve_forever()
"""


def server(cluster: Cluster) -> str:
    argv = ["/usr/bin/python3", "-c", SERVER]
    cluster.run(bed.app_json("/echo", args=argv, cpus=0.5, mem=64))
    (task,) = cluster.await_running("/echo", 1)
    eventually(lambda: cluster.log_of(task) == "ready\n", "the server is ready")
    return task


@contextmanager
def forwarded(cluster: Cluster, task: str, port: int) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    with running(cluster, "port-forward", task, f"0:{port}") as client:
        assert client.stdout is not None
        line = client.stdout.readline().decode()
        yield client, int(line.partition(" ")[0].rpartition(":")[2])


def exchange(port: int, data: bytes) -> bytes:
    """What comes back for it, with the two directions closed one after the other."""
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as answer:
            return answer.read()


def test_connections_reach_the_tasks_own_loopback_and_close_one_way_at_a_time(cluster: Cluster) -> None:
    task = server(cluster)
    data = os.urandom(5 * MIB)
    with forwarded(cluster, task, 9000) as (_, port):
        for sent in (b"", b"hello", data):
            assert cluster.lab.within(MASTER, partial(exchange, port, sent)) == sent


def test_a_port_at_which_nobody_listens(cluster: Cluster) -> None:
    task = server(cluster)
    with forwarded(cluster, task, 9001) as (client, port):
        answer = cluster.lab.within(MASTER, partial(refused, port))
        assert answer
        assert client.stderr is not None
        assert b"port 9001 of echo" in (line := client.stderr.readline()) and b"Connection refused" in line
        assert client.poll() is None


def refused(port: int) -> bool:
    try:
        return exchange(port, b"x") == b""
    except ConnectionResetError:
        return True


def test_a_connection_ends_with_the_client_and_with_the_task(cluster: Cluster) -> None:
    task = server(cluster)
    for end in ("client", "task"):
        with forwarded(cluster, task, 9000) as (client, port):
            connect = partial(socket.create_connection, ("127.0.0.1", port), DEADLINE_S)
            with cluster.lab.within(MASTER, connect) as connection:
                connection.sendall(b"some")
                eventually(lambda: established(cluster, task) == 1, "the connection is there")
                if end == "client":
                    client.kill()
                else:
                    cluster.remove("/echo")
                assert closed(connection)
        if end == "client":
            eventually(lambda: established(cluster, task) == 0, "the connection is gone")


def established(cluster: Cluster, task: str) -> int:
    """Connections that the server has, as its container sees them (proc_net_tcp.rst: 01 is ESTABLISHED)."""
    done = run(cluster, "exec", task, "--", "cat", "/proc/net/tcp")
    rows = [line.split() for line in done.stdout.decode().splitlines()[1:]]
    return sum(row[1].endswith(f":{PORT:04X}") and row[3] == "01" for row in rows)


def closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_ports_that_can_not_be(cluster: Cluster) -> None:
    for port in ("x", "1:0", "1:65536", "70000:1"):
        done = run(cluster, "port-forward", "echo", port)
        assert done.returncode == 1 and b"must be LOCAL:REMOTE" in done.stderr


def test_attach_shows_both_streams_from_now_on_until_the_task_ends(cluster: Cluster) -> None:
    # It stays until the command has ended that tells it to go, which would be killed with it.
    script = "echo before; while test ! -e /tmp/go; do sleep 0.05; done; echo out; echo err >&2; sleep 2"
    cluster.run(bed.command("/talk", script))
    (task,) = cluster.await_running("/talk", 1)
    eventually(lambda: cluster.log_of(task) == "before\n", "it has begun")
    with running(cluster, "attach", task) as client:
        eventually(lambda: "attach" in audit(cluster), "the client is attached")
        assert run(cluster, "exec", task, "--", "touch", "/tmp/go").returncode == 0
        out, err = client.communicate(timeout=DEADLINE_S)
        assert (client.returncode, out, err) == (0, b"out\n", b"err\n")


def test_attach_is_left_by_keys_and_the_task_goes_on(cluster: Cluster) -> None:
    cluster.run(bed.command("/ticks", "while :; do echo tick; sleep 0.1; done"))
    (task,) = cluster.await_running("/ticks", 1)
    for leave in (lambda shown: shown.type("\x10\x11"), lambda shown: tell(shown.process, signal.SIGINT)):
        with terminal(command(cluster, "attach", task)) as shown:
            shown.expect("tick")
            leave(shown)
            assert shown.process.wait(DEADLINE_S) == 0
            assert termios.tcgetattr(shown.master) == shown.before
    assert task in cluster.running("/ticks")


def audit(cluster: Cluster) -> str:
    log = cluster.lab.node(MASTER).log("master").read_text()
    return "\n".join(line for line in log.splitlines() if '"event": "audit"' in line)


def test_who_did_what_is_in_the_masters_log(cluster: Cluster) -> None:
    task = server(cluster)
    run(cluster, "exec", task, "--", "true", "mark-of-this-test")
    (line,) = [line for line in audit(cluster).splitlines() if "mark-of-this-test" in line]
    for part in ('"what": "exec"', '"who": "admin"', f'"task": "{task}"', '"command": ["true", "mark-of-this-test"]'):
        assert part in line
