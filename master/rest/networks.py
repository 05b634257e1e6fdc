"""Networks: `/api/v1/networks`. One is made at once on every node that is there; if a node can not have it, because of
a route that it has or a plug-in that it lacks, it is made nowhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from master.addresses import Addresses
from master.blocks import Blocks
from master.dispatcher import Dispatcher
from master.network_rules import MAX_VNI, Refused, any_subnet, any_vni, fitting_prefix, last_part
from master.networks import Networks
from master.nodes import Nodes
from master.rest.errors import ApiError
from master.tasks import Tasks, active
from model.metrics import Family, Kind
from model.network import LONGEST_BLOCK, Network, NetworkKind, Subnet

CREATE_DEADLINE_S = 10.0
USERS_NAMED = 3

Parts = Annotated[list[IPv4Network | IPv6Network], Field(max_length=8)]


class NewNetwork(BaseModel):
    """What is left out is chosen: a subnet that is free, a VNI, blocks, and the part whose addresses tasks ask for."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=63)
    kind: Literal["overlay", "bridge", "cni"] = "overlay"
    subnets: Parts = []
    static: Parts | None = None
    block_prefix: int | None = Field(None, ge=1, le=LONGEST_BLOCK[4])
    block_prefix6: int | None = Field(None, ge=1, le=LONGEST_BLOCK[6])
    vni: int | None = Field(None, ge=1, le=MAX_VNI)
    mtu: int | None = Field(None, ge=68, le=65535)
    internal: bool = False
    cni: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class NetworkParts:
    """What is asked about networks. `uses` says what needs the one of a name, beside tasks: `policy web`."""

    networks: Networks
    blocks: Blocks
    addresses: Addresses
    tasks: Tasks
    nodes: Nodes
    dispatcher: Dispatcher
    vip_pools: tuple[Subnet, ...]
    uses: Callable[[str], list[str]]


def networks_router(parts: NetworkParts) -> APIRouter:
    router = APIRouter(prefix="/api/v1/networks", tags=["cluster"])
    networks, blocks, dispatcher, nodes = parts.networks, parts.blocks, parts.dispatcher, parts.nodes

    def known(name: str) -> Network:
        network = networks.get(name)
        if network is None:
            there = ", ".join(sorted(each.name for each in networks.all()))
            raise ApiError(404, f"Network '{name}' does not exist; there are: {there}")
        return network

    async def remove(name: str) -> None:
        await parts.addresses.forget_network(name)
        await networks.remove(name)
        await blocks.forget_network(name)

    @router.get("")
    async def list_networks() -> dict[str, Any]:
        return {
            "networks": [_summary(parts, network) for network in sorted(networks.all(), key=lambda each: each.name)]
        }

    @router.get("/{name}")
    async def show_network(name: str) -> dict[str, Any]:
        return {"network": _whole(parts, known(name))}

    @router.post("", status_code=201)
    async def create_network(wanted: NewNetwork) -> dict[str, Any]:
        try:
            network = _network(wanted, parts)
            await networks.create(network, [view.node for view in nodes.all()], parts.vip_pools)
        except Refused as error:
            status = 409 if error.conflict else 422
            raise ApiError(status, f"Network '{wanted.name}': {error}", {f"/{error.field}": [error.problem]}) from error
        await blocks.provide(network)
        refusals = await dispatcher.refusals(network.name, CREATE_DEADLINE_S)
        if refusals:
            await remove(network.name)
            said = "; ".join(f"node {node}: {error}" for node, error in refusals[:USERS_NAMED])
            raise ApiError(409, f"Network '{network.name}' can not be had on {len(refusals)} nodes: {said}")
        return {"network": _whole(parts, network)}

    @router.delete("/{name}")
    async def remove_network(name: str) -> dict[str, Any]:
        """Refused while anything uses it."""
        network = known(name)
        if network.kind in (NetworkKind.HOST, NetworkKind.NONE):
            raise ApiError(409, f"Network '{name}' is part of every cluster")
        if users := [*_users(parts, name), *parts.uses(name)]:
            more = f" and {len(users) - USERS_NAMED} more" if len(users) > USERS_NAMED else ""
            raise ApiError(409, f"Network '{name}' is in use by {', '.join(users[:USERS_NAMED])}{more}")
        removed = _summary(parts, network)
        await remove(name)
        return {"network": removed}

    return router


