"""What the tasks of a pod have in common on this node: a sandbox that holds their namespaces, when they start, and how
they end.

The pod's sandbox is one like any other, but it never gets a task. The tasks' own sandboxes join it (`Sandbox.holder`).
It is held, which is to say that it no longer ends with the agent, when all of the tasks are ready to be executed, and
so on disk; then they are executed in their order. It is cleared away with the last of them.

A pod's tasks share one fate: with the first that ends, or with the sandbox, all others end, and nobody is asked. It
follows from the records, so an agent that starts comes to the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from agent.books import Books
from agent.checkpoint import TaskRecord
from agent.containers import Containers, Made
from agent.launcher.record import STARTING
from agent.sandboxes import FAILURES, Sandboxes
from isolators.base import Container, Sandbox
from model.pod import Pod
from model.task import TaskSpec, TaskState

HOLDER_KILLED = "the process that holds its pod's namespaces was killed"


class PodEnded(Exception):
    """A task must not start any more, for another one of its pod has ended. The text says how."""


@dataclass(slots=True, eq=False)
class _Shared:
    """`sandbox` is there once it was made, with `made` if that was in this agent's life, and is `watched` once it is
    held. `ready`, `started` and `left` are ids of tasks; `fate` says why those that have not started never will."""

    sandbox: Sandbox | None = None
    made: Made | None = None
    watched: asyncio.Task[None] | None = None
    ready: set[str] = field(default_factory=set)
    started: set[str] = field(default_factory=set)
    left: set[str] = field(default_factory=set)
    fate: str = ""
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Raises PodEnded."""
        while not self.fate and not condition():
            await self.changed.wait()
        self.check()

    def check(self) -> None:
        if self.fate:
            raise PodEnded(self.fate)


