"""Serves the web application over TLS from within the master's event loop.

The socket is ours: a port that is taken is one clear error before anything starts. Signals are not touched, they
belong to the master.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

START_DEADLINE_S = 10.0
STOP_DEADLINE_S = 3  # for requests under way when the master stops
FAREWELL_S = 0.3  # for connections without a request
CONNECTIONS = 512
BACKLOG = 256
MESSAGE_LIMIT = 2**20  # of a WebSocket
PING_INTERVAL_S = 20.0


class ServerError(Exception):
    """The server can't be started: the text says why."""


@asynccontextmanager
async def serving(app: ASGIApp, host: str, port: int, context: ssl.SSLContext) -> AsyncIterator[int]:
    """Serve while the block runs. Gives the port (for 0: the one that was free). Raises ServerError."""
    listener = listen(host, port)
    endings = _Endings(app)
    server = _Server(_configuration(endings, context))
    # No TaskGroup: it would cancel uvicorn before that has closed its connections, and wrap what the block raises.
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await _started(server, task)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        endings.stop()
        parting = asyncio.create_task(_part(server))
        await task
        parting.cancel()


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With its protocol, or asyncio does not know that its connections are TCP, and leaves Nagle's algorithm on: each
    # answer would wait 40 ms for its reader's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ServerError(f"listen on {host} port {port}: {error.strerror}") from error
    listener.setblocking(False)
    return listener


def _configuration(app: ASGIApp, context: ssl.SSLContext) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        ssl_context_factory=lambda *_: context,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="websockets-sansio",
        ws_max_size=MESSAGE_LIMIT,
        ws_per_message_deflate=False,
        # Not as a test of life: who has stopped reading for a while answers no ping, and may go on later.
        ws_ping_interval=PING_INTERVAL_S,
        ws_ping_timeout=None,
        server_header=False,
        backlog=BACKLOG,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=STOP_DEADLINE_S,
    )


async def _started(server: uvicorn.Server, task: asyncio.Task[None]) -> None:
    async with asyncio.timeout(START_DEADLINE_S):
        while not server.started and not task.done():  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.005)
    if task.done():
        task.result()
        raise ServerError("the web server ended at once: see its log")


async def _part(server: uvicorn.Server) -> None:
    """Breaks connections on which nothing is left to be answered: a client that does not listen to the farewell of
    TLS would be waited for."""
    while server.server_state.tasks:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.02)
    await asyncio.sleep(FAREWELL_S)
    for connection in list(server.server_state.connections):
        connection.transport.abort()


class _Endings:
    """Has answers that go on for ever end when the master stops, as if their clients had left: uvicorn would wait for
    them to end, and then for its deadline. What it has not answered yet is answered."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        self._stopping.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun, asked = False, False

        async def sent(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        async def received() -> Message:
            nonlocal asked
            if not asked:
                message = await receive()
                asked = not message.get("more_body", False)
                return message
            waiting = asyncio.ensure_future(receive())
            stopping = asyncio.ensure_future(self._stopping.wait())
            try:
                await asyncio.wait((waiting, stopping), return_when=asyncio.FIRST_COMPLETED)
                if begun and not waiting.done():
                    return {"type": "http.disconnect"}
                return await waiting
            finally:
                waiting.cancel()
                stopping.cancel()

        if scope["type"] == "http":
            await self._app(scope, received, sent)
        else:  # uvicorn closes WebSockets
            await self._app(scope, receive, send)


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
