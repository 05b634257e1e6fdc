"""The services of the control port, as gRPC serves them.

What the generated functions do, but for messages to agents: these come as bytes from whoever has encoded them, for what
goes to every node is encoded once (`master/desired.py`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol, TypeAlias

import grpc
import grpc.aio

from wire import control_pb2 as pb

NAME = "tepui.control.v1.Control"

SessionContext: TypeAlias = "grpc.aio.ServicerContext[AsyncIterator[pb.AgentMessage], AsyncIterator[bytes]]"
StreamContext: TypeAlias = "grpc.aio.ServicerContext[AsyncIterator[pb.Frame], AsyncIterator[pb.Frame]]"


class Control(Protocol):
    """See `control.proto` for what the calls promise. `Session` yields encoded messages (MasterMessage)."""

    def Session(
        self, request_iterator: AsyncIterator[pb.AgentMessage], context: SessionContext
    ) -> AsyncIterator[bytes]: ...

    def Stream(self, request_iterator: AsyncIterator[pb.Frame], context: StreamContext) -> AsyncIterator[pb.Frame]: ...


def add_control(servicer: Control, server: grpc.aio.Server) -> None:
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Session": grpc.stream_stream_rpc_method_handler(
            servicer.Session, request_deserializer=pb.AgentMessage.FromString, response_serializer=None
        ),
        "Stream": grpc.stream_stream_rpc_method_handler(
            servicer.Stream,
            request_deserializer=pb.Frame.FromString,
            response_serializer=pb.Frame.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, handlers),))
