"""The master's web application: routers behind one door.

In the order in which a request meets them: its path is put in order (`//` is merged, a slash at the end is dropped,
because clients send both), its token is checked, and its body is read, up to a limit. A request without a valid token
gets no further than its headers.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable

from fastapi import APIRouter, FastAPI
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from master.rest import errors
from master.rest.description import PROBLEMS, describe
from master.rest.errors import answer

BODY_LIMIT = 2 * 2**20
# A client that sends more is heard out up to here: it would take a connection closed in its face for a network fault,
# and never read the answer.
DRAIN_LIMIT = 16 * 2**20
BODY_DEADLINE_S = 30.0
# Clients of today come with `Bearer`; those of DC/OS with `token=`.
AUTHORIZATION = re.compile(r"(?:bearer\s+|token=)(\S+)", re.IGNORECASE)
SLASHES = re.compile(r"/{2,}")

Authenticate = Callable[[str], bool]


class _TooLarge(Exception):
    pass


def create_app(authenticate: Authenticate, routers: Iterable[APIRouter], public: Iterable[str] = ("/ping",)) -> FastAPI:
    """`authenticate` says whether a token is good. The paths in `public` need none."""
    app = FastAPI(title="Tepui", docs_url=None, redoc_url=None, redirect_slashes=False, responses=PROBLEMS)
    errors.install(app)
    describe(app, tuple(public))
    for router in routers:
        app.include_router(router)
    # The last one added is the first that a request meets.
    app.add_middleware(BodyLimit)
    app.add_middleware(TokenRequired, authenticate=authenticate, public=frozenset(public))
    app.add_middleware(PathsInOrder)
    return app


class PathsInOrder:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            path = SLASHES.sub("/", scope["path"])
            scope = {**scope, "path": path.rstrip("/") or "/"}
        await self._app(scope, receive, send)


class TokenRequired:
    def __init__(self, app: ASGIApp, authenticate: Authenticate, public: frozenset[str]) -> None:
        self._app, self._authenticate, self._public = app, authenticate, public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in self._public:
            await self._app(scope, receive, send)
            return
        problem = self._problem(Headers(scope=scope).get("authorization"))
        if problem is None:
            await self._app(scope, receive, send)
        else:
            response = answer(401, problem, headers={"WWW-Authenticate": 'Bearer realm="tepui"'})
            await response(scope, receive, send)

    def _problem(self, header: str | None) -> str | None:
        if header is None:
            return "no token: send the header Authorization: Bearer TOKEN"
        match = AUTHORIZATION.fullmatch(header.strip())
        if not match:
            return "the header Authorization must be: Bearer TOKEN"
        return None if self._authenticate(match[1]) else "the token is not valid"


class BodyLimit:
    """Reads the whole body before anybody else does: every body here is one small JSON document."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(BODY_DEADLINE_S):
                body = await _read(receive)
        except _TooLarge:
            await answer(413, f"the body is larger than {BODY_LIMIT} bytes")(scope, receive, send)
        except TimeoutError:
            await answer(408, f"the body did not arrive within {BODY_DEADLINE_S:g} s")(scope, receive, send)
        else:
            if body is not None:
                await self._app(_as_json(scope), _replay(body, receive), send)


async def _read(receive: Receive) -> bytes | None:
    """The body; None when the client went away."""
    chunks: list[bytes] = []
    size, more = 0, True
    while more and size <= DRAIN_LIMIT:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunk, more = message.get("body", b""), message.get("more_body", False)
        size += len(chunk)
        if size <= BODY_LIMIT:
            chunks.append(chunk)
        else:
            chunks.clear()
    if size > BODY_LIMIT:
        raise _TooLarge
    return b"".join(chunks)


def _replay(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def _as_json(scope: Scope) -> Scope:
    """Every body is JSON, also where an old client or curl calls it something else or nothing."""
    headers = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
    return {**scope, "headers": [*headers, (b"content-type", b"application/json")]}
