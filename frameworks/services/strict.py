"""What the parts of a definition have in common: JSON is taken by the letter, or refused with a sentence."""

from __future__ import annotations

from pydantic import ConfigDict
from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

TIME = "%Y-%m-%dT%H:%M:%S.%fZ"
Location = tuple[str | int, ...]

# Strict: "2" is no number. JSON has types, and a definition that is wrong should not run as if it were right.
STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, ser_json_inf_nan="null")


def invalid(message: str) -> PydanticCustomError:
    # The message is no template: braces of the user's must not be taken for one.
    return PydanticCustomError("invalid", "{message}", {"message": message})


def invalid_at(problems: dict[Location, str]) -> ValidationError:
    """For what only the whole can tell of its parts: each problem at the place where it is."""
    details = [
        InitErrorDetails(type=invalid(message), loc=location, input=None) for location, message in problems.items()
    ]
    return ValidationError.from_exception_data("definition", details)
