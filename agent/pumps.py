"""Empties the pipes of containers whose keeper was killed, so that they neither wait nor lose what they write.

One thread for each such container, because it does nothing but blocking calls into the kernel, and because a container
that writes without end must not keep the event loop from anything else. Keepers are not killed in a day's work.
"""

from __future__ import annotations

import os
import select
import threading
from pathlib import Path

import structlog

from agent.launcher import streams
from agent.launcher.pump import Limits, Pump

log = structlog.get_logger()

STOP_DEADLINE_S = 10.0


class Pumps:
    def __init__(self) -> None:
        self._works: dict[str, _Work] = {}

    def take_over(self, container: str, bundle: Path, logs: tuple[Path, Path], limits: tuple[Limits, Limits]) -> None:
        """From now on, until `end`. Accepts a container that was taken over before."""
        if container in self._works:
            return
        try:
            pumps = streams.reopen(str(bundle), (str(logs[0]), str(logs[1])), limits)
        except OSError as error:
            log.error("nobody reads what the container writes", container=container, error=str(error))
            return
        log.warning("its keeper was killed: the agent reads what the container writes", container=container)
        self._works[container] = _Work(container, pumps)

    def end(self, container: str) -> None:
        """Once the container is dead. Everything that it wrote is in its logs afterwards."""
        if (work := self._works.pop(container, None)) is not None:
            work.end()

    def close(self) -> None:
        """Leave them to the next agent: what they write meanwhile waits in the pipes."""
        for container in list(self._works):
            self.end(container)


class _Work:
    def __init__(self, container: str, pumps: list[Pump]) -> None:
        self._pumps = {pump.pipe: pump for pump in pumps}
        self._stopped, self._stop = os.pipe2(os.O_CLOEXEC)
        # Should the agent end without a word, this must not keep it.
        self._thread = threading.Thread(target=self._run, name=f"pump {container}", daemon=True)
        self._thread.start()

    def end(self) -> None:
        os.close(self._stop)
        self._thread.join(STOP_DEADLINE_S)

    def _run(self) -> None:
        poll = select.poll()
        for descriptor in (*self._pumps, self._stopped):
            poll.register(descriptor, select.POLLIN)
        while self._stopped not in (ready := [descriptor for descriptor, _ in poll.poll()]):
            for pipe in ready:
                self._pumps[pipe].move()
        os.close(self._stopped)
        for pump in self._pumps.values():
            pump.drain()
