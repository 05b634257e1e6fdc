"""What a runtime asks of `tepui-cni`: what of it is refused, with which of CNI's error codes, and what it comes to.

The plug-in (`cli/cni_plugin.py`) has made sure of the version and the command's name; all else is decided here.

Source: containernetworking/cni SPEC.md 1.1.0, sections 2 to 5, and CONVENTIONS.md for `runtimeConfig`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface
from typing import Any

from model.network import NETWORK_NAME, Address
from model.task import Port, Protocol
from netns.link import INTERFACES

# SPEC.md, "Error"
UNSUPPORTED_FIELD, UNKNOWN_CONTAINER, INVALID_ENVIRONMENT, IO_FAILURE, NOT_DECODED = 2, 3, 4, 5, 6
INVALID_CONFIGURATION, TRY_AGAIN_LATER = 7, 11
NOT_AVAILABLE = 50  # an answer to STATUS
FAILED = 100  # those from here on are the plug-in's own

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # of containers and configurations
PROTOCOL_KEYS = frozenset(
    ("cniVersion", "cniVersions", "name", "type", "args", "capabilities", "runtimeConfig", "prevResult", "dns")
)
RUNTIME_KEYS = frozenset(("disableCheck", "disableGC"))  # of lists, which some runtimes leave in
OWN_KEYS = frozenset(("network", "address", "socket"))
KEYS = PROTOCOL_KEYS | RUNTIME_KEYS | OWN_KEYS
RESERVED_PREFIX = "cni.dev/"
VALID_ATTACHMENTS = RESERVED_PREFIX + "valid-attachments"
EVERYWHERE = ("", "0.0.0.0", "::")  # as a mapped port's hostIP
MOST_PORTS = 256

Json = Mapping[str, Any]


class Refused(Exception):
    """`code` is one of the above. The text names the variable or the field."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True)
class Request:
    """`configuration` is the name that the runtime's network has, `network` is ours. What a command has no use for is
    empty. `valid` are (container, interface); `previous` is the result of the ADD, at a CHECK."""

    command: str
    version: str
    configuration: str
    network: str
    container: str = ""
    interface: str = ""
    netns: str = ""
    address: Address | None = None
    ports: tuple[Port, ...] = ()
    dns: Json = field(default_factory=dict)
    previous: Json = field(default_factory=dict)
    valid: frozenset[tuple[str, str]] = frozenset()


