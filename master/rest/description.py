"""The OpenAPI description of the API (`docs/openapi.json`), beyond what FastAPI knows of it: what errors look like,
which paths need a token, and names of objects that a reader understands.

Most handlers take and give plain JSON, because Marathon's objects come in parts and with what older clients put into
them. `Shown` says by which model such JSON is described; nothing is validated by it.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic_core import CoreSchema

Json = dict[str, Any]
# Before names that several models have, by where their modules are.
PREFIXES = {"pods": "Pod", "services": "App", "jobs": "Job"}
NAME = "x-model"  # in a schema on its way: what it is called
VERSION = "2.0"  # of the API, as in its paths
ABOUT = (
    "Services and pods as Marathon has them (`/v2`, also below `/service/marathon` and `/marathon`), and the cluster"
    " itself (`/api/v1`). A body is JSON whatever its Content-Type says, a null in it means that the field is not set,"
    " and a boolean in a query may be written True."
)


@dataclass(frozen=True, slots=True)
class Shown:
    """Marks JSON in a signature: it is described as this model."""

    model: type[BaseModel]

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> Json:
        return {**handler(self.model.__pydantic_core_schema__), NAME: self.model.__name__}


class Detail(BaseModel):
    """What is wrong with one field. `path` is like `/container/portMappings(0)/containerPort`."""

    model_config = ConfigDict(extra="forbid")

    path: str
    errors: list[str]


class DeploymentReference(BaseModel):
    id: str


class Problem(BaseModel):
    """Every error. `deployments` are those that lock what was to be changed."""

    model_config = ConfigDict(extra="forbid")

    message: str
    details: list[Detail] = []
    deployments: list[DeploymentReference] = []


PROBLEM = "#/components/schemas/Problem"
PROBLEMS: dict[int | str, Json] = {
    "4XX": {"model": Problem, "description": "The request is refused, and changed nothing"},
    "5XX": {"model": Problem, "description": "The master, or a node that it asked, can not do it"},
}


def describe(app: FastAPI, public: Collection[str]) -> None:
    """Has the app describe itself. The paths in `public` need no token."""

    def openapi() -> Json:
        if not app.openapi_schema:
            app.openapi_schema = described(app, public)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def described(app: FastAPI, public: Collection[str]) -> Json:
    found = get_openapi(
        title=app.title, version=VERSION, description=ABOUT, routes=app.routes, separate_input_output_schemas=False
    )
    found["components"]["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "description": "`Authorization: token=TOKEN` is taken too"}
    }
    found["security"] = [{"token": []}]
    for path in found["paths"].values():
        for operation in path.values():
            for status in PROBLEMS:
                operation["responses"][status]["content"] = {"application/json": {"schema": {"$ref": PROBLEM}}}
    for path in public:
        for operation in found["paths"].get(path, {}).values():
            operation["security"] = []
    renamed = _renamed(found)
    schemas = renamed["components"]["schemas"]
    renamed["paths"] = _referring(renamed["paths"], schemas)
    renamed["components"]["schemas"] = dict(sorted(schemas.items()))
    described: Json = _alone(renamed)
    return described


def _renamed(found: Json) -> Json:
    """With short names: `PodContainer` for `frameworks__services__pods__container__Container`, as pydantic calls a
    model that has the name of another one."""
    names = {name: _short(name) for name in found["components"]["schemas"]}
    taken = list(names.values())
    assert len(set(taken)) == len(taken), f"two models would have one name: {sorted(taken)}"
    text = json.dumps(found)
    for name, short in names.items():
        text = text.replace(f'"#/components/schemas/{name}"', f'"#/components/schemas/{short}"')
    renamed: Json = json.loads(text)
    schemas = renamed["components"]["schemas"]
    renamed["components"]["schemas"] = {names[name]: schema for name, schema in schemas.items()}
    return renamed


def _short(name: str) -> str:
    *modules, last = name.split("__")
    prefix = next((prefix for module, prefix in PREFIXES.items() if module in modules), "")
    return prefix + last


def _referring(value: Any, schemas: Json) -> Any:
    """With references in the place of models that are `Shown`: they become part of `schemas`."""
    if isinstance(value, list):
        return [_referring(item, schemas) for item in value]
    if not isinstance(value, dict):
        return value
    inner = {key: _referring(item, schemas) for key, item in value.items()}
    name = inner.pop(NAME, "")
    if not name or "$ref" in inner:
        return inner
    inner["title"] = name  # not that of the parameter or answer
    assert schemas.setdefault(name, inner) == inner, f"two models have the name {name}"
    return {"$ref": f"#/components/schemas/{name}"}


def _alone(value: Any) -> Any:
    """References without what stands beside them and says nothing more."""
    if isinstance(value, dict):
        if "$ref" in value:
            return {key: item for key, item in value.items() if key in ("$ref", "description", "default")}
        return {key: _alone(item) for key, item in value.items()}
    return [_alone(item) for item in value] if isinstance(value, list) else value
