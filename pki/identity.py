"""Who a certificate speaks for: the SPIFFE URI in its subject alternative name, and nothing else in it.

`spiffe://tepui.internal/agent/node1`: the cluster's domain, a role, a name. Parsing is strict, because what it returns
is what authorization is decided on (SPIFFE-ID.md sections 2.1 and 2.2; no query, port, empty or dotted segment).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from model.names import DEFAULT_DOMAIN

# A node's name is its identity: a host name in lower case, so that no two names differ only by case. No `..` in it.
NAME = re.compile(r"(?=.{1,63}$)[a-z0-9]+(([._]|-+)[a-z0-9]+)*", re.ASCII)
DOMAIN = re.compile(r"(?=.{1,200}$)[a-z0-9]+((\.|-+)[a-z0-9]+)*", re.ASCII)
SPIFFE = re.compile(r"spiffe://(?P<domain>[^/]+)/(?P<role>[^/]+)/(?P<name>[^/]+)")


class Role(StrEnum):
    MASTER = "master"
    AGENT = "agent"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Identity:
    """Raises ValueError that says what is wrong with the name or the domain."""

    role: Role
    name: str
    domain: str = DEFAULT_DOMAIN

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"name {self.name!r} must be 1 to 63 of a-z, 0-9, '.', '_', '-', like rack2-node1")
        check_domain(self.domain)

    @property
    def uri(self) -> str:
        return f"spiffe://{self.domain}/{self.role}/{self.name}"

    @property
    def server_name(self) -> str:
        """The DNS name that every master's certificate of this cluster bears, wherever the master runs."""
        return server_name(self.domain)


def check_domain(domain: str) -> None:
    if not DOMAIN.fullmatch(domain):
        raise ValueError(f"domain {domain!r} must be a DNS name in lower case")


def server_name(domain: str) -> str:
    return f"master.{domain}"


def parse_identity(uri: str) -> Identity:
    """Raises ValueError that says what is wrong with the URI."""
    match = SPIFFE.fullmatch(uri)
    if not match:
        raise ValueError(f"{uri!r} must be spiffe://DOMAIN/ROLE/NAME")
    if match["role"] not in list(Role):
        raise ValueError(f"{uri!r}: role {match['role']!r} must be one of {', '.join(Role)}")
    return Identity(Role(match["role"]), match["name"], match["domain"])
