"""Who may connect to whom. Without a policy, containers of one network reach each other, those of two networks do not.

A policy for a network lets others in, beside the network's own containers. An app for which there is any policy is
reached by what its policies say, and by nobody else. Answers to what was let in are always let through; the node on
which a container runs, and that asks after its health, always reaches it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from model.network import Subnet
from model.task import Protocol

POLICY_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True, order=True)
class Source:
    """From where: exactly one of them. An `app` is `<framework><owner>`, as in `services/web`. A `subnet` is for what
    comes from outside of the cluster, to published ports."""

    network: str = ""
    app: str = ""
    subnet: Subnet | None = None


@dataclass(frozen=True, slots=True, order=True)
class PortRange:
    """Of the container's own ports, after all translation."""

    protocol: Protocol
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Policy:
    """Those at `sources` may connect to the containers of `network`, or of `app` (exactly one is given), to `ports`;
    no ports means any, with any protocol."""

    name: str
    network: str = ""
    app: str = ""
    sources: tuple[Source, ...] = ()
    ports: tuple[PortRange, ...] = ()


@dataclass(frozen=True, slots=True)
class Members:
    """The addresses of the containers of an `app` that a policy names as a source, in the whole cluster."""

    app: str
    addresses: tuple[str, ...]


def app_of(framework: str, owner: str) -> str:
    return f"{framework}{owner if owner.startswith('/') else '/' + owner}"
