"""Joining over real sockets: the node's side against the master's, and against servers that are not the master."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import stat
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from structlog.testing import capture_logs

from master.rest.server import serving
from pki import enrolment_server
from pki.authority import Authority
from pki.credentials import certificate_identity, issue_to, load_credentials, server_context
from pki.enrolment import EnrolmentRefused, MasterNotTrusted, MasterUnreachable, enrol
from pki.enrolment_server import enrolment_app
from pki.identity import Identity, Role
from pki.key import signing_request
from pki.token import Token, TokenRecord, new_record, redeem

pytestmark = pytest.mark.anyio
HOST = "127.0.0.1"
MASTER = Identity(Role.MASTER, "m1")


class Master:
    """The authority in one directory, its token records in a dictionary, its enrolment port on a real socket."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = Authority.create(directory)
        issue_to(directory, self.authority, MASTER)
        self.records: dict[str, TokenRecord] = {}

    def mint(self, uses: int | None = 1, age_s: float = 0) -> Token:
        token = Token.mint(self.authority.fingerprint)
        self.records[token.key] = new_record(token, time.time() - age_s, ttl_s=60, uses=uses)
        return token

    async def redeem(self, token: Token) -> None:
        self.records[token.key] = redeem(self.records.get(token.key), token.secret, time.time())

    @asynccontextmanager
    async def enrolling(self) -> AsyncIterator[str]:
        app = enrolment_app(self.authority, self.redeem)
        async with serving(app, HOST, 0, server_context(self.directory)) as port:
            yield f"{HOST}:{port}"


@pytest.fixture
def master(tmp_path: Path) -> Master:
    return Master(tmp_path / "master")


@pytest.fixture
def node(tmp_path: Path) -> Path:
    return tmp_path / "node"


@asynccontextmanager
async def impostor(ca: bytes, context: ssl.SSLContext, answer: Response) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that shows `ca`, proves itself with `context`, and keeps what it was sent."""
    received: list[bytes] = []

    async def authority(_: Request) -> Response:
        return Response(ca)

    async def take(request: Request) -> Response:
        received.append(await request.body())
        return answer

    app = Starlette(routes=[Route("/enrol/ca", authority), Route("/enrol", take, methods=["POST"])])
    async with serving(app, HOST, 0, context) as port:
        yield f"{HOST}:{port}", received


def modes(directory: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.glob("*")}


def fields(minted: Token, **change: Any) -> bytes:
    good = {"token": minted.id, "secret": minted.secret, "name": "node1", "request": new_request()}
    return json.dumps(good | change).encode()


async def post(master: Master, address: str, content: bytes) -> httpx2.Response:
    context = ssl.create_default_context(cadata=master.authority.pem.decode())
    async with httpx2.AsyncClient(verify=context, trust_env=False) as client:
        return await client.post(f"https://localhost:{address.rpartition(':')[2]}/enrol", content=content)


def new_request(name: str | None = None) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    if name is None:
        return signing_request(key).decode()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


async def test_a_node_joins(master: Master, node: Path) -> None:
    async with master.enrolling() as address:
        identity = await enrol(address, master.mint(), "node1", node)
    assert identity == Identity(Role.AGENT, "node1")
    assert load_credentials(node).identity == identity
    assert modes(node) == {"cert.key": 0o600, "cert.pem": 0o644, "ca.pem": 0o644}


async def test_a_cluster_of_another_domain(tmp_path: Path, node: Path) -> None:
    authority = Authority.create(tmp_path / "ca", "example.org")
    issue_to(tmp_path / "ca", authority, Identity(Role.MASTER, "m1", "example.org"))

    async def admit(_: Token) -> None: ...

    async with serving(enrolment_app(authority, admit), HOST, 0, server_context(tmp_path / "ca")) as port:
        identity = await enrol(f"{HOST}:{port}", Token.mint(authority.fingerprint), "node1", node)
    assert identity.uri == "spiffe://example.org/agent/node1"


async def test_joining_again_needs_a_new_token_and_keeps_the_key(master: Master, node: Path) -> None:
    async with master.enrolling() as address:
        token = master.mint()
        await enrol(address, token, "node1", node)
        before = load_credentials(node)
        with pytest.raises(EnrolmentRefused, match="the token has been used: ask for a new token"):
            await enrol(address, token, "node1", node)
        assert load_credentials(node) == before
        await enrol(address, master.mint(), "node1", node)
    after = load_credentials(node)
    assert after.key == before.key and after.chain != before.chain


async def test_one_use_admits_one_of_many(master: Master, tmp_path: Path) -> None:
    token = master.mint(uses=1)
    async with master.enrolling() as address:
        joins = [enrol(address, token, f"node{i}", tmp_path / f"node{i}") for i in range(5)]
        results = await asyncio.gather(*joins, return_exceptions=True)
    assert sum(isinstance(result, Identity) for result in results) == 1
    assert sum(isinstance(result, EnrolmentRefused) for result in results) == 4


async def test_expired_and_wrong_tokens_are_refused_and_logged_once(master: Master, node: Path) -> None:
    expired, unknown = master.mint(age_s=61), Token.mint(master.authority.fingerprint)
    wrong = Token(master.authority.fingerprint, master.mint().id, unknown.secret)
    async with master.enrolling() as address:
        for token, reason in [(expired, "expired"), (unknown, "unknown token"), (wrong, "wrong secret")]:
            with capture_logs() as lines, pytest.raises(EnrolmentRefused, match=reason):
                await enrol(address, token, "node1", node)
            assert [line["event"] for line in lines] == ["enrolment refused"]
            assert reason in lines[0]["reason"] and token.secret not in str(lines)
    assert "cert.pem" not in modes(node)


async def test_a_name_that_can_not_be_one_is_refused_before_anything_is_sent(node: Path) -> None:
    with pytest.raises(ValueError, match="must be 1 to 63"):
        await enrol(f"{HOST}:1", Token.mint(bytes(32)), "../master", node)
    assert modes(node) == {}


@pytest.mark.parametrize("address", ["", HOST, "host:", "host:99999", "a b:1", "user@host:1", "host:1/x", "::1:80"])
async def test_an_address_that_can_not_be_one(address: str, node: Path) -> None:
    with pytest.raises(ValueError, match="must be host:port"):
        await enrol(address, Token.mint(bytes(32)), "node1", node)


async def test_another_authority_in_between(master: Master, tmp_path: Path, node: Path) -> None:
    evil = Master(tmp_path / "evil")
    answer = JSONResponse({})
    async with impostor(evil.authority.pem, server_context(evil.directory), answer) as (address, received):
        with pytest.raises(MasterNotTrusted, match="is not the one the token is from"):
            await enrol(address, master.mint(), "node1", node)
    assert received == []
    assert modes(node) == {}


async def test_the_true_certificate_shown_by_somebody_else(master: Master, tmp_path: Path, node: Path) -> None:
    """The authority's certificate is public: showing it proves nothing, so the secret must not follow."""
    evil = Master(tmp_path / "evil")
    answer = JSONResponse({})
    async with impostor(master.authority.pem, server_context(evil.directory), answer) as (address, received):
        with pytest.raises(MasterNotTrusted, match="is not a master of this cluster"):
            await enrol(address, master.mint(), "node1", node)
    assert received == []


