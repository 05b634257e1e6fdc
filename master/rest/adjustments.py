"""Changing a task that runs: `PATCH /api/v1/tasks/ID`, and `POST .../pause` and `.../resume`.

Answers with the task when its node has done it; 202 and the task when the node has not answered yet; 409 and the reason
when it can't be done, in which case nothing was changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import ceil
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from master.adjustments import Adjustments, NotAdjustable, Refused, paused
from master.allocator import Shortage
from master.rest.cluster import known_task, task_json
from master.rest.errors import ApiError
from master.tasks import Tasks
from model.adjustment import Adjustment
from model.resources import describe

Amount = Annotated[int, Field(ge=0, le=2**40)]
Positive = Annotated[int, Field(ge=1, le=2**40)]


class TaskChange(BaseModel):
    """What is absent stays. `cpus` as a person counts them, `mem`, `disk`, `swap` and `mem_high` in MiB."""

    model_config = ConfigDict(extra="forbid", strict=True)

    cpus: Annotated[float, Field(gt=0, le=2**30, allow_inf_nan=False)] | None = None
    mem: Positive | None = None
    disk: Amount | None = None
    pids: Annotated[int, Field(ge=1, le=1 << 22)] | None = None
    swap: Amount | None = None
    mem_high: Amount | None = None
    cpuset: Annotated[str, Field(pattern=r"^([0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*)?$", max_length=1024)] | None = None
    cpu_burst_us: Amount | None = None
    io_weight: Annotated[int, Field(ge=0, le=1000)] | None = None

    @model_validator(mode="after")
    def _something(self) -> TaskChange:
        if not self.model_fields_set:
            raise ValueError("nothing is to be changed: name at least one field")
        return self

    def applied(self, before: Adjustment) -> Adjustment:
        given = self.model_dump(exclude_none=True)
        if "cpus" in given:
            given["cpus"] = ceil(round(given["cpus"] * 1000, 6))
        resources = {kind: given.pop(kind) for kind in ("cpus", "mem", "disk") if kind in given}
        pids = given.pop("pids", before.pids)
        return replace(
            before,
            resources=replace(before.resources, **resources),
            pids=pids,
            limits=replace(before.limits, **given),
        )


def adjustments_router(tasks: Tasks, adjustments: Adjustments) -> APIRouter:
    router = APIRouter(prefix="/api/v1/tasks", tags=["cluster"])

    async def adjust(task_id: str, change: Callable[[Adjustment], Adjustment], response: Response) -> dict[str, Any]:
        record = known_task(tasks, task_id)
        try:
            after = await adjustments.adjust(record.spec.id, change)
        except Shortage as error:
            raise ApiError(409, f"Task '{record.spec.id}' can not grow: {error}", _by_field(error)) from error
        except (NotAdjustable, Refused) as error:
            raise ApiError(409, f"Task '{record.spec.id}' can not be changed: {error}") from error
        if after.before is not None:
            response.status_code = 202
        return {"task": task_json(after)}

    @router.patch("/{task_id}")
    async def change_task(task_id: str, change: TaskChange, response: Response) -> dict[str, Any]:
        return await adjust(task_id, change.applied, response)

    @router.post("/{task_id}/pause")
    async def pause_task(task_id: str, response: Response) -> dict[str, Any]:
        return await adjust(task_id, paused(True), response)

    @router.post("/{task_id}/resume")
    async def resume_task(task_id: str, response: Response) -> dict[str, Any]:
        return await adjust(task_id, paused(False), response)

    return router


def _by_field(shortage: Shortage) -> dict[str, list[str]]:
    """`/mem`: what is missing, and what there would be."""
    return {
        f"/{kind}": [
            f"needs {describe(kind, missing)} more than the node has free"
            f" ({describe(kind, max(0, getattr(shortage.free, kind)))})"
        ]
        for kind, missing in shortage.lacking.items()
    }
