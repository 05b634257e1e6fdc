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
APP = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9._-]+)+")
APP_LENGTH = 256
MOST_SOURCES = 32  # of one policy
MOST_PORTS = 32
MOST_PAIRS = 10_000  # of all policies together: a node has a rule for each, and compiles all of them anew


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

    @property
    def networks(self) -> frozenset[str]:
        """All that it names."""
        return frozenset({self.network, *(source.network for source in self.sources)} - {""})

    @property
    def pairs(self) -> int:
        """Of a source and ports: so much it costs a node."""
        return max(1, len(self.sources)) * max(1, len(self.ports))


@dataclass(frozen=True, slots=True)
class Members:
    """The addresses of the containers of an `app` that a policy names as a source, in the whole cluster."""

    app: str
    addresses: tuple[str, ...]


def app_of(framework: str, owner: str) -> str:
    return f"{framework}{owner if owner.startswith('/') else '/' + owner}"
