"""The node's side of joining: from a token to credentials on disk.

The order is the security. The authority's certificate is fetched over a connection that proves nothing and carries no
secret; only when its fingerprint is the token's is it trusted. The secret then goes over a second connection whose
server proved by that authority to be a master. The node's key is made here and stays here.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from contextlib import suppress
from datetime import UTC, datetime
from hmac import compare_digest
from pathlib import Path

import httpx2
from cryptography import x509

from pki.authority import authority_domain, certificate_pem, fingerprint
from pki.credentials import KEY_FILE, check, save
from pki.identity import Identity, Role, server_name
from pki.key import ensure_key, signing_request
from pki.token import Token

REQUEST_DEADLINE_S = 10.0
ANSWER_LIMIT = 64 * 1024
PORT_MAX = 65535
ADDRESS = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})")


class EnrolmentError(Exception):
    """The node could not join. The text says why, and what to do."""


class MasterUnreachable(EnrolmentError):
    """Nothing answered, or not in time. Retrying might help."""


class MasterNotTrusted(EnrolmentError):
    """What answers is not the master that the token is from. Nothing secret was sent."""


class EnrolmentRefused(EnrolmentError):
    """The master said no, or gave an answer of no use."""


async def enrol(address: str, token: Token, node_name: str, directory: Path) -> Identity:
    """Join the cluster whose enrolment port is at `address` (host:port). Raises EnrolmentError, KeyFileError, or
    ValueError for an address or a name that can not be one."""
    Identity(Role.AGENT, node_name)
    authority = await _fetch_authority(address, token)
    identity = Identity(Role.AGENT, node_name, authority_domain(authority))
    key = ensure_key(directory / KEY_FILE)
    ca = certificate_pem(authority)
    chain = await _request_certificate(address, token, identity, signing_request(key), ca)
    try:
        received = check(key, chain, ca, Role.AGENT, datetime.now(UTC)).identity
    except ValueError as error:
        raise EnrolmentRefused(f"the certificate from {address} {error}: join again with a new token") from error
    if received != identity:
        raise EnrolmentRefused(f"the certificate from {address} is for {received.uri}: join again with a new token")
    save(directory, chain, ca)
    return identity


async def _fetch_authority(address: str, token: Token) -> x509.Certificate:
    context = _client_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    status, body = await _send(context, httpx2.Request("GET", _url(address, "/enrol/ca")))
    try:
        certificate = x509.load_pem_x509_certificate(body)
    except ValueError as error:
        raise MasterNotTrusted(
            f"{address} answers {status} with no certificate: is it the address of the master's enrolment port?"
        ) from error
    if not compare_digest(fingerprint(certificate), token.fingerprint):
        raise MasterNotTrusted(
            f"the authority at {address} is not the one the token is from (its fingerprint is "
            f"{fingerprint(certificate).hex()}): check the address, and that nobody stands in between"
        )
    return certificate


async def _request_certificate(address: str, token: Token, identity: Identity, request: bytes, ca: bytes) -> bytes:
    body = {"token": token.id, "secret": token.secret, "name": identity.name, "request": request.decode()}
    context = _client_context()
    context.load_verify_locations(cadata=ca.decode())
    extensions = {"sni_hostname": server_name(identity.domain)}
    post = httpx2.Request("POST", _url(address, "/enrol"), json=body, extensions=extensions)
    status, answer = await _send(context, post)
    try:
        fields = json.loads(answer)
        if status == httpx2.codes.CREATED:
            return str(fields["certificate"]).encode()
        raise EnrolmentRefused(f"the master at {address} refused {identity.name}: {fields['message']}")
    except (ValueError, KeyError, TypeError) as error:
        raise EnrolmentRefused(f"the master at {address} gave an answer of no use ({status}): see its log") from error


def _client_context() -> ssl.SSLContext:
    """Trusts nobody yet: certificates that the system trusts mean nothing here."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


async def _send(context: ssl.SSLContext, request: httpx2.Request) -> tuple[int, bytes]:
    """Straight to the address: no proxy or .netrc of the environment comes into it."""
    address = request.url.netloc.decode()
    try:
        async with (
            asyncio.timeout(REQUEST_DEADLINE_S),
            httpx2.AsyncClient(verify=context, trust_env=False, timeout=None) as client,
        ):
            response = await client.send(request, stream=True)
            return response.status_code, await _limited_body(address, response)
    except TimeoutError as error:
        raise MasterUnreachable(
            f"{address}: no answer in {REQUEST_DEADLINE_S:g} s: is a firewall in between?"
        ) from error
    except httpx2.TransportError as error:
        raise _translated(address, error) from error


async def _limited_body(address: str, response: httpx2.Response) -> bytes:
    body = bytearray()
    async for part in response.aiter_raw():
        body += part
        if len(body) > ANSWER_LIMIT:
            raise EnrolmentRefused(f"{address} answers more than {ANSWER_LIMIT} bytes: is it the enrolment port?")
    return bytes(body)


def _url(address: str, path: str) -> httpx2.URL:
    match = ADDRESS.fullmatch(address)
    with suppress(httpx2.InvalidURL):
        if match and int(match["port"]) <= PORT_MAX:
            return httpx2.URL(f"https://{address}{path}")
    raise ValueError(f"address {address!r} must be host:port, like 192.0.2.10:7443")


def _translated(address: str, error: httpx2.TransportError) -> EnrolmentError:
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return MasterNotTrusted(f"the server at {address} is not a master of this cluster: {error}")
    reason = str(error) or "the connection was cut off"
    return MasterUnreachable(f"connect to {address}: {reason}: is the master running, and is this its enrolment port?")
