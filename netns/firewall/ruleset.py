"""Which nftables chains, sets and maps a `Table` means. Pure: reads a `Table`, returns a `Ruleset`.

Chains follow from networks and policies, and change seldom. What changes often is elements: a container that comes or
goes, or an address of an app that a policy names, costs an element or a few whatever the number of the others.

- forged (before connection tracking): drops what no honest sender can have sent, in silence.
- input: containers reach of the node itself its name server, echo, and what was translated.
- forward: who reaches whom. The destination finds its app's chain, if policies name that, and else its network's.
- publish, publish_own: ports of the node that lead to containers. After the VIPs, which iptables translates at -100.
- leave: masquerade, where the answer would not come back. IPv4 that leaves the cluster is masqueraded by the VIPs.

A node with entrances lets clients from outside in, through the VIPs that are for them: to containers of its own with
the client's address, and elsewhere with its own, for the answer has to come back this way.

A packet that neither comes from nor goes to our containers is none of our business: others' rules judge it alone. An
`accept` of ours ends our chain only, so it overrules nobody's refusal.
"""

from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv6Address

from model.network import VXLAN_PORT, Subnet
from model.policy import Policy, PortRange, Source
from model.task import Protocol
from netns.firewall.change import GuestElement, Ruleset, Set
from netns.firewall.table import Entrance, Guest, Table, Zone
from netns.link import VETH_PREFIX
from netns.nft.listing import collapsed

CONTAINERS = f'iifname "{VETH_PREFIX}*"'
IP = {4: "ip", 6: "ip6"}
ADDRESS = {4: "ipv4_addr", 6: "ipv6_addr"}
METADATA = {4: "169.254.0.0/16", 6: "fd00:ec2::254"}
NUMBERS = {Protocol.TCP: socket.IPPROTO_TCP, Protocol.UDP: socket.IPPROTO_UDP}
LOOPBACK = {4: "127.0.0.0/8", 6: "::1"}
# Nothing has to be asked between a container and its node, nor can an answer change what both have known from the start
# (netns/container.py). So discovery, advertisements and redirects from a container serve forgery only. That also a
# check for duplicate addresses gets no answer means to the container that there is none.
DISCOVERY = "{ nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, nd-redirect }"
VNI_BITS = "@th,96,24"  # RFC 7348 section 5: after 8 bytes of UDP, one of flags and three that are reserved


def compile_rules(table: Table) -> Ruleset:
    """Of everything but guests."""
    zones = tuple(zone for zone in table.zones if zone.local)
    networks = {zone.network.name: zone.network.subnets for zone in table.zones}
    by_app: dict[str, list[Policy]] = {}
    for policy in table.policies:
        if policy.app:
            by_app.setdefault(policy.app, []).append(policy)
    return Ruleset(
        {
            **_fixed_chains(table.zones, table.entrances is not None),
            **{zone_chain(zone): tuple(_zone_rules(zone, table.policies, networks)) for zone in zones},
            **{app_chain(app): tuple(_app_rules(policies, networks)) for app, policies in by_app.items()},
        },
        {**_fixed_sets(table, zones), **_member_sets(table)},
        frozenset(by_app),
        table.members,
    )


def with_members(table: Table, before: Ruleset) -> Ruleset:
    """As `compile_rules`, of a table that differs from the one before in its members only."""
    return replace(before, sets={**before.sets, **_member_sets(table, before)}, members=table.members)


def guest_elements(guest: Guest, guarded: frozenset[str]) -> frozenset[GuestElement]:
    """All that is there for this guest. Its ports lead to its first address of each
    version."""
    found: set[GuestElement] = set()
    for address in guest.addresses:
        found.add((f"own{address.version}", f"{address} . {address}"))
        if guest.app in guarded:
            found.add((f"apps{address.version}", f"{address} : goto {app_chain(guest.app)}"))
    firsts = {address.version: address for address in reversed(guest.addresses)}
    for version, address in firsts.items():
        for protocol, host, number in published(guest):
            found.add((f"publish{version}", f"{NUMBERS[protocol]} . {host} : {address} . {number}"))
            found.add((f"published_{protocol.value}{version}", f"{address} . {number} . {host}"))
    return frozenset(found)


