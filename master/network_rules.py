"""What a network must be, alone and beside others: everything that is wrong with it is found here before it is made,
and named by its field. What only a node can know, as the routes that it has, the node itself refuses.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from ipaddress import ip_network

from model.network import LONGEST_BLOCK, NETWORK_NAME, Network, NetworkKind, Subnet, free_subnet, overlap
from model.node import Node

MAX_VNI = (1 << 24) - 1  # RFC 7348 section 5
FIRST_VNI = 1025  # of those that are chosen; 1024 is the default overlay's
LEAST_MTU = {4: 68, 6: 1280}  # RFC 791 and RFC 8200 section 5
MOST_SUBNETS = 8
# Of these a network gets one whose subnets do not matter: next to the default networks, in what RFC 6598 sets aside.
ANY_SUBNET, ANY_PREFIX = ip_network("100.112.0.0/12"), 16
# Nobody's to give to containers: loopback, link-local (with the metadata service of clouds), multicast and above.
RESERVED = tuple(map(ip_network, ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"))) + tuple(
    map(ip_network, ("::/8", "fe80::/10", "ff00::/8"))
)


class Refused(Exception):
    """A network can not be: because of `field`. `conflict`: because of something else that is there."""

    def __init__(self, field: str, problem: str, *, conflict: bool = True) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem
        self.conflict = conflict


def refuse_bad(network: Network) -> None:
    """Raises Refused for what is wrong with it alone."""
    if not NETWORK_NAME.fullmatch(network.name):
        raise _bad("name", "lower-case letters, digits and hyphens, at most 63")
    if network.kind in (NetworkKind.HOST, NetworkKind.NONE):
        raise _bad("kind", f"a cluster has one network of kind {network.kind.value}, and no more")
    if network.kind is NetworkKind.CNI:
        return _refuse_bad_cni(network)
    if network.cni:
        raise _bad("cni", f"a network of kind {network.kind.value} has no plug-ins")
    if network.kind is not NetworkKind.OVERLAY and network.vni is not None:
        raise _bad("vni", f"a network of kind {network.kind.value} has none")
    if network.vni is not None and not 1 <= network.vni <= MAX_VNI:
        raise _bad("vni", f"{network.vni} is not from 1 to {MAX_VNI}")
    _refuse_bad_subnets(network)
    least = max(LEAST_MTU[version] for version in network.versions)
    if network.mtu is not None and network.mtu < least:
        raise _bad("mtu", f"{network.mtu} is less than the {least} that its subnets need")


def refuse_conflicts(
    network: Network, others: Iterable[Network], nodes: Sequence[Node], pools: Sequence[Subnet]
) -> None:
    """Raises Refused for what it can not be beside."""
    for other in others:
        if other.name == network.name:
            raise Refused("name", f'there is a network "{network.name}" already')
        if network.vni is not None and network.vni == other.vni:
            raise Refused("vni", f'{network.vni} is that of network "{other.name}"')
    for subnet in network.subnets:
        for other in others:
            if taken := next((each for each in other.subnets if overlap(subnet, each)), None):
                raise Refused("subnets", f'{subnet} overlaps {taken} of network "{other.name}"')
        if pool := next((each for each in pools if overlap(subnet, each)), None):
            raise Refused("subnets", f"{subnet} overlaps {pool}, the pool of virtual addresses")
        for node in nodes:
            if node.address.version == subnet.version and node.address in subnet:
                raise Refused("subnets", f"{subnet} has in it {node.address}, the address of node {node.id}")


def any_subnet(others: Iterable[Network], pools: Sequence[Subnet]) -> Subnet:
    """One that nobody has. Raises Refused."""
    taken = [*pools, *(subnet for other in others for subnet in other.subnets)]
    subnet = free_subnet(ANY_SUBNET, ANY_PREFIX, taken)
    if subnet is None:
        raise Refused("subnets", f"no /{ANY_PREFIX} of {ANY_SUBNET} is left: say which one it is to have")
    return subnet


def any_vni(others: Iterable[Network]) -> int:
    taken = {other.vni for other in others}
    return next(vni for vni in range(FIRST_VNI, MAX_VNI) if vni not in taken)


def fitting_prefix(subnets: Iterable[Subnet], version: int) -> int:
    """Of blocks, when nobody says: as long as a network usually has, or a sixteenth of a small subnet."""
    usual = {4: 24, 6: 80}[version]
    longest = max((subnet.prefixlen for subnet in subnets if subnet.version == version), default=0)
    return max(usual, min(LONGEST_BLOCK[version], longest + 4))


def last_part(network: Network) -> tuple[Subnet, ...]:
    """What is static when nobody says: the last sixteenth of the first subnet of the version that is leased, or the
    last of its blocks; nothing, when it is one block alone."""
    first = next((subnet for subnet in network.subnets if subnet.version == network.versions[0]), None)
    if first is None or (prefix := network.prefix_of(first)) <= first.prefixlen:
        return ()
    length = min(prefix, first.prefixlen + 4)
    size = 1 << first.max_prefixlen - length
    return (type(first)((int(first.broadcast_address) + 1 - size, length)),)


def _refuse_bad_subnets(network: Network) -> None:
    if not network.subnets:
        raise _bad("subnets", "there must be one at least")
    if len(network.subnets) > MOST_SUBNETS:
        raise _bad("subnets", f"{len(network.subnets)} are more than {MOST_SUBNETS}")
    for version, field in ((4, "block_prefix"), (6, "block_prefix6")):
        prefix = network.block_prefix if version == 4 else network.block_prefix6
        if version in network.versions and prefix > LONGEST_BLOCK[version]:
            raise _bad(field, f"a /{prefix} has no room for a container: /{LONGEST_BLOCK[version]} or larger")
    for index, subnet in enumerate(network.subnets):
        if reserved := next((each for each in RESERVED if overlap(subnet, each)), None):
            raise _bad("subnets", f"{subnet} overlaps {reserved}, which is not for containers")
        if subnet.prefixlen > (prefix := network.prefix_of(subnet)):
            raise _bad("subnets", f"{subnet} is too small for a block of a node, which is a /{prefix}")
        if other := next((each for each in network.subnets[:index] if overlap(subnet, each)), None):
            raise _bad("subnets", f"{subnet} overlaps {other}")
    for each in network.static:
        _refuse_bad_static(network, each)


def _refuse_bad_static(network: Network, static: Subnet) -> None:
    if static.version != network.versions[0]:
        raise _bad("static", f"{static}: what a task of this network asks for is an IPv{network.versions[0]} address")
    inside = [each for each in network.subnets if overlap(each, static) and each.prefixlen <= static.prefixlen]
    if not inside:
        raise _bad("static", f"{static} is not part of {', '.join(map(str, network.subnets))}")
    if static.prefixlen > (prefix := network.prefix_of(static)):
        raise _bad("static", f"{static} is less than a block of a node, which is a /{prefix}")
    if inside[0] == static:
        raise _bad("static", f"{static} is all of a subnet: nothing is left for the nodes")


def _refuse_bad_cni(network: Network) -> None:
    """The nodes read it more closely."""
    for field in ("subnets", "static", "vni", "mtu"):
        if getattr(network, field):
            raise _bad(field, "that of a network of kind cni is in the configuration of its plug-ins")
    try:
        configuration = json.loads(network.cni)
    except ValueError as error:
        raise _bad("cni", f"is no JSON: {error}") from error
    if not isinstance(configuration, dict):
        raise _bad("cni", "must be a configuration list of CNI")
    plugins = configuration.get("plugins")
    if not isinstance(plugins, list) or not plugins:
        raise _bad("cni", "plugins: there must be one at least")


def _bad(field: str, problem: str) -> Refused:
    return Refused(field, problem, conflict=False)
