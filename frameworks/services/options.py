"""What an app's labels tell this framework, where Marathon's definition has no word for it. Pure.

    tepui/system: true      one instance on every node that its constraints allow, new nodes included
    tepui/deadline: 600     seconds in which a deployment has to succeed, or it is taken back
    tepui/placement: pack   on as few nodes as can be; `spread`, over as many, is what it is without

Labels, because clients exist that fail on a field that they do not know.
"""

from __future__ import annotations

from collections.abc import Mapping

PREFIX = "tepui/"  # all others that begin so are this framework's own, on tasks
SYSTEM, DEADLINE, PLACEMENT = "tepui/system", "tepui/deadline", "tepui/placement"
WORDS = {SYSTEM: ("true", "false"), PLACEMENT: ("spread", "pack")}
LONGEST_S = 7 * 86400


def problem(key: str, value: str) -> str:
    """What is wrong with the label; empty when nothing is."""
    if key in WORDS and value not in WORDS[key]:
        return f"label {key}: {value!r} must be {' or '.join(WORDS[key])}"
    if key == DEADLINE and not (value.isascii() and value.isdigit() and 1 <= int(value[:9]) <= LONGEST_S):
        return f"label {key}: {value!r} must be a number of seconds from 1 to {LONGEST_S}"
    if key.startswith(PREFIX) and key not in (*WORDS, DEADLINE):
        return f"label {key}: the prefix {PREFIX} is reserved, but for {SYSTEM}, {DEADLINE} and {PLACEMENT}"
    return ""


def is_system(labels: Mapping[str, str]) -> bool:
    return labels.get(SYSTEM) == "true"


def is_packed(labels: Mapping[str, str]) -> bool:
    return labels.get(PLACEMENT) == "pack"


def deadline_s(labels: Mapping[str, str]) -> float | None:
    return float(labels[DEADLINE]) if DEADLINE in labels else None
