"""Looks once a second at what every container takes, and tells the master now and then.

Reads what the isolators read from the kernel. Keeps the last look, for the metrics of this node (`metrics.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from isolators.base import Container, IsolatorError
from model.task import Usage

log = structlog.get_logger()

INTERVAL_S = 1.0
REPORT_EVERY = 5  # looks
AT_ONCE = 10  # containers, before others have their turn in the event loop

Read = Callable[[Container], Awaitable[Usage]]


class Sampler:
    """`running` says which containers there are, `read` what one of them takes."""

    def __init__(self, running: Callable[[], list[Container]], read: Read) -> None:
        self._running = running
        self._read = read
        self.usages: dict[str, Usage] = {}  # of the last look, by container

    async def run(self, report: Callable[[dict[str, Usage]], None]) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        looks = 0
        while True:
            await self.look()
            looks += 1
            if looks % REPORT_EVERY == 0:
                report(self.usages)
            due = max(due + INTERVAL_S, loop.time())  # what took too long is not made up for
            await asyncio.sleep(due - loop.time())

    async def look(self) -> None:
        usages = {}
        for number, container in enumerate(self._running()):
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
            try:
                usages[container.task.id] = await self._read(container)
            except IsolatorError as error:  # as a rule it has just ended
                log.debug("usage not read", task=container.task.id, error=str(error))
        self.usages = usages
