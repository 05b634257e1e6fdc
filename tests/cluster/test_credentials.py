"""Who is not a member gets nowhere: refused, logged once, and an agent without good credentials waits and says why."""

from __future__ import annotations

import json
import socket
import ssl
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lab import daemons
from lab.cluster import MASTER, Lab
from lab.daemons import ENROL_PORT, TEPUI
from lab.record import Daemon
from pki.authority import Authority
from pki.credentials import CERTIFICATE_FILE, KEY_FILE, save
from pki.identity import Identity, Role
from pki.key import ensure_key, signing_request
from tests.cluster import bed
from tests.cluster.bed import Cluster, eventually, stays

CONTROL_PORT, API_PORT = 8444, 8443
USES = 2
SILENCE_S = 3.0  # several attempts of an agent
CONNECT_DEADLINE_S = 5.0
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"  # RFC 9113 section 3.4
GRPC_CALL = """
import asyncio, sys
from pathlib import Path
import grpc
from pki.credentials import load_credentials
from pki.identity import Role
from wire.control_pb2_grpc import ControlStub
from wire.tls import channel

async def main(target, directory):
    async with channel(target, load_credentials(Path(directory), Role.ADMIN)) as connection:
        try:
            await ControlStub(connection).Session(timeout=5).read()
        except grpc.aio.AioRpcError as error:
            print(error.code().name, error.details())

asyncio.run(main(*sys.argv[1:]))
"""


@dataclass(frozen=True, slots=True)
class Newcomers:
    """A master, and nodes n1 and n2 that have not joined. `token` is good for USES nodes."""

    cluster: Cluster
    token: str

    @property
    def lab(self) -> Lab:
        return self.cluster.lab

    @property
    def authority(self) -> Authority:
        return Authority.load(self.lab.node(MASTER).state / "pki")

    def target(self, port: int) -> tuple[str, int]:
        return str(self.lab.node(MASTER).address), port


@pytest.fixture(scope="module")
def newcomers() -> Iterator[Newcomers]:
    with bed.without_agents(2, USES) as (cluster, token):
        yield Newcomers(cluster, token)


def test_agent_that_was_started_first_waits_says_why_once_and_works_as_soon_as_it_has_joined(
    newcomers: Newcomers,
) -> None:
    lab, node = newcomers.lab, newcomers.lab.node("n1")
    daemons.start_agent(lab, node)
    (line,) = eventually(lambda: complaints(node.log("agent")), "the agent says why it waits")
    assert "is missing" in line["reason"] and "tepui agent join" in line["reason"]
    stays(lambda: len(complaints(node.log("agent"))) == 1, "it says so once", SILENCE_S)
    daemons.join(lab, node, newcomers.token)
    eventually(lambda: newcomers.cluster.connected() == {"n1"}, "n1 is connected")
    newcomers.cluster.run(bed.command("/first", "exec sleep 3600"))
    newcomers.cluster.await_running("/first", 1)
    assert lab.status("n1").daemons["agent"].starts == 1
    assert len(complaints(node.log("agent"))) == 1


def test_agents_with_bad_credentials_wait_and_say_why_once(newcomers: Newcomers, tmp_path: Path) -> None:
    lab, state = newcomers.lab, newcomers.lab.node("n2").state
    foreign, ours = Authority.create(tmp_path / "foreign"), newcomers.authority
    give(state / "foreign", foreign, foreign.pem)
    give(state / "mixed", foreign, ours.pem)
    give(state / "expired", ours, ours.pem, issued=datetime.now(UTC) - timedelta(days=10))
    give(state / "role", ours, ours.pem, role=Role.ADMIN)
    expected = {
        "foreign": "CERTIFICATE_VERIFY_FAILED",
        "mixed": "was issued by another authority",
        "expired": "expired at",
        "role": "not for a role of agent",
    }
    for name in expected:
        start(newcomers, name)
    for name, reason in expected.items():
        log = lab.node("n2").log(name)
        (line,) = eventually(partial(complaints, log), f"the {name} agent says why it waits")
        assert reason in line["reason"], line
    stays(lambda: all(len(complaints(lab.node("n2").log(name))) == 1 for name in expected), "once each", SILENCE_S)
    assert all(daemon.starts == 1 and daemon.pid for daemon in lab.status("n2").daemons.values())
    assert "n2" not in newcomers.cluster.nodes()


def test_control_port_speaks_to_members_with_tls_1_3_only(newcomers: Newcomers, tmp_path: Path) -> None:
    ours, foreign = newcomers.authority, Authority.create(tmp_path / "foreign")
    member = give(tmp_path / "member", ours, ours.pem)
    stranger = give(tmp_path / "stranger", foreign, ours.pem)
    expired = give(tmp_path / "expired", ours, ours.pem, issued=datetime.now(UTC) - timedelta(days=10))
    old = client(member)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    assert greeted(newcomers, client(member))
    for context in client(None), client(stranger), client(expired), old:
        before = handshakes_failed(newcomers)
        assert not greeted(newcomers, context)
        assert handshakes_failed(newcomers) == before + 1


def test_plain_text_gets_no_answer_on_any_port(newcomers: Newcomers) -> None:
    before = handshakes_failed(newcomers)
    for port in API_PORT, CONTROL_PORT, ENROL_PORT:
        answer = newcomers.lab.within("n2", partial(plain, newcomers.target(port), b"GET /ping HTTP/1.1\r\n\r\n"))
        assert b"HTTP" not in answer and b"pong" not in answer
    assert handshakes_failed(newcomers) == before + 1  # gRPC's; the web server does not tell
    assert newcomers.cluster.get("/v2/info")["name"] == "marathon"


