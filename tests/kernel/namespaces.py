"""Namespaces for tests: one that plays the host (the test itself runs in it) and processes in others.

A namespace is a property of a thread. The thread that runs the test enters the new one and leaves it afterwards, so
everything that the test starts (event loop, threads, subprocesses such as `ip -j`) is in it too.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.patience import PATIENCE

CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MS_SHARED = 1 << 20
COMMAND_DEADLINE_S = 20.0 * PATIENCE

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(operation: str, result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{operation}: {os.strerror(code)}")


def unshare(flags: int) -> None:
    _checked("unshare", _libc.unshare(flags))


def setns(fd: int, kind: int) -> None:
    _checked("setns", _libc.setns(fd, kind))


@contextmanager
def fresh_network() -> Iterator[None]:
    """The calling thread is in a new network namespace, with lo up, until the block ends."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        unshare(CLONE_NEWNET)
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            yield
        finally:
            setns(before, CLONE_NEWNET)
    finally:
        os.close(before)


@contextmanager
def network_of(pid: int) -> Iterator[None]:
    """The calling thread is in the network namespace of `pid` until the block ends."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    target = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(target, CLONE_NEWNET)
        try:
            yield
        finally:
            setns(before, CLONE_NEWNET)
    finally:
        os.close(before)
        os.close(target)


@contextmanager
def fresh_mounts() -> Iterator[None]:
    """The calling thread is in a new mount namespace, from which nothing propagates, until the block ends. In it mounts
    are shared, as they are where systemd runs."""
    before = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    directory = os.getcwd()
    try:
        unshare(CLONE_NEWNS | CLONE_FS)
        try:
            for propagation in (MS_PRIVATE, MS_SHARED):
                _checked("change propagation", _libc.mount(b"none", b"/", None, MS_REC | propagation, None))
            yield
        finally:
            unshare(CLONE_FS)  # threads of the test may share it, and setns refuses a shared one
            setns(before, CLONE_NEWNS)
            os.chdir(directory)
    finally:
        os.close(before)


@dataclass(frozen=True, slots=True)
class NetnsProcess:
    """A process that idles in a network namespace of its own, standing for a container or for another host."""

    process: subprocess.Popen[str]

    @property
    def pid(self) -> int:
        return self.process.pid

    def run(self, *argv: str) -> str:
        """The output of a command in this namespace. Raises CalledProcessError with what it said."""
        return run(*argv, pid=self.pid)

    def ip(self, *argv: str) -> Any:
        return ip(*argv, pid=self.pid)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(COMMAND_DEADLINE_S)


def spawn(*options: str) -> NetnsProcess:
    """Returns when the process is in its namespace. `options` are more of unshare(1)'s."""
    argv = ["unshare", "-n", *options, "sh", "-c", "echo ready; exec sleep infinity"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as stdout:
        assert stdout.readline() == "ready\n"
    return NetnsProcess(process)


def run(*argv: str, pid: int | None = None) -> str:
    """The output of a command, in the namespace of `pid` or in the caller's."""
    prefix = [] if pid is None else ["nsenter", "-t", str(pid), "-n"]
    done = subprocess.run([*prefix, *argv], capture_output=True, text=True, timeout=COMMAND_DEADLINE_S)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def ip(*argv: str, pid: int | None = None) -> Any:
    """`ip -j -d` with these arguments, parsed."""
    return json.loads(run("ip", "-j", "-d", *argv, pid=pid) or "[]")


@dataclass(frozen=True, slots=True)
class Echo:
    """A TCP server in another namespace, for IPv4 and IPv6. It answers each connection with the client's address, a
    newline and then everything that the client sends."""

    process: subprocess.Popen[str]
    port: int

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(COMMAND_DEADLINE_S)


ECHO = """
import socket, socketserver, sys
class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.client_address[0].removeprefix("::ffff:").encode() + b"\\n")
        while data := self.request.recv(65536):
            self.request.sendall(data)
class Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = daemon_threads = True
with Server(("::", int(sys.argv[1])), Echo) as server:
    print("ready", flush=True)
    server.serve_forever()
"""


def echo_server(pid: int, port: int = 8080) -> Echo:
    argv = ["nsenter", "-t", str(pid), "-n", sys.executable, "-I", "-S", "-c", ECHO, str(port)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as stdout:
        assert stdout.readline() == "ready\n"
    return Echo(process, port)


def echo(pid: int | None, address: object, port: int, size: int = 10, deadline_s: float = 3.0) -> str:
    """Connect from the namespace of `pid`, have `size` bytes echoed, and return the address the server saw."""
    if pid is not None:
        with network_of(pid):
            return echo(None, address, port, size, deadline_s)
    with socket.create_connection((str(address), port), timeout=deadline_s) as connection:
        stream = connection.makefile("rwb")
        client = stream.readline().decode().strip()
        stream.write(b"x" * size)
        stream.flush()
        assert stream.read(size) == b"x" * size
        return client
