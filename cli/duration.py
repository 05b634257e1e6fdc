"""Times and lengths of time."""

from __future__ import annotations

from datetime import datetime


def duration(seconds: float) -> str:
    """`42 s`, `3 min`, `5 h`, `12 d`."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def epoch(moment: str | float) -> float:
    """Seconds since the epoch, of a time as one part of the API or another writes it."""
    return datetime.fromisoformat(moment).timestamp() if isinstance(moment, str) else moment
