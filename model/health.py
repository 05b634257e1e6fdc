"""Whether a task is well, and whether it is ready: what is checked (`HealthCheck`, `ReadinessCheck`), what is known of
it (`Health`, `Readiness`), and how each result changes that.

The rules are Marathon's: failures are ignored during the grace period until the check has passed once, and after so
many in a row the task is to be killed. Times are seconds since the epoch on the node's clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum


class ProbeKind(StrEnum):
    HTTP = "http"
    HTTPS = "https"
    TCP = "tcp"
    COMMAND = "command"


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """`port` is asked at the task's loopback address, or, with `own_address`, at the one that others reach it by.
    `max_failures` in a row mean that the task should be killed; 0: never. `delay_s` is the time before the first."""

    kind: ProbeKind
    port: int = 0
    path: str = "/"
    argv: tuple[str, ...] = ()
    own_address: bool = False
    ipv6: bool = False
    ignore_1xx: bool = False
    grace_s: float = 300.0
    interval_s: float = 60.0
    timeout_s: float = 20.0
    delay_s: float = 15.0
    max_failures: int = 3


@dataclass(frozen=True, slots=True)
class ReadinessCheck:
    """Asked until the answer is one of `ready_codes`, and never again."""

    name: str
    kind: ProbeKind
    port: int
    path: str = "/"
    interval_s: float = 30.0
    timeout_s: float = 10.0
    ready_codes: tuple[int, ...] = (200,)
    keep_response: bool = False


@dataclass(frozen=True, slots=True)
class Health:
    """One check's results so far. `failures` are those in a row that counted. `cause` is that of the last failure, also
    of one that was ignored."""

    first_success: float | None = None
    last_success: float | None = None
    last_failure: float | None = None
    failures: int = 0
    cause: str = ""

    @property
    def alive(self) -> bool | None:
        """None: nothing is known yet."""
        if self.first_success is None and self.last_failure is None:
            return None
        return self.failures == 0


@dataclass(frozen=True, slots=True)
class Readiness:
    """The last answer to one check: of `status` None there was none, for the `cause`. `body` is kept when asked for."""

    ready: bool = False
    status: int | None = None
    content_type: str = ""
    body: str = ""
    cause: str = ""


def passed(health: Health, at: float) -> Health:
    first = at if health.first_success is None else health.first_success
    return replace(health, first_success=first, last_success=at, failures=0)


def failed(check: HealthCheck, health: Health, cause: str, at: float, age_s: float) -> Health:
    """`age_s` is how long the task has run."""
    if health.first_success is None and age_s < check.grace_s:
        return replace(health, cause=cause)
    return replace(health, last_failure=at, failures=health.failures + 1, cause=cause)


def well(healths: Sequence[Health]) -> bool | None:
    """The task's health: ill when any check says so, well when all do; otherwise, and without checks, not known."""
    known = [health.alive for health in healths]
    if False in known:
        return False
    return True if known and None not in known else None


def given_up(checks: Sequence[HealthCheck], healths: Sequence[Health]) -> str:
    """Why the task should be killed; empty when it should not."""
    for check, health in zip(checks, healths, strict=False):
        if 0 < check.max_failures <= health.failures:
            return f"{describe(check)}: {health.failures} failures in a row, the last: {health.cause}"
    return ""


def describe(check: HealthCheck | ReadinessCheck) -> str:
    """`http :8080/health`."""
    if check.kind is ProbeKind.TCP:
        return f"tcp :{check.port}"
    if check.kind is ProbeKind.COMMAND:
        return "command"
    return f"{check.kind} :{check.port}{check.path}"
