"""What the results of checks mean, and when the next one is due: Marathon's rules, on a clock of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from agent.health.checks import Checks, Results, first_pause, known, news, next_pause
from agent.health.probe import Failed, Ignored, NoResult, Outcome, Passed, Prober, Target
from agent.launcher.record import Identity
from isolators.base import Container, Sandbox
from model.health import (
    Health,
    HealthCheck,
    ProbeKind,
    Readiness,
    ReadinessCheck,
    describe,
    failed,
    given_up,
    passed,
    well,
)
from model.task import TaskSpec
from tests.unit.cluster import until
from tests.unit.control import task

CHECK = HealthCheck(ProbeKind.HTTP, 8080, "/health", grace_s=10.0, interval_s=5.0, delay_s=2.0, max_failures=3)
TARGET = Target(Container(task("a"), Sandbox("c-a", Path("/nowhere"), Path("/nowhere"), 0, "none")), Identity(1, 1))

# The age of the task at each result, and whether it passed.
histories = st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=20).map(sorted)


def after(check: HealthCheck, results: Iterable[tuple[float, bool]]) -> Health:
    health = Health()
    for age, good in results:
        health = passed(health, 1000 + age) if good else failed(check, health, "no", 1000 + age, age)
    return health


def counted(check: HealthCheck, results: Iterable[tuple[float, bool]]) -> list[bool]:
    """As Marathon's documentation puts it: failures within the grace period do not count before the first success."""
    counting, taken = False, []
    for age, good in results:
        counting = counting or good or age >= check.grace_s
        taken += [good] if counting else []
    return taken


@given(histories, st.floats(0, 30), st.integers(0, 4))
def test_marathons_rules(results: list[tuple[float, bool]], grace: float, most: int) -> None:
    check = replace(CHECK, grace_s=grace, max_failures=most)
    health, taken = after(check, results), counted(check, results)
    in_a_row = next((number for number, good in enumerate(reversed(taken)) if good), len(taken))
    assert health.failures == in_a_row
    assert health.alive == (taken[-1] if taken else None)
    assert bool(given_up([check], [health])) == (most > 0 and in_a_row >= most)
    assert (health.first_success is not None) == any(taken) and (health.last_failure is None) == all(taken)


@given(histories)
def test_times_are_those_of_the_results(results: list[tuple[float, bool]]) -> None:
    health = after(replace(CHECK, grace_s=0), results)
    good = [1000 + age for age, fine in results if fine]
    assert (health.first_success, health.last_success) == ((good[0], good[-1]) if good else (None, None))
    assert health.last_failure == next((1000 + age for age, fine in reversed(results) if not fine), None)


def test_why_it_is_not_well_yet_is_known_also_when_it_does_not_count() -> None:
    assert failed(CHECK, Health(), "refused", 1001, 1.0) == Health(cause="refused")
    assert failed(CHECK, Health(), "refused", 1011, 10.0).failures == 1


def test_every_check_must_pass_and_any_may_fail() -> None:
    good, bad, unknown = Health(1, 1), Health(None, None, 1, 1, "no"), Health()
    assert well([]) is None and well([unknown]) is None and well([good, unknown]) is None
    assert well([good, good]) is True and well([good, bad]) is False and well([unknown, bad]) is False


def test_who_is_given_up_and_why() -> None:
    bad = Health(1, 1, 2, 3, "HTTP status 503")
    tcp = replace(CHECK, kind=ProbeKind.TCP)
    assert given_up([tcp, CHECK], [Health(), bad]) == (
        "http :8080/health: 3 failures in a row, the last: HTTP status 503"
    )
    assert given_up([tcp], [bad]).startswith("tcp :8080: ")
    assert not given_up([replace(CHECK, max_failures=0)], [bad]) and not given_up([CHECK], [])
    assert describe(replace(CHECK, kind=ProbeKind.COMMAND)) == "command"


@given(st.floats(0, 100), st.floats(0, 0.999))
def test_the_first_check(age: float, chance: float) -> None:
    """After the delay; and for those that an agent finds again, within an interval, at different times."""
    fresh = first_pause(CHECK, Health(), age, chance)
    assert fresh == max(0.0, CHECK.delay_s - age)
    found = first_pause(CHECK, Health(1, 1), 50 + age, chance)
    assert found == chance * CHECK.interval_s


@given(st.integers(1, 10_000), st.floats(0, 9.9), st.floats(0, 0.999))
def test_until_it_is_well_it_is_asked_sooner(tries: int, age: float, chance: float) -> None:
    pause = next_pause(CHECK, Health(), age, tries, chance)
    assert pause == min(CHECK.interval_s, 2.0 ** min(tries - 1, 10))
    known_one = next_pause(CHECK, Health(1, 1), age, tries, chance)
    assert CHECK.interval_s / 2 <= known_one <= CHECK.interval_s and (tries == 1 or known_one == CHECK.interval_s)
    assert next_pause(replace(CHECK, interval_s=0), Health(1, 1), age, tries, chance) > 0


