"""Streams at the API: WebSockets over the real server, joined with streams of an agent that answers by hand."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from agent.streams import Refused, Serve, Stream, Streams
from master.rest.app import create_app
from master.rest.server import serving
from master.rest.streams import streams_router
from pki.credentials import server_context
from pki.identity import Role
from tests.unit.cluster import until
from tests.unit.control import Master, certificates, cluster, task
from wire import control_pb2 as pb

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("one_loop")]
TOKEN = "the-token"
ARGV = {"argv": ["sh"]}


@dataclass(frozen=True, slots=True)
class Api:
    parts: Master
    agent: Streams
    url: str
    trust: ssl.SSLContext

    def dial(self, path: str, token: str = TOKEN) -> AbstractAsyncContextManager[ClientConnection]:
        headers = {"Authorization": f"Bearer {token}"}
        return connect(self.url + path, ssl=self.trust, additional_headers=headers, proxy=None)

    async def answer(self, path: str, request: object) -> Any:
        """The first message that comes back."""
        async with self.dial(path) as client:
            await client.send(request if isinstance(request, str | bytes) else json.dumps(request))
            return json.loads(await client.recv())


@asynccontextmanager
async def api(directory: Path, **kinds: Serve) -> AsyncIterator[Api]:
    issued = certificates(directory / "web")
    issued.issue(Role.MASTER, "m1")
    async with cluster(directory) as (parts, dial), dial("n1") as agent:
        await agent.join()
        await parts.tasks.add("n1", [task("box.1")])
        streams = Streams(kinds)
        work = asyncio.create_task(agent.serve(streams))
        app = create_app(TOKEN.__eq__, [streams_router(parts.tasks, parts.dispatcher.streams)])
        context = server_context(directory / "web" / "m1", ssl.TLSVersion.TLSv1_3)
        try:
            async with serving(app, "127.0.0.1", 0, context) as port:
                trust = ssl.create_default_context(cafile=str(directory / "web" / "m1" / "ca.pem"))
                yield Api(parts, streams, f"wss://localhost:{port}/api/v1/tasks/", trust)
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await streams.close()


asked: list[pb.Open] = []


async def mirror(wanted: pb.Open, stream: Stream) -> None:
    """Says what it was asked for, and everything that it hears, on stderr; ends at the end of input."""
    asked.append(wanted)
    await stream.opened()
    while (frame := await stream.read()) is not None:
        if frame.HasField("eof"):
            await stream.write(pb.Frame(exit=3))
            return
        await stream.write(frame if frame.HasField("data") else pb.Frame(stderr=str(frame).encode()))


async def quiet(wanted: pb.Open, stream: Stream) -> None:
    await stream.opened()
    await asyncio.Event().wait()


async def test_a_command_from_its_request_to_its_end(tmp_path: Path) -> None:
    asked.clear()
    async with api(tmp_path, exec=mirror) as master, master.dial("box/exec") as client:
        wanted = {"argv": ["sh", "-c", "true"], "env": {"A": "1"}, "user": "web", "terminal": {"rows": 3, "columns": 4}}
        await client.send(json.dumps(wanted))
        assert json.loads(await client.recv()) == {"opened": True}
        await client.send(b"\x01\x00\xff")
        assert await client.recv() == b"\x01\x00\xff"
        await client.send('{"resize": {"rows": 5, "columns": 6}}')
        assert await client.recv() == b"\x02resize {\n  rows: 5\n  columns: 6\n}\n"
        await client.send('{"signal": 15}')
        assert await client.recv() == b"\x02signal: 15\n"
        await client.send('{"eof": true}')
        assert [json.loads(message) async for message in client] == [{"exit": 3}, {"end": True}]
        seen = asked[0].exec
        assert (seen.task_id, list(seen.argv), seen.user, seen.stdin) == ("box.1", ["sh", "-c", "true"], "web", False)
        assert (seen.env[0].key, seen.env[0].value, seen.terminal.columns) == ("A", "1", 4)


@pytest.mark.parametrize("token", ["", "another", "the-token-and-more"])
async def test_nothing_without_the_token(tmp_path: Path, token: str) -> None:
    async with api(tmp_path, exec=mirror) as master:
        for path in ("box.1/exec", "/box.1//exec/", "nothing/exec", "box.1/port"):
            with pytest.raises(InvalidStatus) as refused:
                async with master.dial(path, token):
                    pass
            assert refused.value.response.status_code == 401
        assert master.agent._open == {}


@pytest.mark.parametrize(
    ("path", "request_", "complaint"),
    [
        ("nothing/exec", ARGV, "Task 'nothing' does not exist"),
        ("box/exec", {}, "/argv: Field required"),
        ("box/exec", {"argv": []}, "/argv: List should have at least 1 item"),
        ("box/exec", {"argv": ["a\0b"]}, "/argv(0): String should match"),
        ("box/exec", {"argv": ["sh"], "env": {"A=B": "1"}}, "/env/A=B/[key]: String should match"),
        ("box/exec", {"argv": ["sh"], "tty": True}, "/tty: Extra inputs are not permitted"),
        ("box/exec", {"argv": ["sh"], "terminal": {"rows": -1, "columns": 1}}, "/terminal/rows: Input should be"),
        ("box/exec", {"argv": ["x" * 40_000]}, "longer than 32768 bytes"),
        ("box/exec", "no json", "Invalid JSON"),
        ("box/exec", b"\x01", "the first message must be text"),
        ("box/port", {"port": 0}, "/port: Input should be"),
        ("box/port", {"port": 65536}, "/port: Input should be"),
        ("box/files", {"verb": "write", "path": "/"}, "/verb: Input should be"),
        ("box/files", {"verb": "read", "path": ""}, "/path: String should have"),
        ("box/files", {"verb": "read", "path": "/a"}, "does not know streams of kind files"),
    ],
)
async def test_bad_requests_are_refused_by_field(tmp_path: Path, path: str, request_: object, complaint: str) -> None:
    async with api(tmp_path, exec=mirror, port=mirror) as master:
        answer = await master.answer(path, request_)
        assert complaint in answer["error"]


@pytest.mark.parametrize("message", ["no json", '{"signal": 0}', '{"loud": true}', b"\x02x", b""])
async def test_what_is_no_message_of_the_protocol_ends_the_stream(tmp_path: Path, message: str | bytes) -> None:
    async with api(tmp_path, exec=quiet) as master, master.dial("box/exec") as client:
        await client.send(json.dumps(ARGV))
        await client.recv()
        await client.send(message)
        assert "error" in json.loads(await client.recv())
        with pytest.raises(ConnectionClosed):
            await client.recv()
        await until(lambda: not master.agent._open)


async def test_what_the_agent_refuses_is_told(tmp_path: Path) -> None:
    async def refuse(wanted: pb.Open, stream: Stream) -> None:
        raise Refused("task box.1 does not run")

    async with api(tmp_path, exec=refuse) as master:
        assert await master.answer("box/exec", ARGV) == {"error": "task box.1 does not run"}


async def test_a_client_that_goes_ends_the_stream(tmp_path: Path) -> None:
    async with api(tmp_path, exec=quiet, log=quiet) as master:
        for path, request in (("box/exec", ARGV), ("box/attach", {})):
            async with master.dial(path) as client:
                await client.send(json.dumps(request))
                assert json.loads(await client.recv()) == {"opened": True}
                assert master.agent._open
                client.transport.abort()
            await until(lambda: not master.agent._open and not master.parts.dispatcher.streams._open)