def parse(line: bytes) -> Request:
    """Raises Refused."""
    try:
        said = json.loads(line)
        command, environment, body = said["command"], said["environment"], said["configuration"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise Refused(NOT_DECODED, "the request is no JSON object of command, environment and configuration") from error
    if not isinstance(command, str) or not _are_strings(environment) or not isinstance(body, dict):
        raise Refused(NOT_DECODED, "the request's command, environment or configuration has the wrong type")
    name = body.get("name")
    _refuse(
        not isinstance(name, str) or not NAME.fullmatch(name), INVALID_CONFIGURATION, f"name: must match {NAME.pattern}"
    )
    common = (command, str(body.get("cniVersion")), str(name), _network(body))
    match command:
        case "STATUS":
            return Request(*common)
        case "GC":
            return Request(*common, valid=_valid(body))
        case "DEL":
            return Request(*common, *_subject(environment))
        case "CHECK":
            container, interface = _subject(environment)
            previous = _object(body, "prevResult")
            _refuse(not previous, INVALID_CONFIGURATION, "prevResult: is missing")
            return Request(*common, container, _known(interface), _netns(environment), previous=previous)
        case "ADD":
            _refuse_unsupported(body)
            container, interface = _subject(environment)
            runtime = _object(body, "runtimeConfig")
            return Request(
                *common,
                container,
                _known(interface),
                _netns(environment),
                _address(body, runtime, environment.get("CNI_ARGS", "")),
                _ports(runtime.get("portMappings") or []),
                _object(body, "dns"),
            )
    raise Refused(INVALID_ENVIRONMENT, f"CNI_COMMAND: {command[:100]!r} is not known")


def _are_strings(environment: object) -> bool:
    return isinstance(environment, dict) and all(isinstance(value, str) for value in environment.values())


def _network(body: Json) -> str:
    name = body.get("network")
    _refuse(name is None, INVALID_CONFIGURATION, "network: is missing: the name of one of the cluster's networks")
    good = isinstance(name, str) and NETWORK_NAME.fullmatch(name)
    _refuse(not good, INVALID_CONFIGURATION, f"network: {json.dumps(name)[:100]} is no name of a network")
    return str(name)


def _refuse_unsupported(body: Json) -> None:
    for key in body:
        known = key in KEYS or key.startswith(RESERVED_PREFIX)
        _refuse(not known, UNSUPPORTED_FIELD, f"{key[:100]}: {json.dumps(body[key])[:100]}: is not supported")
    for key, value in _object(body, "runtimeConfig").items():
        known = key in ("ips", "portMappings")
        _refuse(not known, UNSUPPORTED_FIELD, f"runtimeConfig.{key[:100]}: {json.dumps(value)[:100]}: is not supported")
    # It gives the container its first link: there is nothing before it that it could add to.
    _refuse("prevResult" in body, INVALID_CONFIGURATION, "prevResult: tepui-cni has to be the first plug-in of a list")


def _subject(environment: Mapping[str, str]) -> tuple[str, str]:
    """(container, interface)"""
    container, interface = environment.get("CNI_CONTAINERID", ""), environment.get("CNI_IFNAME", "")
    _refuse(not NAME.fullmatch(container), INVALID_ENVIRONMENT, f"CNI_CONTAINERID: must match {NAME.pattern}")
    _refuse(not interface, INVALID_ENVIRONMENT, "CNI_IFNAME: is missing")
    return container, interface


def _known(interface: str) -> str:
    known = f"{INTERFACES[0]} to {INTERFACES[-1]}"
    bad = interface not in INTERFACES
    _refuse(bad, INVALID_ENVIRONMENT, f"CNI_IFNAME: {json.dumps(interface)[:100]} is not one of {known}")
    return interface


def _netns(environment: Mapping[str, str]) -> str:
    path = environment.get("CNI_NETNS", "")
    _refuse(not path.startswith("/"), INVALID_ENVIRONMENT, "CNI_NETNS: must be the path of a network namespace")
    return path


def _address(body: Json, runtime: Json, arguments: str) -> Address | None:
    """Asked for by the configuration, by the capability `ips`, or by an argument, as nerdctl does."""
    if "address" in body:
        return _one("address", body["address"])
    if ips := runtime.get("ips"):
        single = isinstance(ips, list) and len(ips) == 1
        _refuse(not single, INVALID_CONFIGURATION, "runtimeConfig.ips: must be a list of one address")
        return _one("runtimeConfig.ips[0]", ips[0])
    for argument in arguments.split(";"):
        key, _, value = argument.partition("=")
        if key == "IP":
            return _one("CNI_ARGS: IP", value, INVALID_ENVIRONMENT)
    return None


def _one(where: str, text: Any, code: int = INVALID_CONFIGURATION) -> Address:
    try:
        if not isinstance(text, str):
            raise ValueError
        return ip_interface(text).ip if "/" in text else ip_address(text)
    except ValueError:
        raise Refused(code, f"{where}: {json.dumps(text)[:100]} is no address") from None


def _ports(mappings: Any) -> tuple[Port, ...]:
    few = isinstance(mappings, list) and len(mappings) <= MOST_PORTS
    _refuse(not few, INVALID_CONFIGURATION, f"runtimeConfig.portMappings: must be a list of at most {MOST_PORTS}")
    return tuple(_port(f"runtimeConfig.portMappings[{number}]", mapping) for number, mapping in enumerate(mappings))


def _port(where: str, mapping: Any) -> Port:
    _refuse(not isinstance(mapping, dict), INVALID_CONFIGURATION, f"{where}: must be an object")
    for key in ("hostPort", "containerPort"):
        number = mapping.get(key)
        good = isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= 65535
        _refuse(not good, INVALID_CONFIGURATION, f"{where}.{key}: {json.dumps(number)[:100]} is no port")
    protocol = str(mapping.get("protocol") or "tcp").lower()
    bad = protocol not in tuple(Protocol)
    _refuse(bad, INVALID_CONFIGURATION, f"{where}.protocol: {json.dumps(protocol)[:100]} is not one of tcp, udp")
    host = mapping.get("hostIP") or ""
    everywhere = host in EVERYWHERE
    _refuse(not everywhere, UNSUPPORTED_FIELD, f"{where}.hostIP: {json.dumps(host)[:100]}: a port is all addresses'")
    return Port(mapping["containerPort"], protocols=(Protocol(protocol),), host=mapping["hostPort"])


def _valid(body: Json) -> frozenset[tuple[str, str]]:
    """null is what runtimes in Go make of an empty list; without the key nothing is said about what is valid."""
    missing = VALID_ATTACHMENTS not in body
    _refuse(missing, INVALID_CONFIGURATION, f"{VALID_ATTACHMENTS}: is missing")
    entries: Sequence[Any] = body[VALID_ATTACHMENTS] or []
    pairs = [(entry.get("containerID"), entry.get("ifname")) for entry in _objects(VALID_ATTACHMENTS, entries)]
    bad = any(not isinstance(part, str) for pair in pairs for part in pair)
    _refuse(bad, INVALID_CONFIGURATION, f"{VALID_ATTACHMENTS}: each has a containerID and an ifname")
    return frozenset((str(container), str(interface)) for container, interface in pairs)


def _objects(where: str, entries: Any) -> list[Json]:
    good = isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)
    _refuse(not good, INVALID_CONFIGURATION, f"{where}: must be a list of objects")
    return list(entries)


def _object(body: Json, key: str) -> Json:
    value = body.get(key) or {}
    _refuse(not isinstance(value, dict), INVALID_CONFIGURATION, f"{key}: must be an object")
    found: Json = value
    return found


def _refuse(bad: bool, code: int, text: str) -> None:
    if bad:
        raise Refused(code, text)
