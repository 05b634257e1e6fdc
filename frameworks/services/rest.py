"""Marathon's REST API for services (`/v2/...`), and our own view of one (`/api/v1/services/...`).

What Marathon has no word for (addresses of nodes, process ids, why something waits) is in our own view.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request, Response
from pydantic import BeforeValidator
from starlette.responses import PlainTextResponse

from frameworks.services import catalog, networking
from frameworks.services.answers import app_json, task_json, version_info
from frameworks.services.app import FRAMEWORK, App
from frameworks.services.catalog import AppExists, UnknownApp
from frameworks.services.definition import Definition, TaskIds, without_nulls
from frameworks.services.deployments import DeploymentsApi
from frameworks.services.framework import Services
from frameworks.services.health import readiness_results
from frameworks.services.pods.rest import PodsApi
from frameworks.services.revision import revised
from frameworks.services.selector import selector
from frameworks.services.vips import refuse_bad
from frameworks.services.wanted import Run
from master.rest import cluster
from master.rest.errors import ApiError
from master.store.base import Conflict, Store

MARATHON_VERSION = "1.11.0"  # of the API: clients choose their calls by it
# Where DC/OS has its Marathon, and where its proxies often put it.
ALIASES = ("/service/marathon", "/marathon")
PUBLIC = ("/ping", *(alias + "/ping" for alias in ALIASES))
MOST_AT_ONCE = 10_000
EMBEDDED_TASKS = {"app.tasks", "apps.tasks"}
EMBEDDED_READINESS = {"app.readiness", "apps.readiness"}

Json = dict[str, Any]
# Clients write `?scale=true`, `?scale=True` and `?scale`.
Flag = Annotated[bool, Query(), BeforeValidator(lambda value: True if value == "" else value)]
Embed = Annotated[list[str], Query()]


def routers(store: Store, services: Services) -> list[APIRouter]:
    marathon, pods = MarathonApi(store, services).router(), PodsApi(store, services)
    marathon.include_router(DeploymentsApi(store, services).router())
    aliases = APIRouter(include_in_schema=False)
    for alias in ALIASES:
        aliases.include_router(marathon, prefix=alias)
        aliases.include_router(pods.router(), prefix=alias)
    return [marathon, pods.router(), aliases, _own_view(store, services), pods.own_view()]


class MarathonApi:
    def __init__(self, store: Store, services: Services) -> None:
        self._store = store
        self._services = services

    def router(self) -> APIRouter:
        router = APIRouter(tags=["services"])
        router.get("/ping", response_class=PlainTextResponse)(self.ping)
        router.get("/v2/info")(self.info)
        router.get("/v2/tasks")(self.all_tasks)
        router.get("/v2/apps")(self.list_apps)
        router.post("/v2/apps", status_code=201)(self.create)
        router.put("/v2/apps")(self.update_many)
        router.patch("/v2/apps")(self.update_many)
        router.get("/v2/leader")(self.leader)
        # Before the apps themselves: an id may have slashes, but does not end in /tasks.
        router.get("/v2/apps/{app_id:path}/tasks")(self.tasks)
        router.delete("/v2/apps/{app_id:path}/tasks")(self.kill_all)
        router.delete("/v2/apps/{app_id:path}/tasks/{task_id}")(self.kill_one)
        router.post("/v2/tasks/delete")(self.kill_some)
        router.post("/v2/apps/{app_id:path}/restart")(self.restart)
        router.get("/v2/apps/{app_id:path}/versions")(self.versions)
        router.get("/v2/apps/{app_id:path}/versions/{version}")(self.version)
        router.get("/v2/apps/{app_id:path}")(self.show)
        router.put("/v2/apps/{app_id:path}")(self.update)
        router.patch("/v2/apps/{app_id:path}")(self.update)
        router.delete("/v2/apps/{app_id:path}")(self.delete)
        return router

    async def ping(self) -> str:
        return "pong"

    async def leader(self, request: Request) -> Json:
        return {"leader": request.url.netloc}

    async def info(self) -> Json:
        return {
            "name": "marathon",
            "version": MARATHON_VERSION,
            "buildref": "tepui",
            "elected": True,
            "frameworkId": FRAMEWORK,
        }

    async def create(self, definition: Definition, response: Response) -> Json:
        try:
            await catalog.refuse_taken(self._store, definition.id)
            refuse_bad(self._services.vip_problems(definition))
            app = await catalog.add(self._store, definition)
        except AppExists as error:
            raise ApiError(409, f"An app with id [{definition.id}] already exists.") from error
        response.headers["Location"] = f"/v2/apps{app.id}"
        response.headers["Marathon-Deployment-Id"] = app.deployment
        return app_json(app, self._services)

    async def list_apps(
        self,
        embed: Embed = [],  # noqa: B006 - FastAPI copies it
        cmd: str = "",
        app_id: Annotated[str, Query(alias="id")] = "",
        label: str = "",
    ) -> Json:
        """Only those with `cmd` in their command, `id` in their id, and labels that the selector `label` takes."""
        selects = selector(label)
        apps = [
            app
            for app in await catalog.read_all(self._store)
            if isinstance(app.definition, Definition)
            and cmd in (app.definition.cmd or "")
            and app_id in app.id
            and selects(app.definition.labels)
        ]
        return {"apps": [self._embedding(app, embed, EMBEDDED_TASKS & set(embed)) for app in apps]}

    async def show(self, app_id: str, embed: Embed = []) -> Json:  # noqa: B006 - FastAPI copies it
        return {"app": self._embedding(await existing(self._store, app_id), embed, with_tasks=True)}

    def _embedding(self, app: App, embed: list[str], with_tasks: object) -> Json:
        answer = app_json(app, self._services, bool(with_tasks))
        if EMBEDDED_READINESS.intersection(embed):
            runs = self._services.runs(app.id)
            answer["readinessCheckResults"] = [result for run in runs for result in readiness_results(run.view)]
        return answer

    # `force` has nothing to overrule: the last definition is the one that counts.
    async def update(
        self,
        app_id: str,
        body: Annotated[Json, Body()],
        response: Response,
        force: Flag = False,
        partial: Annotated[Flag, Query(alias="partialUpdate")] = True,
    ) -> Json:
        """What is not said stays as it is. An app that is not there is made."""
        path = "/" + app_id
        before = await self._known(path)
        app = await self._change(await self._wanted(path, before, body, partial), is_new=before is None)
        if before is None:
            response.status_code = 201
        return _deployed(app, response)

    async def update_many(
        self,
        bodies: Annotated[list[Json], Body(min_length=1, max_length=MOST_AT_ONCE)],
        response: Response,
        force: Flag = False,
        partial: Annotated[Flag, Query(alias="partialUpdate")] = True,
    ) -> Json:
        """As if one after the other were asked for, but all are looked at before the first is changed."""
        wanted: dict[str, tuple[Definition, bool]] = {}
        for number, body in enumerate(bodies):
            name = body.get("id")
            path = "/" + name.strip("/") if isinstance(name, str) else ""
            if not path or path in wanted:
                raise ApiError(422, "Object is not valid", {f"/({number})/id": ["must be there, and no other's"]})
            before = await self._known(path)
            wanted[path] = await self._wanted(path, before, {**body, "id": path}, partial), before is None
        for definition, is_new in wanted.values():
            app = await self._change(definition, is_new=is_new)
        return _deployed(app, response)

    async def _wanted(self, path: str, before: Definition | None, body: Json, partial: bool) -> Definition:
        said = without_nulls(body)
        if before is not None and said.keys() <= {"id", "version"} and "version" in said:
            definition = (await self._version(path.removeprefix("/"), str(said["version"]))).definition
            assert isinstance(definition, Definition)
        else:
            _refuse_too_many(before, said)
            definition = revised(path, before, said, partial=partial)
        refuse_bad(self._services.vip_problems(definition))
        return definition

    async def _change(self, definition: Definition, *, is_new: bool) -> App:
        try:
            return await (catalog.add if is_new else catalog.replace)(self._store, definition)
        except AppExists as error:
            raise ApiError(409, f"An app or a pod with id [{definition.id}] already exists.") from error
        except (UnknownApp, Conflict) as error:
            raise _refusal(error, definition.id) from error

    async def _known(self, path: str) -> Definition | None:
        try:
            definition = (await catalog.read(self._store, path)).definition
        except UnknownApp:
            return None
        assert isinstance(definition, Definition)
        return definition

    async def restart(self, app_id: str, response: Response, force: Flag = False) -> Json:
        """All its tasks are replaced, as its upgradeStrategy says."""
        path = "/" + app_id
        try:
            app = await catalog.start_again(self._store, path)
        except (UnknownApp, Conflict) as error:
            raise _refusal(error, path) from error
        return _deployed(app, response)

    async def versions(self, app_id: str) -> Json:
        return {"versions": list(await self._versions(app_id))}

    async def version(self, app_id: str, version: str) -> Json:
        app = await self._version(app_id, version)
        return app.definition.model_dump(exclude_none=True) | {"version": app.version, "versionInfo": version_info(app)}

    async def _version(self, app_id: str, version: str) -> App:
        known = await self._versions(app_id)
        if version not in known:
            raise ApiError(404, f"App '/{app_id}' has no version '{version}'")
        return known[version]

    async def _versions(self, app_id: str) -> dict[str, App]:
        path = "/" + app_id
        try:
            return await catalog.versions(self._store, path, Definition)
        except UnknownApp as error:
            raise _refusal(error, path) from error

    async def delete(self, app_id: str, response: Response) -> Json:
        path = "/" + app_id
        try:
            app = await catalog.remove(self._store, path)
        except (UnknownApp, Conflict) as error:
            raise _refusal(error, path) from error
        return _deployed(app, response)

    async def tasks(self, app_id: str) -> Json:
        app = await existing(self._store, app_id)
        return {"tasks": [task_json(run) for run in self._services.runs(app.id)]}

    async def all_tasks(self) -> Json:
        apps = await catalog.read_all(self._store)
        return {"tasks": [task_json(run) for app in apps for run in self._services.runs(app.id)]}

    # `wipe` destroys what a task's persistent volumes hold. `force` has nothing to overrule.
    async def kill_one(
        self,
        app_id: str,
        task_id: str,
        response: Response,
        scale: Flag = False,
        wipe: Flag = False,
        force: Flag = False,
    ) -> Json:
        app = await existing(self._store, app_id)
        found = [run for run in self._services.runs(app.id) if run.id == task_id]
        if not found:
            raise ApiError(404, f"Task '{task_id}' does not exist")
        deployed = await self._kill(found, scale, wipe)
        return _deployed(deployed[0], response) if deployed else {"task": task_json(found[0])}

    async def kill_all(
        self,
        app_id: str,
        response: Response,
        host: str | None = None,
        scale: Flag = False,
        wipe: Flag = False,
        force: Flag = False,
    ) -> Json:
        """`host` is a node: only those there."""
        app = await existing(self._store, app_id)
        found = [run for run in self._services.runs(app.id) if host in (None, run.view.node)]
        return self._killed(found, await self._kill(found, scale, wipe), response)

    async def kill_some(
        self, wanted: TaskIds, response: Response, scale: Flag = False, wipe: Flag = False, force: Flag = False
    ) -> Json:
        ids, apps = set(wanted.ids), await catalog.read_all(self._store)
        found = [run for app in apps for run in self._services.runs(app.id) if run.id in ids]
        return self._killed(found, await self._kill(found, scale, wipe), response)

    def _killed(self, found: list[Run], deployed: list[App], response: Response) -> Json:
        return _deployed(deployed[0], response) if deployed else {"tasks": [task_json(run) for run in found]}

    async def _kill(self, runs: list[Run], scale: bool, wipe: bool) -> list[App]:
        """With `scale` their apps shrink by as many, and are returned. First they shrink: none of these is replaced."""
        counts = Counter(run.view.spec.owner for run in runs if scale and not run.view.killing)
        deployed = []
        if scale:
            self._services.choose(runs)
        for app_id, count in counts.items():
            try:
                deployed.append(await catalog.shrink(self._store, app_id, count))
            except UnknownApp as error:
                raise _refusal(error, app_id) from error
        for run in runs:
            await self._services.kill(run)
            if wipe:
                await self._services.wipe(run)
        return deployed


def _own_view(store: Store, services: Services) -> APIRouter:
    router = APIRouter(prefix="/api/v1", tags=["services"])

    @router.get("/services/{app_id:path}")
    async def service(app_id: str) -> Json:
        app = await existing(store, app_id)
        runs = services.runs(app.id)
        return {
            "app": app_json(app, services),
            "tasks": [cluster.task_json(run.view) for run in runs],
            "waiting": services.waiting(app),
        }

    return router


async def existing(store: Store, app_id: str) -> App:
    path = "/" + app_id
    try:
        return await catalog.read(store, path)
    except UnknownApp as error:
        raise _refusal(error, path) from error


def _refuse_too_many(before: Definition | None, said: Json) -> None:
    """When all that is said is a number, that is what is wrong."""
    instances = said.get("instances")
    if before is None or not said.keys() <= {"id", "instances"} or not isinstance(instances, int):
        return
    if problems := dict(networking.problems(before.networks, instances)):
        raise ApiError(422, "Object is not valid", {"/instances": list(problems.values())})


def _deployed(app: App, response: Response) -> Json:
    response.headers["Marathon-Deployment-Id"] = app.deployment
    return {"version": app.version, "deploymentId": app.deployment}


def _refusal(error: UnknownApp | Conflict, path: str) -> ApiError:
    if isinstance(error, UnknownApp):
        return ApiError(404, f"App '{path}' does not exist")
    return ApiError(409, f"App '{path}' was changed at the same moment: read it again")
