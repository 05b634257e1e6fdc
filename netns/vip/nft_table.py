"""Which nftables table a `Table` of VIPs means, and the commands that make one of it out of another. Pure.

A packet finds its VIP in a map (vips), and its backend in another (tcp, udp): that of slots, by VIP and a random
number. So the cost of a connection is the same whatever the number of VIPs, and a change of one is a change of its
elements alone. How many slots a VIP has is said by the chain that the first map leads to, of which there is one for
each such number: a backend has as many slots as it has weight.

- sticky_...: of a VIP with affinity. A client that is in the set of a backend goes there; else the backend is chosen as
  above, and in to_... puts it into its set. Sets are the backends', so they stay when others come and go.
- pre, own: destination NAT, before anybody else's (iptables translates at -100).
- post: a container that reached itself through a VIP gets the node's address as the source, or it would discard a
  packet from its own address. No other connection to a VIP loses its client's address. And masquerade, of IPv4.
- forward, sent: what is still addressed to a VIP after nat has no backend, and is refused at once.
"""

from __future__ import annotations

import hashlib
import math
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from model.network import Subnet
from model.task import Protocol
from model.vip import Backend, Vip
from netns.nft.listing import collapsed, plain
from netns.vip.backend import Table

TABLE = "inet tepui-vips"
MOST_SLOTS = 128  # of a VIP, unless it has more backends
IP = {4: "ip", 6: "ip6"}
ADDRESS = {4: "ipv4_addr", 6: "ipv6_addr"}
NUMBERS = {Protocol.TCP: socket.IPPROTO_TCP, Protocol.UDP: socket.IPPROTO_UDP}
# The iptables back end's place, and before it: what a port of the node is mapped to by others does not take a VIP.
BASES = {
    "pre": "type nat hook prerouting priority dstnat - 1;",
    "own": "type nat hook output priority -101;",
    "post": "type nat hook postrouting priority srcnat;",
    "forward": "type filter hook forward priority filter;",
    "sent": "type filter hook output priority filter;",
}

# The name of a set or map and an element of it; or CHAIN and the name of one, with its rules in the lines below; or SET
# and the name of a dynamic one, with its type and time-out.
Element = tuple[str, str]
CHAIN, SET = "chain", "set"
CLIENTS = "st_"  # the names of sets of clients


@dataclass(frozen=True, slots=True)
class NftTable:
    """What is fixed (subnets by the name of their set), the elements of each VIP by its key, and how many VIPs have
    each of those that are not one's alone."""

    subnets: Mapping[str, frozenset[str]]
    vips: Mapping[str, tuple[Vip, frozenset[Element]]] = field(repr=False)
    shared: Mapping[Element, int] = field(repr=False)

    def elements(self) -> frozenset[Element]:
        return frozenset().union(*(elements for _, elements in self.vips.values()))

    def chains(self) -> frozenset[str]:
        """Chains that VIPs lead to, and sets of clients."""
        return frozenset(element for name, element in self.shared if name in (CHAIN, SET))


def compile_table(table: Table, before: NftTable | None = None) -> NftTable:
    """With `before`, what did not change since is taken from it. Raises ValueError that names the VIP whose backends
    are of another version of IP than it is."""
    subnets = {
        f"{name}{version}": frozenset(str(subnet) for subnet in collapsed(of, version))
        for name, of in (("pools", table.pools), ("local", table.local), ("cluster", table.cluster))
        for version in (4, 6)
    }
    known = before.vips if before is not None and before.subnets == subnets else {}
    vips: dict[str, tuple[Vip, frozenset[Element]]] = {}
    for key, vip in table.vips.items():
        old = known.get(key)
        if old is not None and (old[0] is vip or old[0] == vip):
            vips[key] = old
        else:
            vips[key] = vip, frozenset(_elements(vip, table))
    shared = Counter(before.shared if before is not None and known else ())
    for key in _changed(known, vips):
        shared.subtract(filter(_is_shared, known[key][1] if key in known else ()))
        shared.update(filter(_is_shared, vips[key][1] if key in vips else ()))
    return NftTable(subnets, vips, +shared)


