"""What definitions said before Marathon 1.5, in the words of today: `ports`, `uris`, `ipAddress`, `docker.network` and
`docker.portMappings` (Marathon, `AppNormalization`). Pure, on the JSON.

What is not of the right type is left where it is, and refused there. What says the same twice is taken, since clients
send back all that they read; what says two things is refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, ValidationError

from frameworks.services.fields import STRICT, invalid_at, refused_because
from frameworks.services.networking import NONE
from frameworks.services.ports import AnyPort

Json = dict[str, Any]
DockerNetwork = Literal["BRIDGE", "HOST", "NONE", "USER"]
MESOS_BRIDGE = "mesos-bridge"  # what Marathon calls the bridge among names of networks
ARCHIVES = (".tar", ".tar.gz", ".tar.bz2", ".tar.xz", ".gz", ".tgz", ".tbz2", ".txz", ".zip")
NETWORKS: dict[str, Json] = {
    "HOST": {"mode": "host"},
    "BRIDGE": {"mode": "container/bridge"},
    "NONE": {"mode": "container", "name": NONE},
}
# What is said in an old form takes the place of what is kept in the new one.
TODAY = {"ports": "portDefinitions", "uris": "fetch", "ipAddress": "networks"}
NoGroups = Annotated[None, refused_because("policies say which containers may talk to each other")]
DEFAULT = {"name": "default"}  # port of who says nothing about ports, in the node's network
DEFAULT_MAPPING = {"containerPort": 0, **DEFAULT}  # of who says nothing about ports, on the bridge
SHOWN_DEFAULT = {"port": 0, "protocol": "tcp", "labels": {}, **DEFAULT}


class Strict(BaseModel):
    model_config = STRICT


class DiscoveryPort(Strict):
    name: str
    number: AnyPort = 0
    protocol: str = "tcp"
    labels: dict[str, str] = {}


class Discovery(Strict):
    ports: Annotated[list[DiscoveryPort], Field(max_length=100)] = []


class IpAddress(Strict):
    networkName: Annotated[str, Field(min_length=1)] | None = None
    labels: dict[str, str] = {}
    discovery: Discovery = Discovery()
    groups: NoGroups = None


def modern(body: Any) -> Any:
    """A whole definition. Raises ValidationError that names the field."""
    if not isinstance(body, dict):
        return body
    return _with_fetch(_with_ports(_with_networks(_with_mappings(body))))


def superseded(said: Json) -> set[str]:
    """Which fields of a definition no longer count when a change says this."""
    gone = {today for old, today in TODAY.items() if old in said}
    if "network" in _docker(said):
        gone.add("networks")
    return gone - said.keys()


def _docker(body: Json) -> Json:
    container = body.get("container")
    docker = container.get("docker") if isinstance(container, dict) else None
    return docker if isinstance(docker, dict) else {}


def _with_docker(body: Json, docker: Json, **container: Any) -> Json:
    return {**body, "container": {**body["container"], **container, "docker": docker}}


def _with_mappings(body: Json) -> Json:
    docker = _docker(body)
    old = docker.get("portMappings")
    if not isinstance(old, list):
        return body
    given = body["container"].get("portMappings")
    if old and given and given != old:
        raise invalid_at({("container", "docker", "portMappings"): "must not be given together with others outside it"})
    return _with_docker(body, _without(docker, "portMappings"), portMappings=given or old)


def _with_networks(body: Json) -> Json:
    kind, given = _docker(body).get("network"), body.get("ipAddress")
    if kind not in (None, "USER", *NETWORKS) or (kind is None and given is None):
        return body
    try:
        address = IpAddress.model_validate({} if given is None else given)
    except ValidationError:
        return body
    networks = [_network(kind, address)]
    if body.get("networks") not in (None, [], networks):
        place = ("container", "docker", "network") if given is None else ("ipAddress",)
        raise invalid_at({place: "must not be given together with networks"})
    if kind is not None:
        body = _with_docker(body, _without(_docker(body), "network"))
    return {**_with_discovery(_without(body, "ipAddress"), address), "networks": networks}


def _network(kind: str | None, address: IpAddress) -> Json:
    labels = {"labels": address.labels} if address.labels else {}
    if kind is None and address.networkName == MESOS_BRIDGE:
        kind = "BRIDGE"
    if kind in NETWORKS:
        return {**NETWORKS[kind], **labels}
    if address.networkName is None:
        raise invalid_at({("ipAddress", "networkName"): "is missing: there is no network by default"})
    return {"mode": "container", "name": address.networkName, **labels}


def _with_discovery(body: Json, address: IpAddress) -> Json:
    if not address.discovery.ports:
        return body
    place, container = ("ipAddress", "discovery", "ports"), body.get("container", {})
    if not isinstance(container, dict):
        return body
    if container.get("type") == "DOCKER":
        raise invalid_at({place: "are for containers of type MESOS: use container.portMappings"})
    ports = [
        {"containerPort": port.number, "name": port.name, "protocol": port.protocol, "labels": port.labels}
        for port in address.discovery.ports
    ]
    if container.get("portMappings") not in (None, [], ports):
        raise invalid_at({place: "must not be given together with container.portMappings"})
    return {**body, "container": {"type": "MESOS", **container, "portMappings": ports}}


def _with_ports(body: Json) -> Json:
    body = _with_definitions(body)
    networks = body.get("networks")
    given = networks if isinstance(networks, list) else []
    modes = [each.get("mode", "container") for each in given if isinstance(each, dict)]
    if not modes or "host" in modes:
        return body if "portDefinitions" in body else {**body, "portDefinitions": [DEFAULT]}
    if body.get("requirePorts") is True:  # of a container each hostPort is the one that is asked for
        body = {**body, "requirePorts": False}
    return _with_service_ports(body, bridged=modes == ["container/bridge"])


def _with_definitions(body: Json) -> Json:
    numbers, given = body.get("ports"), body.get("portDefinitions")
    if not isinstance(numbers, list):
        return body
    if not given:
        return {**_without(body, "ports"), "portDefinitions": [{"port": number} for number in numbers]}
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        return _without(body, "ports")
    if numbers and numbers != [each.get("port", 0) for each in given]:
        raise invalid_at({("ports",): "must be the numbers of portDefinitions if both are given: remove it"})
    return _without(body, "ports")


def _with_service_ports(body: Json, bridged: bool) -> Json:
    """Of a container's ports, which is what `ports` were. On the bridge, more of them are more ports of the node."""
    container = body.get("container", {})
    if not isinstance(container, dict):
        return body
    mappings = container.get("portMappings", [DEFAULT_MAPPING] if bridged else [])
    if not isinstance(mappings, list) or not all(isinstance(each, dict) for each in mappings):
        return body
    numbers = _plain(_without_default(body.get("portDefinitions", [])))
    if numbers is None or (len(numbers) > len(mappings) and not bridged):
        return body  # where it is refused
    if bridged:
        mappings = mappings + [{"containerPort": 0} for _ in numbers[len(mappings) :]]
        mappings = [{"hostPort": 0, **mapping} for mapping in mappings]
    served = [_served(mapping, number) for mapping, number in zip(mappings, numbers, strict=False)]
    mappings = served + mappings[len(served) :]
    if mappings and mappings != container.get("portMappings"):
        body = {**body, "container": {**container, "portMappings": mappings}}
    return _without(body, "portDefinitions")


