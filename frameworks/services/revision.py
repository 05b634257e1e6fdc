"""What a request that changes an app makes of its definition. Pure.

Marathon's `PUT /v2/apps/ID` is a change by default: a field that is not there stays as it is. With
`partialUpdate=false` it is a new definition. Clients send back what they have read, so what only answers have is
overlooked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from frameworks.services.definition import Definition
from frameworks.services.fields import without_answers
from frameworks.services.old_forms import superseded
from master.rest.errors import ApiError

Json = dict[str, Any]

COMMAND = ("cmd", "args")


def revised(path: str, before: Definition | None, body: Mapping[str, Any], *, partial: bool) -> Definition:
    """The definition of the app at `path`. Raises ApiError or RequestValidationError, which name the field."""
    said: Json = dict(without_answers(body))
    if said.pop("id", None) not in (None, path, path.removeprefix("/")):
        raise ApiError(422, "Object is not valid", {"/id": [f"must be {path}, as in the request's path"]})
    if before is not None and "portDefinitions" in said and said.get("ports") == before.shown_ports:
        said.pop("ports", None)  # it was shown beside the definitions, which may have been changed since
    kept: Json = {}
    if before is not None and partial:
        kept = before.model_dump(exclude_none=True)
        gone = superseded(said)
        if any(said.get(key) is not None for key in COMMAND):
            gone.update(COMMAND)
        kept = {key: value for key, value in kept.items() if key not in gone}
    return validated({**kept, **said, "id": path})


def validated(body: Json) -> Definition:
    try:
        return Definition.model_validate(body)
    except ValidationError as error:
        found = [{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors()]
        raise RequestValidationError(found) from error
