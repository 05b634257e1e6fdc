"""One check of one container, once.

A command runs as `agent/commands.py` has it: bound by all that binds the container's program. HTTP and TCP are spoken
from inside the container's network namespace: a socket belongs to the namespace in which it was made, so a thread
enters that, makes the socket and ends, and everything else happens in the event loop. So a check needs no route from
the node, reaches what listens on loopback only, and works the same in the node's own network.

What fails here for want of something that is ours (a thread, a descriptor) says nothing of the task: it is no result.
So is a deadline that was noticed late: then this process had no time, and the task may have answered long ago.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Coroutine
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, TypeVar

from agent.commands import NOT_FOUND, CommandFailed, Commands
from agent.health import http
from agent.health.http import BadResponse, Response
from agent.launcher import record
from agent.launcher.record import Identity
from isolators.base import Container
from model.health import HealthCheck, ProbeKind, Readiness, ReadinessCheck
from model.network import Address
from netns.driver import NetworkError
from netns.namespace import namespace_of, run_inside

LATE_S = 0.5
ENTERING_AT_ONCE = 8  # threads
COMMANDS_AT_ONCE = 64  # processes, three for each
TEXT_LENGTH = 200
WELL = range(200, 400)
INTERIM = range(100, 200)
LOOPBACK = {4: "127.0.0.1", 6: "::1"}


@dataclass(frozen=True, slots=True)
class Target:
    """A container, its first process, and the addresses that others reach it by."""

    container: Container
    process: Identity
    addresses: tuple[str, ...] = ()

    def address(self, own: bool, version: int) -> Address:
        """Its own one, if it is asked for and there is one; else its loopback."""
        found = [ip_address(text) for text in self.addresses] if own else []
        return next((address for address in found if address.version == version), ip_address(LOOPBACK[version]))


class NoResult(Exception):
    """The check could not be made; that is not the task's fault."""


@dataclass(frozen=True, slots=True)
class Failed:
    cause: str


class Ignored:
    """It answered in a way that the check is told to overlook."""


class Passed: ...


Outcome = Passed | Failed | Ignored
T = TypeVar("T")


class Prober:
    """Makes checks. At most so many threads are in other namespaces at any time; a deadline begins after that."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._entering = asyncio.Semaphore(ENTERING_AT_ONCE)
        self._running = asyncio.Semaphore(COMMANDS_AT_ONCE)

    async def check(self, target: Target, check: HealthCheck) -> Outcome:
        """Raises NoResult."""
        if check.kind is ProbeKind.COMMAND:
            return await self._run(target.container, check)
        address = target.address(check.own_address, 6 if check.ipv6 else 4)
        sock = await self._socket(target, address)
        try:
            return await _in_time(check.timeout_s, _check(sock, address, check))
        except (BadResponse, OSError) as error:
            return Failed(_text(error))
        finally:
            sock.close()

    async def ask(self, target: Target, check: ReadinessCheck) -> Readiness:
        """Raises NoResult."""
        address = target.address(True, 4)
        sock = await self._socket(target, address)
        try:
            response = await _in_time(check.timeout_s, _ask(sock, address, check))
        except (BadResponse, OSError) as error:
            return Readiness(cause=_text(error))
        finally:
            sock.close()
        ready = response.status in check.ready_codes
        cause = "" if ready else f"HTTP status {response.status}"
        return Readiness(ready, response.status, response.content_type[:TEXT_LENGTH], response.body, cause)

    async def _run(self, container: Container, check: HealthCheck) -> Outcome:
        """It is well when it exits with 0."""
        try:
            async with self._running:
                result = await self._commands.run(container, check.argv, timeout_s=check.timeout_s)
        except CommandFailed as error:
            if error.code == NOT_FOUND:
                return Failed(str(error)[:TEXT_LENGTH])
            raise NoResult(str(error)) from error
        if result.code == 0:
            return Passed()
        how = f"no end within {check.timeout_s:g} s" if result.code is None else f"exit code {result.code}"
        said = result.output.decode(errors="replace").strip()
        return Failed(f"{how}: {said}"[:TEXT_LENGTH] if said else how)

    async def _socket(self, target: Target, address: Address) -> socket.socket:
        """Made inside the container's network namespace, not connected."""
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        try:
            async with self._entering:
                with namespace_of(target.process.pid) as namespace:
                    if record.identify(target.process.pid) != target.process:
                        raise NoResult("the container has ended")
                    return await run_inside(
                        namespace, lambda: socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                    )
        except (NetworkError, OSError, RuntimeError) as error:  # RuntimeError: no thread can be started
            raise NoResult(str(error)) from error


async def _check(sock: socket.socket, address: Address, check: HealthCheck) -> Outcome:
    await asyncio.get_running_loop().sock_connect(sock, (str(address), check.port))
    if check.kind is ProbeKind.TCP:
        return Passed()
    response = await http.get(sock, str(address), check.path, tls=check.kind is ProbeKind.HTTPS)
    if response.status in WELL:
        return Passed()
    if check.ignore_1xx and response.status in INTERIM:
        return Ignored()
    return Failed(f"HTTP status {response.status}")


async def _ask(sock: socket.socket, address: Address, check: ReadinessCheck) -> Response:
    await asyncio.get_running_loop().sock_connect(sock, (str(address), check.port))
    tls = check.kind is ProbeKind.HTTPS
    return await http.get(sock, str(address), check.path, tls=tls, keep_body=check.keep_response)


async def _in_time(deadline_s: float, work: Coroutine[Any, Any, T]) -> T:
    """Raises TimeoutError, or NoResult when it was this process that came late."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + deadline_s
    try:
        async with asyncio.timeout_at(deadline):
            return await work
    except TimeoutError as error:
        if (late := loop.time() - deadline) > LATE_S:
            raise NoResult(f"the deadline was noticed {late:.1f} s late") from error
        raise TimeoutError(f"no answer within {deadline_s:g} s") from error


def _text(error: BadResponse | OSError) -> str:
    """What a person has to know of it; what a container says is in there, so it is cut."""
    if isinstance(error, ssl.SSLError):
        text = f"TLS: {error.reason or error}"
    elif isinstance(error, OSError) and error.errno is not None:
        text = os.strerror(error.errno)
    else:
        text = str(error) or "the connection was closed"
    return text[:TEXT_LENGTH]
