"""Persistent volumes: `/api/v1/volumes`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from master.nodes import Nodes
from master.rest.errors import ApiError
from master.volumes import VolumeRecord, Volumes


def volumes_router(volumes: Volumes, nodes: Nodes) -> APIRouter:
    router = APIRouter(prefix="/api/v1/volumes", tags=["cluster"])

    def answer(record: VolumeRecord) -> dict[str, Any]:
        volume, view = record.volume, nodes.get(record.node)
        task = volumes.user(record)
        return {
            "id": volume.id,
            "owner": volume.owner,
            "framework": volume.framework,
            "instance": volume.instance,
            "name": volume.name,
            "size": volume.size,
            "node": record.node,
            "node_state": view.state.value if view is not None else "unknown",
            "task": task,
            "state": "destroying" if record.destroying else "used" if task else "free",
        }

    def known(volume_id: str) -> VolumeRecord:
        """By its id, or the beginning of it."""
        matching = [record for record in volumes.all() if record.volume.id.startswith(volume_id)]
        exact = volumes.get(volume_id)
        if exact is not None:
            return exact
        if len(matching) > 1:
            raise ApiError(404, f"Volume '{volume_id}' is the beginning of {len(matching)} ids")
        if not matching:
            raise ApiError(404, f"Volume '{volume_id}' does not exist")
        return matching[0]

    @router.get("")
    async def list_volumes() -> dict[str, Any]:
        return {"volumes": [answer(record) for record in volumes.all()]}

    @router.get("/{volume_id}")
    async def show_volume(volume_id: str) -> dict[str, Any]:
        return {"volume": answer(known(volume_id))}

    @router.delete("/{volume_id}", status_code=202)
    async def remove_volume(volume_id: str) -> dict[str, Any]:
        """With all that is on it. While its node is away, that waits; its owner goes on without it at once."""
        record = known(volume_id)
        if task := volumes.user(record):
            raise ApiError(409, f"Volume '{record.volume.id}' is in use by task '{task}': end that first, with wipe")
        return {"volume": answer(await volumes.destroy(record.volume.id) or record)}

    return router
