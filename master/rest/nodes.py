"""What an operator does with nodes: has their tasks moved elsewhere, and gives up those that will not come back."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from master.dispatcher import Dispatcher
from master.nodes import Nodes, NodeView
from master.rest.errors import ApiError


def nodes_router(nodes: Nodes, dispatcher: Dispatcher) -> APIRouter:
    router = APIRouter(prefix="/api/v1/nodes", tags=["cluster"])

    @router.delete("/{name}")
    async def remove_node(name: str) -> dict[str, Any]:
        """Its tasks are over, its volumes lost, its addresses free for others. Refused while its agent is connected."""
        if known(name).connected:
            raise ApiError(409, f"Node '{name}' is connected: stop its agent first")
        return {"node": name, **await dispatcher.remove_node(name)}

    @router.put("/{name}/drain")
    async def drain(name: str) -> dict[str, Any]:
        """Its tasks are moved elsewhere, each when another one serves in its place, and it gets no new ones."""
        known(name)
        await nodes.drain(name, True)
        return {"node": name, "draining": True}

    @router.delete("/{name}/drain")
    async def end_drain(name: str) -> dict[str, Any]:
        """It takes tasks again. Those that were moved stay where they are."""
        known(name)
        await nodes.drain(name, False)
        return {"node": name, "draining": False}

    def known(name: str) -> NodeView:
        view = nodes.get(name)
        if view is None:
            there = ", ".join(view.node.id for view in nodes.all()) or "none"
            raise ApiError(404, f"Node '{name}' does not exist; there are: {there}")
        return view

    return router
