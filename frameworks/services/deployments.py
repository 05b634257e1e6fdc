"""`/v2/deployments`: what is not yet as it was asked to be; and our own view of one deployment
(`/api/v1/deployments/ID`), which says what it waits for.

A deployment is one or more apps on their way to what was last asked for in one request. It locks these and no others.
To cancel it is to go back to the version before or, of an app that is new, to have none.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Response

from frameworks.services import catalog, schema
from frameworks.services.app import SUCCEEDED, App, format_time, new_deployment
from frameworks.services.catalog import UnknownApp
from frameworks.services.changes import deployed
from frameworks.services.definition import Definition
from frameworks.services.framework import Services
from frameworks.services.pods.definition import PodDefinition
from frameworks.services.wanted import current
from master.rest.errors import ApiError
from master.rest.flag import Flag
from master.store.base import Conflict, Store

Json = dict[str, Any]
CANCELLED: dict[int | str, Json] = {200: {"model": schema.Deployed}, 202: {"description": "With `force`"}}


HEARD_OF_S = 0.5  # what is in the store


class DeploymentsApi:
    def __init__(self, store: Store, services: Services) -> None:
        self._store = store
        self._services = services

    def router(self) -> APIRouter:
        router = APIRouter(tags=["services"])
        router.get("/v2/deployments", response_model=list[schema.DeploymentJson])(self.list_all)
        router.delete("/v2/deployments/{deployment}", response_model=None, responses=CANCELLED)(self.cancel)
        return router

    def own_view(self) -> APIRouter:
        router = APIRouter(prefix="/api/v1", tags=["services"])
        router.get("/deployments/{deployment}")(self.show)
        router.post("/services/{app_id:path}/promote")(self.promote)
        return router

    async def list_all(self) -> list[Json]:
        together: dict[str, list[App]] = {}
        for app in await self._under_way():
            together.setdefault(app.deployment, []).append(app)
        return [self._deployment(apps) for apps in together.values()]

    async def show(self, deployment: str) -> Json:
        """Also of one that ended not long ago."""
        until = time.monotonic() + HEARD_OF_S
        while (ended := self._services.rollouts.ended(deployment)) is None:
            if apps := [app for app in await self._under_way() if app.deployment == deployment]:
                return self._progress(apps)
            if time.monotonic() > until:
                raise ApiError(404, f"Deployment '{deployment}' does not exist")
            await asyncio.sleep(HEARD_OF_S / 20)  # it may be over in the store, and that not heard of yet
        apps = [self._services.sized(app) for app in ended.apps]
        count = sum(app.instances for app in apps)
        serving = count if ended.state == SUCCEEDED else 0
        nothing = {"deadline": None, "canary": None, "wanted": count, "serving": serving, "old": 0}
        about = {"id": deployment, "app": apps[0].id, "apps": [app.id for app in apps]}
        about["since"] = min(app.version for app in apps)
        return {**about, **nothing, "state": ended.state, "waiting": [], "reason": ended.reason}

    async def cancel(self, deployment: str, response: Response, force: Flag = False) -> Json | Response:
        """With `force` the answer is empty, as clients expect; what is left is one version all the same."""
        apps = [app for app in await self._under_way() if app.deployment == deployment]
        if not apps:
            raise ApiError(404, f"Deployment '{deployment}' does not exist")
        going_back = new_deployment()
        after = [await self._go_back(app, going_back) for app in apps]
        if force:
            return Response(status_code=202)
        return deployed(after[-1], response)

    async def promote(self, app_id: str, response: Response) -> Json:
        """What a canary tried is for all instances."""
        try:
            return deployed(await catalog.end_canary(self._store, "/" + app_id), response)
        except UnknownApp as error:
            raise ApiError(404, f"App '/{app_id}' does not exist") from error
        except ValueError as error:
            raise ApiError(409, f"App '/{app_id}' has no canary") from error

    async def _under_way(self) -> list[App]:
        apps = [app for kind in (Definition, PodDefinition) for app in await catalog.read_all(self._store, kind)]
        return [app for app in apps if not app.outcome]

    async def _go_back(self, app: App, deployment: str) -> App:
        why = f"deployment {app.deployment} was cancelled"
        try:
            back = await catalog.go_back(self._store, app, why, deployment)
            return back or await catalog.remove(self._store, app.id, type(app.definition), deployment=deployment)
        except (UnknownApp, Conflict) as error:
            raise ApiError(409, f"App '{app.id}' was changed at the same moment: read it again") from error

    def _deployment(self, apps: Sequence[App]) -> Json:
        actions = [self._action(app) for app in apps]
        pods = [app.id for app in apps if isinstance(app.definition, PodDefinition)]
        return {
            "id": apps[0].deployment,
            "version": max(app.version for app in apps),
            "affectedApps": [app.id for app in apps if app.id not in pods],
            "affectedPods": pods,
            "steps": [{"actions": actions}],
            "currentActions": [{**action, "readinessCheckResults": []} for action in actions],
            "currentStep": 1,
            "totalSteps": 1,
        }

    def _action(self, app: App) -> Json:
        changes = any(not current(app, run) for run in self._services.runs(app.id))
        of_pod = isinstance(app.definition, PodDefinition)
        return {"action": "RestartApplication" if changes else "ScaleApplication", "pod" if of_pod else "app": app.id}

    def _progress(self, apps: Sequence[App]) -> Json:
        sized = [self._services.sized(app) for app in apps]
        runs = [(app, run) for app in sized for run in self._services.runs(app.id)]
        deadlines = [at for app in apps if (at := self._services.rollouts.deadline(app)) is not None]
        canaries = [app.canary.instances for app in apps if app.canary is not None]
        named = len(apps) > 1
        waiting = [f"{app.id}: {each}" if named else each for app in sized for each in self._services.waiting(app)]
        return {
            "id": apps[0].deployment,
            "app": apps[0].id,
            "apps": [app.id for app in apps],
            "state": "running",
            "since": min(app.version for app in apps),
            "deadline": format_time(datetime.fromtimestamp(min(deadlines), UTC)) if deadlines else None,
            "canary": canaries[0] if canaries else None,
            "wanted": sum(app.instances for app in sized),
            "serving": sum(run.serving and current(app, run) for app, run in runs),
            "old": sum(not current(app, run) for app, run in runs),
            "waiting": waiting,
            "reason": "; ".join(app.undoes for app in apps if app.undoes),
        }