def diff(before: NftTable, after: NftTable) -> str:
    """Empty when there is nothing to change. Of tables that are fixed alike."""
    had: set[Element] = set()
    have: set[Element] = set()
    for key in _changed(before.vips, after.vips):
        had |= before.vips[key][1] if key in before.vips else frozenset()
        have |= after.vips[key][1] if key in after.vips else frozenset()
    gone = [each for each in had - have if not after.shared.get(each)]
    new = [each for each in have - had if not before.shared.get(each)]
    return _text(_exchange(gone, new))


def load(table: NftTable) -> str:
    """The whole table, where there is none."""
    elements = table.elements()
    return _text((f"add table {TABLE}", *_frame(table), *_exchange((), elements)))


def desired(table: NftTable) -> dict[str, set[str]]:
    """What every set and map is to have, as nft says it."""
    found = {name: set(map(plain, of)) for name, of in table.subnets.items()}
    found |= {f"{name}{version}": set() for name in ("vips", *Protocol, "itself", "empty") for version in IP}
    for name, element in table.elements():
        if name not in (CHAIN, SET):
            found[name].add(element)
    return found


def slots(vip: Vip) -> list[Backend]:
    """Each backend as often as its share says. Weights have no common divisor, and are scaled where they are large."""
    backends = [backend for backend in vip.backends if backend.weight > 0]
    divisor = math.gcd(*(backend.weight for backend in backends))
    weights = [backend.weight // divisor for backend in backends] if divisor else []
    most = max(MOST_SLOTS, len(backends))
    if (total := sum(weights)) > most:
        weights = [max(1, weight * most // total) for weight in weights]
    return [backend for backend, weight in zip(backends, weights, strict=True) for _ in range(weight)]


def _elements(vip: Vip, table: Table) -> Iterator[Element]:
    version, found = vip.address.version, slots(vip)
    key = f"{vip.address} . {NUMBERS[vip.protocol]} . {vip.port}"
    if not found and not _within(vip.address, table.pools):
        yield f"empty{version}", key
    if found and vip.affinity_s:
        yield f"vips{version}", f"{key} : goto sticky_{_hash(vip.key)}"
        yield from _sticky(vip, found)
        found = []
    if found:
        yield CHAIN, f"of_{len(found)}{_spread(len(found))}"
        yield f"vips{version}", f"{key} : goto of_{len(found)}"
    for number, backend in enumerate(found):
        if backend.address.version != version:
            raise ValueError(f"VIP {vip.key} ({vip.name}): backend {backend.address} is of another version of IP")
        slot = f"{vip.address} . {vip.port} . {number}"
        yield f"{vip.protocol}{version}", f"{slot} : {backend.address} . {backend.port}"
    for backend in vip.backends:
        if backend.address.version == version and _within(backend.address, table.local):
            yield f"itself{version}", f"{backend.address} . {backend.address}"


def _sticky(vip: Vip, slots: list[Backend]) -> Iterator[Element]:
    version, protocol = vip.address.version, vip.protocol
    chosen: dict[Backend, tuple[str, list[str]]] = {}
    for number, backend in enumerate(slots):
        name = _hash(f"{vip.key} {backend.address} {backend.port} {vip.affinity_s}")
        chosen.setdefault(backend, (name, []))[1].append(str(number))
    known, draws = [], []
    for backend, (name, numbers) in chosen.items():
        if backend.address.version != version:
            raise ValueError(f"VIP {vip.key} ({vip.name}): backend {backend.address} is of another version of IP")
        host = f"[{backend.address}]" if version == 6 else f"{backend.address}"
        yield SET, f"{CLIENTS}{name} {{ type {ADDRESS[version]}; flags dynamic,timeout; timeout {vip.affinity_s}s; }}"
        to = f"meta l4proto {protocol} dnat {IP[version]} to {host}:{backend.port}"
        yield CHAIN, f"to_{name}\nupdate @{CLIENTS}{name} {{ {IP[version]} saddr }}\n{to}"
        known.append(f"{IP[version]} saddr @{CLIENTS}{name} goto to_{name}")
        draws += [f"{number} : goto to_{name}" for number in numbers]
    draw = f"numgen random mod {len(slots)} vmap {{ {', '.join(draws)} }}"
    yield CHAIN, "\n".join((f"sticky_{_hash(vip.key)}", *known, draw))


def _spread(count: int) -> str:
    """Rules of the chain for VIPs of so many slots."""
    return "".join(
        f"\ndnat {ip} to {ip} daddr . {protocol} dport . numgen random mod {count} map @{protocol}{version}"
        for version, ip in IP.items()
        for protocol in Protocol
    )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _changed(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    return [key for key in before.keys() | after.keys() if before.get(key) is not after.get(key)]


def _is_shared(element: Element) -> bool:
    """Several VIPs may have the same backend, or as many slots."""
    return element[0].startswith("itself") or element[0] in (CHAIN, SET)


def _within(address: object, subnets: Iterable[Subnet]) -> bool:
    return any(address in subnet for subnet in subnets)


def _frame(table: NftTable) -> Iterator[str]:
    """Sets before the rules that name them."""
    for name, of in table.subnets.items():
        yield f"add set {TABLE} {name} {{ type {ADDRESS[int(name[-1])]}; flags interval; }}"
        if of:
            yield f"add element {TABLE} {name} {{ {', '.join(sorted(of))} }}"
    for version, ip in IP.items():
        address, port = ADDRESS[version], "inet_proto . inet_service"
        yield f"add map {TABLE} vips{version} {{ type {address} . {port} : verdict; }}"
        # A random number has no type of its own, so the map's is told by examples. With a port that may be either's
        # (`th dport`) nft 1.0.6 can not read back what it has written. So each protocol has its map.
        for protocol in Protocol:
            slot = f"{ip} daddr . {protocol} dport . numgen inc mod 2 : {ip} daddr . {protocol} dport"
            yield f"add map {TABLE} {protocol}{version} {{ typeof {slot}; }}"
        yield f"add set {TABLE} itself{version} {{ type {address} . {address}; }}"
        yield f"add set {TABLE} empty{version} {{ type {address} . {port}; }}"
    for name, base in BASES.items():
        yield f"add chain {TABLE} {name} {{ {base} policy accept; }}"
    yield f"add chain {TABLE} refuse"
    yield f"add rule {TABLE} refuse meta l4proto tcp reject with tcp reset"
    yield f"add rule {TABLE} refuse reject with icmpx port-unreachable"
    for version, ip in IP.items():
        where = f"{ip} daddr . meta l4proto . th dport"
        for name in ("pre", "own"):
            yield f"add rule {TABLE} {name} meta l4proto {{ tcp, udp }} {where} vmap @vips{version}"
        yield f"add rule {TABLE} post {ip} saddr . {ip} daddr @itself{version} masquerade"
        for name in ("forward", "sent"):
            yield f"add rule {TABLE} {name} {ip} daddr @pools{version} goto refuse"
            yield f"add rule {TABLE} {name} meta l4proto {{ tcp, udp }} {where} @empty{version} goto refuse"
    yield f"add rule {TABLE} post ip saddr @local4 ip daddr != @cluster4 masquerade"


def _exchange(gone: Iterable[Element], new: Iterable[Element]) -> Iterator[str]:
    """What leads to a chain or set comes after it, and goes before it. A chain with other rules stays the same one."""
    stale, fresh = _grouped(gone), _grouped(new)
    sets, chains = fresh.pop(SET, ()), [each.split("\n") for each in fresh.pop(CHAIN, ())]
    old_sets = stale.pop(SET, ())
    there = {each.partition("\n")[0] for each in stale.pop(CHAIN, ())}
    going = sorted(there - {name for name, *_ in chains})
    yield from (f"add set {TABLE} {each}" for each in sets)
    yield from (f"{'flush' if name in there else 'add'} chain {TABLE} {name}" for name, *_ in chains)
    # What is drawn may be any backend, so its chain is there before the rule that leads to it.
    yield from (f"add rule {TABLE} {name} {rule}" for name, *rules in chains for rule in rules)
    for name, of in stale.items():
        yield f"delete element {TABLE} {name} {{ {', '.join(each.partition(' : ')[0] for each in of)} }}"
    for name, of in fresh.items():
        yield f"add element {TABLE} {name} {{ {', '.join(of)} }}"
    yield from (f"flush chain {TABLE} {name}" for name in going)
    yield from (f"delete chain {TABLE} {name}" for name in going)
    yield from (f"delete set {TABLE} {each.partition(' ')[0]}" for each in old_sets)


def _grouped(elements: Iterable[Element]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, element in sorted(elements):
        groups.setdefault(name, []).append(element)
    return groups


def _text(commands: Iterable[str]) -> str:
    return "".join(f"{command}\n" for command in commands)
