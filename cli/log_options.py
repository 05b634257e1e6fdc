"""The options of the commands that show logs, and what they mean to the API."""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import Annotated, Any

import typer

from cli.problem import Problem

Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on until the task ends.")]
Tail = Annotated[int, typer.Option(min=-1, help="How many of the last lines; -1: all.", metavar="LINES")]
Since = Annotated[str, typer.Option(help="What was written after that: 10m, 1h30m, or 2026-01-31T12:00:00Z.")]
Stderr = Annotated[bool, typer.Option("--stderr", help="Its stderr instead of its stdout.")]

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
DURATION = re.compile(r"(?:\d+[smhd])+")


def log_query(follow: bool, tail: int, since: str, stderr: bool) -> dict[str, Any]:
    """Raises Problem."""
    stream = "stderr" if stderr else "stdout"
    return {"stream": stream, "follow": follow, "tail": tail, "since": moment(since, time.time()) if since else 0.0}


def moment(text: str, now: float) -> float:
    """Seconds since the epoch. A time without an offset is local, as `date` shows it. Raises Problem."""
    if DURATION.fullmatch(text):
        return max(0.0, now - sum(int(count) * UNITS[unit] for count, unit in re.findall(r"(\d+)(.)", text)))
    try:
        return max(0.0, datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError, OSError) as error:
        raise Problem(f"--since {text}: neither a duration, such as 1h30m, nor a time in ISO 8601") from error
