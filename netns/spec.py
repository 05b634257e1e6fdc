"""Whether a network can be had on this node: everything that is wrong with a specification is found here, before
anything is changed, and named by its field.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from model.network import LONGEST_BLOCK, NETWORK_NAME, Address, Block, NetworkKind, Subnet
from netns.driver import NetworkError, NetworkSpec
from netns.link import gateway_name, vxlan_name
from netns.route import Route

NATIVE = (NetworkKind.HOST, NetworkKind.NONE)  # need nothing on the node
MAX_VNI = (1 << 24) - 1  # RFC 7348 section 5
KERNEL_IPV6 = Path("/proc/net/if_inet6")  # is there when the kernel has IPv6
LEAST_MTU = {4: 68, 6: 1280}  # RFC 791 and RFC 8200 section 5


def refuse_bad(spec: NetworkSpec, node: str, underlay: Address, others: Iterable[NetworkSpec]) -> None:
    """Raises NetworkError for the first problem. `others` are networks that `spec` has to get along with."""
    for field, problem in _problems(spec, node, underlay):
        raise NetworkError(f'network "{spec.network.name}": {field}: {problem}')
    for other in others:
        if other.network.name != spec.network.name:
            _refuse_conflict(spec, other)


def without_ipv6(spec: NetworkSpec) -> NetworkSpec:
    """What is left of the network on a node whose kernel was told to do without IPv6 (ipv6.disable=1). Raises
    NetworkError when that is nothing."""
    subnets = tuple(subnet for subnet in spec.network.subnets if subnet.version == 4)
    if spec.network.subnets and not subnets:
        raise NetworkError(f'network "{spec.network.name}": subnets: this node\'s kernel has no IPv6')
    peers = (replace(peer, blocks=_ipv4(peer.blocks)) for peer in spec.peers)
    return replace(
        spec,
        network=replace(spec.network, subnets=subnets),
        blocks=_ipv4(spec.blocks),
        retiring=_ipv4(spec.retiring),
        peers=tuple(peer for peer in peers if peer.blocks),
    )


def refuse_routes(spec: NetworkSpec, routes: Iterable[Route]) -> None:
    """Raises NetworkError when the node takes some of the network's addresses to be elsewhere. Of the network's own
    links the kernel may have made some: to each address of IPv6."""
    own = {gateway_name(spec.network.name), vxlan_name(spec.network.vni or 0)}
    for route in sorted((route for route in routes if route.dev not in own), key=repr):
        for subnet in spec.network.subnets:
            if _inside(route.destination, subnet) or _inside(subnet, route.destination):
                raise NetworkError(f"subnets: {subnet} overlaps what this node has a route to: {route.describe()}")


def mtu_of(spec: NetworkSpec, carried: int) -> int:
    """The MTU of the network's links where `carried` is the most that gets through. Raises NetworkError."""
    wanted = spec.network.mtu
    if wanted is not None and wanted > carried:
        raise NetworkError(f"mtu: {wanted} is more than the {carried} that the underlay carries")
    if (wanted or carried) < (least := _least_mtu(spec)):
        raise NetworkError(f"mtu: the underlay carries {carried}, and its subnets need {least}")
    return wanted or carried


def usable(spec: NetworkSpec, version: int) -> tuple[Block, ...]:
    """The blocks of one version of IP that addresses may still be leased of."""
    return tuple(block for block in spec.blocks if block.subnet.version == version and block not in spec.retiring)


def first_block(blocks: Iterable[Block], version: int) -> Block | None:
    return next((block for block in blocks if block.subnet.version == version), None)


def _ipv4(blocks: Iterable[Block]) -> tuple[Block, ...]:
    return tuple(block for block in blocks if block.subnet.version == 4)


def _problems(spec: NetworkSpec, node: str, underlay: Address) -> Iterator[tuple[str, str]]:
    if not NETWORK_NAME.fullmatch(spec.network.name):
        yield "name", "lower-case letters, digits and hyphens, at most 63"
    if spec.network.kind not in NATIVE:
        yield from _block_problems(spec, node)
        yield from _single_problems(spec)
        if spec.network.mtu is not None and spec.network.mtu < _least_mtu(spec):
            yield "mtu", f"{spec.network.mtu} is less than the {_least_mtu(spec)} that its subnets need"
        yield from _overlay_problems(spec, node, underlay) if spec.network.kind is NetworkKind.OVERLAY else ()


