"""Marathon's REST API for services (`/v2/...`), and our own view of one (`/api/v1/services/...`).

What Marathon has no word for (addresses of nodes, process ids, why something waits) is in our own view.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Header, Query, Request, Response
from starlette.responses import PlainTextResponse

from frameworks.services import catalog, schema
from frameworks.services.answers import Shown, app_json, definition_json, task_json, version_info
from frameworks.services.app import FRAMEWORK, App
from frameworks.services.catalog import AppExists, Locked, UnknownApp
from frameworks.services.changes import Changes, client_of, deployed, refusal, refuse_locked
from frameworks.services.definition import Definition, TaskIds
from frameworks.services.deployments import DeploymentsApi
from frameworks.services.endpoints import endpoints
from frameworks.services.framework import Services
from frameworks.services.groups import GroupsApi
from frameworks.services.health import readiness_results
from frameworks.services.pods.rest import PodsApi
from frameworks.services.queue import QueueApi
from frameworks.services.selector import selector
from frameworks.services.vips import refuse_bad
from frameworks.services.wanted import Run
from master.rest import cluster
from master.rest.accept import preferred
from master.rest.errors import ApiError
from master.rest.event_stream import LastEventId, chosen, stream
from master.rest.flag import Flag
from master.store.base import Store

MARATHON_VERSION = "1.11.0"  # of the API: clients choose their calls by it
# Where DC/OS has its Marathon, and where its proxies often put it.
ALIASES = ("/service/marathon", "/marathon")
PUBLIC = ("/ping", *(alias + "/ping" for alias in ALIASES))
MOST_AT_ONCE = 10_000
LISTED_AT_ONCE = 20  # apps, before all else has its turn
EMBEDDED_TASKS = {"app.tasks", "apps.tasks"}
EMBEDDED_READINESS = {"app.readiness", "apps.readiness"}

Json = dict[str, Any]
Embed = Annotated[list[str], Query()]
Accept = Annotated[str, Header()]
Status = Literal["running", "staging"]
JSON, TEXT = "application/json", "text/plain"
Responses = dict[int | str, dict[str, Any]]
TASKS: Responses = {200: {"model": schema.Tasks, "content": {TEXT: {"schema": {"type": "string"}}}}}
EVENTS: Responses = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
MADE: Responses = {201: {"model": schema.Deployed, "description": "There was no such app: it is made"}}


def routers(store: Store, services: Services, beside: Iterable[APIRouter] = ()) -> list[APIRouter]:
    """`beside` is served elsewhere, and asked for below the aliases too."""
    marathon, pods = MarathonApi(store, services).router(), PodsApi(store, services)
    deployments = DeploymentsApi(store, services)
    marathon.include_router(deployments.router())
    marathon.include_router(QueueApi(services).router())
    marathon.include_router(GroupsApi(store, services).router())
    aliases = APIRouter(include_in_schema=False)
    for alias in ALIASES:
        aliases.include_router(marathon, prefix=alias)
        aliases.include_router(pods.router(), prefix=alias)
        for other in beside:
            aliases.include_router(other, prefix=alias)
    # A service's id may have slashes: what follows it comes first.
    return [marathon, pods.router(), aliases, deployments.own_view(), _own_view(store, services), pods.own_view()]


class MarathonApi:
    def __init__(self, store: Store, services: Services) -> None:
        self._store = store
        self._services = services
        self._changes = Changes(store, services)
        self._shown = Shown()

    def router(self) -> APIRouter:
        router = APIRouter(tags=["services"])
        router.get("/ping", response_class=PlainTextResponse)(self.ping)
        router.get("/v2/info", response_model=schema.InfoJson)(self.info)
        router.get("/v2/plugins", response_model=schema.PluginsJson)(self.plugins)
        router.get("/v2/tasks", response_model=None, responses=TASKS)(self.all_tasks)
        router.get("/v2/apps", response_model=schema.AppsJson)(self.list_apps)
        router.post("/v2/apps", status_code=201, response_model=schema.AppJson)(self.create)
        router.put("/v2/apps", response_model=schema.DeployedJson)(self.update_many)
        router.patch("/v2/apps", response_model=schema.DeployedJson)(self.update_many)
        router.get("/v2/leader", response_model=schema.LeaderJson)(self.leader)
        router.delete("/v2/leader")(self.abdicate)
        router.get("/v2/events", response_model=None, responses=EVENTS)(self.events)
        # Before the apps themselves: an id may have slashes, but does not end in /tasks.
        router.get("/v2/apps/{app_id:path}/tasks", response_model=None, responses=TASKS)(self.tasks)
        router.delete("/v2/apps/{app_id:path}/tasks", response_model=schema.KilledTasksJson)(self.kill_all)
        router.delete("/v2/apps/{app_id:path}/tasks/{task_id}", response_model=schema.KilledTaskJson)(self.kill_one)
        router.post("/v2/tasks/delete", response_model=schema.KilledTasksJson)(self.kill_some)
        router.post("/v2/apps/{app_id:path}/restart", response_model=schema.DeployedJson)(self.restart)
        router.get("/v2/apps/{app_id:path}/versions", response_model=schema.VersionsJson)(self.versions)
        router.get("/v2/apps/{app_id:path}/versions/{version}", response_model=schema.AppJson)(self.version)
        router.get("/v2/apps/{app_id:path}", response_model=schema.OneAppJson)(self.show)
        router.put("/v2/apps/{app_id:path}", response_model=schema.DeployedJson, responses=MADE)(self.update)
        router.patch("/v2/apps/{app_id:path}", response_model=schema.DeployedJson, responses=MADE)(self.update)
        router.delete("/v2/apps/{app_id:path}", response_model=schema.DeployedJson)(self.delete)
        return router

    async def ping(self) -> str:
        return "pong"

    async def events(
        self,
        last_event_id: LastEventId = "",
        event_type: Annotated[list[str], Query()] = [],  # noqa: B006 - FastAPI copies it
        follow: bool = True,
    ) -> Response:
        """From now on, or from where the reader was; only of these types, if any are given."""
        log = self._services.events
        return stream(chosen(log.read(last_event_id or log.newest, follow), event_type))

    async def leader(self, request: Request) -> Json:
        return {"leader": request.url.netloc}

    async def abdicate(self) -> Json:
        raise ApiError(409, "this master can not step down: there is no other that could take over")

    async def info(self, request: Request) -> Json:
        return {
            "name": "marathon",
            "version": MARATHON_VERSION,
            "buildref": "tepui",
            "elected": True,
            "frameworkId": FRAMEWORK,
            "leader": request.url.netloc,
            "httpConfig": {"httpPort": None, "httpsPort": request.url.port},
            "marathonConfig": {
                "checkpoint": True,
                "ha": False,
                "hostname": request.url.hostname,
                "framework_name": FRAMEWORK,
                "features": [],
            },
            # There is none, but clients read what is in it.
            "zookeeperConfig": {},
        }

    async def plugins(self) -> Json:
        return {"plugins": []}

    async def create(self, definition: Definition, request: Request, response: Response) -> Json:
        try:
            await catalog.refuse_taken(self._store, definition.id)
            refuse_bad(self._services.vip_problems(definition))
            self._changes.refuse_cycles([definition])
            app = await catalog.add(self._store, definition)
        except AppExists as error:
            raise ApiError(409, f"An app with id [{definition.id}] already exists.") from error
        self._tell(app, request)
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
        answers = []
        for number, app in enumerate(apps):
            if number % LISTED_AT_ONCE == LISTED_AT_ONCE - 1:
                await asyncio.sleep(0)
            answers.append(self._embedding(app, embed, EMBEDDED_TASKS & set(embed)))
        return {"apps": answers}

    async def show(self, app_id: str, embed: Embed = []) -> Json:  # noqa: B006 - FastAPI copies it
        return {"app": self._embedding(await existing(self._store, app_id), embed, with_tasks=True)}

    def _embedding(self, app: App, embed: list[str], with_tasks: object) -> Json:
        answer = app_json(app, self._services, self._shown if with_tasks else None)
        if EMBEDDED_READINESS.intersection(embed):
            runs = self._services.runs(app.id)
            answer["readinessCheckResults"] = [result for run in runs for result in readiness_results(run.view)]
        return answer

    async def update(
        self,
        app_id: str,
        body: Annotated[schema.AppUpdateJson, Body()],
        request: Request,
        response: Response,
        force: Flag = False,
        partial: Annotated[Flag, Query(alias="partialUpdate")] = True,
        canary: Annotated[int | None, Query()] = None,
    ) -> Json:
        """What is not said stays as it is. An app that is not there is made. With `canary` so many of its instances are
        changed, until that is promoted or cancelled."""
        path = "/" + app_id
        before = await self._changes.known(path)
        wanted = await self._changes.wanted(path, before, body, partial)
        self._changes.refuse_cycles([wanted])
        if canary is None:
            app = await self._changes.make(wanted, before, force)
        else:
            app = await self._changes.try_out(wanted, before, canary, force)
        self._tell(app, request)
        if before is None:
            response.status_code = 201
        return deployed(app, response)

    def _tell(self, app: App, request: Request) -> None:
        self._services.events.asked(app, request.url.path, client_of(request))

    async def update_many(
        self,
        bodies: Annotated[list[schema.AppUpdateJson], Body(min_length=1, max_length=MOST_AT_ONCE)],
        response: Response,
        force: Flag = False,
        partial: Annotated[Flag, Query(alias="partialUpdate")] = True,
    ) -> Json:
        """As if one after the other were asked for, but all are looked at before the first is changed."""
        named: dict[str, Json] = {}
        for number, body in enumerate(bodies):
            name = body.get("id")
            path = "/" + name.strip("/") if isinstance(name, str) else ""
            if not path or path in named:
                raise ApiError(422, "Object is not valid", {f"/({number})/id": ["must be there, and no other's"]})
            named[path] = {**body, "id": path}
        return deployed((await self._changes.make_all(named, partial, force))[-1], response)

    async def restart(self, app_id: str, response: Response, force: Flag = False) -> Json:
        """All its tasks are replaced, as its upgradeStrategy says."""
        path = "/" + app_id
        try:
            app = await catalog.start_again(self._store, path, force)
        except (UnknownApp, Locked) as error:
            raise refusal(error, path) from error
        return deployed(app, response)

    async def versions(self, app_id: str) -> Json:
        return {"versions": list(await self._changes.versions("/" + app_id))}

    async def version(self, app_id: str, version: str) -> Json:
        app = await self._changes.version("/" + app_id, version)
        return definition_json(app) | {"version": app.version, "versionInfo": version_info(app)}

    async def delete(self, app_id: str, response: Response, force: Flag = False) -> Json:
        path = "/" + app_id
        try:
            app = await catalog.remove(self._store, path, force=force)
        except (UnknownApp, Locked) as error:
            raise refusal(error, path) from error
        return deployed(app, response)

    async def tasks(self, app_id: str, accept: Accept = "") -> Json | Response:
        return self._listed([await existing(self._store, app_id)], accept)

    async def all_tasks(
        self,
        accept: Accept = "",
        status: Annotated[list[Status], Query()] = [],  # noqa: B006 - FastAPI copies it
        statuses: Annotated[list[Status], Query(alias="status[]")] = [],  # noqa: B006
    ) -> Json | Response:
        """Only those that run, or are yet to run, if one `status` is given."""
        return self._listed(await catalog.read_all(self._store), accept, {*status, *statuses})

    def _listed(self, apps: list[App], accept: str, statuses: Collection[str] = ()) -> Json | Response:
        found = [(app, self._services.runs(app.id)) for app in apps]
        if preferred(accept, JSON, TEXT) == TEXT:
            return PlainTextResponse(endpoints(found))
        chosen = (run for _, runs in found for run in runs if not statuses or _status(run) in statuses)
        return {"tasks": [self._shown.task_json(run) for run in chosen]}

    # `wipe` destroys what a task's persistent volumes hold. `scale` changes the app: while that is locked, it needs
    # `force`.
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
        shrunk = await self._kill(found, scale, wipe, force)
        return deployed(shrunk[0], response) if shrunk else {"task": task_json(found[0])}

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
        return self._killed(found, await self._kill(found, scale, wipe, force), response)

    async def kill_some(
        self, wanted: TaskIds, response: Response, scale: Flag = False, wipe: Flag = False, force: Flag = False
    ) -> Json:
        ids, apps = set(wanted.ids), await catalog.read_all(self._store)
        found = [run for app in apps for run in self._services.runs(app.id) if run.id in ids]
        return self._killed(found, await self._kill(found, scale, wipe, force), response)

    def _killed(self, found: list[Run], shrunk: list[App], response: Response) -> Json:
        return deployed(shrunk[0], response) if shrunk else {"tasks": [task_json(run) for run in found]}

    async def _kill(self, runs: list[Run], scale: bool, wipe: bool, force: bool) -> list[App]:
        """With `scale` their apps shrink by as many, and are returned. First they shrink: none of these is replaced."""
        counts = Counter(run.view.spec.owner for run in runs if scale and not run.view.killing)
        deployed = []
        for app_id in counts:
            refuse_locked(await self._changes.known(app_id), force)
        if scale:
            self._services.choose(runs)
        for app_id, count in counts.items():
            try:
                deployed.append(await catalog.shrink(self._store, app_id, count, force))
            except (UnknownApp, Locked) as error:
                raise refusal(error, app_id) from error
        for run in runs:
            await self._services.kill(run)
            if wipe:
                await self._services.wipe(run)
        return deployed


def _status(run: Run) -> Status:
    return "running" if run.running else "staging"


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
        raise refusal(error, path) from error