class Pods:
    def __init__(self, containers: Containers, sandboxes: Sandboxes, books: Books) -> None:
        self._containers = containers
        self._sandboxes = sandboxes
        self._books = books
        self._pods: dict[str, _Shared] = {}  # by their ids

    def recover(self, records: Iterable[TaskRecord]) -> list[Container]:
        """The sandboxes of pods that were held. Whatever is left of others ends with their keepers."""
        found = {}
        living = [record for record in records if not record.over]
        for record in living:
            if record.holder and record.spec.pod is not None and record.holder not in found:
                sandbox = self._containers.sandbox(record.holder, record.id_base, record.spec.network)
                holder = self._containers.holder(record.spec, sandbox)
                if self._is_held(holder):
                    found[record.holder] = holder
                    self._resume(record.spec.pod, holder, {each.spec.id for each in living})
        return list(found.values())

    async def close(self) -> None:
        """Pods go on."""
        watches = [pod.watched for pod in self._pods.values() if pod.watched is not None]
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)

    def known(self, record: TaskRecord) -> bool:
        """Whether the container of a record is in a pod that is there still, or in none, or has not been executed: its
        task begins again, in another sandbox of the pod."""
        pod = record.spec.pod
        return (
            pod is None
            or pod.id in self._pods
            or self._containers.keeper(self._containers.container(record)) is not None
        )

    async def join(self, task: TaskSpec) -> Made:
        """A sandbox for the task. Raises PodEnded, and as `Sandboxes.make` does."""
        pod = _pod(task)
        shared = self._pods.setdefault(pod.id, _Shared())
        async with shared.changing, self._or_end(pod):
            shared.check()
            if shared.sandbox is None:
                shared.made = self._sandboxes.take_for(task) or await self._sandboxes.make_for(task)
                shared.sandbox = shared.made.sandbox
        return await self._sandboxes.join(shared.sandbox, pod)

    async def turn(self, task: TaskSpec) -> None:
        """The task is ready, and on disk. Returns when it is to be executed: all others are ready too, and those before
        it have been. Raises PodEnded and LaunchError."""
        pod, shared = _pod(task), self._pods[_pod(task).id]
        shared.ready.add(task.id)
        shared.notify()
        await shared.until(lambda: shared.ready >= set(pod.members))
        async with shared.changing, self._or_end(pod):
            shared.check()
            if shared.watched is None and shared.made is not None:
                holder = self._containers.holder(task, shared.made.sandbox)
                await self._containers.hold(shared.made, holder)
                shared.watched = self._watch(pod, holder)
        before = set(pod.members[: pod.members.index(task.id)])
        await shared.until(lambda: shared.started >= before)

    def started(self, task: TaskSpec) -> None:
        """It is executed. Accepts a task whose pod is not known: what is left of that is being cleared away."""
        shared = self._pods.get(_pod(task).id)
        if shared is not None:
            shared.ready.add(task.id)
            shared.started.add(task.id)
            shared.notify()

    def end(self, pod: Pod, fate: str) -> None:
        """None of its tasks starts any more. Accepts a pod that is not known."""
        shared = self._pods.get(pod.id)
        if shared is not None and not shared.fate:
            shared.fate = fate
            shared.notify()

    def find_fates(self) -> None:
        """Of all pods that the books know."""
        for record in list(self._books.records.values()):
            self.find_fate(record)

    def find_fate(self, record: TaskRecord) -> None:
        """End the task's pod if it has to. Accepts a task that is in none."""
        if record.spec.pod is not None and (found := fate(record, self._books.records)):
            self._share_fate(record.spec.pod, found)

    async def leave(self, task: TaskSpec) -> None:
        """Nothing of the task is left. Accepts being called again, and a task that never joined, or is in no pod.
        Raises ExceptionGroup when what is left of the pod could not be cleared away."""
        pod = task.pod
        shared = self._pods.get(pod.id) if pod is not None else None
        if pod is None or shared is None:
            return
        shared.left.add(task.id)
        if shared.left >= set(pod.members):
            await self._clear(shared)
            self._pods.pop(pod.id, None)

    def _share_fate(self, pod: Pod, found: str) -> None:
        self.end(pod, found)
        for member in pod.members:
            record = self._books.records.get(member)
            if record is not None and not (record.over or record.kill or record.end is not None):
                self._books.doom(member, found)

    @asynccontextmanager
    async def _or_end(self, pod: Pod) -> AsyncIterator[None]:
        """What the pod's sandbox is not fit for with one of its tasks, it is with none."""
        try:
            yield
        except FAILURES as error:
            self.end(pod, f"its pod could not be made: {error}")
            raise

    async def _clear(self, shared: _Shared) -> None:
        if shared.watched is not None:
            shared.watched.cancel()
        if shared.made is not None:
            await shared.made.launch.abort()
        if shared.sandbox is not None:
            await self._containers.cleanup(shared.sandbox)
            self._sandboxes.release(shared.sandbox)

    def _resume(self, pod: Pod, holder: Container, living: set[str]) -> None:
        left = set(pod.members) - living
        self._pods[pod.id] = _Shared(holder.sandbox, watched=self._watch(pod, holder), left=left)

    def _watch(self, pod: Pod, holder: Container) -> asyncio.Task[None]:
        async def watch() -> None:
            await self._containers.gone(holder.sandbox)
            self._share_fate(pod, HOLDER_KILLED)

        return asyncio.create_task(watch(), name=f"pod {pod.id}")

    def _is_held(self, holder: Container) -> bool:
        keeper = self._containers.keeper(holder)
        return keeper is not None and keeper.phase == STARTING


def absent(task: TaskSpec, known: Collection[str]) -> list[str]:
    """Tasks of its pod that are not among those that are known."""
    return [member for member in task.pod.members if member not in known] if task.pod is not None else []


def fate(record: TaskRecord, known: Collection[str]) -> str:
    """Why the pod of this task has to end; empty when it has not. With a task that has ended all others end, and with
    one that the node knows nothing of any more those that run."""
    pod = _pod(record.spec)
    end = record.status if record.over else record.end
    if end is not None:
        return f"its pod ended with {pod.container}: {end.reason}"
    missing = absent(record.spec, known)
    if missing and record.status.state >= TaskState.RUNNING:
        return f"{', '.join(missing)} of its pod is not known any more"
    return ""


def _pod(task: TaskSpec) -> Pod:
    assert task.pod is not None
    return task.pod
