"""One stream to a task, through the master: a WebSocket whose messages master/rest/streams.py describes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from cli.client import Client
from cli.problem import Problem

OPEN_DEADLINE_S = 30.0
CLOSE_DEADLINE_S = 2.0
MESSAGE_LIMIT = 2**20
CHUNK_BYTES = 64 * 1024
WINDOW_BYTES = 4 * CHUNK_BYTES  # under way to a command's input: what else there is to say never waits behind it
DATA, STDERR = 1, 2

Message = dict[str, Any] | tuple[int, bytes]


class Channel:
    """Reading belongs to one thread; any may write. Raises Problem for what the master or the node says."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._under_way = 0
        self._wake: Callable[[], object] = lambda: None

    def messages(self) -> Iterator[Message]:
        """Until the other end has said all: controls as objects, bytes with their stream's number."""
        try:
            for message in self._connection:
                if isinstance(message, bytes):
                    yield message[0], message[1:]
                elif (control := self._heed(json.loads(message))) is not None:
                    if "end" in control:
                        return
                    yield control
        except ConnectionClosed as error:
            raise Problem(f"the connection to the master broke: {error}") from error
        raise Problem("the connection to the master was closed")

    def tell(self, **control: object) -> None:
        self._send(json.dumps(control))

    def send(self, data: bytes) -> None:
        self._send(bytes((DATA,)) + data)

    def feed(self, data: bytes) -> None:
        """As `send`, to a command's input: only while there is room."""
        with self._lock:
            self._under_way += len(data)
        self.send(data)

    @property
    def has_room(self) -> bool:
        return self._under_way < WINDOW_BYTES

    def when_room(self, wake: Callable[[], object]) -> None:
        """`wake` is called, by the thread that reads, each time there is more room."""
        self._wake = wake

    def close(self) -> None:
        self._connection.close()

    def _heed(self, control: dict[str, Any]) -> dict[str, Any] | None:
        if "error" in control:
            raise Problem(str(control["error"]))
        if "taken" not in control:
            return control
        with self._lock:
            self._under_way -= int(control["taken"])
        self._wake()
        return None

    def _send(self, message: str | bytes) -> None:
        try:
            self._connection.send(message)
        except ConnectionClosed:
            return  # who reads hears why


@contextmanager
def opened(client: Client, path: str, request: dict[str, Any]) -> Iterator[Channel]:
    """A stream that is open, until the block ends."""
    try:
        connection = connect(**client.websocket(path), **LIMITS)
    except InvalidStatus as error:
        raise Problem(f"{path}: {(error.response.body or b'').decode(errors='replace')}") from error
    except (OSError, WebSocketException) as error:
        raise Problem(f"{client.url}: {error}. Is the master running, and reachable from here?") from error
    try:
        channel = Channel(connection)
        channel.tell(**request)
        next(channel.messages(), None)  # opened, or the reason why not
        yield channel
    finally:
        connection.close()


LIMITS: dict[str, Any] = {
    "open_timeout": OPEN_DEADLINE_S,
    "close_timeout": CLOSE_DEADLINE_S,
    "max_size": MESSAGE_LIMIT,
    "compression": None,
    "proxy": None,
    # Who stops reading for a while, at a pager, must not lose the connection for it.
    "ping_timeout": None,
}
