"""A definition's health and readiness checks (`marathon.raml: AppHealthCheck, ReadinessCheck`), and Marathon's view of
their results. Defaults are Marathon's.

`HTTP`, `HTTPS` and `TCP` were once asked by Marathon itself, at the address that others use; `MESOS_*` by the node, at
the container's loopback. Here the node asks all of them; what they are asked is as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field

from frameworks.services.fields import STRICT, TIME, Location, invalid
from master.offers import TaskView
from model import health
from model.health import ProbeKind
from model.task import Port

KINDS = {
    "HTTP": ProbeKind.HTTP,
    "HTTPS": ProbeKind.HTTPS,
    "TCP": ProbeKind.TCP,
    "MESOS_HTTP": ProbeKind.HTTP,
    "MESOS_HTTPS": ProbeKind.HTTPS,
    "MESOS_TCP": ProbeKind.TCP,
    "COMMAND": ProbeKind.COMMAND,
}
FIRST_CHECK_S = 5.0  # Marathon: DefaultFirstHealthCheckAfter
CHECKS_MOST = 16


def _path(value: str) -> str:
    if not value.isascii() or not value.isprintable() or " " in value:
        raise invalid(f"{value!r} must be printable ASCII without spaces: write others as %XX")
    return value


def no_nul(value: str) -> str:
    if "\x00" in value:
        raise invalid("must not contain a NUL character")
    return value


Seconds = Annotated[int, Field(ge=0, le=7 * 86400)]
Path = Annotated[str, Field(max_length=2048), AfterValidator(_path)]
PortNumber = Annotated[int, Field(ge=1, le=65535)]
PortName = Annotated[str, Field(min_length=1, max_length=63)]
PortIndex = Annotated[int, Field(ge=0, le=65535)] | PortName
StatusCode = Annotated[int, Field(ge=100, le=999)]


class Command(BaseModel):
    model_config = STRICT

    value: Annotated[str, Field(min_length=1, max_length=65536), AfterValidator(no_nul)]


class HealthCheck(BaseModel):
    model_config = STRICT

    protocol: Literal["HTTP", "HTTPS", "TCP", "MESOS_HTTP", "MESOS_HTTPS", "MESOS_TCP", "COMMAND"] = "HTTP"
    command: Command | None = None
    path: Path | None = None
    port: PortNumber | None = None
    portIndex: PortIndex | None = None
    ipProtocol: Literal["IPv4", "IPv6"] = "IPv4"
    ignoreHttp1xx: bool = False
    gracePeriodSeconds: Seconds = 300
    intervalSeconds: Seconds = 60
    timeoutSeconds: Annotated[Seconds, Field(gt=0)] = 20
    maxConsecutiveFailures: Annotated[int, Field(ge=0, le=2**31 - 1)] = 3
    delaySeconds: Seconds = 15

    @property
    def by_node(self) -> bool:
        return self.protocol.startswith("MESOS_") or self.protocol == "COMMAND"

    def of_task(self, ports: Sequence[Port]) -> health.HealthCheck:
        return health.HealthCheck(
            kind=KINDS[self.protocol],
            port=0 if self.command else self.port or _port(ports, self.portIndex or 0).number,
            path=absolute(self.path or ""),
            argv=("/bin/sh", "-c", self.command.value) if self.command else (),
            own_address=not self.by_node,
            ipv6=self.ipProtocol == "IPv6",
            ignore_1xx=self.ignoreHttp1xx,
            grace_s=self.gracePeriodSeconds,
            interval_s=self.intervalSeconds,
            timeout_s=self.timeoutSeconds,
            delay_s=self.delaySeconds if self.by_node else min(FIRST_CHECK_S, self.intervalSeconds),
            max_failures=self.maxConsecutiveFailures,
        )


class ReadinessCheck(BaseModel):
    model_config = STRICT

    name: Annotated[str, Field(min_length=1, max_length=63)] = "readinessCheck"
    protocol: Literal["HTTP", "HTTPS"] = "HTTP"
    path: Annotated[Path, Field(min_length=1)] = "/"
    portName: PortName = "http-api"
    intervalSeconds: Seconds = 30
    timeoutSeconds: Annotated[Seconds, Field(gt=0)] = 10
    httpStatusCodesForReady: Annotated[list[StatusCode], Field(min_length=1, max_length=100)] = [200]
    preserveLastResponse: bool = False

    def of_task(self, ports: Sequence[Port]) -> health.ReadinessCheck:
        return health.ReadinessCheck(
            name=self.name,
            kind=KINDS[self.protocol],
            port=_port(ports, self.portName).number,
            path=absolute(self.path),
            interval_s=self.intervalSeconds,
            timeout_s=self.timeoutSeconds,
            ready_codes=tuple(sorted(set(self.httpStatusCodesForReady))),
            keep_response=self.preserveLastResponse,
        )


HealthChecks = Annotated[list[HealthCheck], Field(max_length=CHECKS_MOST)]
# Marathon takes one at most; its answers are by task and name, so that more would be told apart.
ReadinessChecks = Annotated[list[ReadinessCheck], Field(max_length=1)]


def problems(
    checks: Sequence[HealthCheck], readiness: Sequence[ReadinessCheck], ports: Sequence[Port]
) -> Iterator[tuple[Location, str]]:
    """What is wrong with them in a definition that has these ports."""
    for number, check in enumerate(checks):
        if (check.protocol == "COMMAND") != (check.command is not None):
            yield ("healthChecks", number, "command"), "must be given with protocol COMMAND, and with no other"
        elif check.command is not None:
            continue
        elif check.port is not None and check.portIndex is not None:
            yield ("healthChecks", number, "portIndex"), "must not be given together with port"
        elif check.port is None and (problem := _lacking(ports, check.portIndex or 0)):
            yield ("healthChecks", number, "portIndex"), problem
    for number, ready in enumerate(readiness):
        if problem := _lacking(ports, ready.portName):
            yield ("readinessChecks", number, "portName"), problem
        if ready.timeoutSeconds >= ready.intervalSeconds:
            yield ("readinessChecks", number, "timeoutSeconds"), "must be less than intervalSeconds"


def _lacking(ports: Sequence[Port], wanted: int | str) -> str:
    """Why there is no such port; empty when there is."""
    if isinstance(wanted, str):
        return "" if any(port.name == wanted for port in ports) else f"no port has the name {wanted!r}"
    return "" if wanted < len(ports) else f"{wanted}: there are {len(ports)} ports, counted from 0"


def _port(ports: Sequence[Port], wanted: int | str) -> Port:
    if isinstance(wanted, int):
        return ports[wanted]
    return next(port for port in ports if port.name == wanted)


def absolute(path: str) -> str:
    return "/" + path.removeprefix("/")


def health_results(view: TaskView) -> list[dict[str, Any]]:
    """`marathon.raml: HealthCheckResult`, one for each check with a result. It has no field for a check's name."""
    return [
        {
            "alive": known.alive,
            "consecutiveFailures": known.failures,
            "firstSuccess": _time(known.first_success),
            "lastSuccess": _time(known.last_success),
            "lastFailure": _time(known.last_failure),
            "lastFailureCause": known.cause or None,
            "taskId": view.spec.id,
            "instanceId": view.spec.id,
        }
        for known in view.status.health
        if known.alive is not None
    ]


def readiness_results(view: TaskView) -> list[dict[str, Any]]:
    """`marathon.raml: TaskReadinessCheckResult`, one for each check that was answered."""
    results = []
    for check, known in zip(view.spec.readiness_checks, view.status.readiness, strict=False):
        result: dict[str, Any] = {"name": check.name, "taskId": view.spec.id, "ready": known.ready}
        if check.keep_response and known.status is not None:
            result["lastResponse"] = {
                "status": known.status,
                "contentType": known.content_type,
                "body": known.body,
            }
        results.append(result)
    return results


def _time(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).strftime(TIME)
