"""Which iptables rules a table of VIPs means. Pure: reads a `Table`, returns a `RuleSet`.

A packet to a VIP finds it through a tree of chains by address prefix (pool, /20, /26, address), so the cost does not
grow with the number of VIPs. Every chain is named after a hash of its rules, and its rules name the chains below: a
Merkle tree. A change of one VIP gives new names to the chains on the path to it and to no others, the difference
between two rule sets is a difference of sets of names, and a root's name says everything below it. The anchors are the
only chains with constant names; each holds one jump, to a root.

- nat, TEPUI-VIP: destination NAT to one of the backends, chosen at random by weight.
- nat, TEPUI-POST: a container that reached itself through a VIP gets the node's address as the source, or it would
  discard a packet from its own address. No other connection to a VIP loses its client's address. And masquerade.
- filter, TEPUI-REFUSE: what is still addressed to a VIP after nat has no backend, and is refused at once.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

from model.network import Subnet
from model.task import Protocol
from model.vip import Backend, Vip
from netns.iptables.rule import Extension, Rule, Rules, chain_name, jump
from netns.vip.backend import Table

# 16 jumps in a /16 pool, then 64, then 64: at most 144 comparisons whatever the number of VIPs.
UPPER_PREFIX, LOWER_PREFIX = 20, 26
LOWER_SHIFT = 32 - LOWER_PREFIX

VIP_ANCHOR, POST_ANCHOR, REFUSE_ANCHOR = "TEPUI-VIP", "TEPUI-POST", "TEPUI-REFUSE"
HOOKS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "nat": (("PREROUTING", VIP_ANCHOR), ("OUTPUT", VIP_ANCHOR), ("POSTROUTING", POST_ANCHOR)),
    "filter": (("FORWARD", REFUSE_ANCHOR), ("OUTPUT", REFUSE_ANCHOR)),
}

RETURN = Extension("RETURN")
MASQUERADE = Extension("MASQUERADE")
TCP_RESET = Extension("REJECT", (("reject-with", "tcp-reset"),))
PORT_UNREACHABLE = Extension("REJECT", (("reject-with", "icmp-port-unreachable"),))


@dataclass(frozen=True, slots=True)
class Tree:
    """A chain and those below it, by name."""

    root: str
    chains: Mapping[str, Rules]


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """The VIPs of one /26, their chains and the addresses of their backends: reused until one of these VIPs changes."""

    vips: tuple[Vip, ...]
    tree: Tree
    backends: frozenset[int]


@dataclass(frozen=True, slots=True)
class RuleSet:
    """Chains and anchors (anchor -> root) of each iptables table."""

    chains: Mapping[str, Mapping[str, Rules]]
    anchors: Mapping[str, Mapping[str, str]]
    neighbourhoods: Mapping[IPv4Network, Neighbourhood] = field(repr=False, compare=False)

    @property
    def digest(self) -> str:
        return digest(self.anchors)


def compile_rules(table: Table, before: RuleSet | None = None) -> RuleSet:
    """With `before`, what did not change since is taken from it; the result is the same without. Raises ValueError
    that names the VIP or backend which is not IPv4."""
    pools = _ipv4(table.pools)
    neighbourhoods = _neighbourhoods(table.vips.values(), before.neighbourhoods if before else {})
    translate = _under_pools(pools, {net: hood.tree for net, hood in neighbourhoods.items()})
    backends = frozenset[int]().union(*(hood.backends for hood in neighbourhoods.values()))
    post = _post(_ipv4(table.local), _ipv4(table.cluster), backends)
    refuse = _refuse(pools, neighbourhoods)
    return RuleSet(
        {"nat": {**translate.chains, **post.chains}, "filter": refuse.chains},
        {"nat": {VIP_ANCHOR: translate.root, POST_ANCHOR: post.root}, "filter": {REFUSE_ANCHOR: refuse.root}},
        neighbourhoods,
    )


def digest(anchors: Mapping[str, Mapping[str, str]]) -> str:
    """Of everything below these anchors: a root's name stands for its whole tree."""
    words = [f"{table} {anchor} {root}" for table, of in sorted(anchors.items()) for anchor, root in sorted(of.items())]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def _ipv4(subnets: Iterable[Subnet]) -> tuple[IPv4Network, ...]:
    return tuple(subnet for subnet in subnets if isinstance(subnet, IPv4Network))


