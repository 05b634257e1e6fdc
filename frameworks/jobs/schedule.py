"""A schedule's definition (`jobs.raml: ScheduleSpec`), and the record of how far it has been followed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, available_timezones

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from frameworks.jobs import cron
from frameworks.jobs.definition import JOB_ID, YEAR_S
from frameworks.services.definition import without_nulls
from frameworks.services.fields import STRICT, invalid
from model.codec import Codec

ID_LENGTH = 64
NO_ID = "unnamed"  # where the path of the request says which one is meant


def _id(value: str) -> str:
    if len(value) > ID_LENGTH or not JOB_ID.fullmatch(value):
        raise invalid(f"{value!r} must be at most {ID_LENGTH} lower-case letters, digits, and hyphens or dots between")
    return value


def _cron(value: str) -> str:
    if said := cron.problem(value):
        raise invalid(said)
    return value


def _zone(value: str) -> str:
    if value not in _zones():
        raise invalid(f"{value!r} is no time zone, like Europe/Berlin")
    return value


@cache
def _zones() -> set[str]:
    return available_timezones()


# What was read can be sent back.
ReadOnly = Annotated[None, BeforeValidator(lambda value: None), Field(exclude=True)]


class ScheduleDefinition(BaseModel):
    """Defaults are Metronome's."""

    model_config = STRICT

    id: Annotated[str, AfterValidator(_id)]
    cron: Annotated[str, AfterValidator(_cron)]
    timezone: Annotated[str, AfterValidator(_zone)] = "UTC"
    startingDeadlineSeconds: Annotated[int, Field(ge=1, le=YEAR_S)] = 900
    concurrencyPolicy: Literal["ALLOW", "FORBID", "REPLACE"] = "ALLOW"
    enabled: bool = True
    nextRunAt: ReadOnly = None

    @model_validator(mode="before")
    @classmethod
    def _as_clients_write_it(cls, value: Any) -> Any:
        given = without_nulls(value)
        if not isinstance(given, dict) or "timeZone" not in given:
            return given
        zone, other = given["timeZone"], {key: item for key, item in given.items() if key != "timeZone"}
        if other.setdefault("timezone", zone) != zone:
            raise invalid("timezone and timeZone are not the same")
        return other

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A due time that was passed over."""

    due: float
    reason: str


@dataclass(frozen=True, slots=True)
class Scheduled:
    """Due times up to `mark`, in seconds since the epoch, were dealt with: `due` is the last of them. It is written
    together with the run that it makes, so that no due time has two, whenever the master is killed."""

    job: str
    definition: ScheduleDefinition
    mark: float
    due: float | None = None
    skipped: Skipped | None = None

    @property
    def key(self) -> str:
        return f"{self.job}/{self.definition.id}"

    def next(self, after: float) -> float | None:
        """The next due time after that and after all that were dealt with."""
        start = datetime.fromtimestamp(max(after, self.mark), UTC)
        found = cron.next_due(self.definition.cron, self.definition.zone, start)
        return found.timestamp() if found is not None else None

    def latest(self, now: float) -> float | None:
        """The last due time by now that was not dealt with."""
        start, until = datetime.fromtimestamp(self.mark, UTC), datetime.fromtimestamp(now, UTC)
        found = cron.latest_due(self.definition.cron, self.definition.zone, start, until)
        return found.timestamp() if found is not None else None


CODEC = Codec(Scheduled)


def changed(before: Scheduled | None, job: str, definition: ScheduleDefinition, now: float) -> Scheduled:
    """With another definition. When it says other times, or is enabled, these begin now."""
    if before is None:
        return Scheduled(job, definition, now)
    known = before.definition
    times = (known.cron, known.timezone, known.enabled) == (definition.cron, definition.timezone, definition.enabled)
    return Scheduled(job, definition, before.mark if times else max(now, before.mark), before.due, before.skipped)
