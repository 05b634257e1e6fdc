"""What the agent does to one container: make it, start it, find it again, end it, and clear away what is left.

Each verb is a few calls to the isolators and the launcher in the order that `isolators/base.py` promises. Nothing here
knows tasks' states: the reconciler decides which verb is due.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from agent.execution import explain
from agent.launcher import record
from agent.launcher.adopt import wait_exit
from agent.launcher.client import Launch, Launcher, LaunchError
from agent.provision import Provision, Tell
from isolators.base import Container, Isolator, IsolatorError, Limit, merge
from model.network import Address
from model.task import TaskSpec, Usage
from pki.files import PRIVATE, write_atomic

log = structlog.get_logger()

OCI_VERSION = "1.2.0"


@dataclass(frozen=True, slots=True)
class Directories:
    """Where the agent keeps things, all of it 0700 and its own."""

    state: Path

    @property
    def tasks(self) -> Path:
        return self.state / "tasks"

    @property
    def bundles(self) -> Path:
        return self.state / "containers"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    def log(self, task_id: str, stream: str) -> Path:
        return self.logs / task_id / stream

    def make(self) -> None:
        for directory in (self.state, self.tasks, self.bundles, self.logs):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)  # it may be from before, or the work of another umask (CVE-2024-25621)


class Containers:
    def __init__(
        self,
        directories: Directories,
        isolators: Sequence[Isolator],
        launcher: Launcher,
        provision: Provision | None = None,
    ) -> None:
        self._directories = directories
        self._isolators = isolators
        self._launcher = launcher
        self._provision = provision

    def container(self, task: TaskSpec, id_base: int) -> Container:
        return Container(task.id, task, self._directories.bundles / task.id, id_base)

    async def recover(self, known: list[Container]) -> None:
        """Once, before anything else: every isolator finds its own again, and lets go of what belongs to nobody."""
        ids = {container.id for container in known}
        orphans = [path.name for path in self._directories.bundles.iterdir() if path.name not in ids]
        for isolator in self._isolators:
            await isolator.recover(known, orphans)
        for orphan in orphans:
            try:
                shutil.rmtree(self._directories.bundles / orphan)
            except OSError as error:
                log.error("orphan stays until the next start", container=orphan, error=str(error))

    async def provide(self, container: Container, tell: Tell) -> Container:
        """With its image and what is fetched for it, which may take long: `tell` hears how far it is. Raises
        IsolatorError."""
        assert self._provision is not None
        return await self._provision.provide(container, tell)

    def explain(self, container: Container, error: LaunchError) -> str:
        """Why it was not launched, for people. Before it is cleaned up."""
        return explain(container, error)

    async def prepare(self, container: Container) -> None:
        """Everything on the host's side, and the bundle on disk. Raises IsolatorError."""
        container.directory.mkdir(mode=0o700, exist_ok=True)
        parts = [{"ociVersion": OCI_VERSION}]
        for isolator in self._isolators:
            parts.append(await isolator.prepare(container))
        write_atomic(container.directory / "config.json", json.dumps(merge(parts)).encode(), PRIVATE)

    async def create(self, container: Container) -> tuple[Launch, tuple[Address, ...]]:
        """The container's namespaces, limited and connected, with its first process waiting in them."""
        logs = self._directories.logs / container.id
        logs.mkdir(mode=0o700, exist_ok=True)
        launch = await self._launcher.create(container.directory, logs / "stdout", logs / "stderr")
        try:
            # All of them, also when one fails: none may still be at work when cleanup begins.
            results = await asyncio.gather(
                *(isolator.isolate(container, launch.pid) for isolator in self._isolators), return_exceptions=True
            )
            return launch, _addresses(results)
        except BaseException:
            await launch.abort()
            raise

    def keeper(self, container: Container) -> record.Keeper | None:
        """What the keeper of an earlier launch left; None when there was none in this boot."""
        return record.read_keeper(str(container.directory))

    async def exited(self, container: Container) -> record.Exit:
        return await wait_exit(container.directory)

    def signal(self, container: Container, number: signal.Signals) -> None:
        """To the container's first process, if it lives; with SIGKILL the kernel ends all others in its pid namespace
        too. Through a pidfd, since by now its pid may be another process's."""
        keeper = self.keeper(container)
        if keeper is None or keeper.container is None:
            return
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(keeper.container.pid)
            try:
                if record.identify(keeper.container.pid) == keeper.container:
                    signal.pidfd_send_signal(pidfd, number)
            finally:
                os.close(pidfd)

    async def usage(self, container: Container) -> Usage:
        usage = Usage()
        for isolator in self._isolators:
            usage = await isolator.usage(container, usage)
        return usage

    async def watch(self, container: Container) -> Limit:
        """The first limit that is hit; there may never be one."""
        watches = [asyncio.ensure_future(isolator.watch(container)) for isolator in self._isolators]
        try:
            for watch in asyncio.as_completed(watches):
                if (limit := await _limit(watch)) is not None:
                    return limit
            never: asyncio.Future[Limit] = asyncio.get_running_loop().create_future()
            return await never
        finally:
            for watch in watches:
                watch.cancel()

    async def exceeded(self, container: Container) -> Limit | None:
        """The limit that it has hit so far."""
        for isolator in self._isolators:
            if (limit := await _limit(isolator.exceeded(container))) is not None:
                return limit
        return None

    async def cleanup(self, container: Container) -> None:
        """Undo all of it, the last isolator first. Collects what fails and goes on (ExceptionGroup at the end)."""
        errors: list[Exception] = []
        for isolator in reversed(self._isolators):
            try:
                await isolator.cleanup(container)
            except (IsolatorError, OSError) as error:
                errors.append(error)
        if errors:
            raise ExceptionGroup(f"clean up {container.id}", errors)
        shutil.rmtree(container.directory, ignore_errors=False, onerror=_absent_is_fine)

    def forget(self, task_id: str) -> None:
        shutil.rmtree(self._directories.logs / task_id, onerror=_absent_is_fine)


def _addresses(results: Sequence[tuple[Address, ...] | BaseException]) -> tuple[Address, ...]:
    """Of all isolators together. Raises the first failure."""
    addresses: tuple[Address, ...] = ()
    for result in results:
        if isinstance(result, BaseException):
            raise result
        addresses += result
    return addresses


async def _limit(asked: Awaitable[Limit | None]) -> Limit | None:
    """A container that can not be watched runs on: what enforces the limits is the kernel."""
    try:
        return await asked
    except (IsolatorError, OSError) as error:
        log.warning("limits are not watched", error=str(error))
        return None


def _absent_is_fine(function: object, path: str, failure: tuple[type[BaseException], BaseException, object]) -> None:
    if not isinstance(failure[1], FileNotFoundError):
        raise failure[1]
