"""What the parts of a definition have in common: how strictly they are read, and how they say what is wrong."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, ConfigDict
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


def _refuse(value: object) -> None:
    # False and 0 are equal, so `in` finds both; "" is what an empty form field sends.
    if value not in (None, 0, "", [], {}):
        raise invalid("is not supported by this version: remove it")


Refused = Annotated[None, BeforeValidator(_refuse)]


# Strict: "2" is no number. JSON has types, and a definition that is wrong should not run as if it were right.
STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, ser_json_inf_nan="null")
