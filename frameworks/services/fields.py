"""What the parts of a definition have in common: how strictly they are read, what is overlooked, and how they say
what is wrong."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, PlainSerializer
from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

TIME = "%Y-%m-%dT%H:%M:%S.%fZ"
Location = tuple[str | int, ...]


def invalid(message: str) -> PydanticCustomError:
    # The message is no template: braces of the user's must not be taken for one.
    return PydanticCustomError("invalid", "{message}", {"message": message})


def invalid_at(problems: dict[Location, str]) -> ValidationError:
    """For what only the whole can tell of its parts: each problem at the place where it is."""
    details = [
        InitErrorDetails(type=invalid(message), loc=location, input=None) for location, message in problems.items()
    ]
    return ValidationError.from_exception_data("definition", details)


def refused_because(why: str = "") -> BeforeValidator:
    """For a field that this version has no use for. What asks for nothing is taken as absent: clients send back whole
    definitions that they read elsewhere."""
    says = "is not supported by this version: remove it" + (f" ({why})" if why else "")

    def refuse(value: object) -> None:
        # False and 0 are equal, so `in` finds both; "" is what an empty form field sends.
        if value not in (None, 0, "", [], {}):
            raise invalid(says)

    return BeforeValidator(refuse)


Refused = Annotated[None, refused_because()]

# Strict: "2" is no number. JSON has types, and a definition that is wrong should not run as if it were right.
STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, ser_json_inf_nan="null")

# As Marathon writes them: 1, not 1.0. There are clients whose whole numbers can't be read from the latter.
Whole = PlainSerializer(lambda number: int(number) if number == int(number) else number, return_type=float)

# What answers have beside the definition itself, and clients send back with it.
ANSWERED = frozenset(
    (
        "deployments", "lastTaskFailure", "readinessCheckResults", "taskStats", "tasks", "tasksHealthy", "tasksRunning",
        "tasksStaged", "tasksStats", "tasksUnhealthy", "version", "versionInfo",
    )
)  # fmt: skip


def without_answers(body: Any) -> Any:
    if not isinstance(body, dict) or ANSWERED.isdisjoint(body):
        return body
    return {key: value for key, value in body.items() if key not in ANSWERED}
