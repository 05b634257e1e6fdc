"""gRPC over mutual TLS: real servers and clients on loopback, ours and Python's own, and who is refused by whom."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from pki.authority import Authority
from pki.credentials import CERTIFICATE_FILE, KEY_FILE, Credentials, issue_to
from pki.identity import Identity, Role
from pki.key import read_key, signing_request
from wire.tls import MESSAGE_LIMIT, SERVER_OPTIONS, PeerError, channel, peer_identity, server_credentials

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("one_loop")]
ROOT = Path(__file__).parents[2]
HOST = "127.0.0.1"
DEADLINE_S = 5.0
WHO = "/test.Peer/Who"
ECHO = "/test.Peer/Echo"
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

Issue = Callable[..., Credentials]


@pytest.fixture
def issue(tmp_path: Path) -> Issue:
    """Credentials of the cluster `ca` (a second name makes a second cluster)."""

    def issue(role: Role, name: str, ca: str = "ca") -> Credentials:
        directory = tmp_path / ca
        authority = Authority.load(directory) if directory.exists() else Authority.create(directory)
        return issue_to(tmp_path / f"{ca}-{name}", authority, Identity(role, name))

    return issue


@pytest.fixture
def master(issue: Issue) -> Credentials:
    return issue(Role.MASTER, "m1")


@pytest.fixture
def agent(issue: Issue) -> Credentials:
    return issue(Role.AGENT, "node1")


@asynccontextmanager
async def serving(credentials: Credentials) -> AsyncIterator[str]:
    """A server with two methods: who the caller is, and an echo."""

    async def who(_: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        return peer_identity(context).uri.encode()

    async def echo(request: bytes, _: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        return request

    methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Who": grpc.unary_unary_rpc_method_handler(who),
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
    }
    server = grpc.aio.server(options=SERVER_OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Peer", methods),))
    port = server.add_secure_port(f"{HOST}:0", server_credentials(lambda: credentials))
    await server.start()
    try:
        yield f"{HOST}:{port}"
    finally:
        await server.stop(grace=None)


async def unary(connection: grpc.aio.Channel, method: str, request: bytes) -> bytes:
    multi_callable: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = connection.unary_unary(method)
    return await multi_callable(request, timeout=DEADLINE_S)


async def call(target: str, credentials: Credentials, method: str = WHO, request: bytes = b"") -> bytes:
    async with channel(target, credentials) as to_master:
        return await unary(to_master, method, request)


async def refusal(target: str, credentials: Credentials) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(target, credentials)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    return str(caught.value.details())


def python_client(directory: Path, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """With the certificate of the node in `directory`; HTTP/2, as gRPC insists."""
    context = ssl.create_default_context(cafile=str(directory / "ca.pem"))
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(directory / CERTIFICATE_FILE, directory / KEY_FILE)
    if version:
        context.minimum_version = context.maximum_version = version
    return context


async def talk(target: str, context: ssl.SSLContext | None) -> tuple[str | None, bytes]:
    """The TLS version, and the server's first bytes after ours."""
    name = "master.tepui.internal" if context else None
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_connection(*target.split(":"), ssl=context, server_hostname=name)
        try:
            writer.write(HTTP2_PREFACE + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
            first = await reader.read(9)
            tls: ssl.SSLObject | None = writer.get_extra_info("ssl_object")
            return (tls.version() if tls else None), first
        finally:
            writer.close()


async def refused(target: str, context: ssl.SSLContext | None) -> bool:
    """In the handshake; or after it, since with TLS 1.3 the client is done before the server has seen its certificate;
    or, for a client without TLS, with nothing, or an alert (0x15)."""
    try:
        _, first = await talk(target, context)
    except (ssl.SSLError, ConnectionError):
        return True
    return first[:1] in (b"", b"\x15")


async def test_the_server_learns_who_calls(issue: Issue, master: Credentials, agent: Credentials) -> None:
    async with serving(master) as target:
        assert await call(target, agent) == b"spiffe://tepui.internal/agent/node1"
        assert await call(target, issue(Role.ADMIN, "op")) == b"spiffe://tepui.internal/admin/op"
        assert await call(target, master) == b"spiffe://tepui.internal/master/m1"


async def test_messages_up_to_the_limit(master: Credentials, agent: Credentials) -> None:
    async with serving(master) as target:
        large = bytes(MESSAGE_LIMIT - 1024)
        assert await call(target, agent, ECHO, large) == large
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(target, agent, ECHO, bytes(MESSAGE_LIMIT + 1))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_tls_1_3_and_nothing_below(tmp_path: Path, master: Credentials, agent: Credentials) -> None:
    node = tmp_path / "ca-node1"
    async with serving(master) as target:
        version, settings = await talk(target, python_client(node, ssl.TLSVersion.TLSv1_3))
        assert version == "TLSv1.3" and settings[3] == 4
        assert await refused(target, python_client(node, ssl.TLSVersion.TLSv1_2))
        assert await call(target, agent)


async def test_our_client_refuses_a_server_of_tls_1_2(tmp_path: Path, master: Credentials, agent: Credentials) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(tmp_path / "ca-m1" / CERTIFICATE_FILE, tmp_path / "ca-m1" / KEY_FILE)
    server = await asyncio.start_server(lambda _, __: None, HOST, 0, ssl=context)
    async with server:
        target = f"{HOST}:{server.sockets[0].getsockname()[1]}"
        # The same server and certificate are fine for a client that speaks 1.2: the version alone is refused.
        _, writer = await asyncio.open_connection(
            *target.split(":"), ssl=python_client(tmp_path / "ca-m1"), server_hostname="master.tepui.internal"
        )
        assert writer.get_extra_info("ssl_object").version() == "TLSv1.2"
        writer.close()
        assert "handshake" in (await refusal(target, agent)).lower()


async def test_no_client_certificate(tmp_path: Path, master: Credentials) -> None:
    context = ssl.create_default_context(cafile=str(tmp_path / "ca-m1/ca.pem"))
    context.set_alpn_protocols(["h2"])
    async with serving(master) as target:
        assert await refused(target, context)


async def test_plaintext(master: Credentials) -> None:
    async with serving(master) as target:
        assert await refused(target, None)
        async with grpc.aio.insecure_channel(target) as plain:
            with pytest.raises(grpc.aio.AioRpcError):
                await unary(plain, WHO, b"")


async def test_another_clusters_agent_is_refused_by_both_sides(issue: Issue, master: Credentials) -> None:
    stranger = issue(Role.AGENT, "node1", "other")
    async with serving(master) as target:
        assert "CERTIFICATE_VERIFY_FAILED" in await refusal(target, stranger)
        disguised = Credentials(
            stranger.key, stranger.chain, master.ca, stranger.identity, stranger.not_before, stranger.not_after
        )
        assert await refusal(target, disguised)  # the client is content, so this is the server's no


async def test_an_expired_certificate(tmp_path: Path, master: Credentials, agent: Credentials) -> None:
    authority = Authority.load(tmp_path / "ca")
    request = signing_request(read_key(tmp_path / "ca-node1" / KEY_FILE))
    long_ago = datetime.now(UTC) - timedelta(days=91)
    chain = authority.issue(request, agent.identity, now=long_ago)
    expired = Credentials(agent.key, chain, agent.ca, agent.identity, agent.not_before, agent.not_after)
    async with serving(master) as target:
        assert await call(target, agent)
        assert await refusal(target, expired)


async def test_an_expired_master_is_refused(tmp_path: Path, master: Credentials, agent: Credentials) -> None:
    authority = Authority.load(tmp_path / "ca")
    request = signing_request(read_key(tmp_path / "ca-m1" / KEY_FILE))
    chain = authority.issue(request, master.identity, now=datetime.now(UTC) - timedelta(days=91))
    expired = Credentials(master.key, chain, master.ca, master.identity, master.not_before, master.not_after)
    async with serving(expired) as target:
        assert "CERTIFICATE_VERIFY_FAILED" in await refusal(target, agent)


@pytest.mark.parametrize("role", [Role.AGENT, Role.ADMIN])
async def test_a_member_that_plays_the_master(role: Role, issue: Issue, agent: Credentials) -> None:
    async with serving(issue(role, "member")) as target:
        assert await refusal(target, agent)


async def test_the_use_of_a_certificate_counts_even_if_its_name_is_right(
    tmp_path: Path, issue: Issue, agent: Credentials
) -> None:
    """A node can not pass for the master by way of a name: its certificate is not for servers at all."""
    member = issue(Role.AGENT, "member")
    async with serving(member) as target:
        tls = grpc.ssl_channel_credentials(agent.ca, agent.key, agent.chain)
        override = (("grpc.ssl_target_name_override", member.identity.uri),)
        async with grpc.aio.secure_channel(target, tls, options=override) as to_member:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await unary(to_member, WHO, b"")
        assert "CERTIFICATE_VERIFY_FAILED" in str(caught.value.details())


async def test_a_peer_without_identity_is_not_believed() -> None:
    """What `peer_identity` does with properties that no certificate of ours can bring about."""

    class Context:
        def __init__(self, **properties: list[bytes]) -> None:
            self.properties = properties

        def auth_context(self) -> dict[str, list[bytes]]:
            return self.properties

        def peer(self) -> str:
            return "ipv4:192.0.2.1:1"

    uri = b"spiffe://tepui.internal/agent/node1"
    for properties, complaint in [
        ({}, "not a TLS 1.3"),
        ({"ssl_tls_version": [b"TLSv1.2"], "peer_spiffe_id": [uri]}, "not a TLS 1.3"),
        ({"ssl_tls_version": [b"TLSv1.3"]}, "no SPIFFE URI"),
        ({"ssl_tls_version": [b"TLSv1.3"], "peer_spiffe_id": [uri, uri]}, "no SPIFFE URI"),
        ({"ssl_tls_version": [b"TLSv1.3"], "peer_spiffe_id": [b"spiffe://x/root/y"]}, "must be one of"),
    ]:
        with pytest.raises(PeerError, match=complaint):
            peer_identity(Context(**properties))  # type: ignore[arg-type]


async def test_a_port_in_use_is_refused(master: Credentials) -> None:
    async with serving(master) as target:
        second = grpc.aio.server(options=SERVER_OPTIONS)
        with pytest.raises(RuntimeError, match="Failed to bind"):
            second.add_secure_port(target, server_credentials(lambda: master))


async def test_many_handshakes_at_once_leave_the_server_alive(
    tmp_path: Path, master: Credentials, agent: Credentials
) -> None:
    """gRPC's threads do them side by side, as when all agents dial a master that has come back."""
    context = python_client(tmp_path / "ca-node1")
    async with serving(master) as target:
        for _ in range(10):
            await asyncio.gather(*(talk(target, context) for _ in range(60)))
        assert await call(target, agent)


@pytest.mark.parametrize(
    ("program", "outcome"),
    [
        ("import grpc\nimport wire", 'put "import wire" first'),
        ("import wire\nimport grpc\nimport wire.tls", ""),
        (
            "import os\nos.environ['GRPC_SSL_CIPHER_SUITES'] = 'ALL'\nimport grpc\nimport wire",
            'put "import wire" first',
        ),
    ],
)
def test_grpc_is_never_loaded_with_tls_1_2(program: str, outcome: str) -> None:
    environment = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode != 0) == bool(outcome) and outcome in run.stderr
