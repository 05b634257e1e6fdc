"""Marathon's REST API for pods (`/v2/pods`), and our own view of one (`/api/v1/pods/...`).

A pod's id may have slashes, so what belongs to it follows two colons: `/v2/pods/group/web::status`.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response

from frameworks.services import catalog, schema
from frameworks.services.app import App
from frameworks.services.catalog import AppExists, Locked, UnknownApp
from frameworks.services.changes import client_of, refusal
from frameworks.services.framework import Services
from frameworks.services.pods.definition import PodDefinition
from frameworks.services.pods.status import instance_json, pod_json, status_json
from frameworks.services.vips import refuse_bad
from frameworks.services.wanted import Run, instances
from master.rest import cluster
from master.rest.errors import ApiError
from master.rest.flag import Flag
from master.store.base import Store

Json = dict[str, Any]
InstanceIds = Annotated[list[str], Body(max_length=100_000)]


class PodsApi:
    def __init__(self, store: Store, services: Services) -> None:
        self._store = store
        self._services = services

    def router(self) -> APIRouter:
        router = APIRouter(tags=["pods"])
        router.head("/v2/pods", response_class=Response)(self.supported)
        router.get("/v2/pods", response_model=list[schema.PodJson])(self.list_pods)
        router.post("/v2/pods", status_code=201, response_model=schema.PodJson)(self.create)
        # What has colons comes before the pods themselves.
        router.get("/v2/pods::status")(self.all_statuses)
        router.get("/v2/pods/::status", include_in_schema=False)(self.all_statuses)
        router.get("/v2/pods/{pod_id:path}::status")(self.status)
        router.get("/v2/pods/{pod_id:path}::versions")(self.versions)
        router.get("/v2/pods/{pod_id:path}::versions/{version}", response_model=schema.PodJson)(self.version)
        router.delete("/v2/pods/{pod_id:path}::instances")(self.kill_some)
        router.delete("/v2/pods/{pod_id:path}::instances/{instance}")(self.kill_one)
        router.get("/v2/pods/{pod_id:path}", response_model=schema.PodJson)(self.show)
        router.put("/v2/pods/{pod_id:path}", response_model=schema.PodJson)(self.update)
        router.delete("/v2/pods/{pod_id:path}", status_code=202, response_model=schema.DeployedJson)(self.delete)
        return router

    def own_view(self) -> APIRouter:
        router = APIRouter(prefix="/api/v1", tags=["pods"])
        router.get("/pods/{pod_id:path}")(self.view)
        return router

    async def supported(self) -> Response:
        """Clients ask so whether there are pods at all."""
        return Response()

    async def list_pods(self) -> list[Json]:
        return [pod_json(pod) for pod in await catalog.read_all(self._store, PodDefinition)]

    async def create(self, definition: PodDefinition, request: Request, response: Response) -> Json:
        try:
            await catalog.refuse_taken(self._store, definition.id)
            refuse_bad(self._services.vip_problems(definition))
            pod = await catalog.add(self._store, definition)
        except AppExists as error:
            raise ApiError(409, f"An app or a pod with id [{definition.id}] already exists.") from error
        self._services.events.asked(pod, request.url.path, client_of(request))
        response.headers["Location"] = f"/v2/pods{pod.id}"
        return _deployed(pod, response)

    async def show(self, pod_id: str) -> Json:
        return pod_json(await self._existing(pod_id))

    async def update(
        self, pod_id: str, definition: PodDefinition, request: Request, response: Response, force: Flag = False
    ) -> Json:
        path = "/" + pod_id
        if definition.id != path:
            raise ApiError(422, "Object is not valid", {"/id": [f"must be {path}, as in the request's path"]})
        await self._existing(pod_id)
        refuse_bad(self._services.vip_problems(definition))
        try:
            pod = await catalog.replace(self._store, definition, force)
        except (UnknownApp, Locked) as error:
            raise refusal(error, path, "Pod") from error
        self._services.events.asked(pod, request.url.path, client_of(request), is_new=False)
        return _deployed(pod, response)

    async def delete(self, pod_id: str, request: Request, response: Response, force: Flag = False) -> Json:
        path = "/" + pod_id
        try:
            pod = await catalog.remove(self._store, path, PodDefinition, force)
        except (UnknownApp, Locked) as error:
            raise refusal(error, path, "Pod") from error
        self._services.events.pod_removed(path, request.url.path, client_of(request))
        response.headers["Marathon-Deployment-Id"] = pod.deployment
        return {"version": pod.version, "deploymentId": pod.deployment}

    async def all_statuses(self) -> list[Json]:
        return [self._status(pod) for pod in await catalog.read_all(self._store, PodDefinition)]

    async def status(self, pod_id: str) -> Json:
        return self._status(await self._existing(pod_id))

    async def versions(self, pod_id: str) -> list[str]:
        return list(await self._versions(pod_id))

    async def version(self, pod_id: str, version: str) -> Json:
        known = await self._versions(pod_id)
        if version not in known:
            raise ApiError(404, f"Pod '/{pod_id}' has no version '{version}'")
        return pod_json(known[version])

    async def kill_one(self, pod_id: str, instance: str) -> Json:
        killed = await self._kill(pod_id, [instance])
        if not killed:
            raise ApiError(404, f"Pod '/{pod_id}' has no instance '{instance}'")
        return killed[0]

    async def kill_some(self, pod_id: str, wanted: InstanceIds) -> list[Json]:
        return await self._kill(pod_id, wanted)

    async def view(self, pod_id: str) -> Json:
        pod = await self._existing(pod_id)
        runs = self._services.runs(pod.id)
        return {
            "status": self._status(pod),
            "tasks": [cluster.task_json(run.view) for run in runs],
            "waiting": self._services.waiting(pod),
        }

    async def _kill(self, pod_id: str, wanted: list[str]) -> list[Json]:
        """Each of them goes as a whole, and is replaced."""
        pod = await self._existing(pod_id)
        found = [each for each in instances(self._services.runs(pod.id)) if _instance_id(each) in wanted]
        for instance in found:
            for run in instance:
                await self._services.kill(run)
        return [instance_json(pod, instance) for instance in found]

    def _status(self, pod: App) -> Json:
        failure = self._services.last_failure(pod.id)
        return status_json(pod, self._services.runs(pod.id), self._services.waiting(pod), failure)

    async def _existing(self, pod_id: str) -> App:
        path = "/" + pod_id
        try:
            return await catalog.read(self._store, path, PodDefinition)
        except UnknownApp as error:
            raise refusal(error, path, "Pod") from error

    async def _versions(self, pod_id: str) -> dict[str, App]:
        path = "/" + pod_id
        try:
            return await catalog.versions(self._store, path, PodDefinition)
        except UnknownApp as error:
            raise refusal(error, path, "Pod") from error


def _deployed(pod: App, response: Response) -> Json:
    response.headers["Marathon-Deployment-Id"] = pod.deployment
    return pod_json(pod)


def _instance_id(runs: list[Run]) -> str:
    pod = runs[0].view.spec.pod
    return pod.id if pod is not None else ""
