"""On which nodes an app's instances may be, by what nodes are called and by their attributes. Pure.

Source: Marathon, `constraints`. A constraint is a field, an operator and, for most, a value. The field `hostname` (or
`@hostname`) is the node's name; any other is one of its attributes, `@region` and `@zone` those of the names without @.

    UNIQUE          no two instances at one value
    CLUSTER [V]     all of them at one value, V if it is given
    GROUP_BY [N]    as evenly as can be over the values, of which there are at least N
    MAX_PER N       at most N at one value
    LIKE R, UNLIKE R   the whole value is, or is not, as the regular expression says
    IS V            just this value

Instances count that are of the version which the app has now: while it changes, those of the last one are in nobody's
way. A node that lacks the attribute is no place, but for UNLIKE.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field

from frameworks.services.fields import invalid
from model.node import Node

NUMBERED, PATTERNED, EXACT = ("GROUP_BY", "MAX_PER"), ("LIKE", "UNLIKE"), ("IS",)
OPTIONAL = ("CLUSTER", "GROUP_BY")
OPERATORS = ("UNIQUE", "CLUSTER", *NUMBERED, *PATTERNED, *EXACT)
MOST = 100
LONGEST_PATTERN = 500


@dataclass(frozen=True, slots=True)
class Constraint:
    field: str
    operator: str
    value: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.field, self.operator, self.value)))

    @property
    def evens(self) -> bool:
        """Whether it may allow tomorrow, when there are others, what it does not allow today."""
        return self.operator == "GROUP_BY"

    def place_of(self, node: Node) -> str | None:
        """What the node has in the field; None: nothing."""
        name = self.field.removeprefix("@")
        return node.id if name == "hostname" else dict(node.attributes).get(name)

    def allows(self, place: str | None, others: Counter[str]) -> bool:
        """Whether another instance may be there. `others` are those that there are, by their places."""
        if place is None:
            return self.operator == "UNLIKE"
        match self.operator:
            case "UNIQUE":
                return not others[place]
            case "CLUSTER":
                return place == self.value if self.value else not others or place in others
            case "GROUP_BY":
                known = {**others, place: others[place]}
                fewest = 0 if len(known) < int(self.value or 1) else min(known.values())
                return others[place] <= fewest
            case "MAX_PER":
                return others[place] < int(self.value)
            case "LIKE" | "UNLIKE":
                return bool(re.fullmatch(self.value, place)) is (self.operator == "LIKE")
        return place == self.value


def constraints(given: Iterable[Sequence[str]]) -> tuple[Constraint, ...]:
    return tuple(Constraint(field, operator.upper(), *value) for field, operator, *value in given)


def problem_of(given: Sequence[str]) -> str:
    """What is wrong with a field, an operator and perhaps a value; empty when nothing is."""
    return next(_problems(given), "")


def _constraint(given: list[str]) -> list[str]:
    if problem := problem_of(given):
        raise invalid(problem)
    return given


def _problems(given: Sequence[str]) -> Iterator[str]:
    field, operator = given[0], given[1].upper()
    value = given[2] if len(given) > 2 else ""
    if not field.removeprefix("@"):
        yield "names no field"
    if operator not in OPERATORS:
        yield f"{given[1]!r} must be one of {', '.join(OPERATORS)}"
    if operator == "UNIQUE" and value:
        yield "UNIQUE takes no value"
    if not value and operator not in (*OPTIONAL, "UNIQUE"):
        yield f"{operator} needs a value"
    if value and operator in NUMBERED and not (value.isascii() and value.isdigit() and 1 <= int(value[:9]) <= 100_000):
        yield f"{operator}: {value!r} must be a number from 1 to 100000"
    if operator in PATTERNED:
        if len(value) > LONGEST_PATTERN:
            yield f"{operator}: more than {LONGEST_PATTERN} characters"
        try:
            re.compile(value)
        except (re.error, RecursionError, OverflowError) as error:
            yield f"{operator}: {value!r} is no regular expression: {error}"


ConstraintField = Annotated[list[str], Field(min_length=2, max_length=3), AfterValidator(_constraint)]
Constraints = Annotated[list[ConstraintField], Field(max_length=MOST)]
