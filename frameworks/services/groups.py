"""`/v2/groups`: apps by their ids, which are paths.

A group is what the ids of apps and pods have in common, so it is there for as long as one of them is. One that somebody
made (`services/groups/<path>`) is there without, and may depend on others. To make or change a group is to make, change
and remove the apps in it; all are looked at first, and it is one deployment.

A version is a time, and a group has the versions of its apps: to go back to one is to have each app as it was then.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Body, Response

from frameworks.services import catalog, schema
from frameworks.services.answers import app_json
from frameworks.services.app import App, Group, format_time, new_deployment
from frameworks.services.catalog import Locked, UnknownApp
from frameworks.services.changes import Changes, refusal, refuse_locked
from frameworks.services.definition import APP_ID, Definition
from frameworks.services.dependencies import resolved
from frameworks.services.framework import Services
from frameworks.services.pods.definition import PodDefinition
from frameworks.services.pods.status import pod_json
from master.rest.errors import ApiError
from master.rest.flag import Flag
from master.store.base import Store

Json = dict[str, Any]

KEYS = {"id", "apps", "groups", "pods", "dependencies", "version", "scaleBy", "enforceRole"}
UNSUPPORTED = ("pods", "enforceRole")
DEEPEST = 32


class GroupsApi:
    def __init__(self, store: Store, services: Services) -> None:
        self._store = store
        self._services = services
        self._changes = Changes(store, services)

    def router(self) -> APIRouter:
        router = APIRouter(tags=["services"])
        for path in ("/v2/groups", "/v2/groups/{group:path}"):
            router.get(f"{path}/versions")(self.versions)
            router.get(f"{path}/versions/{{version}}", response_model=schema.GroupJson)(self.version)
            router.get(path, response_model=schema.GroupJson)(self.show)
            router.post(path, status_code=201, response_model=schema.DeployedJson)(self.create)
            router.put(path, response_model=schema.GroupChangeJson)(self.update)
            router.delete(path, response_model=schema.DeployedJson)(self.delete)
        return router

    async def show(self, group: str = "") -> Json:
        return await self._shown(_path(group), await self._existing(_path(group)))

    async def versions(self, group: str = "") -> list[str]:
        """The newest first."""
        known = [await self._versions(app) for app in await self._existing(_path(group))]
        return sorted({version for each in known for version in each}, reverse=True)

    async def version(self, version: str, group: str = "") -> Json:
        """Of those apps that there are still."""
        return await self._shown(_path(group), await self._as_of(_path(group), version))

    async def create(
        self, body: Annotated[schema.GroupUpdateJson, Body()], response: Response, group: str = "", force: Flag = False
    ) -> Json:
        path = _path(group, body.get("id"))
        there = path in await catalog.groups(self._store) or await self._below(path)
        if there and path != "/":
            raise ApiError(409, f"Group {path} is already created. Use PUT to change this group.")
        answer = await self._apply(path, {**body, "id": path}, response, force)
        response.headers["Location"] = f"/v2/groups{path}"
        return answer

    async def update(
        self,
        body: Annotated[schema.GroupUpdateJson, Body()],
        response: Response,
        group: str = "",
        force: Flag = False,
        dryRun: Flag = False,
    ) -> Json:
        """Of `apps` and `groups`, what is said is all that is left there; what is not said stays as it is. With a
        `version` all of its apps go back to what they were then."""
        path = _path(group, body.get("id"))
        if dryRun:
            wanted, gone, groups = await self._plan(path, {**body, "id": path})
            definitions = [each for each, _ in await self._changes.all_wanted(wanted, "scaleBy" in body, True)]
            self._changes.refuse_cycles(definitions, groups, gone)
            actions = [{"action": "StopApplication", "app": app} for app in sorted(gone)]
            return {"steps": [{"actions": [*actions, *({"action": "ScaleApplication", "app": app} for app in wanted)]}]}
        return await self._apply(path, {**body, "id": path}, response, force)

    async def delete(self, response: Response, group: str = "", force: Flag = False) -> Json:
        path = _path(group)
        apps = await self._existing(path)
        for app in apps:
            refuse_locked(app, force)
        deployment, version = new_deployment(), format_time(datetime.now(UTC))
        for app in apps:
            version = (await self._remove(app, force, deployment)).version
        await catalog.replace_groups(self._store, (), [each for each in await self._made() if _is_in(each, path)])
        self._services.events.group_changed(path, version)
        response.headers["Marathon-Deployment-Id"] = deployment
        return {"version": version, "deploymentId": deployment}

    async def _apply(self, path: str, body: Json, response: Response, force: bool) -> Json:
        wanted, gone, groups = await self._plan(path, body)
        changes = await self._changes.all_wanted(wanted, partial="scaleBy" in body, force=force)
        self._changes.refuse_cycles([definition for definition, _ in changes], groups, gone)
        leaving = [app for app in await self._below(path) if app.id in gone]
        for app in leaving:
            refuse_locked(app, force)
        replaced = {group.path for group in groups}
        former = [each for each in await self._made() if each != path and _is_in(each, path) and "groups" in body]
        await catalog.replace_groups(self._store, groups, [each for each in former if each not in replaced])
        deployment, version = new_deployment(), format_time(datetime.now(UTC))
        for app in leaving:
            version = (await self._remove(app, force, deployment)).version
        for definition, before in changes:
            version = (await self._changes.make(definition, before, force, deployment)).version
        self._services.events.group_changed(path, version)
        response.headers["Marathon-Deployment-Id"] = deployment
        return {"version": version, "deploymentId": deployment}

    async def _plan(self, path: str, body: Json) -> tuple[dict[str, Json], set[str], list[Group]]:
        """What apps are to be, by their ids, which are to go, and what groups are to be."""
        if path != "/" and not APP_ID.fullmatch(path):
            raise _invalid("/id", f"{path!r} must be path segments of lower-case letters, digits and hyphens")
        there = [app for app in await self._below(path) if isinstance(app.definition, Definition)]
        if "scaleBy" in body:
            factor = body["scaleBy"]
            if not isinstance(factor, int | float) or isinstance(factor, bool) or not 0 <= factor <= 1000:
                raise _invalid("/scaleBy", "must be a number from 0 to 1000")
            return {app.id: {"instances": round(app.instances * factor)} for app in there}, set(), []
        if body.keys() == {"id", "version"}:
            apps = await self._as_of(path, body["version"])
            then = {app.id: _body(app) for app in apps if isinstance(app.definition, Definition)}
            return then, {app.id for app in there if app.id not in then}, []
        wanted, groups = dict(_flattened(path, body, "")), list(_groups(path, body, format_time(datetime.now(UTC))))
        gone = {app.id for app in there if app.id not in wanted and not _stays(app.id, path, body)}
        return wanted, gone, groups

    async def _existing(self, path: str) -> list[App]:
        apps = await self._below(path)
        if not apps and path != "/" and not any(_is_in(each, path) for each in await self._made()):
            raise ApiError(404, f"Group '{path}' does not exist")
        return apps

    async def _made(self) -> dict[str, Group]:
        return await catalog.groups(self._store)

    async def _below(self, path: str) -> list[App]:
        apps = [app for kind in (Definition, PodDefinition) for app in await catalog.read_all(self._store, kind)]
        return [app for app in apps if path == "/" or app.id.startswith(f"{path}/")]

    async def _versions(self, app: App) -> dict[str, App]:
        try:
            return await catalog.versions(self._store, app.id, type(app.definition))
        except UnknownApp:
            return {}

    async def _as_of(self, path: str, version: Any) -> list[App]:
        known = [await self._versions(app) for app in await self._existing(path)]
        if not isinstance(version, str) or not any(version in each for each in known):
            raise ApiError(404, f"Group '{path}' has no version '{version}'")
        then = [next((each for at, each in history.items() if at <= version), None) for history in known]
        return [app for app in then if app is not None]

    async def _remove(self, app: App, force: bool, deployment: str) -> App:
        try:
            return await catalog.remove(self._store, app.id, type(app.definition), force, deployment)
        except (UnknownApp, Locked) as error:
            raise refusal(error, app.id) from error

    async def _shown(self, path: str, apps: list[App]) -> Json:
        return self._group(path, apps, await self._made())

    def _group(self, path: str, apps: list[App], made: dict[str, Group]) -> Json:
        own = [app for app in apps if _parent(app.id) == path]
        ids = [app.id for app in apps if _parent(app.id) != path] + [f"{each}/" for each in made if each != path]
        below = sorted({_child(path, each) for each in ids if _is_in(each, path)})
        group = made.get(path, Group(path))
        return {
            "id": path,
            "apps": [app_json(app, self._services) for app in own if isinstance(app.definition, Definition)],
            "pods": [pod_json(app) for app in own if isinstance(app.definition, PodDefinition)],
            "groups": [self._group(each, [a for a in apps if a.id.startswith(f"{each}/")], made) for each in below],
            "dependencies": list(group.dependencies),
            "version": max((app.version for app in apps), default=group.version),
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


def _groups(path: str, body: Json, version: str) -> Iterator[Group]:
    """The group and those in it, whose apps were found to be sound."""
    given = body.get("dependencies") or []
    if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
        raise _invalid("/dependencies", "must be a list of paths")
    if path != "/":
        if not APP_ID.fullmatch(path):
            raise _invalid("/id", f"{path!r} must be path segments of lower-case letters, digits and hyphens")
        yield Group(path, tuple(resolved(each, path) for each in given), version)
    for group in body.get("groups") or []:
        yield from _groups(_inside(path, group["id"], "/groups/id"), group, version)


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


def _is_in(path: str, group: str) -> bool:
    return group == "/" or path == group or path.startswith(f"{group}/")


def _body(app: App) -> Json:
    return app.definition.model_dump(exclude_none=True)


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