def published(guest: Guest) -> frozenset[tuple[Protocol, int, int]]:
    """(protocol, port of the node, port of the container)."""
    return frozenset(
        (protocol, port.host, port.number)
        for port in guest.ports
        if port.host is not None
        for protocol in port.protocols
    )


def zone_chain(zone: Zone) -> str:
    return _name("net", zone.network.name)


def app_chain(app: str) -> str:
    return _name("app", app)


def members_set(app: str, version: int) -> str:
    return f"{_name('from', app)}_{version}"


def _name(prefix: str, of: str) -> str:
    """Readable, and never the same for two."""
    words = re.sub("[^A-Za-z0-9]+", "_", of).strip("_")[:40]
    return f"{prefix}_{words}_{hashlib.sha256(of.encode()).hexdigest()[:8]}"


def _fixed_sets(table: Table, zones: Sequence[Zone]) -> dict[str, Set]:
    local = [subnet for zone in zones for subnet in zone.local]
    cluster = [subnet for zone in table.zones for subnet in zone.network.subnets]
    internal = [subnet for zone in zones if zone.network.internal for subnet in zone.local]
    leaving = [subnet for zone in zones if not zone.network.internal for subnet in zone.local]
    sets = {"overlays": Set("ifname", frozenset(f'"{zone.dev}"' for zone in table.zones if zone.dev))}
    if table.entrances is not None:
        sets |= dict(_entrance_sets(table.entrances))
    for version in (4, 6):
        kind = ADDRESS[version]
        remote = _without(collapsed(cluster, version), collapsed(local, version))
        for name, subnets in (
            ("local", local),
            ("cluster", cluster),
            ("remote", remote),
            ("internal", internal),
            ("leaving", leaving),
        ):
            sets[f"{name}{version}"] = Set(kind, frozenset(collapsed(subnets, version)), interval=True)
        ways = (f"{subnet} : goto {zone_chain(zone)}" for zone in zones for subnet in collapsed(zone.local, version))
        sets |= {
            f"zones{version}": Set(f"{kind} : verdict", frozenset(ways), interval=True),
            f"peers{version}": Set(kind, frozenset(peer for peer in table.peers if peer.version == version)),
            f"apps{version}": Set(f"{kind} : verdict"),
            f"own{version}": Set(f"{kind} . {kind}"),
            f"publish{version}": Set(f"inet_proto . inet_service : {kind} . inet_service"),
            f"published_tcp{version}": Set(f"{kind} . inet_service . inet_service"),
            f"published_udp{version}": Set(f"{kind} . inet_service . inet_service"),
        }
    return sets


def _entrance_sets(entrances: Iterable[Entrance]) -> Iterable[tuple[str, Set]]:
    for version in (4, 6):
        for protocol in NUMBERS:
            of = (each for each in entrances if (each.address.version, each.protocol) == (version, protocol))
            elements = frozenset(f"{each.address} . {each.port}" for each in of)
            yield f"external_{protocol}{version}", Set(f"{ADDRESS[version]} . inet_service", elements)


def _member_sets(table: Table, before: Ruleset | None = None) -> dict[str, Set]:
    sets: dict[str, Set] = {}
    for app in {source.app for policy in table.policies for source in policy.sources if source.app}:
        members = table.members.get(app, frozenset())
        names = {version: members_set(app, version) for version in (4, 6)}
        if before and names[4] in before.sets and before.members.get(app, frozenset()) is members:
            sets |= {name: before.sets[name] for name in names.values()}
            continue
        six = frozenset(address for address in members if isinstance(address, IPv6Address))
        sets[names[4]] = Set(ADDRESS[4], members - six)  # thousands, whose hashes are not computed again
        sets[names[6]] = Set(ADDRESS[6], six)
    return sets


