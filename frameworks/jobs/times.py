"""Times as Metronome writes them: `2026-01-31T12:00:00.000+0000`."""

from __future__ import annotations

from datetime import UTC, datetime


def format_time(at: float) -> str:
    """`at` is seconds since the epoch."""
    moment = datetime.fromtimestamp(round(at, 3), UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}+0000"


def time_or_none(at: float | None) -> str | None:
    return format_time(at) if at is not None else None
