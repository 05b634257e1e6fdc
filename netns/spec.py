"""Whether a network can be had on this node: everything that is wrong with a specification is found here, before
anything is changed, and named by its field.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

from model.network import NETWORK_NAME, Address, Block, NetworkKind, Subnet
from netns.driver import NetworkError, NetworkSpec

NATIVE = (NetworkKind.HOST, NetworkKind.NONE)  # need nothing on the node
MAX_VNI = (1 << 24) - 1  # RFC 7348 section 5
LONGEST_PREFIX = 30  # leaves one address for a container, beside the VTEP, the gateway and the broadcast address


def refuse_bad(spec: NetworkSpec, node: str, underlay: Address, others: Iterable[NetworkSpec]) -> None:
    """Raises NetworkError for the first problem. `others` are networks that `spec` has to get along with."""
    for field, problem in _problems(spec, node, underlay):
        raise NetworkError(f'network "{spec.network.name}": {field}: {problem}')
    for other in others:
        if other.network.name != spec.network.name:
            _refuse_conflict(spec, other)


def _problems(spec: NetworkSpec, node: str, underlay: Address) -> Iterator[tuple[str, str]]:
    if not NETWORK_NAME.fullmatch(spec.network.name):
        yield "name", "lower-case letters, digits and hyphens, at most 63"
    if spec.network.kind not in NATIVE:
        yield from _block_problems(spec, node)
        yield from _overlay_problems(spec, node, underlay) if spec.network.kind is NetworkKind.OVERLAY else ()


def _block_problems(spec: NetworkSpec, node: str) -> Iterator[tuple[str, str]]:
    if not spec.blocks:
        yield "blocks", "this node has none, so no container can get an address"
    for block in spec.blocks:
        if (block.network, block.node) != (spec.network.name, node):
            yield "blocks", f'{block.subnet} is of network "{block.network}" and node {block.node}'
        if block.subnet.version != 4:
            yield "blocks", f"{block.subnet}: only IPv4 blocks can be programmed"
        elif block.subnet.prefixlen > LONGEST_PREFIX:
            yield "blocks", f"{block.subnet} is too small: /{LONGEST_PREFIX} or larger"
        if not any(_inside(block.subnet, subnet) for subnet in spec.network.subnets):
            yield "blocks", f"{block.subnet} is not part of {', '.join(map(str, spec.network.subnets))}"
    yield from _overlaps("blocks", spec.blocks)


def _overlay_problems(spec: NetworkSpec, node: str, underlay: Address) -> Iterator[tuple[str, str]]:
    if spec.network.vni is None or not 1 <= spec.network.vni <= MAX_VNI:
        yield "vni", f"{spec.network.vni} is not from 1 to {MAX_VNI}"
    for peer in spec.peers:
        if peer.node == node or peer.underlay == underlay:
            yield "peers", f"{peer.node} at {peer.underlay} is this node itself"
        if peer.underlay.version != underlay.version:
            yield "peers", f"{peer.underlay} can not be reached from {underlay}"
        for block in peer.blocks:
            if block.subnet.version != 4:
                yield "peers", f"{block.subnet}: only IPv4 blocks can be programmed"
    yield from _overlaps("peers", (*spec.blocks, *(block for peer in spec.peers for block in peer.blocks)))


def _overlaps(field: str, blocks: Iterable[Block]) -> Iterator[tuple[str, str]]:
    # Subnets either contain each other or have nothing in common: sorted, a clash is between neighbours.
    ordered = sorted((block.subnet for block in blocks), key=lambda s: (s.version, int(s.network_address), s.prefixlen))
    for one, other in pairwise(ordered):
        if one.version == other.version and _inside(other, one):
            yield field, f"{one} and {other} overlap"


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