def _not_ipv4(vip: Vip) -> ValueError:
    return ValueError(f"VIP {vip.key} ({vip.name}): the iptables back end translates IPv4 to IPv4 only")


def _chain(rules: Iterable[Rule], below: Iterable[Tree] = ()) -> Tree:
    content = tuple(rules)
    name = chain_name(content)
    chains: dict[str, Rules] = {name: content}
    for tree in below:
        chains.update(tree.chains)
    return Tree(name, chains)


def _branch(branches: Mapping[IPv4Network, Tree], rules: Iterable[Rule] = ()) -> Tree:
    """A chain that jumps by destination, after its own rules."""
    jumps = (jump(tree.root, dst=str(net)) for net, tree in sorted(branches.items()))
    return _chain((*rules, *jumps), branches.values())


def _grouped(branches: Mapping[IPv4Network, Tree], prefix: int) -> dict[IPv4Network, Tree]:
    groups: dict[IPv4Network, dict[IPv4Network, Tree]] = defaultdict(dict)
    for net, tree in branches.items():
        groups[net.supernet(new_prefix=prefix)][net] = tree
    return {net: _branch(members) for net, members in groups.items()}


def _lower(address: int) -> IPv4Network:
    return IPv4Network((address << LOWER_SHIFT, LOWER_PREFIX))


def _neighbourhoods(
    vips: Iterable[Vip], before: Mapping[IPv4Network, Neighbourhood]
) -> dict[IPv4Network, Neighbourhood]:
    # Grouped by number: a network object for each of thousands of VIPs would cost more than all the rest.
    groups: dict[int, list[Vip]] = defaultdict(list)
    for vip in vips:
        if vip.address.version != 4:
            raise _not_ipv4(vip)
        groups[int(vip.address) >> LOWER_SHIFT].append(vip)
    found: dict[IPv4Network, Neighbourhood] = {}
    for number, group in groups.items():
        net, members = _lower(number), tuple(group)
        old = before.get(net)
        found[net] = old if old and old.vips == members else _neighbourhood(members)
    return found


def _neighbourhood(vips: tuple[Vip, ...]) -> Neighbourhood:
    by_address: dict[IPv4Network, list[Vip]] = defaultdict(list)
    for vip in vips:
        by_address[IPv4Network(str(vip.address))].append(vip)
    tree = _branch({net: _address(members) for net, members in by_address.items()})
    return Neighbourhood(vips, tree, frozenset(int(backend.address) for vip in vips for backend in vip.backends))


def _address(vips: list[Vip]) -> Tree:
    ordered = sorted(vips, key=lambda vip: (vip.port, vip.protocol))
    return _chain(rule for vip in ordered for rule in _translations(vip))


def _translations(vip: Vip) -> list[Rule]:
    """One rule a backend. Each is asked when those before it declined, so its probability is its share of the rest.
    With affinity, before them one for the clients that each backend has had: it remembers those that it gets."""
    backends = [backend for backend in vip.backends if backend.weight > 0]
    rest = sum(backend.weight for backend in backends)
    rules = []
    if vip.affinity_s:
        rules = [_translation(vip, backend, _recent(vip, backend, again=True)) for backend in backends]
    for backend in backends:
        share = Extension("statistic", (("mode", "random"), ("probability", f"{backend.weight / rest:.10f}")))
        first = (_recent(vip, backend, again=False),) if vip.affinity_s else ()
        rules.append(_translation(vip, backend, *((share,) if backend.weight < rest else ()), *first))
        rest -= backend.weight
    return rules


