"""Health: protocol messages to model and back, on the terms of `wire/convert.py`."""

from __future__ import annotations

import math
from dataclasses import asdict

from model.health import Health, HealthCheck, ProbeKind, Readiness, ReadinessCheck
from wire import control_pb2 as pb


def check_to_wire(check: HealthCheck) -> pb.HealthCheck:
    return pb.HealthCheck(**asdict(check))


def check_from_wire(message: pb.HealthCheck) -> HealthCheck:
    return HealthCheck(
        kind=ProbeKind(message.kind),
        port=message.port,
        path=message.path,
        argv=tuple(message.argv),
        own_address=message.own_address,
        ipv6=message.ipv6,
        ignore_1xx=message.ignore_1xx,
        grace_s=finite(message.grace_s),
        interval_s=finite(message.interval_s),
        timeout_s=finite(message.timeout_s),
        delay_s=finite(message.delay_s),
        max_failures=message.max_failures,
    )


def readiness_check_to_wire(check: ReadinessCheck) -> pb.ReadinessCheck:
    return pb.ReadinessCheck(**asdict(check))


def readiness_check_from_wire(message: pb.ReadinessCheck) -> ReadinessCheck:
    return ReadinessCheck(
        name=message.name,
        kind=ProbeKind(message.kind),
        port=message.port,
        path=message.path,
        interval_s=finite(message.interval_s),
        timeout_s=finite(message.timeout_s),
        ready_codes=tuple(message.ready_codes),
        keep_response=message.keep_response,
    )


def health_to_wire(health: Health) -> pb.Health:
    return pb.Health(**asdict(health))


def health_from_wire(message: pb.Health) -> Health:
    return Health(
        first_success=finite(message.first_success) if message.HasField("first_success") else None,
        last_success=finite(message.last_success) if message.HasField("last_success") else None,
        last_failure=finite(message.last_failure) if message.HasField("last_failure") else None,
        failures=message.failures,
        cause=message.cause,
    )


def readiness_to_wire(readiness: Readiness) -> pb.Readiness:
    return pb.Readiness(**asdict(readiness))


def readiness_from_wire(message: pb.Readiness) -> Readiness:
    return Readiness(
        ready=message.ready,
        status=message.status if message.HasField("status") else None,
        content_type=message.content_type,
        body=message.body,
        cause=message.cause,
    )


def finite(number: float) -> float:
    """JSON, in which all of this ends on disk, has no infinity."""
    if not math.isfinite(number):
        raise ValueError(f"{number} where a finite number is due")
    return number
