"""Which of several forms of an answer a client would have (RFC 9110, section 12.5.1). Pure."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite


def preferred(accept: str, *offered: str) -> str:
    """The one of the media types `offered` that the header names with the greatest weight, the first of equals. The
    first that is offered, if it names none: a client that says `*/*`, or nothing, takes what is usual."""
    weights = dict(reversed(list(_weights(accept.lower()))))
    named = [kind for kind in offered if weights.get(kind, 0) > 0]
    return max(named, key=lambda kind: weights[kind]) if named else offered[0]


def _weights(accept: str) -> Iterator[tuple[str, float]]:
    for part in accept.split(","):
        kind, *parameters = (each.strip() for each in part.split(";"))
        weight = next((each[2:] for each in parameters if each.startswith("q=")), "1")
        yield kind, _number(weight)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        return 0.0
    return number if isfinite(number) else 0.0
