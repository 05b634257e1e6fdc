"""One HTTP GET over a socket that is connected already, of which nothing is believed: neither its length nor its form.

Nothing of the body is read but what was asked for, and of everything together at most RESPONSE_BYTES. The deadline is
the caller's.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from dataclasses import dataclass

import h11

RESPONSE_BYTES = 64 * 1024
BODY_BYTES = 4 * 1024  # of a body that is kept
READ_BYTES = 8 * 1024
TLS_END_S = 1.0


class BadResponse(Exception):
    """What came is no answer."""


@dataclass(frozen=True, slots=True)
class Response:
    """`status` is below 200 when nothing more came than that."""

    status: int
    content_type: str = ""
    body: str = ""


def _any_certificate() -> ssl.SSLContext:
    """A check is about what answers, not about who it is: it goes to an address in the container, and no further."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("DEFAULT:@SECLEVEL=0")  # a short key is no illness
    return context


ANY_CERTIFICATE = _any_certificate()


async def get(sock: socket.socket, host: str, path: str, *, tls: bool, keep_body: bool = False) -> Response:
    """Raises BadResponse, and OSError for what the connection did. The socket is used up afterwards."""
    reader, writer = await _streams(sock, host, tls)
    try:
        http = h11.Connection(h11.CLIENT)
        request = h11.Request(method="GET", target=path, headers=_headers(host))
        writer.write((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
        await writer.drain()
        return await _Reading(http, reader).response(keep_body)
    except h11.RemoteProtocolError as error:
        raise BadResponse(f"not HTTP: {error}") from error
    finally:
        writer.close()


async def _streams(sock: socket.socket, host: str, tls: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if not tls:
        return await asyncio.open_connection(sock=sock, limit=READ_BYTES)
    return await asyncio.open_connection(
        sock=sock, limit=READ_BYTES, ssl=ANY_CERTIFICATE, server_hostname=host, ssl_shutdown_timeout=TLS_END_S
    )


def _headers(host: str) -> list[tuple[str, str]]:
    authority = f"[{host}]" if ":" in host else host
    return [("Host", authority), ("User-Agent", "tepui-health"), ("Accept", "*/*"), ("Connection", "close")]


class _Reading:
    def __init__(self, http: h11.Connection, reader: asyncio.StreamReader) -> None:
        self._http = http
        self._reader = reader
        self._read = 0
        self._answered = False

    async def response(self, keep_body: bool) -> Response:
        interim = 0
        while True:
            event = await self._next()
            if isinstance(event, h11.InformationalResponse):
                interim = event.status_code
            elif isinstance(event, h11.Response):
                self._answered = True
                content_type = dict(event.headers).get(b"content-type", b"").decode("latin-1")
                body = await self._body() if keep_body else ""
                return Response(event.status_code, content_type, body)
            elif interim:
                return Response(interim)
            else:
                raise BadResponse("the connection was closed without an answer")

    async def _body(self) -> str:
        body = b""
        while len(body) < BODY_BYTES and isinstance(event := await self._next(), h11.Data):
            body += event.data
        return body[:BODY_BYTES].decode(errors="replace")

    async def _next(self) -> object:
        """The next event, however many reads that takes."""
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._read >= RESPONSE_BYTES:
                raise BadResponse(f"no answer within {RESPONSE_BYTES} bytes")
            data = await self._reader.read(READ_BYTES)
            if not data and not self._answered:
                return h11.ConnectionClosed()
            self._read += len(data)
            self._http.receive_data(data)
        return event