def _fixed_chains(zones: Sequence[Zone], external: bool) -> dict[str, tuple[str, ...]]:
    return {
        "refuse": ("meta l4proto tcp reject with tcp reset", "reject with icmpx admin-prohibited"),
        "spoofed": (
            f"icmpv6 type {DISCOVERY} drop",
            *(f"{IP[version]} daddr {net} drop" for version, net in LOOPBACK.items()),
            "ip saddr 0.0.0.0 drop",
            # By the route back, which each container's link has for its own addresses. What it says of its MAC address
            # changes nothing: the link leads to the node only, and nothing is learnt from it.
            "fib saddr . iif oif missing drop",
            # Outside of the cluster it would have its node's address, which other nodes believe.
            *(f"{overlay} {rule}" for overlay in _ours(zones) for rule in _each("{ip} daddr != @cluster{v} drop")),
        ),
        "stray": tuple(_each("{ip} saddr != @remote{v} drop")),
        "outer": (*_each("{ip} saddr @peers{v} accept"), "drop"),
        "forged": tuple(_forged(zones)),
        "to_node": (
            "ct state established,related accept",
            "ct status dnat accept",
            # Of the node's addresses only those within its containers' blocks are theirs to ask: the gateways.
            *_each("meta l4proto { tcp, udp } th dport 53 {ip} daddr @local{v} accept"),
            "icmp type echo-request ip daddr @local4 accept",
            "icmpv6 type echo-request ip6 daddr @local6 accept",
            "goto refuse",
        ),
        "input": (f"{CONTAINERS} goto to_node", "iifname @overlays goto to_node"),
        "from_container": (
            *(f"{IP[version]} daddr {address} goto refuse" for version, address in METADATA.items()),
            *_each("{ip} saddr @internal{v} {ip} daddr != @cluster{v} goto refuse"),
        ),
        "forward": (
            "ct state established,related accept",
            f"{CONTAINERS} jump from_container",
            *_each(*(f"{asked} accept" for asked in _from_outside() if external)),
            *_each("{ip} saddr != @cluster{v} {ip} daddr @remote{v} goto refuse"),
            *_each("{ip} saddr . {ip} daddr @own{v} accept", "{ip} daddr vmap @apps{v}", "{ip} daddr vmap @zones{v}"),
        ),
        "publish": _PUBLISH,
        "publish_own": _PUBLISH,
        "leave": tuple(_leave(zones, external)),
    }


def _from_outside() -> Iterable[str]:
    """What a client outside of the cluster has asked for is told by the tuple that its connection began with."""
    for protocol in NUMBERS:
        asked = f"meta l4proto {protocol} ct original {{ip}} daddr . ct original proto-dst @external_{protocol}{{v}}"
        yield f"ct status dnat {{ip}} saddr != @cluster{{v}} {asked}"


def _each(*rules: str) -> list[str]:
    return [rule.replace("{ip}", IP[v]).replace("{v}", str(v)) for v in (4, 6) for rule in rules]


_PUBLISH = tuple(
    rule
    for v in (4, 6)
    for rule in (
        # Whoever publishes port 53 of the node does not take the name server's place before containers.
        f"{IP[v]} daddr @local{v} meta l4proto {{ tcp, udp }} th dport 53 return",
        f"fib daddr type local {IP[v]} daddr != {LOOPBACK[v]} dnat {IP[v]} to meta l4proto . th dport map @publish{v}",
    )
)


def _forged(zones: Iterable[Zone]) -> Iterable[str]:
    """Every packet passes here, so what carries containers' comes first."""
    yield f"{CONTAINERS} goto spoofed"
    # Of any of our networks, not of the device's own alone: where a policy lets another network in, its packets come by
    # the destination's device. Which container of it sent them, the node that it runs on has made sure of.
    yield "iifname @overlays goto stray"
    yield from (f"{overlay} goto outer" for overlay in _ours(zones))
    yield 'iifname "lo" accept'
    for version, net in LOOPBACK.items():
        yield f"{IP[version]} daddr {net} drop"
        yield f"{IP[version]} saddr {net} drop"
    yield from _each("{ip} daddr @local{v} drop")