def _without_default(definitions: Any) -> Any:
    return [] if definitions in ([DEFAULT], [SHOWN_DEFAULT]) else definitions


def _plain(definitions: Any) -> list[int] | None:
    """The numbers of port definitions that say no more than these."""
    if not isinstance(definitions, list) or not all(isinstance(each, dict) for each in definitions):
        return None
    if any(each.get("name") or each.get("labels") or each.get("protocol", "tcp") != "tcp" for each in definitions):
        return None
    numbers = [each.get("port", 0) for each in definitions]
    return numbers if all(type(number) is int for number in numbers) else None


def _served(mapping: Json, number: int) -> Json:
    if not number or mapping.get("servicePort") == number:
        return mapping
    if mapping.get("servicePort"):
        raise invalid_at(
            {("portDefinitions",): f"{number} is not the servicePort in container.portMappings: remove it"}
        )
    return {**mapping, "servicePort": number}


def _with_fetch(body: Json) -> Json:
    uris, given = body.get("uris"), body.get("fetch")
    if not isinstance(uris, list) or not all(isinstance(uri, str) for uri in uris):
        return body
    if uris and given:
        if not isinstance(given, list) or [isinstance(each, dict) and each.get("uri") for each in given] != uris:
            raise invalid_at({("uris",): "must not be given together with fetch: remove it"})
    elif uris:
        body = {**body, "fetch": [{"uri": uri, "extract": _is_archive(uri)} for uri in uris]}
    return _without(body, "uris")


def _is_archive(uri: str) -> bool:
    try:
        return urlsplit(uri).path.endswith(ARCHIVES)
    except ValueError:
        return False


def _without(body: Json, key: str) -> Json:
    return {name: value for name, value in body.items() if name != key}
