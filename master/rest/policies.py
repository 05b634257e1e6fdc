"""Who may connect to whom: `/api/v1/policies`.

`{"app": "/db", "from": [{"app": "/shop"}, {"subnet": "192.0.2.0/24"}], "ports": [{"protocol": "tcp", "port": 5432}]}`.
An app is `<framework>/<owner>`; one that begins with a slash is a service. What is answered can be sent back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, model_validator
from pydantic_core import PydanticCustomError

from master.policies import Policies, TooMany, Unnameable
from master.rest.errors import ApiError
from model.network import Subnet
from model.policy import APP, APP_LENGTH, MOST_PORTS, MOST_SOURCES, POLICY_NAME, Policy, PortRange, Source, app_of
from model.task import Protocol

SPAN = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
SUBNET_LENGTH = 64
STRICT = ConfigDict(extra="forbid", strict=True)
NAME = "must be up to 63 small letters, digits and dashes, with no dash at an end"


def _invalid(message: str) -> PydanticCustomError:
    # The message is no template: braces of the user's must not be taken for one.
    return PydanticCustomError("invalid", "{message}", {"message": message})


def _app(value: str) -> str:
    if len(value) > APP_LENGTH or not APP.fullmatch(f"any{value}" if value.startswith("/") else value):
        raise _invalid("must be an app: /web of the services, or <framework>/<name> as in services/web")
    return value


def _subnet(value: object) -> Subnet:
    if not isinstance(value, str) or "%" in value or len(value) > SUBNET_LENGTH:
        raise _invalid("must be a subnet, as in 192.0.2.0/24 or 2001:db8::/32")
    try:
        return ip_network(value)
    except ValueError as error:
        raise _invalid(f"must be a subnet: {error}") from error


def _span(value: object) -> tuple[int, int]:
    if isinstance(value, int | str) and not isinstance(value, bool) and (match := SPAN.fullmatch(str(value))):
        first, last = int(match[1]), int(match[2] or match[1])
        if 1 <= first <= last <= 65535:
            return first, last
    raise _invalid('must be a port from 1 to 65535, or a range as in "8000-8010"')


Network = Annotated[str, Field(min_length=1, max_length=63)]
App = Annotated[str, AfterValidator(_app)]


class SourceBody(BaseModel):
    model_config = STRICT

    network: Network | None = None
    app: App | None = None
    subnet: Annotated[Subnet, PlainValidator(_subnet)] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> SourceBody:
        if sum(each is not None for each in (self.network, self.app, self.subnet)) != 1:
            raise _invalid("must have exactly one of network, app and subnet")
        return self


class PortBody(BaseModel):
    model_config = STRICT

    protocol: Literal["tcp", "udp"]
    port: Annotated[tuple[int, int], PlainValidator(_span)]


class PolicyBody(BaseModel):
    """No sources: nobody. No ports: any, with any protocol."""

    model_config = STRICT

    name: str | None = None
    network: Network | None = None
    app: App | None = None
    sources: Annotated[list[SourceBody], Field(alias="from", max_length=MOST_SOURCES)]
    ports: Annotated[list[PortBody], Field(max_length=MOST_PORTS)] = []

    @model_validator(mode="after")
    def _exactly_one(self) -> PolicyBody:
        if (self.network is None) == (self.app is None):
            raise _invalid("must have exactly one of network and app: whom to protect")
        return self


def policies_router(policies: Policies, services: str) -> APIRouter:
    """`services` is the framework that an app belongs to when no other is named."""
    router = APIRouter(prefix="/api/v1/policies", tags=["policies"])

    def known(name: str) -> Policy:
        if (policy := policies.get(name)) is None:
            raise ApiError(404, f"Policy '{name}' does not exist")
        return policy

    @router.get("")
    async def list_policies() -> dict[str, Any]:
        return {"policies": [_answer(policy) for policy in policies.all()]}

    @router.get("/{name}")
    async def show_policy(name: str) -> dict[str, Any]:
        return {"policy": _answer(known(name))}

    @router.put("/{name}")
    async def set_policy(name: str, wanted: PolicyBody, response: Response) -> dict[str, Any]:
        """Makes it, or replaces the one of this name."""
        if not POLICY_NAME.fullmatch(name):
            raise _refused({"/name": NAME})
        if wanted.name not in (None, name):
            raise _refused({"/name": f"is not '{name}', as the address says"})
        policy = _policy(name, wanted, services)
        try:
            if await policies.put(policy):
                response.status_code = 201
        except Unnameable as error:
            problems = {
                where: f"network '{of}' {error.problems[of]}" for where, of in _named(policy) if of in error.problems
            }
            raise _refused(problems) from error
        except TooMany as error:
            raise ApiError(409, f"Policy '{name}' can not be set: {error}") from error
        return {"policy": _answer(policy)}

    @router.delete("/{name}")
    async def remove_policy(name: str) -> dict[str, Any]:
        known(name)
        return {"policy": _answer(await policies.remove(name) or known(name))}

    return router


def _refused(problems: dict[str, str]) -> ApiError:
    return ApiError(422, "Object is not valid", {path: [problem] for path, problem in problems.items()})


def _policy(name: str, wanted: PolicyBody, services: str) -> Policy:
    def app(given: str | None) -> str:
        return app_of(services, given) if given and given.startswith("/") else given or ""

    return Policy(
        name,
        wanted.network or "",
        app(wanted.app),
        tuple(Source(each.network or "", app(each.app), each.subnet) for each in wanted.sources),
        tuple(PortRange(Protocol(each.protocol), *each.port) for each in wanted.ports),
    )


def _named(policy: Policy) -> Iterator[tuple[str, str]]:
    """The networks that it names, and where."""
    yield "/network", policy.network
    for index, source in enumerate(policy.sources):
        yield f"/from({index})/network", source.network


def _answer(policy: Policy) -> dict[str, Any]:
    return {
        "name": policy.name,
        **({"network": policy.network} if policy.network else {"app": policy.app}),
        "from": [_source(source) for source in policy.sources],
        "ports": [
            {"protocol": each.protocol.value, "port": each.first if each.first == each.last else _range(each)}
            for each in policy.ports
        ],
    }


def _source(source: Source) -> dict[str, str]:
    if source.subnet is not None:
        return {"subnet": str(source.subnet)}
    return {"network": source.network} if source.network else {"app": source.app}


def _range(ports: PortRange) -> str:
    return f"{ports.first}-{ports.last}"