@pytest.mark.parametrize("role", [Role.AGENT, Role.ADMIN])
async def test_a_member_that_plays_the_master(role: Role, master: Master, tmp_path: Path, node: Path) -> None:
    issue_to(tmp_path / "member", master.authority, Identity(role, "member"))
    context = server_context(tmp_path / "member")
    async with impostor(master.authority.pem, context, JSONResponse({})) as (address, received):
        with pytest.raises(MasterNotTrusted, match="is not a master of this cluster"):
            await enrol(address, master.mint(), "node1", node)
    assert received == []


async def test_a_server_of_tls_1_2(master: Master, node: Path) -> None:
    context = server_context(master.directory, ssl.TLSVersion.TLSv1_2)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with impostor(master.authority.pem, context, JSONResponse({})) as (address, _):
        with pytest.raises(MasterUnreachable, match=r"(?i:EOF|cut off|protocol.version)"):
            await enrol(address, master.mint(), "node1", node)


async def test_a_client_of_tls_1_2_is_refused(master: Master) -> None:
    context = ssl.create_default_context(cadata=master.authority.pem.decode())
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with master.enrolling() as address:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection(*address.split(":"), ssl=context, server_hostname="localhost")


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (Response("<h1>Bad gateway</h1>", 502), "of no use"),
        (Response("[]", 201), "of no use"),
        (Response("{}", 201), "of no use"),
        (JSONResponse({"message": "not today"}, 403), "not today"),
        (JSONResponse({"certificate": "x"}, 201), "join again"),
        (Response(b"x" * 100_000, 201), "more than 65536 bytes"),
        (Response(status_code=307, headers={"location": "https://192.0.2.1/"}), "of no use"),
    ],
)
async def test_answers_of_no_use(answer: Response, complaint: str, master: Master, node: Path) -> None:
    async with impostor(master.authority.pem, server_context(master.directory), answer) as (address, _):
        with pytest.raises(EnrolmentRefused, match=complaint):
            await enrol(address, master.mint(), "node1", node)
    assert "cert.pem" not in modes(node)


