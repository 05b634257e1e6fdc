"""VIPs: who is behind each, and which nodes do not translate it so yet."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import TypeAdapter

from master.desired import Desired
from master.discovery import Discovery
from master.nodes import Nodes, NodeView
from master.rest.errors import ApiError
from model.names import vip_name
from model.vip import Vip

VIPS: TypeAdapter[list[Vip]] = TypeAdapter(list[Vip])
# How agents begin what they say when they can not (`netns/vip/`).
CAN_NOT = ("apply VIP table", "read VIP rules", "forget flows")


def vips_router(discovery: Discovery, nodes: Nodes, desired: Desired, domain: str) -> APIRouter:
    """`domain` is that of the cluster's names."""
    router = APIRouter(prefix="/api/v1/vips", tags=["cluster"])

    @router.get("")
    async def list_vips() -> dict[str, Any]:
        """`behind`: nodes that still have it as it was before, or can not have it. `dns`: what it is called."""
        table = discovery.table()
        return {
            "vips": [
                {**shown, "dns": vip_name(vip.name, domain), "behind": [node for node, state in _states(vip) if state]}
                for vip, shown in zip(table, VIPS.dump_python(table, mode="json"), strict=True)
            ]
        }

    @router.get("/{name:path}")
    async def show_vip(name: str) -> dict[str, Any]:
        """By name (`web`, or `services/web` where several frameworks have one) or address, with or without port."""
        found = [vip for vip in discovery.table() if name in _names(vip)]
        if not found:
            raise ApiError(404, f"No task asks for a VIP '{name}'")
        shown = VIPS.dump_python(found, mode="json")
        states = [[{"node": node, "state": state} for node, state in _states(vip)] for vip in found]
        return {
            "vips": [
                {**vip, "dns": vip_name(vip["name"], domain), "nodes": nodes}
                for vip, nodes in zip(shown, states, strict=True)
            ]
        }

    def _states(vip: Vip) -> list[tuple[str, str]]:
        late = desired.behind(f"vip/{vip.key}")
        return [(view.node.id, _state(view, late)) for view in nodes.all()]

    return router


def _state(view: NodeView, late: dict[str, float]) -> str:
    """Empty when the node has it as it should be."""
    if not view.connected:
        return "has what it had: it is not connected"
    if refused := [error for error in view.errors if error.startswith(CAN_NOT)]:
        return f"has what it had: {refused[0]}"
    if view.node.id in late:
        return f"behind by {late[view.node.id]:.1f} s"
    return ""


def _names(vip: Vip) -> set[str]:
    host = str(vip.address)
    named = {vip.name, vip.name.partition("/")[2]} - {""}
    return named | {f"{each}:{vip.port}" for each in named} | {host, vip.key, vip.key.partition("/")[0]}
