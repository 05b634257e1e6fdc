"""When a schedule is due: cron expressions in a time zone. Pure.

As in Metronome (`CronSpec.scala`) there are five fields, and day of month and day of week must both hold. cronsim has
Debian's rules for the change of clocks: a time of day that does not exist is the first minute that does, and one that
comes twice is its first; with `*` in the minute or the hour it is elapsed time that counts. What it yields twice, or
out of order around a change, is left out here: due times only grow.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

FIELDS = 5
LONGEST = 1000
# Where the last due time is looked for, the latest first: what is in a window was not in the one before, so that few
# times are looked at however often a schedule is due.
WINDOWS_S = (3600, 86_400, 32 * 86_400, 400 * 86_400)
OLDEST = datetime(1970, 1, 2, tzinfo=UTC)


def problem(expression: str) -> str:
    """What is wrong with it; empty when nothing is."""
    if len(expression) > LONGEST:
        return f"is longer than {LONGEST} characters"
    if len(expression.split()) != FIELDS:
        return f"{expression!r} must have five fields: minute, hour, day of month, month, day of week"
    try:
        next(_simulation(expression, datetime.now(UTC)))
    except (CronSimError, ValueError) as error:
        return f"{expression!r}: {error}" if str(error) else f"{expression!r} can not be read"
    except (StopIteration, OverflowError):
        return f"{expression!r} is never due"
    return ""


def next_due(expression: str, zone: ZoneInfo, after: datetime) -> datetime | None:
    """The first due time after; None when there is none in fifty years."""
    try:
        for due in _simulation(expression, after.astimezone(zone)):
            if (found := due.astimezone(UTC)) > after:
                return found
    except (StopIteration, OverflowError):
        pass
    return None


def latest_due(expression: str, zone: ZoneInfo, after: datetime, until: datetime) -> datetime | None:
    """The last due time after `after`, and not after `until`."""
    for window in WINDOWS_S:
        start = max(after, until - timedelta(seconds=window), OLDEST)
        if found := _last(expression, zone, start, until):
            return found
        if start == after:
            return None
    return _last(expression, zone, after, until)


def _last(expression: str, zone: ZoneInfo, after: datetime, until: datetime) -> datetime | None:
    found = None
    while (due := next_due(expression, zone, found or after)) is not None and due <= until:
        found = due
    return found


def _simulation(expression: str, start: datetime) -> CronSim:
    simulation = CronSim(expression, start)
    simulation.day_and = True
    return simulation