def _ours(zones: Iterable[Zone]) -> list[str]:
    """What matches packets of our overlays. Others' VXLAN may use the same port."""
    vnis = sorted({zone.network.vni for zone in zones if zone.dev and zone.network.vni is not None})
    ours = "{ " + ", ".join(f"{vni:#x}" for vni in vnis) + " }"
    return [f"udp dport {VXLAN_PORT} {VNI_BITS} {ours}"] if vnis else []


def _leave(zones: Iterable[Zone], external: bool) -> Iterable[str]:
    if external:
        yield from _each(*(f"{asked} {{ip}} daddr != @local{{v}} masquerade" for asked in _from_outside()))
    yield from _each("ct status dnat {ip} saddr . {ip} daddr @own{v} masquerade")
    yield "ip6 saddr @leaving6 ip6 daddr != @cluster6 masquerade"
    # The node's own connections to a VIP have the address of one network and may end in another: as one of the other
    # they get an answer, and are what its policies expect.
    for zone in zones:
        for version in (4, 6):
            if zone.dev and (own := collapsed(zone.network.subnets, version)):
                yield f'fib saddr type local oifname "{zone.dev}" {IP[version]} saddr != {_braced(own)} masquerade'


def _zone_rules(zone: Zone, policies: Iterable[Policy], networks: Mapping[str, tuple[Subnet, ...]]) -> Iterable[str]:
    yield from _from(zone.network.subnets, ())
    for policy in policies:
        if policy.network == zone.network.name:
            yield from _policy_rules(policy, networks)
    for version in (4, 6):
        for protocol in ("tcp", "udp"):
            key = f"{IP[version]} daddr . {protocol} dport . ct original proto-dst"
            yield f"ct status dnat {key} @published_{protocol}{version} accept"
    yield "goto refuse"


def _app_rules(policies: Iterable[Policy], networks: Mapping[str, tuple[Subnet, ...]]) -> Iterable[str]:
    for policy in policies:
        yield from _policy_rules(policy, networks)
    yield "goto refuse"


def _policy_rules(policy: Policy, networks: Mapping[str, tuple[Subnet, ...]]) -> Iterable[str]:
    for source in policy.sources:
        yield from _source_rules(source, policy.ports, networks)


def _source_rules(
    source: Source, ports: Sequence[PortRange], networks: Mapping[str, tuple[Subnet, ...]]
) -> Iterable[str]:
    if source.app:
        for version in (4, 6):
            yield from _to_ports(f"{IP[version]} saddr @{members_set(source.app, version)}", ports)
    elif source.subnet is not None:
        yield from _from((source.subnet,), ports)
    else:
        yield from _from(networks.get(source.network, ()), ports)


def _from(subnets: Sequence[Subnet], ports: Sequence[PortRange]) -> Iterable[str]:
    for version in (4, 6):
        if of := collapsed(subnets, version):
            yield from _to_ports(f"{IP[version]} saddr {_braced(of)}", ports)


def _to_ports(match: str, ports: Sequence[PortRange]) -> Iterable[str]:
    if not ports:
        yield f"{match} accept"
    for each in ports:
        span = f"{each.first}" if each.first == each.last else f"{each.first}-{each.last}"
        yield f"{match} {each.protocol.value} dport {span} accept"


def _without(subnets: Iterable[Subnet], holes: Iterable[Subnet]) -> list[Subnet]:
    """What is left of `subnets`, all of one version of IP, when the `holes` in them are not theirs."""
    left = list(subnets)
    for hole in holes:
        around = next((subnet for subnet in left if hole.network_address in subnet), None)
        if around is not None:
            left.remove(around)
            left += around.address_exclude(hole)  # type: ignore[arg-type]
    return left


def _braced(subnets: Iterable[Subnet]) -> str:
    return "{ " + ", ".join(map(str, subnets)) + " }"
