"""A definition's ports (`portMapping.raml`, `portDefinition.raml`), and what a task is told of them.

A container has its own ports (`portMappings`), to which ports of the node may lead; a task in the node's network has
ports of the node (`portDefinitions`). 0 means that one is chosen, when it is known
on which node: in the model such a port is `host=0` until then.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field

from frameworks.services.fields import STRICT, Location, invalid
from frameworks.services.networking import HOST, NONE
from model.task import Port, Protocol
from model.vip import is_vip_label, parse_drain, parse_label, parse_options

PORT_NAME = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?")
PROTOCOLS = {
    "tcp": (Protocol.TCP,),
    "udp": (Protocol.UDP,),
    "tcp,udp": (Protocol.TCP, Protocol.UDP),
    "udp,tcp": (Protocol.UDP, Protocol.TCP),
}


def _port_name(value: str) -> str:
    if not PORT_NAME.fullmatch(value):
        raise invalid(f"{value!r} must be letters, digits and hyphens, at most 63")
    return value


def _vip_labels(labels: dict[str, str]) -> dict[str, str]:
    for key, value in labels.items():
        if is_vip_label(key):
            try:
                parse_label(value)
            except ValueError as error:
                raise invalid(f"label {key}: {error}") from None
    try:
        parse_options(labels)
        parse_drain(labels)
    except ValueError as error:
        raise invalid(str(error)) from None
    return labels


PortName = Annotated[str, AfterValidator(_port_name)]
PortLabels = Annotated[dict[str, str], AfterValidator(_vip_labels)]
PortNumber = Annotated[int, Field(ge=1, le=65535)]
AnyPort = Annotated[int, Field(ge=0, le=65535)]  # 0: one is chosen
NetworkNames = Annotated[list[str], Field(max_length=8)]


class PortMapping(BaseModel):
    """`servicePort` is for load balancers that read definitions: nothing here listens on it."""

    model_config = STRICT

    containerPort: AnyPort
    hostPort: AnyPort | None = None
    servicePort: AnyPort | None = None
    protocol: Literal["tcp", "udp", "udp,tcp", "tcp,udp"] = "tcp"
    name: PortName | None = None
    labels: PortLabels = {}
    networkNames: NetworkNames | None = None

    def port(self, bridged: bool) -> Port:
        """On the bridge each is published, as in Marathon."""
        host = 0 if self.hostPort is None and bridged else self.hostPort
        return Port(self.containerPort, self.name or "", PROTOCOLS[self.protocol], _pairs(self.labels), host)


class PortDefinition(BaseModel):
    model_config = STRICT

    port: AnyPort = 0
    protocol: Literal["tcp", "udp", "udp,tcp", "tcp,udp"] = "tcp"
    name: PortName | None = None
    labels: PortLabels = {}

    def host_port(self, required: bool) -> Port:
        """Unless ports are required, a number is that of the service, and the task gets any."""
        number = self.port if required else 0
        return Port(number, self.name or "", PROTOCOLS[self.protocol], _pairs(self.labels), number)


def mapping_problems(
    ports: Sequence[tuple[Port, list[str] | None]], networks: Sequence[str], place: Location
) -> Iterator[tuple[Location, str]]:
    """What does not go with the `networks` of the container: of ports, each with the networks that are named for it."""
    if ports and networks[0] == HOST:
        yield place, "are not for host networking: use portDefinitions"
        return
    for index, (port, names) in enumerate(ports):
        yield from _mapping_problems(port, names, networks, (*place, index))
    if repeated := repeated_hosts([port for port, _ in ports]):
        yield place, f"hostPort {', '.join(repeated)} occurs more than once"


def _mapping_problems(
    port: Port, names: Sequence[str] | None, networks: Sequence[str], place: Location
) -> Iterator[tuple[Location, str]]:
    if unknown := [name for name in names or () if name not in networks]:
        yield (*place, "networkNames"), f"{', '.join(unknown)} is none of the definition's networks"
    elif (
        names
        and networks[0] not in names
        and (port.host is not None or any(is_vip_label(key) for key, _ in port.labels))
    ):
        yield (
            (*place, "networkNames"),
            f"what is published, or has a VIP, is reached on the first network, {networks[0]}",
        )
    if port.host is not None and networks[0] == NONE:
        yield (*place, "hostPort"), "leads nowhere: the container has no network"
    if port.number == 0 and port.host is None:
        yield (*place, "containerPort"), "0 means the same as hostPort, which must be given"


def definition_problems(
    definitions: Sequence[PortDefinition] | None, required: bool, networks: Sequence[str]
) -> Iterator[tuple[Location, str]]:
    if networks[0] != HOST:
        if definitions:
            yield ("portDefinitions",), "are for host networking: use container.portMappings"
        return
    ports = [each.host_port(required) for each in definitions or ()]
    if repeated := repeated_ports(ports):
        yield ("portDefinitions",), f"{', '.join(repeated)} occurs more than once"


def repeated_ports(ports: Sequence[Port]) -> list[str]:
    """Names, and ports of containers, that occur more than once among those of one address."""
    return _repeated(port.name for port in ports if port.name) or _repeated(
        _sockets((port, port.number) for port in ports)
    )


def repeated_hosts(ports: Sequence[Port]) -> list[str]:
    return _repeated(_sockets((port, port.host) for port in ports))


def resolved(ports: Iterable[Port], chosen: Iterator[int]) -> tuple[Port, ...]:
    """With the numbers that were chosen, as far as there are any."""
    return tuple(_resolved(port, next(chosen, 0) if port.host == 0 else port.host) for port in ports)


def _resolved(port: Port, host: int | None) -> Port:
    return replace(port, host=host, number=port.number or host or 0)


def environment(asked: Sequence[Port], given: Sequence[Port], services: Sequence[int]) -> dict[str, str]:
    """What Marathon tells a task. Where a port of the node leads to it, that is the port which is told; `services` are
    the numbers that definitions of such ports have."""
    numbers = [str(port.number if port.host is None else port.host) for port in given]
    told = {}
    for index, (before, number) in enumerate(zip(asked, numbers, strict=True)):
        told[f"PORT{index}"] = number
        if requested := before.number or services[index]:
            told[f"PORT_{requested}"] = number
        if before.name:
            told[f"PORT_{variable(before.name)}"] = number
    return told | ({"PORT": numbers[0], "PORTS": ",".join(numbers)} if numbers else {})


def variable(name: str) -> str:
    return name.upper().replace("-", "_")


def _sockets(ports: Iterable[tuple[Port, int | None]]) -> Iterator[str]:
    return (f"{number}/{protocol}" for port, number in ports if number for protocol in port.protocols)


def _repeated(values: Iterable[str]) -> list[str]:
    return [value for value, count in Counter(values).items() if count > 1]


def _pairs(labels: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(labels.items()))