async def test_a_certificate_for_another_key(master: Master, node: Path) -> None:
    foreign = master.authority.issue(new_request().encode(), Identity(Role.AGENT, "node1"))
    answer = JSONResponse({"certificate": foreign.decode()}, 201)
    async with impostor(master.authority.pem, server_context(master.directory), answer) as (address, _):
        with pytest.raises(EnrolmentRefused, match="is for another key"):
            await enrol(address, master.mint(), "node1", node)


async def test_nobody_there_and_no_tls_there(master: Master, node: Path) -> None:
    with socket.create_server((HOST, 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(MasterUnreachable, match="is the master running"):
        await enrol(f"{HOST}:{port}", master.mint(), "node1", node)
    plain = await asyncio.start_server(lambda _, writer: writer.write(b"220 mail\r\n"), HOST, 0)
    async with plain:
        with pytest.raises(MasterUnreachable, match="is this its enrolment port"):
            await enrol(f"{HOST}:{plain.sockets[0].getsockname()[1]}", master.mint(), "node1", node)


async def test_silence_has_a_deadline(master: Master, node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pki.enrolment.REQUEST_DEADLINE_S", 0.2)
    with socket.create_server((HOST, 0)) as silent, pytest.raises(MasterUnreachable, match=r"no answer in 0\.2 s"):
        await enrol(f"{HOST}:{silent.getsockname()[1]}", master.mint(), "node1", node)


async def test_a_request_that_names_the_master_gets_a_nodes_certificate(master: Master) -> None:
    token = master.mint()
    async with master.enrolling() as address:
        response = await post(master, address, fields(token, request=new_request("master")))
    assert response.status_code == 201
    certificate = x509.load_pem_x509_certificate(response.json()["certificate"].encode())
    assert certificate_identity(certificate) == Identity(Role.AGENT, "node1")
    assert certificate.subject.rfc4514_string() == "CN=node1"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"name": "../master"}, "must be 1 to 63"),
        ({"name": 7}, "name: Input should be a valid string"),
        ({"name": "a\u0000b"}, "must be 1 to 63"),
        ({"role": "master"}, "role: Extra inputs are not permitted"),
        ({"token": "../nodes/x"}, "token: String should match pattern"),
        ({"secret": "short"}, "secret: String should match pattern"),
        ({"secret": "\ud800"}, "body: Invalid JSON"),
        ({"request": "junk"}, "malformed signing request"),
        ({"request": None}, "request: Input should be a valid string"),
    ],
)
async def test_bad_fields_are_named_and_cost_no_token(change: dict[str, Any], complaint: str, master: Master) -> None:
    token = master.mint()
    async with master.enrolling() as address:
        with capture_logs() as lines:
            response = await post(master, address, fields(token, **change))
    assert response.status_code == 400 and complaint in response.json()["message"]
    assert len(lines) == 1 and token.secret not in str(lines) + response.text
    assert master.records[token.key].uses_left == 1


@pytest.mark.parametrize(
    ("content", "status"), [(b"", 400), (b"{", 400), (b"\xff\xfe", 400), (b"[" * 9000, 400), (b" " * 20_000, 413)]
)
async def test_bad_bodies(content: bytes, status: int, master: Master) -> None:
    async with master.enrolling() as address:
        response = await post(master, address, content)
    assert response.status_code == status and response.json()["message"]


async def test_other_paths_and_methods_answer_in_the_same_shape(master: Master) -> None:
    context = ssl.create_default_context(cadata=master.authority.pem.decode())
    async with master.enrolling() as address, httpx2.AsyncClient(verify=context, trust_env=False) as client:
        base = f"https://localhost:{address.rpartition(':')[2]}"
        assert (await client.get(f"{base}/enrol/ca")).content == master.authority.pem
        missing, wrong = await client.get(f"{base}/enrol/ca.key"), await client.delete(f"{base}/enrol")
    assert (missing.status_code, missing.json()) == (404, {"message": "Not Found"})
    assert (wrong.status_code, wrong.json()) == (405, {"message": "Method Not Allowed"})


async def test_a_body_that_never_ends_has_a_deadline(master: Master, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enrolment_server, "BODY_DEADLINE_S", 0.2)
    context = ssl.create_default_context(cadata=master.authority.pem.decode())
    async with master.enrolling() as address:
        reader, writer = await asyncio.open_connection(*address.split(":"), ssl=context, server_hostname="localhost")
        writer.write(b"POST /enrol HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert await asyncio.wait_for(reader.readline(), 5) == b"HTTP/1.1 408 Request Timeout\r\n"
        writer.close()