class Script:
    """Answers each check with the next of its results, the last one again and again."""

    def __init__(self, *results: Outcome | Exception, readiness: tuple[Readiness, ...] = ()) -> None:
        self.results, self.readiness, self.asked = list(results), list(readiness), 0

    async def check(self, target: Target, check: HealthCheck) -> Outcome:
        self.asked += 1
        result = self.results.pop(0) if len(self.results) > 1 else self.results[0]
        if isinstance(result, Exception):
            raise result
        return result

    async def ask(self, target: Target, check: ReadinessCheck) -> Readiness:
        self.asked += 1
        return self.readiness.pop(0)


def quick(*checks: HealthCheck) -> TaskSpec:
    return replace(task("a"), health_checks=checks)


Watching = AbstractContextManager[None]
Told = list[Results]
FAST = replace(CHECK, grace_s=0.0, interval_s=0.0, delay_s=0.0)


def watch(prober: Script, spec: TaskSpec, told: Told, results: Results | None = None) -> Watching:
    return Checks(cast(Prober, prober)).watching(
        spec, TARGET, lambda: 60.0, results or known(spec, (), ()), told.append
    )


@pytest.fixture
def sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.health.checks.INTERVAL_LEAST_S", 0.001)
    monkeypatch.setattr("agent.health.checks.FIRST_RETRY_S", 0.001)


async def told_until(told: Told, condition: Callable[[Results], bool]) -> None:
    await until(lambda: bool(told) and condition(told[-1]))


@pytest.mark.anyio
@pytest.mark.usefixtures("sooner")
async def test_only_what_is_new_is_told() -> None:
    results = (Passed(), Passed(), Passed(), Failed("no"), Failed("no"), Passed())
    prober, told, spec = Script(*results), Told(), quick(FAST)
    with watch(prober, spec, told):
        await until(lambda: prober.asked > 20)
    assert [(each.health[0].alive, each.health[0].failures) for each in told] == [
        (True, 0),
        (False, 1),
        (False, 2),
        (True, 0),
    ]


@pytest.mark.parametrize(("most", "told"), [(0, [1, 2, 4, 8, 16]), (5, [1, 2, 3, 4, 5, 8, 16])])
def test_of_endless_failures_fewer_and_fewer_are_told(most: int, told: list[int]) -> None:
    check = replace(CHECK, max_failures=most)
    states = [Health(1, 1, number, number, "no") for number in range(21)]
    pairs = pairwise(states)
    assert [after.failures for before, after in pairs if news(check, before, after)] == told
    assert news(check, states[20], passed(states[20], 30)) and not news(check, states[0], passed(states[0], 30))
    assert not news(check, states[20], replace(states[20], failures=21, cause="refused"))
    assert news(check, Health(), Health(cause="refused"))


@pytest.mark.anyio
@pytest.mark.usefixtures("sooner")
async def test_what_says_nothing_changes_nothing() -> None:
    """Whether it was told to be overlooked, could not be made, or is a fault of ours."""
    results = (Failed("no"), Ignored(), NoResult("no thread"), KeyError("ours"), Ignored())
    prober, told, spec = Script(*results), Told(), quick(FAST)
    with capture_logs() as logs, watch(prober, spec, told):
        await until(lambda: prober.asked > 10)
    assert [each.health[0].failures for each in told] == [1]
    assert [entry["event"] for entry in logs] == ["check without result", "check failed"]


@pytest.mark.anyio
@pytest.mark.usefixtures("sooner")
async def test_checks_go_on_from_what_was_known() -> None:
    prober, told, spec = Script(Failed("no")), Told(), quick(FAST, FAST)
    before = Results((Health(1, 1, 2, 2, "no"), Health(1, 1)), ())
    with watch(prober, spec, told, before):
        await told_until(told, lambda now: min(each.failures for each in now.health) >= 3)
    assert all(now.health[0].failures > 2 or now.health[0] == before.health[0] for now in told)


@pytest.mark.anyio
@pytest.mark.usefixtures("sooner")
async def test_after_the_block_nothing_is_asked() -> None:
    prober, told = Script(Passed()), Told()
    with watch(prober, quick(FAST), told):
        await until(lambda: prober.asked > 2)
    asked = prober.asked
    for _ in range(50):
        await asyncio.sleep(0.001)
    assert prober.asked == asked


@pytest.mark.anyio
@pytest.mark.usefixtures("sooner")
async def test_readiness_is_asked_until_it_is_there() -> None:
    answers = (Readiness(cause="refused"), Readiness(False, 503), Readiness(False, 503), Readiness(True, 200))
    prober, told = Script(readiness=answers), Told()
    spec = replace(task("a"), readiness_checks=(ReadinessCheck("ready", ProbeKind.HTTP, 80, interval_s=0.001),))
    with watch(prober, spec, told):
        await told_until(told, lambda now: now.readiness[0].ready)
    assert [now.readiness[0].status for now in told] == [None, 503, 200] and prober.asked == 4
    with watch(prober, spec, told, told[-1]):
        await asyncio.sleep(0.01)
    assert prober.asked == 4


def test_what_was_found_of_other_checks_is_forgotten() -> None:
    spec = quick(CHECK, CHECK)
    assert known(spec, (Health(1, 1),), ()).health == (Health(), Health())
    assert known(spec, (Health(1, 1), Health()), ()).health[0] == Health(1, 1)