def network_families(parts: NetworkParts) -> Iterator[Family]:
    """Metrics: how full each network is."""
    counts = {network.name: _counts(parts, network) for network in parts.networks.all() if network.subnets}
    yield Family(
        "tepui_network_addresses_used",
        Kind.GAUGE,
        "Addresses that tasks have, by network.",
        tuple(((("network", name),), float(used)) for name, (used, _) in sorted(counts.items())),
    )
    yield Family(
        "tepui_network_addresses_free",
        Kind.GAUGE,
        "Addresses that are left for tasks on all nodes together, by network.",
        tuple(((("network", name),), float(free or 0)) for name, (_, free) in sorted(counts.items())),
    )


def _network(wanted: NewNetwork, parts: NetworkParts) -> Network:
    """Raises Refused."""
    others, kind = parts.networks.all(), NetworkKind(wanted.kind)
    cni = json.dumps(wanted.cni) if wanted.cni is not None else ""
    if kind is NetworkKind.CNI:
        subnets, static = tuple(wanted.subnets), tuple(wanted.static or ())
        return Network(wanted.name, kind, subnets, vni=wanted.vni, mtu=wanted.mtu, cni=cni, static=static)
    subnets = tuple(wanted.subnets) or (any_subnet(others, parts.vip_pools),)
    network = Network(
        wanted.name,
        kind,
        subnets,
        block_prefix=wanted.block_prefix or fitting_prefix(subnets, 4),
        block_prefix6=wanted.block_prefix6 or fitting_prefix(subnets, 6),
        vni=any_vni(others) if kind is NetworkKind.OVERLAY and wanted.vni is None else wanted.vni,
        mtu=wanted.mtu,
        internal=wanted.internal,
        cni=cni,
        static=tuple(wanted.static or ()),
    )
    return network if wanted.static is not None else replace(network, static=last_part(network))


def _users(parts: NetworkParts, name: str) -> list[str]:
    tasks = [record.spec for record in active(parts.tasks.all())]
    return [f"task {spec.id}" for spec in tasks if name in {each.network for each in spec.attachments}]


def _summary(parts: NetworkParts, network: Network) -> dict[str, Any]:
    used, free = _counts(parts, network)
    return {
        "name": network.name,
        "kind": network.kind.value,
        "subnets": list(map(str, network.subnets)),
        "static": list(map(str, network.static)),
        "block_prefix": network.block_prefix if 4 in network.versions else None,
        "block_prefix6": network.block_prefix6 if 6 in network.versions else None,
        "vni": network.vni,
        "mtu": network.mtu,
        "internal": network.internal,
        "used": used,
        "free": free,
        "errors": [{"node": node, "error": error} for node, error in parts.dispatcher.errors(network.name)],
    }


def _whole(parts: NetworkParts, network: Network) -> dict[str, Any]:
    blocks, addresses = parts.blocks, parts.addresses
    users = addresses.users(network.name)
    return _summary(parts, network) | {
        "cni": json.loads(network.cni) if network.cni else None,
        "nodes": [
            {
                "node": node,
                "blocks": [str(block.subnet) for block in blocks.of(network.name, node)],
                "retiring": [str(block.subnet) for block in blocks.of(network.name, node) if blocks.retires(block)],
                "used": blocks.used(network.name, node),
                "free": blocks.capacity(network, node) - blocks.used(network.name, node),
            }
            for node in sorted({block.node for block in blocks.of(network.name)})
        ],
        "addresses": [{"address": str(address), "task": task} for address, task in users.items()],
        "kept": [
            {"address": str(kept.address), "owner": kept.owner, "framework": kept.framework}
            for kept in addresses.kept(network.name)
        ],
        "policies": parts.uses(network.name),
    }


def _counts(parts: NetworkParts, network: Network) -> tuple[int, int | None]:
    """Addresses that tasks have, and those that are left for others on all nodes together; None: no end to them is
    known here."""
    if not network.subnets:
        return len(_users(parts, network.name)), None
    owners = {block.node for block in parts.blocks.of(network.name)}
    used = sum(parts.blocks.used(network.name, node) for node in owners)
    return used, sum(parts.blocks.capacity(network, node) for node in owners) - used + parts.blocks.left(network)
