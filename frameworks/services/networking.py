"""A definition's networks (`network.raml`), and addresses and bandwidth that it asks for by labels of ours.

A task is on one network of the node's own, or on one or more of containers. Labels with our prefix are honoured or
refused; what others mean is between their author and the network, which may be a plug-in's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from ipaddress import ip_address
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field, model_validator

from frameworks.services.fields import STRICT, Location, invalid
from model.network import NETWORK_NAME
from model.task import KEEP, Bandwidth, Interface, TaskSpec

OWN = "tepui/"
ADDRESS, INGRESS, EGRESS = OWN + "address", OWN + "ingress", OWN + "egress"
KNOWN = (ADDRESS, INGRESS, EGRESS)
HOST, NONE, BRIDGE = "host", "none", "bridge"  # networks that every cluster has
NETWORKS_MOST = 8
RATE = re.compile(r"([0-9]{1,12})([kMG]?)")
UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
LEAST_RATE, MOST_RATE = 10**4, 10**12  # bits a second


def _name(value: str) -> str:
    if not NETWORK_NAME.fullmatch(value):
        raise invalid(f"{value!r} is no name of a network")
    return value


def _labels(labels: dict[str, str]) -> dict[str, str]:
    for key, value in labels.items():
        if not key.startswith(OWN):
            continue
        if key not in KNOWN:
            raise invalid(f"label {key} is not known: {', '.join(KNOWN)} are")
        try:
            _addresses(value) if key == ADDRESS else _rate(value)
        except ValueError as error:
            raise invalid(f"label {key}: {error}") from None
    return labels


class NetworkRef(BaseModel):
    model_config = STRICT

    mode: Literal["container", "container/bridge", "host"] = "container"
    name: Annotated[str, AfterValidator(_name)] | None = None
    labels: Annotated[dict[str, str], AfterValidator(_labels)] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> NetworkRef:
        if self.mode == "container" and not self.name:
            raise invalid('mode container needs a name, like "name": "overlay"')
        if self.mode == "container" and self.name == HOST:
            raise invalid('the network "host" is that of the node, for which the mode is host')
        if self.mode != "container" and self.name:
            raise invalid(f"mode {self.mode} takes no name")
        if self.network in (HOST, NONE) and any(key in KNOWN for key in self.labels or ()):
            raise invalid(f"labels {', '.join(KNOWN)} are for networks on which a container has an address of its own")
        return self

    @property
    def network(self) -> str:
        return HOST if self.mode == "host" else self.name or BRIDGE

    @property
    def addresses(self) -> tuple[str, ...]:
        """One for each instance, or that each is to keep its own; empty: any."""
        return _addresses(self.label(ADDRESS)) if self.label(ADDRESS) else ()

    def label(self, key: str) -> str:
        return (self.labels or {}).get(key, "")


def _networks(networks: list[NetworkRef]) -> list[NetworkRef]:
    if len(networks) < 2:
        return networks
    if any(each.mode != "container" or each.network in (HOST, NONE) for each in networks):
        raise invalid("several networks must all be of containers, each with mode container")
    repeated = [name for name, count in Counter(each.network for each in networks).items() if count > 1]
    if repeated:
        raise invalid(f"{', '.join(repeated)} occurs more than once")
    return networks


NetworkRefs = Annotated[list[NetworkRef], Field(max_length=NETWORKS_MOST), AfterValidator(_networks)]


def names_of(networks: Sequence[NetworkRef]) -> tuple[str, ...]:
    """None at all means the node's own, as in Marathon."""
    return tuple(each.network for each in networks) or (HOST,)


def problems(networks: Sequence[NetworkRef], instances: int) -> Iterator[tuple[Location, str]]:
    for index, each in enumerate(networks):
        place: Location = ("networks", index, "labels")
        if index and (each.label(INGRESS) or each.label(EGRESS)):
            yield place, f"{INGRESS} and {EGRESS} are for all of a container's networks: give them with the first"
        if index and each.addresses == (KEEP,):
            yield place, f"{ADDRESS}: only the address on the first network can be kept"
        elif each.addresses not in ((), (KEEP,)) and len(each.addresses) < instances:
            count = len(each.addresses)
            yield place, f"{ADDRESS}: there must be one for each of the {instances} instances, not {count}"


def own_address(networks: Sequence[NetworkRef], used: Collection[str]) -> str:
    """On the first network: what the definition says, of several addresses one that is not `used`."""
    return _unused(networks[0], used) if networks else ""


def interfaces(networks: Sequence[NetworkRef], used: Collection[str]) -> tuple[Interface, ...]:
    return tuple(Interface(each.network, _unused(each, used)) for each in networks[1:])


def bandwidth(networks: Sequence[NetworkRef]) -> Bandwidth | None:
    rates = [_rate(text) if (text := each.label(key)) else None for each in networks[:1] for key in (INGRESS, EGRESS)]
    return Bandwidth(*rates) if any(rates) else None


def addresses_asked(task: TaskSpec) -> tuple[str, ...]:
    return (task.address, *(interface.address for interface in task.interfaces))


def _unused(network: NetworkRef, used: Collection[str]) -> str:
    if network.addresses == (KEEP,):
        return KEEP
    return next((address for address in network.addresses if address not in used), "".join(network.addresses[:1]))


def _addresses(text: str) -> tuple[str, ...]:
    if text == KEEP:
        return (KEEP,)
    try:
        addresses = tuple(str(ip_address(part.strip())) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r} must be {KEEP}, or addresses with commas between them") from None
    if len(set(addresses)) < len(addresses):
        raise ValueError(f"{text!r}: an address occurs more than once")
    return addresses


def _rate(text: str) -> int:
    found = RATE.fullmatch(text)
    rate = int(found[1]) * UNITS[found[2]] if found else 0
    if not LEAST_RATE <= rate <= MOST_RATE:
        raise ValueError(f"{text!r} must be bits a second from 10k to 1000G, like 10M")
    return rate
