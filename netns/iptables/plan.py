"""What has to change in a table: pure, from what is wanted and what is there.

Ours are the chains with our prefixes and the rules of built-in chains that jump to our anchors. A chain's name says
what its rules are (`rule.chain_name`), so comparing names compares contents. That nobody emptied or filled a chain
behind its name is checked by the number of its rules, for a tenth of what comparing the rules would cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from netns.iptables.rule import Rules, named_size


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a table should have of ours: all `chains` by name, and `rules` at least for those that are not there yet.
    `anchors` have constant names and hold one jump, to one of `chains`; `hooks` are (built-in chain, anchor)."""

    chains: frozenset[str] = frozenset()
    rules: Mapping[str, Rules] = field(default_factory=dict)
    anchors: Mapping[str, str] = field(default_factory=dict)
    hooks: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Actual:
    sizes: Mapping[str, int]
    anchors: Mapping[str, str]  # anchor -> the chain that its only rule jumps to, or "" when it holds anything else
    hooks: Mapping[str, tuple[str, ...]]  # built-in chain -> what each of its rules jumps to, "" if not to us


@dataclass(frozen=True, slots=True)
class Plan:
    create: tuple[str, ...]
    fill: tuple[str, ...]  # flushed first: what is new, and what has not as many rules as it should
    anchors: Mapping[str, str]
    hooks: tuple[tuple[str, str], ...]
    unhook: tuple[tuple[str, int], ...]  # (built-in chain, rule's index), highest index first
    delete: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.create or self.fill or self.anchors or self.hooks or self.unhook or self.delete)


def damaged(actual: Actual) -> set[str]:
    """Chains that somebody emptied or filled."""
    return {chain for chain, size in actual.sizes.items() if size != named_size(chain)}


def diff(wanted: Wanted, actual: Actual) -> Plan:
    fill = sorted(wanted.chains - (actual.sizes.keys() - damaged(actual)))
    anchors = {chain: root for chain, root in wanted.anchors.items() if actual.anchors.get(chain) != root}
    there = actual.sizes.keys() | actual.anchors.keys()
    misplaced = [hook for hook in actual.hooks if _hooked(actual, hook) != _expected(wanted, hook)]
    return Plan(
        tuple(chain for chain in (*fill, *anchors) if chain not in there),
        tuple(fill),
        anchors,
        tuple((hook, anchor) for hook, anchor in wanted.hooks if hook in misplaced),
        tuple((hook, index) for hook in misplaced for index in sorted(_hooked(actual, hook), reverse=True)),
        tuple(sorted(there - wanted.chains - wanted.anchors.keys())),
    )


def _hooked(actual: Actual, hook: str) -> dict[int, str]:
    return {index: target for index, target in enumerate(actual.hooks[hook]) if target}


def _expected(wanted: Wanted, hook: str) -> dict[int, str]:
    return dict(enumerate(anchor for built_in, anchor in wanted.hooks if built_in == hook))
