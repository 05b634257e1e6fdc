"""Certificates renewed over the wire and in place: who gets one, for whom, and what an open port shows afterwards."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import grpc.aio
import pytest
from cryptography import x509

from agent import renewal
from cli.master_daemon import MasterCredentials
from master.certificates import Certificates
from pki.authority import Authority
from pki.credentials import Credentials, issue_to, load_credentials
from pki.identity import Identity, Role
from tests.unit.cluster import until
from wire import control_pb2 as pb
from wire.control_pb2_grpc import CertificatesStub, add_CertificatesServicer_to_server
from wire.tls import SERVER_OPTIONS, channel, server_credentials

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("one_loop")]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "ca")


@pytest.fixture
async def target(tmp_path: Path, authority: Authority) -> AsyncIterator[str]:
    """A master that renews certificates."""
    credentials = issue_to(tmp_path / "master", authority, Identity(Role.MASTER, "m1"))
    async with listening(authority, lambda: credentials) as address:
        yield address


@asynccontextmanager
async def listening(authority: Authority, current: Callable[[], Credentials]) -> AsyncIterator[str]:
    server = grpc.aio.server(options=SERVER_OPTIONS)
    add_CertificatesServicer_to_server(Certificates(authority), server)
    port = server.add_secure_port("127.0.0.1:0", server_credentials(current))
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(grace=None)


def joined(directory: Path, authority: Authority, days: float = 90.0, role: Role = Role.AGENT) -> Credentials:
    return issue_to(directory, authority, Identity(role, "n1"), days=days)


async def test_a_certificate_that_is_due_is_renewed_on_the_same_key(
    tmp_path: Path, authority: Authority, target: str
) -> None:
    before = joined(tmp_path / "n1", authority, days=0.0001)
    await renewal.renew(tmp_path / "n1", lambda: channel(target, before))
    after = load_credentials(tmp_path / "n1")
    assert after.identity == before.identity and after.key == before.key
    assert after.not_after - before.not_after > timedelta(days=89)


async def test_the_loop_renews_when_a_third_remains_and_not_before(
    tmp_path: Path, authority: Authority, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal, "INTERVAL_S", 0.01)
    fresh = joined(tmp_path / "n1", authority)
    calls = 0

    def dial() -> grpc.aio.Channel:
        nonlocal calls
        calls += 1
        return channel(target, load_credentials(tmp_path / "n1"))

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(20 * renewal.INTERVAL_S):
            await renewal.keep_renewed(tmp_path / "n1", dial)
    assert load_credentials(tmp_path / "n1").chain == fresh.chain and calls == 0
    due = joined(tmp_path / "n1", authority, days=0.0001)
    async with running(tmp_path / "n1", dial):
        await until(lambda: load_credentials(tmp_path / "n1").not_after > due.not_after)
    assert calls == 1


async def test_a_master_that_is_away_is_asked_again(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal, "INTERVAL_S", 0.01)
    due = joined(tmp_path / "n1", authority, days=0.001)
    master = issue_to(tmp_path / "master", authority, Identity(Role.MASTER, "m1"))
    address = ["127.0.0.1:1"]
    async with running(tmp_path / "n1", lambda: channel(address[0], due)), listening(authority, lambda: master) as here:
        address[0] = here
        await until(lambda: load_credentials(tmp_path / "n1").not_after > due.not_after)


async def test_only_an_agent_is_renewed_and_only_as_itself(tmp_path: Path, authority: Authority, target: str) -> None:
    admin = joined(tmp_path / "admin", authority, role=Role.ADMIN)
    async with channel(target, admin) as connection:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await CertificatesStub(connection).Renew(pb.SigningRequest(pem=b"x"))
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    agent = joined(tmp_path / "n1", authority)
    async with channel(target, agent) as connection:
        with pytest.raises(grpc.aio.AioRpcError, match="malformed signing request"):
            await CertificatesStub(connection).Renew(pb.SigningRequest(pem=b"x"))


async def test_an_open_port_shows_the_masters_new_certificate(tmp_path: Path, authority: Authority) -> None:
    issue_to(tmp_path / "pki", authority, Identity(Role.MASTER, "master"), days=1)
    credentials = MasterCredentials(tmp_path, authority, ("localhost",))
    credentials.context()
    agent = joined(tmp_path / "n1", authority)
    async with listening(authority, credentials.current) as target:
        first = shown(target, authority, agent, tmp_path / "n1")
        credentials.renew_if_due(datetime.now(UTC))
        assert shown(target, authority, agent, tmp_path / "n1") == first
        credentials.renew_if_due(datetime.now(UTC) + timedelta(hours=23))
        assert shown(target, authority, agent, tmp_path / "n1") != first


def shown(target: str, authority: Authority, agent: Credentials, directory: Path) -> int:
    """The serial number of the certificate that the port at `target` shows."""
    host, _, port = target.rpartition(":")
    context = ssl.create_default_context(cadata=authority.pem.decode())
    context.load_cert_chain(directory / "cert.pem", directory / "cert.key")
    plain = socket.create_connection((host, int(port)), timeout=5.0)
    with context.wrap_socket(plain, server_hostname=agent.identity.server_name) as tls:
        der = tls.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der).serial_number


@asynccontextmanager
async def running(directory: Path, dial: renewal.Dial) -> AsyncIterator[None]:
    task = asyncio.create_task(renewal.keep_renewed(directory, dial))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
