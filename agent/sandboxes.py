"""Sandboxes made ahead: what takes the longest of a start (namespaces, cgroups, an address and its link) is over before
the task comes.

A few are kept for each of the networks that were asked for last. They are made when nobody has asked for a moment, one
after the other: who waits for a container goes first. A spare belongs to nobody: after the agent's end its keeper takes
it back, and the next agent clears away what is left of it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from dataclasses import replace

import structlog

from agent.containers import Containers, Made
from agent.launcher.client import LaunchError
from isolators.base import IsolatorError, Sandbox
from model.pod import Pod
from model.task import Interface, TaskSpec
from netns.driver import NetworkError

log = structlog.get_logger()

SPARES = 4  # for each network
NETWORKS = 2
QUIET_S = 0.05
RETRY_S = 5.0

# User ids of containers: above what distributions give to users and their sub-ids, below 2**31.
ID_RANGE_START = 1 << 20
ID_RANGE_SIZE = 1 << 16
ID_RANGES = (1 << 31) // ID_RANGE_SIZE - ID_RANGE_START // ID_RANGE_SIZE

FAILURES = (IsolatorError, NetworkError, LaunchError, OSError)


class Sandboxes:
    """`take_for` gives a sandbox that is ready, `make_for` a new one, `join` one in a pod. Their ids are given out
    here."""

    def __init__(self, containers: Containers, ready: asyncio.Event) -> None:
        """`ready`: the node's networks are there."""
        self._containers = containers
        self._networks_ready = ready
        self._spares: dict[str, deque[Made]] = {}  # by network, the one that was asked for last at the end
        self._ranges: set[int] = set()
        self._asked = asyncio.Event()
        self._one_more = asyncio.Lock()
        self._retry_at: dict[str, float] = {}  # of networks in which none could be made
        self._making: asyncio.Task[None] | None = None
        self._discarding: set[asyncio.Task[None]] = set()

    def begin(self) -> None:
        """Keep spares from now on."""
        self._making = asyncio.create_task(self._keep_making(), name="spares")

    async def close(self) -> None:
        if self._making is not None:
            self._making.cancel()
            await asyncio.gather(self._making, return_exceptions=True)
        for network in list(self._spares):
            await self.drop(network)
        await asyncio.gather(*self._discarding)

    def take_for(self, task: TaskSpec) -> Made | None:
        """At once; None when none is ready. No spare has an address that somebody asked for, or a second network."""
        return None if task.address or task.interfaces else self.take(task.network)

    async def make_for(self, task: TaskSpec) -> Made:
        """Raises as `make` does. Spares yield to it: they may have the last addresses of a network."""
        networks = [task.network, *(interface.network for interface in task.interfaces)]
        try:
            return await self.make(task.network, task.address, task.interfaces)
        except FAILURES:
            if not any(map(self._spares.get, networks)):
                raise
            for network in networks:
                await self.drop(network)
            return await self.make(task.network, task.address, task.interfaces)

    def take(self, network: str) -> Made | None:
        """At once; None when none is ready."""
        spares = self._spares[network] = self._spares.pop(network, deque())  # at the end
        self._asked.set()
        while spares:
            made = spares.popleft()
            if made.launch.waits:
                return made
            self._discarding.add(task := asyncio.create_task(self._discard(made)))
            task.add_done_callback(self._discarding.discard)
        return None

    async def make(self, network: str, address: str = "", interfaces: tuple[Interface, ...] = ()) -> Made:
        """Raises IsolatorError, NetworkError, LaunchError or OSError; then nothing is left of it."""
        plain = self._containers.sandbox(secrets.token_hex(6), self._free_range(), network)
        return await self._make(replace(plain, address=address, interfaces=interfaces))

    async def join(self, holder: Sandbox, pod: Pod) -> Made:
        """One in the pod whose namespaces `holder` has. Raises as `make` does."""
        return await self._make(self._containers.member(secrets.token_hex(6), holder, pod, self._free_range()))

    async def _make(self, sandbox: Sandbox) -> Made:
        self._ranges.add(sandbox.number)
        try:
            return await self._containers.make(sandbox)
        except BaseException:
            await self._clear(sandbox)
            raise

    async def drop(self, network: str) -> None:
        """The network is about to change: its spares have addresses of before."""
        await asyncio.gather(*(self._discard(made) for made in self._spares.pop(network, ())))
        async with self._one_more:  # one that is being made sees that it is not wanted any more
            pass

    def occupy(self, sandbox: Sandbox) -> None:
        """A container of an earlier agent has its ids."""
        self._ranges.add(sandbox.number)

    def release(self, sandbox: Sandbox) -> None:
        """Its container is gone."""
        self._ranges.discard(sandbox.number)

    async def _keep_making(self) -> None:
        await self._networks_ready.wait()
        loop = asyncio.get_running_loop()
        while True:
            await self._quiet()
            for network in list(self._spares)[:-NETWORKS]:
                await self.drop(network)
            for network, spares in list(self._spares.items()):
                if self._retry_at.get(network, 0.0) <= loop.time():
                    await self._fill(network, spares)

    async def _quiet(self) -> None:
        """Until somebody has asked, and then nobody for a moment."""
        await self._asked.wait()
        while self._asked.is_set():
            self._asked.clear()
            await asyncio.sleep(QUIET_S)

    async def _fill(self, network: str, spares: deque[Made]) -> None:
        """As long as nobody asks. A network in which none can be made has its next turn later, and keeps no other from
        having some."""
        self._retry_at.pop(network, None)
        try:
            while len(spares) < SPARES and not self._asked.is_set() and self._spares.get(network) is spares:
                async with self._one_more:
                    await self._add(network, spares)
        except FAILURES as error:
            log.warning("no sandbox made ahead", network=network, error=str(error))
            loop = asyncio.get_running_loop()
            self._retry_at[network] = loop.time() + RETRY_S
            loop.call_later(RETRY_S, self._asked.set)

    async def _add(self, network: str, spares: deque[Made]) -> None:
        made = await self.make(network)
        if self._spares.get(network) is spares:
            spares.append(made)
        else:
            await self._discard(made)

    async def _discard(self, made: Made) -> None:
        await made.launch.abort()
        await self._clear(made.sandbox)

    async def _clear(self, sandbox: Sandbox) -> None:
        """What can not be cleared away is found as an orphan at the next start, and has its ids until then."""
        try:
            await self._containers.cleanup(sandbox)
        except* FAILURES as group:
            log.error("clean-up incomplete", container=sandbox.id, errors=[str(error) for error in group.exceptions])
        else:
            self._ranges.discard(sandbox.number)

    def _free_range(self) -> int:
        bases = (ID_RANGE_START + index * ID_RANGE_SIZE for index in range(ID_RANGES))
        return next(base for base in bases if base not in self._ranges)
