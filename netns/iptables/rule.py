"""A rule as data, and its form on the pipe between client and worker.

`str(rule)` is what `iptables -S` would print after the chain's name. It is for people and for naming chains by their
content; nothing ever parses it. A chain's name, `TPV-2-5a1c...`, says how many rules it has and the hash of them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

# Chains whose names start so are ours: created, filled and deleted by us, and never by anyone else.
CONTENT_PREFIX = "TPV-"
ANCHOR_PREFIX = "TEPUI-"
NAME_MAX = 28  # XT_EXTENSION_MAXNAMELEN with the terminating zero is 29


@dataclass(frozen=True, slots=True)
class Extension:
    """A match or target extension with its options as the iptables command names them, without the dashes."""

    name: str
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return " ".join([self.name, *(f"--{key} {value}" for key, value in self.options)])


@dataclass(frozen=True, slots=True)
class Rule:
    """`target` is one of our chains, a verdict such as RETURN, or a target extension. `src` and `dst` are prefixes."""

    target: Extension
    src: str = ""
    dst: str = ""
    protocol: str = ""
    matches: tuple[Extension, ...] = ()

    def __str__(self) -> str:
        pairs = (("s", self.src), ("d", self.dst), ("p", self.protocol))
        words = [f"-{flag} {value}" for flag, value in pairs if value]
        return " ".join([*words, *(f"-m {match}" for match in self.matches), f"-j {self.target}"])


Rules = tuple[Rule, ...]


def jump(chain: str, src: str = "", dst: str = "") -> Rule:
    return Rule(Extension(chain), src=src, dst=dst)


def is_ours(chain: str) -> bool:
    return chain.startswith((CONTENT_PREFIX, ANCHOR_PREFIX))


def chain_name(rules: Rules) -> str:
    """Of the chain that holds exactly these rules, and therefore, as they name other chains, of all below it too."""
    content = hashlib.sha256("\n".join(str(rule) for rule in rules).encode()).hexdigest()
    return f"{CONTENT_PREFIX}{len(rules):x}-{content}"[:NAME_MAX]


def named_size(chain: str) -> int:
    """How many rules a chain of this name should have."""
    return int(chain.removeprefix(CONTENT_PREFIX).partition("-")[0], 16)


def to_wire(rule: Rule) -> list[Any]:
    """Lists all the way down, for JSON."""
    matches = [(match.name, match.options) for match in rule.matches]
    return [rule.target.name, rule.target.options, rule.src, rule.dst, rule.protocol, matches]


def from_wire(row: list[Any]) -> Rule:
    target, options, src, dst, protocol, matches = row
    return Rule(_extension(target, options), src, dst, protocol, tuple(_extension(*match) for match in matches))


def _extension(name: str, options: list[list[str]]) -> Extension:
    return Extension(name, tuple((key, value) for key, value in options))
