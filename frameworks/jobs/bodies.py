"""Bodies of requests about jobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, BaseModel, Field, ValidationError

from frameworks.jobs.catalog import SCHEDULES_MOST
from frameworks.jobs.definition import Definition
from frameworks.jobs.schedule import ReadOnly, ScheduleDefinition
from frameworks.services.fields import invalid

Model = TypeVar("Model", bound=BaseModel)


def _distinct(schedules: list[ScheduleDefinition]) -> list[ScheduleDefinition]:
    if len({each.id for each in schedules}) < len(schedules):
        raise invalid("two schedules have the same id")
    return schedules


Schedules = Annotated[list[ScheduleDefinition], Field(max_length=SCHEDULES_MOST), AfterValidator(_distinct)]


class JobBody(Definition):
    """A job with its schedules. What was read of it can be sent back."""

    schedules: Schedules = Field(default_factory=list)
    activeRuns: ReadOnly = None
    history: ReadOnly = None
    historySummary: ReadOnly = None

    @property
    def definition(self) -> Definition:
        return Definition(**{name: getattr(self, name) for name in Definition.model_fields})


def parsed(model: type[Model], body: Mapping[str, Any]) -> Model:
    """Raises RequestValidationError."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise refused(error) from error


def refused(error: ValidationError) -> RequestValidationError:
    """As if it were the body of the request."""
    return RequestValidationError([{**each, "loc": ("body", *each["loc"])} for each in error.errors()])
