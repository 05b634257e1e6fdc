"""Makes the checks of every running task when they are due, and tells what has changed.

A check is a loop in the event loop that sleeps most of the time. What a result means is for `model/health.py`, when the
next one is due for `first_pause` and `next_pause`, all of them pure. Whoever asked hears of what differs from what was
known: that a check passed once more is no news (`news`).

So that the checks of many containers do not fall on one instant, although an agent may have found them all in the same
second, the first interval of each is shortened by chance.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import structlog

from agent.health.probe import Failed, NoResult, Passed, Prober, Target
from model.health import Health, HealthCheck, Readiness, ReadinessCheck, failed, passed
from model.task import TaskSpec

log = structlog.get_logger()

INTERVAL_LEAST_S = 0.1
FIRST_RETRY_S = 1.0
MOST_DOUBLINGS = 16


@dataclass(frozen=True, slots=True)
class Results:
    """What is known of a task, an entry for each of its checks."""

    health: tuple[Health, ...]
    readiness: tuple[Readiness, ...]


T = TypeVar("T")
Tell = Callable[[Results], None]
Age = Callable[[], float]


def known(task: TaskSpec, health: tuple[Health, ...], readiness: tuple[Readiness, ...]) -> Results:
    """What was found before, if it was; nothing is known of a check that is new."""
    return Results(
        health if len(health) == len(task.health_checks) else (Health(),) * len(task.health_checks),
        readiness if len(readiness) == len(task.readiness_checks) else (Readiness(),) * len(task.readiness_checks),
    )


def first_pause(check: HealthCheck, health: Health, age_s: float, chance: float) -> float:
    """Seconds before an agent's first check of a task, which may be older than the agent. `chance` is in [0, 1)."""
    if age_s < check.delay_s:
        return check.delay_s - age_s
    return 0.0 if health.alive is None else chance * check.interval_s


def next_pause(check: HealthCheck, health: Health, age_s: float, tries: int, chance: float) -> float:
    """Seconds from the start of one check to that of the next, after `tries`. As long as failures are ignored the task
    is asked sooner: who starts quickly need not wait for a whole interval until it is used."""
    interval = max(check.interval_s, INTERVAL_LEAST_S)
    if health.alive is None and age_s < check.grace_s:
        return float(min(interval, FIRST_RETRY_S * 2 ** min(tries - 1, MOST_DOUBLINGS)))
    return interval * (1 - chance / 2) if tries == 1 else interval


class Checks:
    def __init__(self, prober: Prober) -> None:
        self._prober = prober

    @contextmanager
    def watching(self, task: TaskSpec, target: Target, age: Age, results: Results, tell: Tell) -> Iterator[None]:
        """Within the block the task is checked. `age` says for how many seconds it has run, `results` what was known
        of it before."""
        watch = _Watch(self._prober, task.id, target, age, results, tell)
        loops = [watch.health(number, check) for number, check in enumerate(task.health_checks)]
        loops += [watch.readiness(number, check) for number, check in enumerate(task.readiness_checks)]
        works = [asyncio.create_task(loop, name=f"checks of {task.id}") for loop in loops]
        try:
            yield
        finally:
            for work in works:
                work.cancel()


class _Watch:
    """The checks of one task."""

    def __init__(self, prober: Prober, task_id: str, target: Target, age: Age, results: Results, tell: Tell) -> None:
        self._prober = prober
        self._task_id = task_id
        self._target = target
        self._age = age
        self._results = results
        self._tell = tell

    async def health(self, number: int, check: HealthCheck) -> None:
        loop = asyncio.get_running_loop()
        tries = 0
        await asyncio.sleep(first_pause(check, self._results.health[number], self._age(), random.random()))
        while True:
            began = loop.time()
            await self._check(number, check)
            tries += 1
            pause = next_pause(check, self._results.health[number], self._age(), tries, random.random())
            await asyncio.sleep(max(0.0, began + pause - loop.time()))

    async def readiness(self, number: int, check: ReadinessCheck) -> None:
        loop = asyncio.get_running_loop()
        tries = 0
        while not self._results.readiness[number].ready:
            began = loop.time()
            await self._ask(number, check)
            tries += 1
            pause = min(max(check.interval_s, INTERVAL_LEAST_S), FIRST_RETRY_S * 2 ** min(tries - 1, MOST_DOUBLINGS))
            await asyncio.sleep(max(0.0, began + pause - loop.time()))

    async def _check(self, number: int, check: HealthCheck) -> None:
        before = self._results.health[number]
        outcome = await self._result(self._prober.check(self._target, check))
        now = time.time()
        if isinstance(outcome, Passed):
            after = passed(before, now)
        elif isinstance(outcome, Failed):
            after = failed(check, before, outcome.cause, now, self._age())
        else:
            return
        health = _with(self._results.health, number, after)
        self._learn(replace(self._results, health=health), news(check, before, after))

    async def _ask(self, number: int, check: ReadinessCheck) -> None:
        before = self._results.readiness[number]
        after = await self._result(self._prober.ask(self._target, check))
        if after is not None:
            readiness = _with(self._results.readiness, number, after)
            self._learn(replace(self._results, readiness=readiness), after != before)

    def _learn(self, results: Results, news: bool) -> None:
        self._results = results
        if news:
            self._tell(results)

    async def _result(self, asked: Awaitable[T]) -> T | None:
        """None for what says nothing of the task."""
        try:
            return await asked
        except NoResult as error:
            log.warning("check without result", task=self._task_id, reason=str(error))
        except Exception:  # a fault of ours must not end the checking
            log.exception("check failed", task=self._task_id)
        return None


def _with(known: tuple[T, ...], number: int, result: T) -> tuple[T, ...]:
    return (*known[:number], result, *known[number + 1 :])


def news(check: HealthCheck, before: Health, after: Health) -> bool:
    """Whether it must be told, which costs a write to two disks. Of failures that change nothing any more only the
    fourth, the eighth and so on: a task may be ill for days, and say something else of it each time."""
    if before.alive is not after.alive:
        return True
    if after.failures <= check.max_failures:
        return (before.failures, before.cause) != (after.failures, after.cause)
    return after.failures & (after.failures - 1) == 0
