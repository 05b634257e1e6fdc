"""Errors in Marathon's shape: `{"message": "...", "details": [{"path": "/cpus", "errors": ["..."]}]}`.

Routers raise `ApiError`. What the framework finds wrong with a request becomes the same shape here, and a fault of
ours becomes a 500 that says nothing about its inside: that is in the log.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from master.store.base import StoreError

log = structlog.get_logger()


class ApiError(Exception):
    """The request is refused with this HTTP status. `also` is what else the answer has."""

    def __init__(
        self,
        status: int,
        message: str,
        details: Mapping[str, Sequence[str]] | None = None,
        also: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.details = details or {}
        self.also = also or {}


def install(app: FastAPI) -> None:
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(HTTPException, _refused_by_framework)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(RecursionError, _nested_too_deeply)
    app.add_exception_handler(StoreError, _store_failed)
    app.add_exception_handler(Exception, _fault)


def answer(
    status: int,
    message: str,
    details: Mapping[str, Sequence[str]] | None = None,
    headers: Mapping[str, str] | None = None,
    also: Mapping[str, Any] | None = None,
) -> JSONResponse:
    body: dict[str, Any] = {"message": message, **(also or {})}
    if details:
        body["details"] = [{"path": path, "errors": list(errors)} for path, errors in details.items()]
    return JSONResponse(body, status, headers=headers)


def json_path(location: Iterable[str | int]) -> str:
    """`/container/portMappings(0)/containerPort`, as Marathon writes paths."""
    path = ""
    for step in location:
        path += f"({step})" if isinstance(step, int) else f"/{step}"
    return path or "/"


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return answer(error.status, str(error), error.details, also=error.also)


async def _refused_by_framework(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = f"{request.url.path} does not exist" if error.status_code == 404 else str(error.detail)
    return answer(error.status_code, message, headers=error.headers)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    details: dict[str, list[str]] = {}
    for problem in error.errors():
        if problem["type"] == "json_invalid":
            where = f"at character {problem['loc'][-1]}: {problem['ctx']['error']}"
            return answer(400, "Invalid JSON", {"/": [where]})
        # The first step of a location says which part of the request it is in.
        details.setdefault(json_path(problem["loc"][1:]), []).append(_sentence(problem))
    return answer(422, "Object is not valid", details)


def _sentence(problem: Mapping[str, Any]) -> str:
    match problem["type"]:
        case "extra_forbidden":
            return "is not a known field"
        case "missing":
            return "is missing"
    return str(problem["msg"])


async def _nested_too_deeply(request: Request, error: Exception) -> JSONResponse:
    return answer(400, "Invalid JSON", {"/": ["nested too deeply"]})


async def _store_failed(request: Request, error: Exception) -> JSONResponse:
    log.error("answer request", method=request.method, path=request.url.path, error=str(error))
    return answer(503, "the master can not write to its store: see its log")


async def _fault(request: Request, error: Exception) -> JSONResponse:
    log.error("answer request", method=request.method, path=request.url.path, exc_info=error)
    return answer(500, "internal error: see the master's log")
