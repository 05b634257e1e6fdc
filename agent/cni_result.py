"""What `tepui-cni` says about a container that it attached, in CNI's words; and whether what a runtime was told then is
what is true now. Pure.

Source: containernetworking/cni SPEC.md 1.1.0, section 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import ip_interface
from typing import Any

from agent.cni_request import INVALID_CONFIGURATION, Json, Refused
from netns.container import DEFAULT, Endpoint
from netns.gateway import GATEWAY_MAC
from netns.link import INTERFACES

WITH_MTU = "1.1.0"


def result(endpoint: Endpoint, netns: str, version: str, dns: Json) -> dict[str, Any]:
    """Of an ADD, without the version. The node's end of the link comes first, the container's is number 1."""
    links: list[dict[str, Any]] = [
        {"name": endpoint.veth, "mac": GATEWAY_MAC},
        {"name": endpoint.interface, "mac": endpoint.mac, "sandbox": netns},
    ]
    if version >= WITH_MTU:
        for link in links:
            link["mtu"] = endpoint.mtu
    return {
        "interfaces": links,
        "ips": [
            {"address": str(ip_interface(reach.address)), "gateway": str(reach.gateway), "interface": 1}
            for reach in endpoint.reaches
        ],
        "routes": list(_routes(endpoint)),
        "dns": dict(dns),
    }


def refuse_other(previous: Json, endpoint: Endpoint) -> None:
    """Raises Refused when the result that a runtime has, of this plug-in and those after it, is not about `endpoint`.
    Others may have added to it, or have changed a MAC address."""
    names = {link.get("name") for link in _entries(previous, "interfaces") if link.get("sandbox")}
    if endpoint.interface not in names:
        raise Refused(INVALID_CONFIGURATION, f"prevResult.interfaces: {endpoint.interface} is not there")
    said = {str(entry.get("address")) for entry in _entries(previous, "ips")}
    for reach in endpoint.reaches:
        if str(ip_interface(reach.address)) not in said:
            raise Refused(
                INVALID_CONFIGURATION, f"prevResult.ips: {reach.address} is not there, and the container has it"
            )


def _routes(endpoint: Endpoint) -> Iterator[dict[str, str]]:
    """As `connect` makes them: by its first link a container reaches everything."""
    for reach in endpoint.reaches:
        everything = [DEFAULT[reach.address.version]]
        for subnet in everything if endpoint.interface == INTERFACES[0] else endpoint.subnets:
            if subnet.version == reach.address.version:
                yield {"dst": str(subnet), "gw": str(reach.gateway)}


def _entries(previous: Json, key: str) -> Sequence[Json]:
    entries = previous.get(key) or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise Refused(INVALID_CONFIGURATION, f"prevResult.{key}: must be a list of objects")
    return entries
