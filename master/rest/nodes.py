"""Nodes that will not come back: `DELETE /api/v1/nodes/{name}`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from master.dispatcher import Dispatcher
from master.nodes import Nodes
from master.rest.errors import ApiError


def nodes_router(nodes: Nodes, dispatcher: Dispatcher) -> APIRouter:
    router = APIRouter(prefix="/api/v1/nodes", tags=["cluster"])

    @router.delete("/{name}")
    async def remove_node(name: str) -> dict[str, Any]:
        """Its tasks are over, its volumes lost, its addresses free for others. Refused while its agent is connected."""
        view = nodes.get(name)
        if view is None:
            there = ", ".join(view.node.id for view in nodes.all()) or "none"
            raise ApiError(404, f"Node '{name}' does not exist; there are: {there}")
        if view.connected:
            raise ApiError(409, f"Node '{name}' is connected: stop its agent first")
        return {"node": name, **await dispatcher.remove_node(name)}

    return router
