"""Ports of tasks: protocol messages to model and back."""

from __future__ import annotations

from model.task import Port, Protocol
from wire import control_pb2 as pb


def port_to_wire(port: Port) -> pb.Port:
    return pb.Port(
        number=port.number,
        name=port.name,
        protocols=port.protocols,
        labels=[pb.Pair(key=key, value=value) for key, value in port.labels],
        host=port.host,
    )


def port_from_wire(message: pb.Port) -> Port:
    return Port(
        message.number,
        message.name,
        tuple(map(Protocol, message.protocols)),
        tuple((pair.key, pair.value) for pair in message.labels),
        message.host if message.HasField("host") else None,
    )