def test_certificate_of_another_role_opens_no_session(newcomers: Newcomers) -> None:
    directory = newcomers.lab.node("n2").state / "admin"
    ours = newcomers.authority
    give(directory, ours, ours.pem, role=Role.ADMIN)
    host, port = newcomers.target(CONTROL_PORT)
    argv = [sys.executable, "-c", GRPC_CALL, f"{host}:{port}", str(directory / "pki")]
    assert newcomers.lab.exec("n2", argv).stdout.strip().startswith("PERMISSION_DENIED spiffe://")
    log = newcomers.lab.node(MASTER).log("master")
    assert len([line for line in lines(log) if line["event"] == "call refused"]) == 1


def test_tokens_admit_as_often_as_they_say_and_only_as_they_are(newcomers: Newcomers) -> None:
    master, state = newcomers.lab.node(MASTER), newcomers.lab.node("n2").state
    once = newcomers.cluster.call("POST", "/api/v1/tokens", json={"ttl_s": 60, "uses": 1})["token"]
    wrong = once[:-8] + ("A" * 8 if once[-8:] != "A" * 8 else "B" * 8)
    before = len(refusals(master.log("master")))
    assert "unknown token or wrong secret" in join(newcomers, state / "wrong", wrong)
    assert join(newcomers, state / "first", once) == ""
    complaint = join(newcomers, state / "second", once)
    assert "refused" in complaint and "ask for a new token" in complaint and once.rpartition(".")[2] not in complaint
    assert len(refusals(master.log("master"))) == before + 2
    assert (state / "first/pki" / CERTIFICATE_FILE).exists()
    assert not (state / "wrong/pki" / CERTIFICATE_FILE).exists()
    assert not (state / "second/pki" / CERTIFICATE_FILE).exists()


def give(state: Path, authority: Authority, ca: bytes, role: Role = Role.AGENT, issued: datetime | None = None) -> Path:
    """A certificate for one day, and beside it what its owner takes for the cluster's authority."""
    directory = state / "pki"
    key = ensure_key(directory / KEY_FILE)
    identity = Identity(role, "n2", authority.domain)
    save(directory, authority.issue(signing_request(key), identity, days=1, now=issued), ca)
    return directory


def start(newcomers: Newcomers, name: str) -> None:
    """Another agent on n2, with a state directory of its own."""
    node = newcomers.lab.node("n2")
    state = node.state / name
    host, port = newcomers.target(CONTROL_PORT)
    (state / "agent.toml").write_text(f'master = "{host}:{port}"\n')
    environment = (("TEPUI_AGENT_CGROUP", node.cgroup),)
    newcomers.lab.start("n2", Daemon(name, (*TEPUI, "agent", "run", "--state", str(state)), environment))


def join(newcomers: Newcomers, state: Path, token: str) -> str:
    """What the command complains of."""
    host, port = newcomers.target(ENROL_PORT)
    argv = [*TEPUI, "agent", "join", f"{host}:{port}", "--token", "-", "--name", "n2", "--state", str(state)]
    done = newcomers.lab.exec("n2", argv, stdin=token)
    assert (done.returncode, len(done.stderr.splitlines())) in ((0, 0), (1, 1))
    return done.stderr


def client(directory: Path | None) -> ssl.SSLContext:
    """Trusts any server: what is tested is whom the server trusts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if directory is not None:
        context.load_cert_chain(directory / CERTIFICATE_FILE, directory / KEY_FILE)
    return context


def greeted(newcomers: Newcomers, context: ssl.SSLContext) -> bool:
    """Whether the control port speaks HTTP/2 to the client. With TLS 1.3 a client learns only from what it reads
    afterwards that its certificate was refused (RFC 8446 appendix E.1.2)."""
    return newcomers.lab.within("n2", partial(_greeted, newcomers.target(CONTROL_PORT), context))


def _greeted(target: tuple[str, int], context: ssl.SSLContext) -> bool:
    try:
        with (
            socket.create_connection(target, CONNECT_DEADLINE_S) as connection,
            context.wrap_socket(connection) as secured,
        ):
            secured.sendall(PREFACE)
            return secured.recv(1) != b""
    except (ssl.SSLError, ConnectionError):
        return False


def plain(target: tuple[str, int], request: bytes) -> bytes:
    """What comes back until the server closes the connection."""
    answer = b""
    with socket.create_connection(target, CONNECT_DEADLINE_S) as connection:
        connection.sendall(request)
        try:
            while part := connection.recv(4096):
                answer += part
        except ConnectionError:
            return answer
    return answer


def lines(log: Path) -> list[dict[str, Any]]:
    """The daemon's events."""
    text = log.read_text() if log.exists() else ""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def complaints(log: Path) -> list[dict[str, Any]]:
    return [line for line in lines(log) if line["level"] in ("warning", "error")]


def handshakes_failed(newcomers: Newcomers) -> int:
    """At the control port, as gRPC tells in the master's log."""
    return newcomers.lab.node(MASTER).log("master").read_text().count("Handshake failed")


def refusals(log: Path) -> list[dict[str, Any]]:
    return [line for line in lines(log) if line["event"] == "enrolment refused"]
