"""Changing apps by what requests say of them: first all is looked at, then all is changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import Response

from frameworks.services import catalog, networking
from frameworks.services.app import App
from frameworks.services.catalog import AppExists, UnknownApp
from frameworks.services.definition import Definition, without_nulls
from frameworks.services.framework import Services
from frameworks.services.revision import revised
from frameworks.services.vips import refuse_bad
from master.rest.errors import ApiError
from master.store.base import Conflict, Store

Json = dict[str, Any]


class Changes:
    """All verbs raise ApiError or RequestValidationError, which name the field. Apps are named by their ids."""

    def __init__(self, store: Store, services: Services) -> None:
        self._store = store
        self._services = services

    async def known(self, app_id: str) -> Definition | None:
        try:
            definition = (await catalog.read(self._store, app_id)).definition
        except UnknownApp:
            return None
        assert isinstance(definition, Definition)
        return definition

    async def wanted(self, app_id: str, before: Definition | None, body: Json, partial: bool) -> Definition:
        """What the app will be. Nothing is changed."""
        said = without_nulls(body)
        if before is not None and said.keys() <= {"id", "version"} and "version" in said:
            definition = (await self.version(app_id, str(said["version"]))).definition
            assert isinstance(definition, Definition)
        else:
            _refuse_too_many(before, said)
            definition = revised(app_id, before, said, partial=partial)
        refuse_bad(self._services.vip_problems(definition))
        return definition

    async def make(self, definition: Definition, *, is_new: bool) -> App:
        try:
            return await (catalog.add if is_new else catalog.replace)(self._store, definition)
        except AppExists as error:
            raise ApiError(409, f"An app or a pod with id [{definition.id}] already exists.") from error
        except (UnknownApp, Conflict) as error:
            raise refusal(error, definition.id) from error

    async def make_all(self, bodies: Mapping[str, Json], partial: bool) -> list[App]:
        """`bodies` by the apps' ids."""
        wanted: list[tuple[Definition, bool]] = []
        for app_id, body in bodies.items():
            before = await self.known(app_id)
            wanted.append((await self.wanted(app_id, before, body, partial), before is None))
        return [await self.make(definition, is_new=is_new) for definition, is_new in wanted]

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


def refusal(error: UnknownApp | Conflict, app_id: str) -> ApiError:
    if isinstance(error, UnknownApp):
        return ApiError(404, f"App '{app_id}' does not exist")
    return ApiError(409, f"App '{app_id}' was changed at the same moment: read it again")


def _refuse_too_many(before: Definition | None, said: Json) -> None:
    """When all that is said is a number, that is what is wrong."""
    instances = said.get("instances")
    if before is None or not said.keys() <= {"id", "instances"} or not isinstance(instances, int):
        return
    if problems := dict(networking.problems(before.networks, instances)):
        raise ApiError(422, "Object is not valid", {"/instances": list(problems.values())})
