"""Renews the certificates of agents. Who asks proves by its present certificate who it is; that is who it stays."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeAlias

import grpc
import structlog

from pki.authority import Authority
from pki.identity import Identity, Role
from pki.key import RequestError
from wire import control_pb2 as pb
from wire import control_pb2_grpc
from wire.tls import agent_name

log = structlog.get_logger()

Context: TypeAlias = "grpc.aio.ServicerContext[pb.SigningRequest, Awaitable[pb.Certificate]]"


class Certificates(control_pb2_grpc.CertificatesServicer):
    def __init__(self, authority: Authority) -> None:
        self._authority = authority

    async def Renew(self, request: pb.SigningRequest, context: Context) -> pb.Certificate:
        name = await agent_name(context)
        try:
            pem = self._authority.issue(request.pem, Identity(Role.AGENT, name, self._authority.domain))
        except RequestError as error:
            log.warning("renewal refused", node=name, reason=str(error))
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        log.info("certificate renewed", node=name)
        return pb.Certificate(pem=pem)
