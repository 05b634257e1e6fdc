"""When schedules are due, above all on the days on which clocks change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frameworks.jobs.cron import latest_due, next_due, problem
from frameworks.jobs.schedule import Scheduled, changed
from tests.unit.jobs import NOON, schedule

BERLIN = ZoneInfo("Europe/Berlin")
# Changes of clocks of all kinds: of half an hour, at midnight, and of a whole day that there never was.
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Havana", "Pacific/Apia"]
EXPRESSIONS = ["* * * * *", "*/20 * * * *", "30 * * * *", "30 2 * * *", "0,30 0-3 * * *", "*/15 2 * * *", "0 0 * * *"]


def local(expression: str, day: str, count: int) -> list[str]:
    """The first due times from midnight of the day on, as clocks on a wall in Berlin show them, with their offset."""
    at = datetime.fromisoformat(day).replace(tzinfo=BERLIN).astimezone(UTC) - timedelta(seconds=1)
    found = []
    for _ in range(count):
        due = next_due(expression, BERLIN, at)
        assert due is not None
        at = due
        found.append(f"{due.astimezone(BERLIN):%d %H:%M %z}")
    return found


def test_a_time_that_does_not_exist_is_the_first_one_that_does() -> None:
    assert local("30 2 * * *", "2026-03-28", 3) == ["28 02:30 +0100", "29 03:00 +0200", "30 02:30 +0200"]


def test_several_times_that_do_not_exist_are_one() -> None:
    assert local("0,30 2 * * *", "2026-03-29", 2) == ["29 03:00 +0200", "30 02:00 +0200"]


def test_a_time_that_comes_twice_is_the_first() -> None:
    assert local("30 2 * * *", "2026-10-24", 3) == ["24 02:30 +0200", "25 02:30 +0200", "26 02:30 +0100"]


def test_where_hours_or_minutes_are_any_it_is_elapsed_time_that_counts() -> None:
    assert local("*/30 * * * *", "2026-03-29", 6)[2:] == [
        "29 01:00 +0100",
        "29 01:30 +0100",
        "29 03:00 +0200",
        "29 03:30 +0200",
    ]
    assert local("0 * * * *", "2026-10-25", 5) == [
        "25 00:00 +0200",
        "25 01:00 +0200",
        "25 02:00 +0200",
        "25 02:00 +0100",
        "25 03:00 +0100",
    ]


def test_the_second_time_of_a_time_that_comes_twice_is_not_due() -> None:
    second = datetime(2026, 10, 25, 1, 15, tzinfo=UTC)  # 02:15, for the second time
    assert next_due("30 2 * * *", BERLIN, second) == datetime(2026, 10, 26, 1, 30, tzinfo=UTC)
    day_before = second - timedelta(days=1)
    assert latest_due("30 2 * * *", BERLIN, day_before, second) == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)


def test_day_of_month_and_day_of_week_must_both_hold() -> None:
    at = datetime(2026, 1, 31, tzinfo=UTC)
    due = next_due("0 9 1-7 * 1", ZoneInfo("UTC"), at)
    assert due == datetime(2026, 2, 2, 9, tzinfo=UTC)
    assert next_due("0 9 1-7 * 1", ZoneInfo("UTC"), due) == datetime(2026, 3, 2, 9, tzinfo=UTC)


def test_leap_days() -> None:
    at = datetime(2026, 1, 31, tzinfo=UTC)
    assert next_due("0 0 29 2 *", ZoneInfo("UTC"), at) == datetime(2028, 2, 29, tzinfo=UTC)
    assert latest_due("0 0 29 2 *", ZoneInfo("UTC"), datetime(1999, 1, 1, tzinfo=UTC), at) == datetime(
        2024, 2, 29, tzinfo=UTC
    )
    assert problem("0 0 29 2 MON#5") == ""


@given(
    st.sampled_from(ZONES),
    st.sampled_from(EXPRESSIONS),
    st.datetimes(datetime(2011, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC)),
    st.integers(1, 60),
)
def test_due_times_grow_and_the_last_of_them_is_found(zone: str, expression: str, start: datetime, count: int) -> None:
    where, dues = ZoneInfo(zone), [start]
    for _ in range(count):
        due = next_due(expression, where, dues[-1])
        assert due is not None and due > dues[-1]
        dues.append(due)
    assert latest_due(expression, where, start, dues[-1]) == dues[-1]
    just_before = dues[-1] - timedelta(microseconds=1)
    assert latest_due(expression, where, start, just_before) == (dues[-2] if count > 1 else None)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_looking_back_over_years_takes_no_time(expression: str) -> None:
    now = datetime(2026, 1, 31, 12, 0, 30, tzinfo=UTC)
    due = latest_due(expression, BERLIN, datetime(1999, 1, 1, tzinfo=UTC), now)
    assert due is not None and now - timedelta(days=1) < due <= now


def test_a_schedule_that_is_changed_begins_now() -> None:
    first = changed(None, "job", schedule(cron="0 * * * *"), NOON)
    assert first.mark == NOON and first.next(NOON) == NOON + 3600
    followed = Scheduled("job", first.definition, NOON + 3600, NOON + 3600)
    later = NOON + 7200
    same = changed(followed, "job", schedule(cron="0 * * * *", concurrencyPolicy="FORBID"), later)
    assert same.mark == NOON + 3600 and same.latest(later) == later
    other = changed(followed, "job", schedule(cron="30 * * * *"), later)
    assert other.mark == later and other.latest(later) is None and other.next(later) == later + 1800
    disabled = changed(followed, "job", schedule(cron="0 * * * *", enabled=False), later)
    enabled = changed(disabled, "job", schedule(cron="0 * * * *"), later + 7300)
    assert enabled.latest(later + 7300) is None and enabled.due == NOON + 3600


def test_a_clock_that_is_set_back_repeats_nothing() -> None:
    known = changed(Scheduled("job", schedule(), NOON), "job", schedule(cron="*/5 * * * *"), NOON - 3600)
    assert known.mark == NOON and known.latest(NOON - 600) is None and known.next(NOON - 3600) == NOON + 300
