"""Endpoints of a pod's containers: their ports (`network.raml: Endpoint`).

In the node's network an endpoint has a port of the node and no other; elsewhere it has one of the containers' address,
to which a port of the node may lead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from frameworks.services.fields import STRICT, Location
from frameworks.services.networking import HOST
from frameworks.services.ports import PROTOCOLS, AnyPort, NetworkNames, PortLabels, PortName, mapping_problems
from model.task import Port


class Endpoint(BaseModel):
    model_config = STRICT

    name: PortName
    containerPort: AnyPort | None = None
    protocol: Annotated[list[Literal["tcp", "udp"]], Field(min_length=1, max_length=2)] = ["tcp"]
    labels: PortLabels = {}
    hostPort: AnyPort | None = None
    networkNames: NetworkNames | None = None

    @property
    def port(self) -> Port:
        """Without one of its own it is the node's."""
        number = (self.hostPort or 0) if self.containerPort is None else self.containerPort
        labels = tuple(sorted(self.labels.items()))
        return Port(number, self.name, PROTOCOLS[",".join(dict.fromkeys(self.protocol))], labels, self.hostPort)


def endpoint_problems(
    endpoints: Sequence[Endpoint], networks: Sequence[str], place: Location
) -> Iterator[tuple[Location, str]]:
    """What does not go with the `networks` of the pod."""
    if networks[0] != HOST:
        yield from mapping_problems([(each.port, each.networkNames) for each in endpoints], networks, place)
    for index, each in enumerate(endpoints):
        if networks[0] == HOST and each.containerPort is not None:
            yield (*place, index, "containerPort"), "is not for host networking: hostPort is the port"
        if networks[0] != HOST and each.containerPort is None and each.hostPort is None:
            yield (*place, index, "containerPort"), "is missing"
