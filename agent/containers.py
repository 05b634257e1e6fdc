"""What the agent does to one container: make it, start it, find it again, end it, and clear away what is left.

Each verb is a few calls to the isolators and the launcher in the order that `isolators/base.py` promises. Nothing here
knows tasks' states: the steps (`agent/steps.py`) decide which verb is due.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import shutil
import signal
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from agent import ending, runtime
from agent.checkpoint import TaskRecord
from agent.execution import explained
from agent.launcher import record
from agent.launcher.adopt import wait_exit
from agent.launcher.client import Launch, Launcher, LauncherGone, LaunchError
from agent.log_limits import DEFAULT_POLICY, LogPolicy
from agent.provision import Provided, Provision, Tell
from agent.pumps import Pumps
from isolators import mount
from isolators.base import BundlePart, Container, Holder, Isolator, IsolatorError, Limit, Sandbox, Unsupported, merge
from isolators.removal import remove_tree
from model.network import Address
from model.pod import Pod
from model.resources import Resources
from model.task import TaskSpec, Usage

log = structlog.get_logger()
T = TypeVar("T")

OCI_VERSION = "1.2.0"
HOLDER_RESOURCES = Resources(cpus=100, mem=32)  # the least that bounds a pod's own process, which does nothing
RUN_MAX = "256m"  # a bundle takes some 40 KiB
KEEPER_DEADLINE_S = 5.0
WATCH_RETRY_S = 5.0


@dataclass(frozen=True, slots=True)
class Directories:
    """Where the agent keeps things, all of it 0700 and its own. `run` is for what nobody needs after a reboot: it is in
    memory, so that no start of a container waits for a disk."""

    state: Path

    @property
    def tasks(self) -> Path:
        return self.state / "tasks"

    @property
    def run(self) -> Path:
        return self.state / "run"

    @property
    def bundles(self) -> Path:
        return self.run / "containers"

    @property
    def layers(self) -> Path:
        return self.state / "layers"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    def log(self, task_id: str, stream: str) -> Path:
        return self.logs / task_id / stream

    def mount_run(self) -> None:
        """Before `make`. One that an earlier agent of this boot has mounted is the one to use."""
        self.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not any(point.path == self.run for point in mount.mount_points()):
            flags = mount.MS_NOSUID | mount.MS_NODEV
            mount.mount("tmpfs", self.run, "tmpfs", flags, f"mode=0700,size={RUN_MAX}")

    def make(self) -> None:
        for directory in (self.state, self.tasks, self.run, self.bundles, self.layers, self.logs):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)  # it may be from before, or the work of another umask (CVE-2024-25621)


@dataclass(frozen=True, slots=True)
class Made:
    """A sandbox that waits for a task. `frame` is what the isolators have said of its configuration so far."""

    sandbox: Sandbox
    frame: BundlePart
    launch: Launch
    addresses: tuple[Address, ...]


class Containers:
    def __init__(
        self,
        directories: Directories,
        isolators: Sequence[Isolator],
        launcher: Launcher,
        log_policy: LogPolicy = DEFAULT_POLICY,
        provision: Provision | None = None,
    ) -> None:
        """`provision` brings images and files; None: tasks that need some are refused."""
        self._directories = directories
        self.launcher = launcher
        self._isolators = isolators
        self._log_policy = log_policy
        self._pumps = Pumps()
        self._provision = provision

    def sandbox(self, id: str, id_base: int, network: str) -> Sandbox:
        return Sandbox(id, self._directories.bundles / id, self._directories.layers / id, id_base, network)

    def member(self, id: str, holder: Sandbox, pod: Pod, quota: int) -> Sandbox:
        """Of a container in the pod whose sandbox is `holder`."""
        keeper = record.read_keeper(str(holder.directory))
        pid = keeper.container.pid if keeper is not None and keeper.container is not None else 0
        shared = Holder(holder.id, holder.directory, holder.layer, pid, _shared(pod))
        return replace(self.sandbox(id, holder.id_base, holder.network), holder=shared, quota=quota)

    def container(self, task: TaskRecord) -> Container:
        """That of a task which has got one."""
        pod = task.spec.pod
        if pod is None or not task.holder:
            return Container(task.spec, self.sandbox(task.container, task.id_base, task.spec.network))
        holder = self.sandbox(task.holder, task.id_base, task.spec.network)
        return Container(task.spec, self.member(task.container, holder, pod, task.quota))

    def holder(self, task: TaskSpec, sandbox: Sandbox) -> Container:
        """The sandbox of the task's pod, as a container of which nothing but its limits matters."""
        assert task.pod is not None
        resources = task.pod.resources | HOLDER_RESOURCES
        return Container(TaskSpec(task.pod.id, task.framework, task.owner, (), resources, task.network), sandbox)

    async def recover(self, known: list[Container]) -> None:
        """Once, before anything else: every isolator finds its own again, and lets go of what belongs to nobody."""
        ids = {container.id for container in known}
        places = (self._directories.bundles, self._directories.layers)
        orphans = list({path.name for place in places for path in place.iterdir()} - ids)
        for orphan in orphans:
            await _try_delete(self._directories.bundles / orphan)
        for isolator in self._isolators:
            await _try_recover(isolator, known, orphans)
        await asyncio.gather(*(self._remove_orphan(orphan) for orphan in orphans))

    async def make(self, sandbox: Sandbox) -> Made:
        """The namespaces, limited and connected, with a process that waits in them. Raises IsolatorError, NetworkError,
        LaunchError; cleanup follows in either case."""
        for directory in (sandbox.directory, sandbox.layer):
            directory.mkdir(mode=0o700)
        frame = merge([{"ociVersion": OCI_VERSION}, *[await isolator.open(sandbox) for isolator in self._isolators]])
        holder = sandbox.holder.directory if sandbox.holder is not None else None
        launch = await self.launcher.create(sandbox.directory, frame, holder)
        try:
            results = await _all(isolator.isolate(sandbox, launch.pid) for isolator in self._isolators)
            return Made(sandbox, frame, launch, _addresses(results))
        except BaseException:
            await launch.abort()
            raise

    async def hold(self, made: Made, container: Container) -> None:
        """The sandbox is a pod's: it lives on without the agent, and gets no task. Raises as `start` does."""
        try:
            for isolator in self._isolators:
                await isolator.enforce(container)
            await made.launch.hold()
        except BaseException:
            await made.launch.abort()
            raise

    async def provide(self, made: Made, task: TaskSpec, tell: Tell) -> Provided:
        """The task's image, and what is fetched for it into the sandbox, which may take long: `tell` hears how far it
        is. Raises IsolatorError."""
        if self._provision is None:
            raise Unsupported("this agent brings no images and fetches no files")
        return await self._provision.provide(task, made.sandbox, tell)

    async def start(
        self, made: Made, task: TaskSpec, noted: Callable[[], Awaitable[None]], layers: tuple[Path, ...] = ()
    ) -> int:
        """Gives the sandbox to the task, with the `layers` of its image. Returns the pid of the task's program, when it
        runs, which it does not before `noted` has returned."""
        container = Container(task, made.sandbox, layers)
        try:
            limits = self._log_policy.of(task)
            parts = [made.frame, *[await isolator.prepare(container) for isolator in self._isolators]]
            (container.directory / "config.json").write_text(json.dumps(merge(parts)))
            stdout, stderr = self._logs(task.id)
            stdout.parent.mkdir(mode=0o700, exist_ok=True)
            await made.launch.fill(stdout, stderr, limits)
            for isolator in self._isolators:
                await isolator.enforce(container)
            await noted()
            return await made.launch.start()
        except LaunchError as error:
            await made.launch.abort()
            raise explained(container, error) from error
        except BaseException:
            await made.launch.abort()
            raise

    def never_ran(self, made: Made, error: LaunchError) -> bool:
        """Whether it was the end of the sandbox that made the start fail, before a program was executed in it."""
        if isinstance(error, LauncherGone):
            keeper = record.read_keeper(str(made.sandbox.directory))
            return keeper is not None and keeper.phase != record.STARTING
        return (error.path, error.errno) == ("init", errno.ESRCH)

    def keeper(self, container: Container) -> record.Keeper | None:
        """What the keeper of an earlier launch left; None when there was none in this boot."""
        return record.read_keeper(str(container.directory))

    async def exited(self, container: Container) -> record.Exit:
        return await wait_exit(container.directory, partial(self._take_over_logs, container))

    async def gone(self, sandbox: Sandbox) -> None:
        """Until a sandbox that has no task has ended."""
        await wait_exit(sandbox.directory)

    def ask(self, container: Container, number: int) -> bool:
        """Ask it with a signal to end. False when nobody in it would notice: see agent/ending.py."""
        keeper = self.keeper(container)
        return keeper is None or keeper.container is None or ending.ask(keeper.container, number)

    def kill(self, container: Container) -> None:
        """SIGKILL to the container's first process, with which the kernel ends all others in its pid namespace."""
        keeper = self.keeper(container)
        if keeper is not None and keeper.container is not None:
            ending.send(keeper.container, signal.SIGKILL)

    async def join(self, container: Container, session: str, pid: int) -> Path:
        """`pid` is among the container's processes from now on. The cgroup of its session: see `Isolator.join`."""
        joined = [await isolator.join(container, session, pid) for isolator in self._isolators]
        return next(path for path in joined if path is not None)

    async def leave(self, container: Container, session: str) -> None:
        for isolator in reversed(self._isolators):
            await isolator.leave(container, session)

    async def usage(self, container: Container) -> Usage:
        usage = Usage()
        for isolator in self._isolators:
            usage = await isolator.usage(container, usage)
        return usage

    async def connections(self, container: Container, ports: Collection[int]) -> int:
        """How many are open from outside to these ports of it."""
        return sum([await isolator.connections(container, ports) for isolator in self._isolators])

    async def watch(self, container: Container) -> Limit:
        """The first limit that is hit; there may never be one."""
        watches = [asyncio.ensure_future(_watched(isolator, container)) for isolator in self._isolators]
        try:
            for watch in asyncio.as_completed(watches):
                if (limit := await watch) is not None:
                    return limit
            never: asyncio.Future[Limit] = asyncio.get_running_loop().create_future()
            return await never
        finally:
            for watch in watches:
                watch.cancel()

    async def update(self, container: Container) -> None:
        """Bring the limits of a running container to what its task says. Raises IsolatorError."""
        for isolator in self._isolators:
            await isolator.update(container, container.task.resources)

    async def pause(self, container: Container) -> None:
        for isolator in self._isolators:
            await isolator.pause(container)

    async def resume(self, container: Container) -> None:
        for isolator in self._isolators:
            await isolator.resume(container)

    async def exceeded(self, container: Container) -> Limit | None:
        """The limit that it has hit so far."""
        for isolator in self._isolators:
            if (limit := await _limit(isolator.exceeded(container))) is not None:
                return limit
        return None

    async def cleanup(self, sandbox: Sandbox) -> None:
        """Undo all of it, the last isolator first. Collects what fails and goes on (ExceptionGroup at the end)."""
        errors: list[Exception] = []
        for cleanup in (_delete_by_runtime, *(isolator.cleanup for isolator in reversed(self._isolators))):
            try:
                await cleanup(sandbox)
            except (IsolatorError, OSError) as error:
                errors.append(error)
        self._pumps.end(sandbox.id)
        if errors:
            raise ExceptionGroup(f"clean up {sandbox.id}", errors)
        await self._remove(sandbox.id)

    def let_logs_age(self, task_id: str) -> None:
        """From now on (`log_retention.py`). Accepts a task that was never started."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._directories.logs / task_id)

    async def _remove_orphan(self, name: str) -> None:
        try:
            await self._remove(name)
        except OSError as error:
            log.error("orphan stays until the next start", container=name, error=str(error))

    async def _remove(self, name: str) -> None:
        """A keeper writes down how its sandbox ended, also when there was never a task for it, and may be about to."""
        directory = self._directories.bundles / name
        async with asyncio.timeout(KEEPER_DEADLINE_S):
            await wait_exit(directory)
        # By a thread: what a container has written may be much.
        await asyncio.to_thread(remove_tree, self._directories.layers / name)
        shutil.rmtree(directory, onerror=_absent_is_fine)

    def close(self) -> None:
        """Let go of containers, which go on."""
        self._pumps.close()

    def _take_over_logs(self, container: Container) -> None:
        try:
            limits = self._log_policy.of(container.task)
        except Unsupported:  # the node's settings have changed since it began
            limits = (self._log_policy.limits, self._log_policy.limits)
        self._pumps.take_over(container.id, container.directory, self._logs(container.task.id), limits)

    def _logs(self, task_id: str) -> tuple[Path, Path]:
        return self._directories.log(task_id, "stdout"), self._directories.log(task_id, "stderr")


def _shared(pod: Pod) -> tuple[str, ...]:
    """Kinds of namespaces, as OCI names them."""
    return ("user", "network", *(("ipc",) if pod.share_ipc else ()), *(("pid",) if pod.share_pid else ()))


async def _all(works: Iterable[Awaitable[T]]) -> list[T | BaseException]:
    """To their ends, also when one fails or nobody waits any more: none may still be at work when cleanup begins."""
    gathered = asyncio.gather(*works, return_exceptions=True)
    try:
        return await asyncio.shield(gathered)
    except asyncio.CancelledError:
        await asyncio.wait({gathered})
        raise


async def _delete_by_runtime(sandbox: Sandbox) -> None:
    await runtime.delete(sandbox.directory, sandbox.id)


async def _try_recover(isolator: Isolator, known: list[Container], orphans: list[str]) -> None:
    """What can not be cleared away must not keep the agent from what runs."""
    try:
        await isolator.recover(known, orphans)
    except (IsolatorError, OSError) as error:
        log.error("not all of an earlier agent's was cleared away", isolator=isolator.name, error=str(error))


async def _try_delete(orphan: Path) -> None:
    try:
        await runtime.delete(orphan, orphan.name)
    except (IsolatorError, OSError) as error:
        log.error("orphan not deleted", container=orphan.name, error=str(error))


def _addresses(results: Sequence[tuple[Address, ...] | BaseException]) -> tuple[Address, ...]:
    """Of all isolators together. Raises the first failure."""
    addresses: tuple[Address, ...] = ()
    for result in results:
        if isinstance(result, BaseException):
            raise result
        addresses += result
    return addresses


async def _watched(isolator: Isolator, container: Container) -> Limit | None:
    """A watch that fails is begun again: what enforces the limits is the kernel, but who is over one has to end."""
    said = ""
    while True:
        try:
            return await isolator.watch(container)
        except (IsolatorError, OSError) as error:
            if str(error) != said:
                said = str(error)
                log.warning("limits are not watched, trying again", container=container.id, error=said)
        await asyncio.sleep(WATCH_RETRY_S)


async def _limit(asked: Awaitable[Limit | None]) -> Limit | None:
    """None also when that can not be told."""
    try:
        return await asked
    except (IsolatorError, OSError) as error:
        log.warning("limits can not be read", error=str(error))
        return None


def _absent_is_fine(function: object, path: str, failure: tuple[type[BaseException], BaseException, object]) -> None:
    if not isinstance(failure[1], FileNotFoundError):
        raise failure[1]
