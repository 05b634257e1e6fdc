"""Changing apps by what requests say of them: first all is looked at, then all is changed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from fastapi import Request, Response

from frameworks.services import catalog, dependencies, networking, options
from frameworks.services.app import App, Group, new_deployment
from frameworks.services.catalog import AppExists, Locked, UnknownApp
from frameworks.services.definition import Definition, without_nulls
from frameworks.services.framework import Services
from frameworks.services.revision import revised
from frameworks.services.vips import refuse_bad
from master.rest.errors import ApiError
from master.store.base import Store

Json = dict[str, Any]


class Changes:
    """All verbs raise ApiError or RequestValidationError, which name the field. Apps are named by their ids. Without
    `force` an app whose deployment is under way is not changed."""

    def __init__(self, store: Store, services: Services) -> None:
        self._store = store
        self._services = services

    async def known(self, app_id: str) -> App | None:
        try:
            return await catalog.read(self._store, app_id)
        except UnknownApp:
            return None

    async def wanted(self, app_id: str, before: App | None, body: Json, partial: bool) -> Definition:
        """What the app will be. Nothing is changed."""
        said = without_nulls(body)
        earlier = before.definition if before is not None else None
        assert earlier is None or isinstance(earlier, Definition)
        if earlier is not None and said.keys() <= {"id", "version"} and "version" in said:
            definition = (await self.version(app_id, str(said["version"]))).definition
            assert isinstance(definition, Definition)
        else:
            _refuse_too_many(earlier, said)
            definition = revised(app_id, earlier, said, partial=partial)
        refuse_bad(self._services.vip_problems(definition))
        return definition

    async def make(self, definition: Definition, before: App | None, force: bool, deployment: str = "") -> App:
        try:
            if before is None:
                return await catalog.add(self._store, definition, deployment)
            return await catalog.replace(self._store, definition, force, before.version, deployment)
        except AppExists as error:
            raise ApiError(409, f"An app or a pod with id [{definition.id}] already exists.") from error
        except (UnknownApp, Locked) as error:
            raise refusal(error, definition.id) from error

    async def try_out(self, definition: Definition, before: App | None, instances: int, force: bool) -> App:
        """So many instances of another definition, beside those that there are."""
        if before is None:
            raise ApiError(404, f"App '{definition.id}' does not exist: there is nothing beside which to try it")
        if options.is_system(definition.labels):
            raise ApiError(
                422, "Object is not valid", {"/canary": ["a system service has no place for a second version"]}
            )
        if not 1 <= instances < definition.instances:
            between = f"must be at least 1, and fewer than the {definition.instances} instances of the app"
            raise ApiError(422, "Object is not valid", {"/canary": [between]})
        try:
            return await catalog.begin_canary(self._store, definition, instances, force, before.version)
        except (UnknownApp, Locked) as error:
            raise refusal(error, definition.id) from error

    async def make_all(self, bodies: Mapping[str, Json], partial: bool, force: bool) -> list[App]:
        """`bodies` by the apps' ids. It is one deployment."""
        wanted = await self.all_wanted(bodies, partial, force)
        self.refuse_cycles([definition for definition, _ in wanted])
        deployment = new_deployment()
        return [await self.make(definition, before, force, deployment) for definition, before in wanted]

    async def all_wanted(
        self, bodies: Mapping[str, Json], partial: bool, force: bool
    ) -> list[tuple[Definition, App | None]]:
        """What they will be, and what they are. Nothing is changed."""
        wanted: list[tuple[Definition, App | None]] = []
        for app_id, body in bodies.items():
            before = await self.known(app_id)
            wanted.append((await self.wanted(app_id, before, body, partial), before))
        for _, before in wanted:
            refuse_locked(before, force)
        return wanted

    def refuse_cycles(
        self, changed: Iterable[Definition], groups: Iterable[Group] = (), gone: Collection[str] = ()
    ) -> None:
        """Apps and groups as they will be, and ids of apps that will not, among those that there are."""
        changed, known = list(changed), self._services.groups() | {group.path: group for group in groups}
        if not any(each.dependencies for each in changed) and not any(each.dependencies for each in known.values()):
            return  # what depends on nothing is in no cycle
        apps = {app.id: app.definition.dependencies for app in self._services.apps() if app.id not in gone}
        apps |= {each.id: each.dependencies for each in changed}
        if loop := dependencies.cycle(apps, {path: group.dependencies for path, group in known.items()}):
            raise ApiError(422, "Object is not valid", {"/dependencies": [f"are cyclic: {' -> '.join(loop)}"]})

    async def version(self, app_id: str, version: str) -> App:
        known = await self.versions(app_id)
        if version not in known:
            raise ApiError(404, f"App '{app_id}' has no version '{version}'")
        return known[version]

    async def versions(self, app_id: str) -> dict[str, App]:
        """The newest first."""
        try:
            return await catalog.versions(self._store, app_id, Definition)
        except UnknownApp as error:
            raise refusal(error, app_id) from error


def deployed(app: App, response: Response) -> Json:
    response.headers["Marathon-Deployment-Id"] = app.deployment
    return {"version": app.version, "deploymentId": app.deployment}


def client_of(request: Request) -> str:
    return request.client.host if request.client else ""


def refuse_locked(app: App | None, force: bool) -> None:
    """Before anything is changed."""
    if app is not None and not app.outcome and not force:
        raise refusal(Locked(app.id, app.deployment), app.id)


def refusal(error: UnknownApp | Locked, app_id: str, kind: str = "App") -> ApiError:
    if isinstance(error, UnknownApp):
        return ApiError(404, f"{kind} '{app_id}' does not exist")
    # Word for word what Marathon says: programs look for it.
    locked = (
        f"{kind} is locked by one or more deployments. Override with the option '?force=true'. View details at"
        f" '/v2/deployments/{error.deployment}'."
    )
    return ApiError(409, locked, also={"deployments": [{"id": error.deployment}]})


def _refuse_too_many(before: Definition | None, said: Json) -> None:
    """When all that is said is a number, that is what is wrong."""
    instances = said.get("instances")
    if before is None or not said.keys() <= {"id", "instances"} or not isinstance(instances, int):
        return
    if problems := dict(networking.problems(before.networks, instances)):
        raise ApiError(422, "Object is not valid", {"/instances": list(problems.values())})
