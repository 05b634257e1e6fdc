"""The door of the REST API: tokens, paths, sizes and shapes of errors, over a real server with TLS where it matters."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from master.auth import token as admin_token
from master.rest.app import BODY_LIMIT, DRAIN_LIMIT, create_app
from master.rest.errors import ApiError, json_path
from master.rest.server import STOP_DEADLINE_S, ServerError, listen, serving
from master.store.base import StoreError

pytestmark = pytest.mark.anyio
TOKEN, KEPT = admin_token.mint()
DEADLINE_S = 10.0


def matches(token: str) -> bool:
    return admin_token.matches(token, KEPT)


class Port(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    number: Annotated[int, Field(ge=1)]


class Thing(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    cpus: float
    ports: list[Port] = []


router = APIRouter()


@router.get("/ping")
async def ping() -> str:
    return "pong"


@router.get("/things/{name:path}")
async def show(name: str) -> dict[str, str]:
    return {"name": name}


@router.post("/things", status_code=201)
async def create(thing: Thing) -> Thing:
    return thing


@router.post("/fault/{kind}")
async def fault(kind: str) -> None:
    match kind:
        case "refused":
            raise ApiError(409, "no", {"/a": ["b"]})
        case "store":
            raise StoreError("write /secret/path: disk full")
    raise RuntimeError("secret detail")


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(create_app(matches, [router]), raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx2.AsyncClient(transport=transport, base_url="https://master", headers=headers) as client:
        yield client


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", "Basic {}", "Bearer {}x", "{}"])
async def test_without_the_token_nothing_answers(client: httpx2.AsyncClient, header: str | None) -> None:
    client.headers.pop("Authorization")
    headers = {} if header is None else {"Authorization": header.format(TOKEN)}
    for path in ("/things/a", "/nothing", "/openapi.json", "/things/ping", "//ping//x"):
        answer = await client.get(httpx2.URL("https://master", path=path), headers=headers)
        assert answer.status_code == 401 and answer.json()["message"]
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize("header", ["Bearer {}", "bearer {}", "token={}"])
async def test_both_forms_of_the_token(client: httpx2.AsyncClient, header: str) -> None:
    assert (await client.get("/things/a", headers={"Authorization": header.format(TOKEN)})).json() == {"name": "a"}


async def test_ping_is_public(client: httpx2.AsyncClient) -> None:
    client.headers.pop("Authorization")
    for path in ("/ping", "//ping/"):
        assert (await client.get(httpx2.URL("https://master", path=path))).json() == "pong"


def test_tokens_are_random_and_only_their_digest_is_kept() -> None:
    token, kept = admin_token.mint()
    assert token != TOKEN and len(token) > 43 and token not in kept
    assert admin_token.matches(token, kept) and not matches(token) and not matches("\udcff")


@pytest.mark.parametrize("path", ["/things/a/b", "//things//a/b", "/things/a/b/", "///things/a//b//"])
async def test_slashes_are_put_in_order(client: httpx2.AsyncClient, path: str) -> None:
    answer = await client.get(httpx2.URL("https://master", path=path))
    assert answer.json() == {"name": "a/b"}


@pytest.mark.parametrize(
    ("body", "path", "says"),
    [
        ({"cpus": "2"}, "/cpus", "number"),
        ({"cpus": True}, "/cpus", "number"),
        ({}, "/cpus", "is missing"),
        ({"cpus": 1, "colour": 1}, "/colour", "not a known field"),
        ({"cpus": 1, "ports": [{"number": 1}, {"number": 0}]}, "/ports(1)/number", "greater than or equal to 1"),
        ([], "/", "dictionary"),
    ],
)
async def test_invalid_fields_are_named(client: httpx2.AsyncClient, body: object, path: str, says: str) -> None:
    answer = await client.post("/things", json=body)
    assert answer.status_code == 422
    (detail,) = answer.json()["details"]
    assert detail["path"] == path and says in detail["errors"][0]


@pytest.mark.parametrize("body", [b"{", b"", b"nonsense", b'{"cpus": 1}}', b"\xff\xfe\xff", b"[" * 100_000])
async def test_what_is_not_json(client: httpx2.AsyncClient, body: bytes) -> None:
    answer = await client.post("/things", content=body)
    assert answer.status_code in (400, 422) and answer.json()["message"]


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/json"])
async def test_content_type_does_not_matter(client: httpx2.AsyncClient, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    answer = await client.post("/things", content=b'{"cpus": 1}', headers=headers)
    assert answer.status_code == 201


async def test_bodies_may_come_in_chunks(client: httpx2.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for byte in b'{"cpus": 1}':
            yield bytes([byte])

    assert (await client.post("/things", content=chunks())).status_code == 201


async def test_errors_have_one_shape(client: httpx2.AsyncClient) -> None:
    refused = await client.post("/fault/refused")
    assert refused.status_code == 409
    assert refused.json() == {"message": "no", "details": [{"path": "/a", "errors": ["b"]}]}
    missing = await client.get("/nothing")
    assert missing.status_code == 404 and missing.json() == {"message": "/nothing does not exist"}
    assert (await client.delete("/things")).status_code == 405


@pytest.mark.parametrize(("kind", "status"), [("store", 503), ("ours", 500)])
async def test_faults_tell_nothing_about_the_inside(client: httpx2.AsyncClient, kind: str, status: int) -> None:
    answer = await client.post(f"/fault/{kind}")
    assert answer.status_code == status and "secret" not in answer.text and "Traceback" not in answer.text


def test_json_path() -> None:
    assert json_path(["container", "portMappings", 0, "labels", "VIP_0"]) == "/container/portMappings(0)/labels/VIP_0"
    assert json_path([]) == "/"


@given(st.text(max_size=40))
def test_no_header_breaks_the_comparison(text: str) -> None:
    assert not matches(text)


# Over TLS


def certificate(directory: Path) -> tuple[Path, Path]:
    """A self-signed one for localhost."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(hours=1), now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
        .sign(key, hashes.SHA256())
    )
    pem, key_file = directory / "cert.pem", directory / "key.pem"
    pem.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return pem, key_file


