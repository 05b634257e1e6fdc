"""Serves the streams of the kind `port`: a TCP connection to something that listens in a task's network namespace.

The connection is made from inside that namespace, so it reaches what listens on its loopback too, and needs no route
from the node. Only the socket has to be made there, by a thread of its own (netns/namespace.py); it stays there
afterwards, and the event loop does the rest. Either side may stop sending before the other does.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from ipaddress import ip_address

from agent.containers import Containers
from agent.launcher import record
from agent.streams import CHUNK_BYTES, Refused, Stream
from isolators.base import Container
from netns.driver import NetworkError
from netns.namespace import namespace_of, run_inside
from wire import control_pb2 as pb

CONNECT_DEADLINE_S = 5.0
LOOPBACK = "127.0.0.1"


class PortFeed:
    """`running` finds the container of a task that runs, `addresses` those that it has."""

    def __init__(
        self,
        containers: Containers,
        running: Callable[[str], Container | None],
        addresses: Callable[[str], Iterable[str]],
    ) -> None:
        self._containers = containers
        self._running = running
        self._addresses = addresses

    async def serve(self, asked: pb.Open, stream: Stream) -> None:
        task_id, port = asked.port.task_id, asked.port.port
        container = self._running(task_id)
        if container is None:
            raise Refused(f"task {task_id} does not run")
        with await self._connected(container, (LOOPBACK, *self._addresses(task_id)), port) as connection:
            await stream.opened()
            try:
                await asyncio.gather(_inwards(stream, connection), _outwards(connection, stream))
            except OSError as error:
                raise Refused(f"port {port} of {task_id}: {error.strerror}") from error

    async def _connected(self, container: Container, addresses: Iterable[str], port: int) -> socket.socket:
        """To the first address at which somebody listens."""
        reason = ""
        for address in addresses:
            try:
                return await self._connect(container, address, port)
            except TimeoutError:
                reason = f"no answer in {CONNECT_DEADLINE_S:g} s"
            except OSError as error:
                reason = os.strerror(error.errno or 0)
            except NetworkError as error:
                reason = str(error)
        raise Refused(f"port {port} of {container.task.id}: {reason}")

    async def _connect(self, container: Container, address: str, port: int) -> socket.socket:
        connection = await self._socket(container, address)
        try:
            async with asyncio.timeout(CONNECT_DEADLINE_S):
                await asyncio.get_running_loop().sock_connect(connection, (address, port))
        except BaseException:
            connection.close()
            raise
        return connection

    async def _socket(self, container: Container, address: str) -> socket.socket:
        family = socket.AF_INET6 if ip_address(address).version == 6 else socket.AF_INET

        def make() -> socket.socket:
            made = socket.socket(family, socket.SOCK_STREAM)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.setblocking(False)
            return made

        keeper = self._containers.keeper(container)
        if keeper is None or keeper.container is None:
            raise NetworkError(f"{container.task.id} has ended")
        with namespace_of(keeper.container.pid) as namespace:
            if record.identify(keeper.container.pid) != keeper.container:  # its pid may be another's by now
                raise NetworkError(f"{container.task.id} has ended")
            return await run_inside(namespace, make)


async def _inwards(stream: Stream, connection: socket.socket) -> None:
    """Until the other end has said all."""
    loop = asyncio.get_running_loop()
    while (frame := await stream.read()) is not None and not frame.HasField("eof"):
        await loop.sock_sendall(connection, frame.data)
    with suppress(OSError):  # it was closed meanwhile
        connection.shutdown(socket.SHUT_WR)


async def _outwards(connection: socket.socket, stream: Stream) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(connection, CHUNK_BYTES):
        await stream.send(data)
    await stream.write(pb.Frame(eof=pb.Empty()))
