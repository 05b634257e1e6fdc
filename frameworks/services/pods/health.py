"""A container's health check in a pod's definition (`healthCheck.raml: HealthCheck`). Defaults are Marathon's. All of
them are made by the node, at the loopback that the pod's containers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from frameworks.services.fields import STRICT, invalid
from frameworks.services.health import Path, Seconds, absolute, no_nul
from model import health
from model.health import ProbeKind
from model.task import Port

SCHEMES = {"HTTP": ProbeKind.HTTP, "HTTPS": ProbeKind.HTTPS}


class Strict(BaseModel):
    model_config = STRICT


class HttpCheck(Strict):
    endpoint: str
    path: Path = "/"
    scheme: Literal["HTTP", "HTTPS"] = "HTTP"


class TcpCheck(Strict):
    endpoint: str


class CheckCommand(Strict):
    shell: Annotated[str, Field(min_length=1, max_length=65536)] | None = None
    argv: Annotated[list[str], Field(min_length=1, max_length=1000)] | None = None

    @model_validator(mode="after")
    def _one(self) -> CheckCommand:
        if (self.shell is None) == (self.argv is None):
            raise invalid("exactly one of shell and argv must be given")
        for word in self.words:
            no_nul(word)
        return self

    @property
    def words(self) -> tuple[str, ...]:
        return ("/bin/sh", "-c", self.shell) if self.shell is not None else tuple(self.argv or ())


class CommandCheck(Strict):
    command: CheckCommand


class HealthCheck(Strict):
    http: HttpCheck | None = None
    tcp: TcpCheck | None = None
    exec: CommandCheck | None = None
    gracePeriodSeconds: Seconds = 300
    intervalSeconds: Seconds = 60
    timeoutSeconds: Annotated[Seconds, Field(gt=0)] = 20
    maxConsecutiveFailures: Annotated[int, Field(ge=0, le=2**31 - 1)] = 3
    delaySeconds: Seconds = 15

    @model_validator(mode="after")
    def _one(self) -> HealthCheck:
        if sum(check is not None for check in (self.http, self.tcp, self.exec)) != 1:
            raise invalid("exactly one of http, tcp and exec must be given")
        return self

    @property
    def endpoint(self) -> str | None:
        check = self.http or self.tcp
        return check.endpoint if check is not None else None

    def problem(self, endpoints: Sequence[str]) -> str:
        """What is wrong with it in a container that has these endpoints; empty when nothing is."""
        if self.endpoint is None or self.endpoint in endpoints:
            return ""
        return f"the container has no endpoint {self.endpoint!r}"

    def of_task(self, ports: Sequence[Port]) -> health.HealthCheck:
        return health.HealthCheck(
            kind=self._kind,
            port=next((port.number for port in ports if port.name == self.endpoint), 0),
            path=absolute(self.http.path) if self.http is not None else "/",
            argv=self.exec.command.words if self.exec is not None else (),
            grace_s=self.gracePeriodSeconds,
            interval_s=self.intervalSeconds,
            timeout_s=self.timeoutSeconds,
            delay_s=self.delaySeconds,
            max_failures=self.maxConsecutiveFailures,
        )

    @property
    def _kind(self) -> ProbeKind:
        if self.exec is not None:
            return ProbeKind.COMMAND
        return SCHEMES[self.http.scheme] if self.http is not None else ProbeKind.TCP