class Served:
    def __init__(self, directory: Path) -> None:
        pem, key = certificate(directory)
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.load_cert_chain(pem, key)
        self.client = ssl.create_default_context(cafile=str(pem))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[httpx2.AsyncClient]:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with serving(create_app(matches, [router]), "127.0.0.1", 0, self.server) as port:
            url = f"https://localhost:{port}"
            async with httpx2.AsyncClient(
                verify=self.client, base_url=url, headers=headers, trust_env=False, timeout=DEADLINE_S
            ) as client:
                yield client


@pytest.fixture
def served(tmp_path: Path) -> Served:
    return Served(tmp_path)


async def test_a_real_server(served: Served) -> None:
    async with served.running() as client:
        assert (await client.get("/ping")).json() == "pong"
        port = client.base_url.port
    with pytest.raises(httpx2.ConnectError):
        async with httpx2.AsyncClient(verify=served.client, trust_env=False) as late:
            await late.get(f"https://localhost:{port}/ping")


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("size", [BODY_LIMIT + 1, 10 * 2**20, DRAIN_LIMIT])
async def test_too_large_a_body_is_answered(served: Served, size: int, chunked: bool) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(0, size, 65536):
            yield b" " * 65536

    async with served.running() as client:
        answer = await client.post("/things", content=chunks() if chunked else b" " * size)
        assert answer.status_code == 413 and "2097152" in answer.json()["message"]
        assert (await client.post("/things", json={"cpus": 1})).status_code == 201


async def test_the_largest_body_is_taken(served: Served) -> None:
    body = json.dumps({"cpus": 1}).encode()
    async with served.running() as client:
        answer = await client.post("/things", content=body.ljust(BODY_LIMIT))
        assert answer.status_code == 201


async def test_plain_http_and_garbage_leave_the_server_well(served: Served) -> None:
    async with served.running() as client:
        for bytes_sent in (b"GET /ping HTTP/1.1\r\n\r\n", b"\x00" * 500):
            reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
            writer.write(bytes_sent)
            async with asyncio.timeout(DEADLINE_S):
                with_tls_alert_or_nothing = await reader.read()
            assert b"pong" not in with_tls_alert_or_nothing
            writer.close()
        assert (await client.get("/ping")).status_code == 200


async def test_a_port_in_use_is_one_clear_error(served: Served) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ServerError, match=rf"listen on 127\.0\.0\.1 port {port}: Address already in use"):
            async with serving(create_app(matches, []), "127.0.0.1", port, served.server):
                pass


async def test_a_request_under_way_is_finished_when_the_server_stops(served: Served) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()
    slow = APIRouter()

    @slow.get("/slow")
    async def answer_late() -> str:
        started.set()
        await go_on.wait()
        return "late"

    async with httpx2.AsyncClient(
        verify=served.client, trust_env=False, headers={"Authorization": f"Bearer {TOKEN}"}
    ) as client:
        async with serving(create_app(matches, [slow]), "127.0.0.1", 0, served.server) as port:
            request = asyncio.create_task(client.get(f"https://localhost:{port}/slow"))
            async with asyncio.timeout(DEADLINE_S):
                await started.wait()
            asyncio.get_running_loop().call_later(0.2, go_on.set)
        assert (await request).json() == "late"


async def test_an_answer_without_end_does_not_hold_up_the_stop(served: Served) -> None:
    endless = APIRouter()

    @endless.get("/endless")
    async def answer_for_ever() -> StreamingResponse:
        async def chunks() -> AsyncIterator[str]:
            while True:
                yield "more\n"
                await asyncio.sleep(3600)

        return StreamingResponse(chunks())

    async with (
        httpx2.AsyncClient(
            verify=served.client, trust_env=False, headers={"Authorization": f"Bearer {TOKEN}"}
        ) as client,
        AsyncExitStack() as stack,
    ):
        app = create_app(matches, [endless])
        port = await stack.enter_async_context(serving(app, "127.0.0.1", 0, served.server))
        async with client.stream("GET", f"https://localhost:{port}/endless") as answer:
            chunks = answer.aiter_text()
            assert await anext(chunks) == "more\n"
            began = asyncio.get_running_loop().time()
            await stack.aclose()
            assert asyncio.get_running_loop().time() - began < STOP_DEADLINE_S / 2
            with pytest.raises(httpx2.RemoteProtocolError):
                await anext(chunks)


async def test_answers_do_not_wait_for_acknowledgements() -> None:
    """As they would with Nagle's algorithm: 40 ms each, on a connection that is kept."""
    connected: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken = writer.get_extra_info("socket")
        connected.set_result(taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    listener = listen("127.0.0.1", 0)
    async with await asyncio.start_server(connect, sock=listener), asyncio.timeout(DEADLINE_S):
        _, writer = await asyncio.open_connection(*listener.getsockname())
        writer.close()
        assert await connected
