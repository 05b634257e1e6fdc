"""Keeps this node's certificate from expiring: asks the master for a new one when a third of its time remains.

The key stays. The session that is open goes on with the old certificate; the next one is made with the new. Without a
master to ask, it tries again for a month; when that was not enough, `tepui agent join` helps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import grpc
import structlog

from pki.credentials import KEY_FILE, CredentialError, check, load_credentials, renewal_due, save
from pki.identity import Role
from pki.key import read_key, signing_request
from wire import control_pb2 as pb
from wire import control_pb2_grpc

log = structlog.get_logger()

INTERVAL_S = 3600.0
CALL_DEADLINE_S = 30.0

Dial = Callable[[], grpc.aio.Channel]


async def keep_renewed(directory: Path, dial: Dial) -> None:
    """Until cancelled."""
    while True:
        try:
            if renewal_due(load_credentials(directory), datetime.now(UTC)):
                await renew(directory, dial)
        except (CredentialError, grpc.aio.AioRpcError, ValueError, OSError) as error:
            log.warning("certificate not renewed, trying again", in_s=INTERVAL_S, reason=describe(error))
        await asyncio.sleep(INTERVAL_S)


async def renew(directory: Path, dial: Dial) -> None:
    """One attempt. Nothing on disk changes unless the answer is a certificate of use to us (ValueError)."""
    key, present = read_key(directory / KEY_FILE), load_credentials(directory)
    async with dial() as channel:
        stub = control_pb2_grpc.CertificatesStub(channel)
        answer = await stub.Renew(pb.SigningRequest(pem=signing_request(key)), timeout=CALL_DEADLINE_S)
    renewed = check(key, answer.pem, present.ca, Role.AGENT, datetime.now(UTC))
    if renewed.identity != present.identity:
        raise ValueError(f"the new certificate is for {renewed.identity.uri}, not for {present.identity.uri}")
    save(directory, renewed.chain, renewed.ca)
    log.info("certificate renewed", until=renewed.not_after.isoformat())


def describe(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error)
