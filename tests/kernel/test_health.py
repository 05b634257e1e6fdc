"""Health checks over real sockets, from inside a container's network namespace, of servers of every kind."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.commands import Commands
from agent.containers import Containers, Directories
from agent.health.http import BODY_BYTES, RESPONSE_BYTES
from agent.health.probe import Failed, Ignored, NoResult, Outcome, Passed, Prober, Target
from agent.launcher import record
from agent.launcher.client import Launcher
from isolators.base import Container, Sandbox
from model.health import HealthCheck, ProbeKind, ReadinessCheck
from tests.kernel.namespaces import NetnsProcess
from tests.kernel.sandbox import task, until

pytestmark = pytest.mark.anyio
PORT = 8080
IN_TIME_S = 0.3
UNUSED = Container(task("web.1"), Sandbox("c-web.1", Path("/nowhere"), Path("/nowhere"), 0, "none"))

# Says on its output that it listens. What it does with a connection is the first argument.
SERVER = """
import socket, ssl, sys, time
kind, address, port, certificate = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
listener = socket.socket(family, socket.SOCK_STREAM)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((address, port))
listener.listen(16)
context = None
if certificate:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
print("listening", flush=True)
while True:
    connection, _ = listener.accept()
    try:
        if context:
            connection = context.wrap_socket(connection, server_side=True)
        if kind == "silent":
            held = globals().setdefault("held", [])
            held.append(connection)
            continue
        request = connection.recv(4096)
        if kind == "echo":
            connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Type: text/plain\\r\\n\\r\\n" + request)
        elif kind.isdigit():
            connection.sendall(f"HTTP/1.1 {kind} Word\\r\\nContent-Length: 0\\r\\n\\r\\n".encode())
        elif kind == "interim":
            connection.sendall(b"HTTP/1.1 102 Processing\\r\\n\\r\\n")
        elif kind == "early":
            connection.sendall(b"HTTP/1.1 103 Early Hints\\r\\n\\r\\nHTTP/1.1 200 OK\\r\\n\\r\\n")
        elif kind == "garbage":
            connection.sendall(bytes(range(256)) * 4)
        elif kind == "headers":
            connection.sendall(b"HTTP/1.1 200 OK\\r\\n")
            while True:
                connection.sendall(b"X-More: " + b"x" * 1000 + b"\\r\\n")
        elif kind == "interims":
            while True:
                connection.sendall(b"HTTP/1.1 100 Continue\\r\\n\\r\\n" * 100)
        elif kind == "body":
            connection.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\n")
            while True:
                connection.sendall(b"x" * 65536)
        elif kind == "trickle":
            for byte in b"HTTP/1.1 200 OK\\r\\n" * 1000:
                connection.sendall(bytes([byte]))
                time.sleep(0.01)
    except OSError:
        pass
    if kind != "silent":
        connection.close()
"""

Serve = Callable[..., None]


@pytest.fixture
def container(spawn: Callable[..., NetnsProcess]) -> NetnsProcess:
    process = spawn()
    process.run("ip", "link", "set", "lo", "up")
    return process


@pytest.fixture
def serve(container: NetnsProcess) -> Iterator[Serve]:
    """Starts a server in the container's namespace; it ends with the test."""
    with ExitStack() as stack:

        def start(kind: str, address: str = "127.0.0.1", certificate: Path | None = None) -> None:
            argv = ["nsenter", "-t", str(container.pid), "-n", sys.executable, "-I", "-S", "-c", SERVER]
            argv += [kind, address, str(PORT), str(certificate or "")]
            process = stack.enter_context(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True))
            stack.callback(process.kill)
            assert process.stdout is not None and process.stdout.readline() == "listening\n"

        yield start


def target(container: NetnsProcess, *addresses: str) -> Target:
    process = record.identify(container.pid)
    assert process is not None
    return Target(UNUSED, process, addresses)


def prober() -> Prober:
    """Of sockets: what runs commands is not asked for any."""
    return Prober(Commands(Containers(Directories(Path("/nowhere")), (), Launcher()), Launcher()))


def check(kind: ProbeKind = ProbeKind.HTTP, **fields: object) -> HealthCheck:
    return HealthCheck(kind, **{"port": PORT, "timeout_s": IN_TIME_S, **fields})  # type: ignore[arg-type]


def cause(outcome: Outcome) -> str:
    assert isinstance(outcome, Failed)
    return outcome.cause


async def outcome(container: NetnsProcess, wanted: HealthCheck) -> Outcome:
    """In time, and with nothing left open."""
    before, began = open_files(), time.monotonic()
    found = await prober().check(target(container), wanted)
    assert time.monotonic() - began < wanted.timeout_s + 2
    await until(lambda: open_files() <= before, "nothing is left open")
    return found


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_http_that_is_well(container: NetnsProcess, serve: Serve) -> None:
    serve("echo")
    assert isinstance(await outcome(container, check(path="/health?deep=1")), Passed)


async def test_what_is_asked(container: NetnsProcess, serve: Serve) -> None:
    serve("echo")
    ready = ReadinessCheck("ready", ProbeKind.HTTP, PORT, "/health?deep=1", keep_response=True)
    answer = await prober().ask(target(container), ready)
    assert (answer.ready, answer.status, answer.content_type, answer.cause) == (True, 200, "text/plain", "")
    assert answer.body.startswith("GET /health?deep=1 HTTP/1.1\r\nHost: 127.0.0.1\r\n")


