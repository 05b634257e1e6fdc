"""Label selectors of `GET /v2/apps?label=`: `team==web,tier!=test,env in (prod, stage),canary`. Pure.

Source: Marathon, REST API, label selector queries.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from master.rest.errors import ApiError

Selects = Callable[[Mapping[str, str]], bool]
TERM = re.compile(
    r"\s*(?P<key>[^\s,=!()]+)\s*"
    r"(?:(?P<equal>==?|!=)\s*(?P<value>[^\s,()]*)|(?P<among>in|notin)\s*\((?P<values>[^()]*)\))?\s*"
)


def selector(text: str) -> Selects:
    """All of its terms have to hold; an empty one takes everything. Raises ApiError."""
    terms, at = [], 0
    while at < len(text):
        match = TERM.match(text, at)
        if match is None or (match.end() < len(text) and text[match.end()] != ","):
            raise ApiError(400, "Invalid label selector", {"label": [f"can not be read from {text[at:]!r} on"]})
        terms.append(_term(match))
        at = match.end() + 1
    return lambda labels: all(term(labels) for term in terms)


def _term(match: re.Match[str]) -> Selects:
    key, among = match["key"], match["among"]
    if among:
        values = {value.strip() for value in match["values"].split(",")}
        return lambda labels: (key in labels and labels[key] in values) is (among == "in")
    if match["equal"] is None:
        return lambda labels: key in labels
    value, wanted = match["value"], match["equal"] != "!="
    return lambda labels: (labels.get(key) == value) is wanted