def _recent(vip: Vip, backend: Backend, again: bool) -> Extension:
    """`again`: of a client that it has had, for whom the time begins anew."""
    name = "tepui-" + hashlib.sha256(f"{vip.key} {backend.address} {backend.port}".encode()).hexdigest()[:16]
    which = (("update", ""), ("seconds", str(vip.affinity_s)), ("reap", "")) if again else (("set", ""),)
    return Extension("recent", (("name", name), *which, ("rsource", "")))


def _translation(vip: Vip, backend: Backend, *more: Extension) -> Rule:
    if backend.address.version != 4:
        raise _not_ipv4(vip)
    matches = [Extension(vip.protocol.value, (("dport", str(vip.port)),)), *more]
    target = Extension("DNAT", (("to-destination", f"{backend.address}:{backend.port}"),))
    return Rule(target, protocol=vip.protocol.value, matches=tuple(matches))


def _under_pools(pools: tuple[IPv4Network, ...], lower: Mapping[IPv4Network, Tree]) -> Tree:
    """VIPs may lie outside of every pool (a label may name any address): their /20s stand beside the pools."""
    upper = _grouped(lower, UPPER_PREFIX)
    branches: dict[IPv4Network, Tree] = {}
    for pool in pools:
        if inside := {net: tree for net, tree in upper.items() if net.subnet_of(pool)}:
            branches[pool] = _branch(inside)
            upper = {net: tree for net, tree in upper.items() if net not in inside}
    return _branch({**branches, **upper})


def _post(local: tuple[IPv4Network, ...], cluster: tuple[IPv4Network, ...], backends: frozenset[int]) -> Tree:
    if not local:
        return _chain(())
    hairpins = _hairpins(local, backends)
    leaving = _leaving(cluster, hairpins)
    return _chain((jump(leaving.root, src=str(subnet)) for subnet in local), (leaving,))


def _leaving(cluster: tuple[IPv4Network, ...], hairpins: Tree) -> Tree:
    stays = (Rule(RETURN, dst=str(subnet)) for subnet in cluster)
    return _chain((jump(hairpins.root), *stays, Rule(MASQUERADE)), (hairpins,))


def _hairpins(local: tuple[IPv4Network, ...], backends: frozenset[int]) -> Tree:
    ranges = [(int(subnet.network_address), int(subnet.broadcast_address)) for subnet in local]
    here = {number for first, last in ranges for number in backends if first <= number <= last}
    groups: dict[int, list[int]] = defaultdict(list)
    for number in sorted(here):
        groups[number >> LOWER_SHIFT].append(number)
    lower = {_lower(group): _chain(_hairpin(number) for number in members) for group, members in groups.items()}
    return _branch(_grouped(lower, UPPER_PREFIX))


def _hairpin(number: int) -> Rule:
    own = f"{IPv4Address(number)}/32"
    return Rule(MASQUERADE, src=own, dst=own)


def _refuse(pools: tuple[IPv4Network, ...], neighbourhoods: Mapping[IPv4Network, Neighbourhood]) -> Tree:
    """Whatever goes to a pool. Of an address outside, only the ports of VIPs: the rest of it is somebody's."""
    pooled = _chain((Rule(TCP_RESET, protocol=Protocol.TCP.value), Rule(PORT_UNREACHABLE)))
    stray = [hood for net, hood in neighbourhoods.items() if not any(net.subnet_of(pool) for pool in pools)]
    empty = [vip for hood in stray for vip in hood.vips if not _translations(vip)]
    refusals = sorted((_refusal(vip) for vip in empty), key=str)
    return _branch(dict.fromkeys(pools, pooled), refusals)


def _refusal(vip: Vip) -> Rule:
    port = Extension(vip.protocol.value, (("dport", str(vip.port)),))
    target = TCP_RESET if vip.protocol is Protocol.TCP else PORT_UNREACHABLE
    return Rule(target, dst=f"{vip.address}/32", protocol=vip.protocol.value, matches=(port,))
