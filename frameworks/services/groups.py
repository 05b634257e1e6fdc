"""`/v2/groups`: apps by their ids, which are paths.

A group is what the ids of apps and pods have in common: there is nothing else to it, so it is there for as long as one
of them is. To make or change one is to make, change and remove the apps in it; all are looked at first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Body, Response

from frameworks.services import catalog
from frameworks.services.answers import app_json
from frameworks.services.app import App
from frameworks.services.catalog import UnknownApp
from frameworks.services.changes import Changes, deployed, refusal
from frameworks.services.definition import Definition
from frameworks.services.framework import Services
from frameworks.services.pods.definition import PodDefinition
from frameworks.services.pods.status import pod_json
from master.rest.errors import ApiError
from master.store.base import Conflict, Store

Json = dict[str, Any]

KEYS = {"id", "apps", "groups", "pods", "dependencies", "version", "scaleBy", "enforceRole"}
UNSUPPORTED = ("pods", "dependencies", "enforceRole")
DEEPEST = 32


class GroupsApi:
    def __init__(self, store: Store, services: Services) -> None:
        self._store = store
        self._services = services
        self._changes = Changes(store, services)

    def router(self) -> APIRouter:
        router = APIRouter(tags=["services"])
        for path in ("/v2/groups", "/v2/groups/{group:path}"):
            router.get(path)(self.show)
            router.post(path, status_code=201)(self.create)
            router.put(path)(self.update)
            router.delete(path)(self.delete)
        return router

    async def show(self, group: str = "") -> Json:
        path = _path(group)
        apps = await self._below(path)
        if not apps and path != "/":
            raise ApiError(404, f"Group '{path}' does not exist")
        return self._group(path, apps)

    # `force` has nothing to overrule: the last definition is the one that counts.
    async def create(
        self, body: Annotated[Json, Body()], response: Response, group: str = "", force: bool = False
    ) -> Json:
        path = _path(group, body.get("id"))
        if await self._below(path) and path != "/":
            raise ApiError(409, f"Group {path} is already created. Use PUT to change this group.")
        response.headers["Location"] = f"/v2/groups{path}"
        return await self._apply(path, {**body, "id": path}, response)

    async def update(
        self,
        body: Annotated[Json, Body()],
        response: Response,
        group: str = "",
        force: bool = False,
        dryRun: bool = False,
    ) -> Json:
        """Of `apps` and `groups`, what is said is all that is left there; what is not said stays as it is."""
        path = _path(group, body.get("id"))
        if dryRun:
            wanted, gone = await self._plan(path, {**body, "id": path})
            for app_id, said in wanted.items():
                await self._changes.wanted(app_id, await self._changes.known(app_id), said, False)
            actions = [{"action": "StopApplication", "app": app} for app in gone]
            return {"steps": [{"actions": [*actions, *({"action": "ScaleApplication", "app": app} for app in wanted)]}]}
        return await self._apply(path, {**body, "id": path}, response)

    async def delete(self, response: Response, group: str = "", force: bool = False) -> Json:
        path = _path(group)
        apps = await self._below(path)
        if not apps:
            raise ApiError(404, f"Group '{path}' does not exist")
        for app in apps:
            last = await self._remove(app)
        return deployed(last, response)

    async def _apply(self, path: str, body: Json, response: Response) -> Json:
        wanted, gone = await self._plan(path, body)
        changed = await self._changes.make_all(wanted, partial="scaleBy" in body)
        removed = [await self._remove(app) for app in await self._below(path) if app.id in gone]
        if not changed and not removed:
            return {"version": "", "deploymentId": ""}
        return deployed([*removed, *changed][-1], response)

    async def _plan(self, path: str, body: Json) -> tuple[dict[str, Json], set[str]]:
        """What apps are to be, by their ids, and which are to go."""
        there = [app for app in await self._below(path) if isinstance(app.definition, Definition)]
        if "scaleBy" in body:
            factor = body["scaleBy"]
            if not isinstance(factor, int | float) or isinstance(factor, bool) or not 0 <= factor <= 1000:
                raise _invalid("/scaleBy", "must be a number from 0 to 1000")
            return {app.id: {"instances": round(app.instances * factor)} for app in there}, set()
        wanted = dict(_flattened(path, body, ""))
        return wanted, {app.id for app in there if app.id not in wanted and not _stays(app.id, path, body)}

    async def _below(self, path: str) -> list[App]:
        apps = [app for kind in (Definition, PodDefinition) for app in await catalog.read_all(self._store, kind)]
        return [app for app in apps if path == "/" or app.id.startswith(f"{path}/")]

    async def _remove(self, app: App) -> App:
        try:
            return await catalog.remove(self._store, app.id, type(app.definition))
        except (UnknownApp, Conflict) as error:
            raise refusal(error, app.id) from error

    def _group(self, path: str, apps: list[App]) -> Json:
        own = [app for app in apps if _parent(app.id) == path]
        below = sorted({_child(path, app.id) for app in apps if _parent(app.id) != path})
        return {
            "id": path,
            "apps": [app_json(app, self._services) for app in own if isinstance(app.definition, Definition)],
            "pods": [pod_json(app) for app in own if isinstance(app.definition, PodDefinition)],
            "groups": [self._group(each, [a for a in apps if a.id.startswith(f"{each}/")]) for each in below],
            "dependencies": [],
            "version": max((app.version for app in apps), default=""),
        }


def _flattened(path: str, body: Any, place: str, depth: int = 0) -> Iterator[tuple[str, Json]]:
    """The apps of a group and of those in it, by their ids, which may be relative to it."""
    if not isinstance(body, dict) or depth > DEEPEST:
        raise _invalid(place or "/", "must be a group")
    for key in body:
        if key not in KEYS:
            raise _invalid(f"{place}/{key}", "is not a known field")
        if key in UNSUPPORTED and body[key]:
            raise _invalid(f"{place}/{key}", "is not supported by this version: remove it")
    for number, app in enumerate(_list(body, "apps", place)):
        where = f"{place}/apps({number})"
        if not isinstance(app, dict) or not isinstance(app.get("id"), str):
            raise _invalid(f"{where}/id", "is missing")
        app_id = _inside(path, app["id"], f"{where}/id")
        yield app_id, {**app, "id": app_id}
    for number, group in enumerate(_list(body, "groups", place)):
        where = f"{place}/groups({number})"
        if not isinstance(group, dict) or not isinstance(group.get("id"), str):
            raise _invalid(f"{where}/id", "is missing")
        yield from _flattened(_inside(path, group["id"], f"{where}/id"), group, where, depth + 1)


def _list(body: Json, key: str, place: str) -> list[Any]:
    value = body.get(key) or []
    if not isinstance(value, list):
        raise _invalid(f"{place}/{key}", "must be a list")
    return value


def _inside(path: str, name: str, place: str) -> str:
    base = path.rstrip("/")
    full = name.rstrip("/") if name.startswith("/") else f"{base}/{name.strip('/')}"
    if not full.startswith(f"{base}/"):
        raise _invalid(place, f"must be in group {path}")
    return full


def _stays(app_id: str, path: str, body: Json) -> bool:
    """Whether nothing is said of where it is."""
    return ("apps" if _parent(app_id) == path else "groups") not in body


def _path(group: str, name: Any = None) -> str:
    path = "/" + group.strip("/")
    if name is None:
        return path
    if not isinstance(name, str):
        raise _invalid("/id", "must be a text")
    if name.startswith("/"):
        if path != "/" and name.rstrip("/") != path:
            raise _invalid("/id", f"must be {path}, as in the request's path")
        return "/" + name.strip("/")
    return f"{path.rstrip('/')}/{name.strip('/')}" if path == "/" or not path.endswith(f"/{name}") else path


def _parent(app_id: str) -> str:
    return app_id.rpartition("/")[0] or "/"


def _child(path: str, app_id: str) -> str:
    base = path.rstrip("/")
    return f"{base}/{app_id[len(base) + 1 :].partition('/')[0]}"


def _invalid(path: str, problem: str) -> ApiError:
    return ApiError(422, "Object is not valid", {path: [problem]})
