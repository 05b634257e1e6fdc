"""`/v2/deployments` and `/v2/queue`: what is not as it was asked to be, and what waits for a place.

A deployment is an app on its way to what was last asked for. There is one for each such app, and it locks nothing: a
newer definition takes the place of the older one. To cancel it is to go back to the version before, or, of an app that
is new, to have none.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Response

from frameworks.services import catalog
from frameworks.services.app import App, format_time
from frameworks.services.catalog import UnknownApp
from frameworks.services.definition import Definition
from frameworks.services.framework import Services
from frameworks.services.pods.definition import PodDefinition
from frameworks.services.wanted import current, settled
from master.rest.errors import ApiError
from master.store.base import Conflict, Store

Json = dict[str, Any]


class DeploymentsApi:
    def __init__(self, store: Store, services: Services) -> None:
        self._store = store
        self._services = services

    def router(self) -> APIRouter:
        router = APIRouter(tags=["services"])
        router.get("/v2/deployments")(self.list_all)
        router.delete("/v2/deployments/{deployment}", response_model=None)(self.cancel)
        router.get("/v2/queue")(self.queue)
        router.delete("/v2/queue/{app_id:path}/delay", status_code=204)(self.end_delay)
        return router

    async def list_all(self) -> list[Json]:
        return [self._deployment(app) for app in await self._unsettled()]

    async def cancel(self, deployment: str, response: Response, force: bool = False) -> Json | Response:
        """With `force` the answer is empty, as clients expect; what is left is one version all the same."""
        app = next((each for each in await self._unsettled() if each.deployment == deployment), None)
        if app is None:
            raise ApiError(404, f"Deployment '{deployment}' does not exist")
        try:
            after = await self._go_back(app)
        except (UnknownApp, Conflict) as error:
            raise ApiError(409, f"App '{app.id}' was changed at the same moment: read it again") from error
        if force:
            return Response(status_code=202)
        response.headers["Marathon-Deployment-Id"] = after.deployment
        return {"version": after.version, "deploymentId": after.deployment}

    async def queue(self) -> Json:
        return {"queue": [self._queued(app, count, delay_s) for app, count, delay_s in self._services.queue()]}

    async def end_delay(self, app_id: str) -> None:
        """It is started again at once, however often that has failed."""
        if not self._services.end_delay("/" + app_id):
            raise ApiError(404, f"App '/{app_id}' does not wait for its next start")

    async def _unsettled(self) -> list[App]:
        apps = [app for kind in (Definition, PodDefinition) for app in await catalog.read_all(self._store, kind)]
        return [app for app in apps if not settled(app, self._services.runs(app.id))]

    async def _go_back(self, app: App) -> App:
        kind = type(app.definition)
        known = await catalog.versions(self._store, app.id, kind)
        before = next((each for version, each in known.items() if app.created <= version < app.version), None)
        if before is None:
            return await catalog.remove(self._store, app.id, kind)
        return await catalog.replace(self._store, before.definition)

    def _deployment(self, app: App) -> Json:
        of_pod = isinstance(app.definition, PodDefinition)
        changes = any(not current(app, run) for run in self._services.runs(app.id))
        what = {"action": "RestartApplication" if changes else "ScaleApplication", "pod" if of_pod else "app": app.id}
        return {
            "id": app.deployment,
            "version": app.version,
            "affectedApps": [] if of_pod else [app.id],
            "affectedPods": [app.id] if of_pod else [],
            "steps": [{"actions": [what]}],
            "currentActions": [{**what, "readinessCheckResults": []}],
            "currentStep": 1,
            "totalSteps": 1,
        }

    def _queued(self, app: App, count: int, delay_s: float) -> Json:
        delay = {"overdue": delay_s == 0, "timeLeftSeconds": int(delay_s)}
        what = "pod" if isinstance(app.definition, PodDefinition) else "app"
        shown = app.definition.model_dump(exclude_none=True) | {"version": app.version}
        refused = self._services.refused(app.id)
        return {
            what: shown,
            "count": count,
            "delay": delay,
            "since": app.version,
            "processedOffersSummary": {
                "processedOffersCount": len(refused),
                "unusedOffersCount": len(refused),
                "rejectSummaryLastOffers": [
                    {"reason": reason, "declined": declined, "processed": len(refused)}
                    for reason, declined in _counted(refused).items()
                ],
                **({"lastUnusedOfferAt": format_time(datetime.now(UTC))} if refused else {}),
            },
        }


def _counted(reasons: list[str]) -> dict[str, int]:
    return {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}
