"""`tepui task port-forward`: ports of this machine that lead to ports of a task, one stream for each connection."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Iterable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from cli.channel import CHUNK_BYTES, DATA, LIMITS
from cli.client import Client
from cli.problem import Problem

PORTS = re.compile(r"(?:(\d{1,5}):)?(\d{1,5})")
CONNECTIONS = 32


@dataclass(frozen=True, slots=True)
class Forward:
    """0 for `local`: any port that is free."""

    local: int
    remote: int


def parse(text: str) -> Forward:
    """`8080:80`, `0:80` or `80`."""
    match = PORTS.fullmatch(text)
    if match is None or not 0 < int(match[2]) < 1 << 16 or int(match[1] or match[2]) >= 1 << 16:
        raise Problem(f"{text}: must be LOCAL:REMOTE, or one port for both")
    return Forward(int(match[1] or match[2]), int(match[2]))


async def forward(client: Client, task: str, forwards: Iterable[Forward], address: str) -> None:
    """Until cancelled. Says on standard output which ports are open."""
    room = asyncio.Semaphore(CONNECTIONS)
    async with AsyncExitStack() as stack:
        servers = []
        for each in forwards:
            tunnel = _Tunnel(client, task, each.remote, room)
            try:
                server = await asyncio.start_server(tunnel.accept, address, each.local, limit=CHUNK_BYTES)
            except OSError as error:
                raise Problem(f"listen on {address} port {each.local}: {error.strerror}") from error
            servers.append(await stack.enter_async_context(server))
            print(f"{address}:{server.sockets[0].getsockname()[1]} leads to {task}:{each.remote}", flush=True)
        await asyncio.gather(*(server.serve_forever() for server in servers))


class _Tunnel:
    """To one port of a task."""

    def __init__(self, client: Client, task: str, port: int, room: asyncio.Semaphore) -> None:
        self._client = client
        self._path = f"/api/v1/tasks/{task}/port"
        self._port = port
        self._room = room

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """What goes wrong with one connection ends it, and nothing else."""
        try:
            async with self._room, connect(**self._client.websocket(self._path), **LIMITS) as far:
                await far.send(json.dumps({"port": self._port}))
                await _join(reader, writer, far)
        except (OSError, WebSocketException, Problem) as error:
            print(f"tepui: port {self._port}: {error}", file=sys.stderr)
            writer.transport.abort()
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


async def _join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, far: ClientConnection) -> None:
    """Until the other end has said that this is all."""
    sending = asyncio.create_task(_send(reader, far))
    try:
        await _receive(far, writer)
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def _send(reader: asyncio.StreamReader, far: ClientConnection) -> None:
    """Once it is open there. A connection that is reset here is one less there."""
    try:
        while data := await reader.read(CHUNK_BYTES):
            await far.send(bytes((DATA,)) + data)
        await far.send(json.dumps({"eof": True}))
    except ConnectionClosed:
        return
    except OSError:
        await far.close()


async def _receive(far: ClientConnection, writer: asyncio.StreamWriter) -> None:
    async for message in far:
        if isinstance(message, bytes):
            writer.write(message[1:])
            await writer.drain()
            continue
        control = json.loads(message)
        if "error" in control:
            raise Problem(control["error"])
        if "eof" in control:
            writer.write_eof()
        if "end" in control:
            return
