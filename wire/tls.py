"""Mutual TLS 1.3 for gRPC: credentials in, channels and server credentials out, and who the other side is.

A server takes any peer with a certificate of the cluster's authority and asks `peer_identity` who it is. A client takes
only a master: the certificate must be for servers and bear the DNS name `master.<domain>`, wherever it was dialled.
There is no function here for a connection without TLS.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import grpc
import grpc.aio
import structlog

from pki.credentials import Credentials
from pki.identity import Identity, Role, parse_identity

log = structlog.get_logger()
Request = TypeVar("Request")
Response = TypeVar("Response")

MESSAGE_LIMIT = 16 * 1024 * 1024
KEEPALIVE_MS = 10_000
KEEPALIVE_DEADLINE_MS = 5_000
# The master looks more often: a node that fell silent still gets requests until it is found out.
SERVER_KEEPALIVE_MS = 3_000
SERVER_KEEPALIVE_DEADLINE_MS = 3_000
PING_INTERVAL_MIN_MS = 5_000  # a peer that pings more often is cut off
RECONNECT_MIN_MS = 200
RECONNECT_MAX_MS = 5_000

Options = tuple[tuple[str, int | str], ...]

COMMON_OPTIONS: Options = (
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)

# With SO_REUSEPORT, gRPC's default, a second master on the same port would start and take half of the connections.
SERVER_OPTIONS: Options = (
    *COMMON_OPTIONS,
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", SERVER_KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", SERVER_KEEPALIVE_DEADLINE_MS),
    ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MIN_MS),
)

# Nodes reach the master directly: a proxy of the environment would see, and could cut, every connection.
CHANNEL_OPTIONS: Options = (
    *COMMON_OPTIONS,
    ("grpc.enable_http_proxy", 0),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_DEADLINE_MS),
    ("grpc.initial_reconnect_backoff_ms", RECONNECT_MIN_MS),
    ("grpc.min_reconnect_backoff_ms", RECONNECT_MIN_MS),
    ("grpc.max_reconnect_backoff_ms", RECONNECT_MAX_MS),
)


class PeerError(Exception):
    """The connection does not say who the peer is, or is not what it must be: refuse the call."""


def server_credentials(current: Callable[[], Credentials]) -> grpc.ServerCredentials:
    """For `add_secure_port` of a server made with SERVER_OPTIONS. Handshakes without a client certificate fail.
    `current` is asked at each handshake, by a thread of gRPC's, so that a renewed certificate needs no restart."""
    in_use = current()

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        """None when nothing is new. gRPC would replace its TLS context by an equal one at each handshake, and abort
        the process when another handshake is just using the old one (ssl_security_connector.cc has no lock there)."""
        nonlocal in_use
        newest = current()
        if newest is in_use:
            return None
        in_use = newest
        return _server_configuration(newest)

    return grpc.dynamic_ssl_server_credentials(
        _server_configuration(in_use),
        renewed,  # type: ignore[arg-type]  # the stub does not know of None, which gRPC documents
        require_client_authentication=True,
    )


def channel(target: str, credentials: Credentials) -> grpc.aio.Channel:
    """To the master at `target` (host:port). Nothing is dialled before the first call."""
    tls = grpc.ssl_channel_credentials(credentials.ca, credentials.key, credentials.chain)
    name = ("grpc.ssl_target_name_override", credentials.identity.server_name)
    return grpc.aio.secure_channel(target, tls, options=(*CHANNEL_OPTIONS, name))


async def agent_name(context: grpc.aio.ServicerContext[Request, Response]) -> str:
    """The name of the node that calls. Anybody else is turned away."""
    try:
        identity = peer_identity(context)
        if identity.role is Role.AGENT:
            return identity.name
        reason = f"{identity.uri} is no agent"
    except PeerError as error:
        reason = str(error)
    log.warning("call refused", reason=reason)
    await context.abort(grpc.StatusCode.PERMISSION_DENIED, reason)


def peer_identity(context: grpc.aio.ServicerContext[Any, Any]) -> Identity:
    """From the certificate, never from an address or metadata. Raises PeerError."""
    properties = context.auth_context()
    if list(properties.get("ssl_tls_version", ())) != [b"TLSv1.3"]:
        raise PeerError(f"peer {context.peer()}: not a TLS 1.3 connection")
    uris = list(properties.get("peer_spiffe_id", ()))
    if len(uris) != 1:
        raise PeerError(f"peer {context.peer()}: its certificate bears no SPIFFE URI")
    try:
        return parse_identity(uris[0].decode())
    except ValueError as error:
        raise PeerError(f"peer {context.peer()}: {error}") from error


def _server_configuration(credentials: Credentials) -> grpc.ServerCertificateConfiguration:
    pairs = [(credentials.key, credentials.chain)]
    return grpc.ssl_server_certificate_configuration(pairs, credentials.ca)
