"""The master's side of joining, on a port of its own: the only one that speaks to clients without a certificate.

`GET /enrol/ca` gives the authority's certificate to anybody. `POST /enrol` gives a certificate to whoever holds a token
that `redeem` accepts. A request is checked in full before the token is redeemed, so a mistake costs no token. Every
refusal is one line in the log and one JSON object `{"message": ...}` for the caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated

import structlog
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pki.authority import Authority
from pki.identity import Identity, Role
from pki.key import requested_key
from pki.token import Token, TokenRefused

BODY_LIMIT = 16 * 1024
BODY_DEADLINE_S = 5.0

Redeem = Callable[[Token], Awaitable[None]]

log = structlog.get_logger()


class EnrolmentRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    token: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
    secret: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{43}$")]
    name: str
    request: str


def enrolment_app(authority: Authority, redeem: Redeem) -> Starlette:
    """`redeem` takes one use off the token, durably, or raises TokenRefused."""

    async def certificate_of_authority(_: Request) -> Response:
        return Response(authority.pem, media_type="application/x-pem-file")

    async def enrol(request: Request) -> Response:
        wanted = _parse(await _body(request))
        identity = _identity(wanted.name, authority.domain)
        certificate = await _admit(authority, redeem, wanted, identity)
        log.info("node enrolled", node=identity.name, token=wanted.token, peer=_peer(request))
        return JSONResponse({"certificate": certificate.decode()}, status_code=201)

    routes = [Route("/enrol/ca", certificate_of_authority), Route("/enrol", enrol, methods=["POST"])]
    return Starlette(routes=routes, exception_handlers={HTTPException: _refused})


async def _body(request: Request) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_DEADLINE_S):
            async for part in request.stream():
                body += part
                if len(body) > BODY_LIMIT:
                    raise HTTPException(413, f"the body is larger than {BODY_LIMIT} bytes")
    except TimeoutError as error:
        raise HTTPException(408, f"the body did not arrive within {BODY_DEADLINE_S:g} s") from error
    return bytes(body)


def _parse(body: bytes) -> EnrolmentRequest:
    try:
        wanted = EnrolmentRequest.model_validate_json(body)
        requested_key(wanted.request.encode())
    except ValidationError as error:
        raise HTTPException(400, _describe(error)) from error
    except ValueError as error:
        raise HTTPException(400, f"request: {error}") from error
    return wanted


def _identity(name: str, domain: str) -> Identity:
    try:
        return Identity(Role.AGENT, name, domain)
    except ValueError as error:
        raise HTTPException(400, str(error)) from error


async def _admit(authority: Authority, redeem: Redeem, wanted: EnrolmentRequest, identity: Identity) -> bytes:
    try:
        await redeem(Token(authority.fingerprint, wanted.token, wanted.secret))
    except TokenRefused as error:
        raise HTTPException(403, f"{error}: ask for a new token") from error
    return authority.issue(wanted.request.encode(), identity)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # as registered
    log.warning("enrolment refused", peer=_peer(request), path=request.url.path, reason=error.detail)
    return JSONResponse({"message": error.detail}, status_code=error.status_code, headers=error.headers)


def _describe(error: ValidationError) -> str:
    """The fields and what is wrong with them, not what was in them: that may be a secret."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'body'}: {fault['msg']}" for fault in faults)


def _peer(request: Request) -> str:
    return f"{request.client.host}:{request.client.port}" if request.client else "unknown"