def _block_problems(spec: NetworkSpec, node: str) -> Iterator[tuple[str, str]]:
    if not spec.blocks:
        yield "blocks", "this node has none, so no container can get an address"
    for block in spec.blocks:
        if (block.network, block.node) != (spec.network.name, node):
            yield "blocks", f'{block.subnet} is of network "{block.network}" and node {block.node}'
        if block.subnet.prefixlen > (longest := LONGEST_BLOCK[block.subnet.version]):
            yield "blocks", f"{block.subnet} is too small: /{longest} or larger"
        if not any(_inside(block.subnet, subnet) for subnet in spec.network.subnets):
            yield "blocks", f"{block.subnet} is not part of {', '.join(map(str, spec.network.subnets))}"
    for block in spec.retiring:
        if block not in spec.blocks:
            yield "retiring", f"{block.subnet} is not one of this node's blocks"
    yield from _overlaps("blocks", spec.blocks)


def _single_problems(spec: NetworkSpec) -> Iterator[tuple[str, str]]:
    for single in spec.singles:
        if not any(single in subnet for subnet in spec.network.subnets):
            yield "singles", f"{single} is not part of {', '.join(map(str, spec.network.subnets))}"
        if any(single in block.subnet for block in spec.blocks):
            yield "singles", f"{single} is in a block"
        if first_block(spec.blocks, single.version) is None:
            yield "singles", f"{single}: this node has no block of IPv{single.version}, so there is no gateway"


def _overlay_problems(spec: NetworkSpec, node: str, underlay: Address) -> Iterator[tuple[str, str]]:
    if spec.network.vni is None or not 1 <= spec.network.vni <= MAX_VNI:
        yield "vni", f"{spec.network.vni} is not from 1 to {MAX_VNI}"
    for peer in spec.peers:
        if peer.node == node or peer.underlay == underlay:
            yield "peers", f"{peer.node} at {peer.underlay} is this node itself"
        if peer.underlay.version != underlay.version:
            yield "peers", f"{peer.underlay} can not be reached from {underlay}"
        for single in peer.singles:
            if first_block(peer.blocks, single.version) is None:
                yield "peers", f"{single}: {peer.node} has no block of IPv{single.version}"
    yield from _overlaps("peers", (*spec.blocks, *(block for peer in spec.peers for block in peer.blocks)))


def _overlaps(field: str, blocks: Iterable[Block]) -> Iterator[tuple[str, str]]:
    # Subnets either contain each other or have nothing in common: sorted, a clash is between neighbours.
    ordered = sorted((s.version, int(s.network_address), s.prefixlen, s) for s in (block.subnet for block in blocks))
    for (version, first, prefix, one), (other_version, start, _, other) in pairwise(ordered):
        if version == other_version and start < first + (1 << one.max_prefixlen - prefix):
            yield field, f"{one} and {other} overlap"


def _least_mtu(spec: NetworkSpec) -> int:
    return max((LEAST_MTU[subnet.version] for subnet in spec.network.subnets), default=LEAST_MTU[4])


def _refuse_conflict(spec: NetworkSpec, other: NetworkSpec) -> None:
    name, taken = spec.network, other.network
    if name.vni is not None and name.vni == taken.vni:
        raise NetworkError(f'network "{name.name}": vni: {name.vni} is that of network "{taken.name}"')
    for subnet in name.subnets:
        for foreign in taken.subnets:
            if _inside(subnet, foreign) or _inside(foreign, subnet):
                raise NetworkError(f'network "{name.name}": subnets: {subnet} overlaps {foreign} of "{taken.name}"')


def _inside(inner: Subnet, outer: Subnet) -> bool:
    same_version = inner.version == outer.version
    return same_version and inner.prefixlen >= outer.prefixlen and inner.network_address in outer