@pytest.mark.parametrize(
    ("kind", "result"),
    [
        ("200", ""),
        ("204", ""),
        ("302", ""),
        ("399", ""),
        ("400", "HTTP status 400"),
        ("503", "HTTP status 503"),
        ("early", ""),
        ("interim", "HTTP status 102"),
        ("garbage", "not HTTP"),
        ("headers", "not HTTP"),
        ("interims", f"no answer within {RESPONSE_BYTES} bytes"),
        ("body", ""),
        ("silent", f"no answer within {IN_TIME_S} s"),
        ("trickle", f"no answer within {IN_TIME_S} s"),
    ],
)
async def test_what_an_answer_means(container: NetnsProcess, serve: Serve, kind: str, result: str) -> None:
    serve(kind)
    found = await outcome(container, check())
    assert isinstance(found, Passed) if not result else result in cause(found)


async def test_an_interim_answer_may_be_overlooked(container: NetnsProcess, serve: Serve) -> None:
    serve("interim")
    assert isinstance(await outcome(container, check(ignore_1xx=True)), Ignored)


async def test_nobody_listens(container: NetnsProcess) -> None:
    for kind in ProbeKind.HTTP, ProbeKind.HTTPS, ProbeKind.TCP:
        assert cause(await outcome(container, check(kind))) == "Connection refused"


async def test_tcp_asks_for_nothing_but_a_connection(container: NetnsProcess, serve: Serve) -> None:
    serve("silent")
    assert isinstance(await outcome(container, check(ProbeKind.TCP)), Passed)


async def test_tls_with_any_certificate(container: NetnsProcess, serve: Serve, tmp_path: Path) -> None:
    serve("200", certificate=certificate(tmp_path))
    assert isinstance(await outcome(container, check(ProbeKind.HTTPS)), Passed)


async def test_tls_that_is_none(container: NetnsProcess, serve: Serve) -> None:
    serve("garbage")
    assert cause(await outcome(container, check(ProbeKind.HTTPS))).startswith("TLS: ")


async def test_tls_that_does_not_answer(container: NetnsProcess, serve: Serve) -> None:
    serve("silent")
    assert cause(await outcome(container, check(ProbeKind.HTTPS))) == f"no answer within {IN_TIME_S} s"


async def test_the_address_that_others_use(container: NetnsProcess, serve: Serve) -> None:
    """What listens there only is not reached by loopback, and the other way round."""
    container.run("ip", "address", "add", "100.64.0.2/32", "dev", "lo")
    serve("200", "100.64.0.2")
    asker, at = prober(), target(container, "100.64.0.2")
    assert isinstance(await asker.check(at, check(own_address=True)), Passed)
    assert cause(await asker.check(at, check())) == "Connection refused"


async def test_ipv6(container: NetnsProcess, serve: Serve) -> None:
    serve("200", "::1")
    assert isinstance(await outcome(container, check(ipv6=True)), Passed)
    assert cause(await outcome(container, check())) == "Connection refused"


async def test_a_body_is_kept_only_so_far(container: NetnsProcess, serve: Serve) -> None:
    serve("body")
    ready = ReadinessCheck("ready", ProbeKind.HTTP, PORT, timeout_s=2.0, keep_response=True)
    assert len((await prober().ask(target(container), ready)).body) == BODY_BYTES


@pytest.mark.parametrize(("kind", "ready"), [("200", False), ("503", True)])
async def test_which_answers_mean_ready(container: NetnsProcess, serve: Serve, kind: str, ready: bool) -> None:
    serve(kind)
    wanted = ReadinessCheck("ready", ProbeKind.HTTP, PORT, ready_codes=(503, 418))
    answer = await prober().ask(target(container), wanted)
    assert (answer.ready, answer.status) == (ready, int(kind))


async def test_a_container_that_ended_is_not_ill(container: NetnsProcess) -> None:
    """Also not when another process has its pid by now."""
    gone = target(container)
    container.stop()
    with pytest.raises(NoResult):
        await prober().check(gone, check())
    reused = Target(UNUSED, record.Identity(os.getpid(), gone.process.start))
    with pytest.raises(NoResult, match="has ended"):
        await prober().check(reused, check())


async def test_a_deadline_that_was_noticed_late_says_nothing(container: NetnsProcess, serve: Serve) -> None:
    serve("silent")
    asking = asyncio.create_task(prober().check(target(container), check()))
    await asyncio.sleep(IN_TIME_S / 3)
    time.sleep(IN_TIME_S + 1)  # noqa: ASYNC251 - as a machine without time for this process would
    with pytest.raises(NoResult, match="late"):
        await asking


async def test_hundreds_at_once_need_few_threads(container: NetnsProcess, serve: Serve) -> None:
    serve("200")
    asker, at = prober(), target(container)
    most = 0

    async def count() -> None:
        nonlocal most
        while True:
            most = max(most, len(os.listdir("/proc/self/task")))
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    before = len(os.listdir("/proc/self/task"))
    asked: list[Awaitable[Outcome]] = [asker.check(at, check(timeout_s=20.0)) for _ in range(300)]
    assert all(isinstance(found, Passed) for found in await asyncio.gather(*asked))
    counting.cancel()
    assert most - before <= 16


def certificate(directory: Path) -> Path:
    """Of nobody, for another name, and long expired."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "elsewhere")])
    long_ago = datetime(2001, 1, 1, tzinfo=UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, long_ago, long_ago + timedelta(days=1))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = directory / "server.pem"
    path.write_bytes(private + made)
    return path
