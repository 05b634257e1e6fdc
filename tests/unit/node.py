"""A node without a kernel: containers, keepers and networks in memory, which keep the promises that the real ones keep.

`World` is what outlives an agent: containers that run, what keepers noted, what was prepared. A `Life` is one agent's
life in it, and can be ended at any operation, as by SIGKILL: from then on nothing that this agent does has an effect.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from agent.checkpoint import CODEC, Checkpoint, TaskRecord
from agent.containers import Containers, Directories
from agent.launcher import record
from agent.launcher.client import Launch, LaunchError
from agent.launcher.record import CREATED, CREATING, STARTING, Exit, Identity, Keeper
from agent.reconciler import Reconciler
from isolators.base import Container, IsolatorError, Unsupported
from model.network import Address
from model.resources import Resources
from model.task import TaskStatus, Usage, newer
from netns.driver import Attachment, NetworkError, NetworkSpec
from netns.vip.backend import Table

CAPACITY = Resources(4000, 4096, 10_000)
DEADLINE_S = 10.0


@dataclass(slots=True)
class World:
    """A task does as its argv says: `fail PLACE` fails there, `stubborn` ignores SIGTERM, `exit N` ends by itself."""

    directory: Path
    boot_id: str = "boot-1"
    prepared: set[str] = field(default_factory=set)
    alive: dict[str, int] = field(default_factory=dict)  # to the base of its ids
    keepers: dict[str, str] = field(default_factory=dict)  # to the phase
    exits: dict[str, Exit] = field(default_factory=dict)
    launched: Counter[str] = field(default_factory=Counter)
    limits: dict[str, int] = field(default_factory=dict)  # of processes
    frozen: set[str] = field(default_factory=set)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    master: dict[str, TaskStatus] = field(default_factory=dict)  # what it has been told
    master_log: list[TaskStatus] = field(default_factory=list)

    def exit(self, task_id: str, end: Exit) -> None:
        if self.alive.pop(task_id, None) is not None:
            self.exits[task_id] = end
            self.notify()

    def notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def reboot(self) -> None:
        self.boot_id = f"{self.boot_id}+"
        for task_id in list(self.alive):
            self.alive.pop(task_id)
        self.prepared.clear()
        self.keepers.clear()
        self.exits.clear()

    def tell(self, status: TaskStatus) -> None:
        known = self.master.get(status.task_id)
        if newer(known, status):
            self.master[status.task_id] = status
            self.master_log.append(status)


class Life:
    """`die_at`: the number of the operation that this agent does not live to see."""

    def __init__(self, world: World, die_at: int | None = None) -> None:
        self.world = world
        self.die_at = die_at
        self.operations = 0
        self.dead = False
        self.ready = asyncio.Event()
        self.ready.set()
        self.checkpoint = _Checkpoint(world.directory / "tasks", self)
        self.reconciler = Reconciler(
            _Containers(self), self.checkpoint, world.boot_id, CAPACITY, self._report, self.ready
        )

    def step(self) -> None:
        self.operations += 1
        if self.operations == self.die_at:
            self.dead = True
        if self.dead:
            raise asyncio.CancelledError

    async def begin(self) -> bool:
        """Recover, and say Hello. False when it died of it."""
        try:
            await self.reconciler.recover()
        except asyncio.CancelledError:
            await self.end()
            return False
        for status in self.reconciler.statuses():
            self._on_disk_if_over(status)
            self.world.tell(status)
            self.reconciler.acknowledged(status.task_id, status.sequence)
        return True

    async def end(self) -> None:
        """As by SIGKILL; or, for one that died already, the clearing away of its remains in this process."""
        self.dead = True
        await self.reconciler.close()
        for task_id, phase in list(self.world.keepers.items()):
            if phase in (CREATING, CREATED):  # its keeper sees the end of the agent's socket
                self.world.exit(task_id, Exit(error="aborted before the start"))

    def _report(self, status: TaskStatus) -> None:
        """As the session does it: what the master has not acknowledged is sent, and acknowledged."""
        if self.dead:
            return
        self._on_disk_if_over(status)
        if (news := self.reconciler.unacknowledged(status.task_id)) is not None:
            self.world.tell(news)
            self.reconciler.acknowledged(news.task_id, news.sequence)

    def _on_disk_if_over(self, status: TaskStatus) -> None:
        if status.state.terminal:
            path = self.world.directory / "tasks" / f"{status.task_id}.json"
            assert CODEC.decode(path.read_bytes()).status == status, "reported before it was on disk"
            assert status.task_id not in self.world.prepared, "reported before it was cleared away"


class _Checkpoint(Checkpoint):
    def __init__(self, directory: Path, life: Life) -> None:
        super().__init__(directory)
        self._life = life

    def save(self, record: TaskRecord) -> None:
        self._life.step()
        super().save(record)
        self._life.step()

    def forget(self, task_id: str) -> None:
        self._life.step()
        super().forget(task_id)
        self._life.step()


class _Containers(Containers):
    def __init__(self, life: Life) -> None:
        super().__init__(Directories(life.world.directory), (), None)  # type: ignore[arg-type]
        self._life = life
        self._world = life.world

    async def recover(self, known: list[Container]) -> None:
        world, ids = self._world, {container.id for container in known}
        for task_id in (world.prepared | world.keepers.keys() | world.alive.keys()) - ids:
            self._life.step()
            self._clear(task_id)

    async def prepare(self, container: Container) -> None:
        await self._step()
        assert container.id not in self._world.prepared, "prepared twice without a cleanup"
        self._world.prepared.add(container.id)
        await self._step()
        _fail(container, "prepare", IsolatorError("no cgroup"))
        _fail(container, "refuse", Unsupported("no such root file system"))

    async def create(self, container: Container) -> tuple[Launch, tuple[Address, ...]]:
        world = self._world
        world.keepers[container.id] = CREATING
        await self._step()
        _fail(container, "create", LaunchError("clone", container.id, 11))
        assert container.id_base not in world.alive.values(), "two containers with the same user ids"
        world.alive[container.id] = container.id_base
        world.keepers[container.id] = CREATED
        await self._step()
        return _Launch(self._life, container), (ip_address("100.64.0.2"),)  # type: ignore[return-value]

    def keeper(self, container: Container) -> record.Keeper | None:
        phase = self._world.keepers.get(container.id)
        return Keeper(Identity(1, 1), "", phase) if phase else None

    async def exited(self, container: Container) -> Exit:
        while container.id in self._world.alive:
            await self._world.changed.wait()
        await self._step()
        return self._world.exits.get(container.id, Exit(lost=True))

    def ask(self, container: Container, number: int) -> bool:
        self._life.step()
        assert container.id not in self._world.frozen, "it can not see the signal"
        if container.task.argv != ("stubborn",):
            self._world.exit(container.id, Exit(signal=number))
        return True

    def kill(self, container: Container) -> None:
        self._life.step()
        self._world.exit(container.id, Exit(signal=signal.SIGKILL))

    async def update(self, container: Container) -> None:
        await self._step()
        self._world.limits[container.id] = container.task.pids
        await self._step()

    async def pause(self, container: Container) -> None:
        await self._step()
        self._world.frozen.add(container.id)
        await self._step()

    async def resume(self, container: Container) -> None:
        await self._step()
        self._world.frozen.discard(container.id)
        await self._step()

    async def usage(self, container: Container) -> Usage:
        await self._step()
        return Usage(pids_limit=container.task.pids)

    async def cleanup(self, container: Container) -> None:
        await self._step()
        self._world.alive.pop(container.id, None)
        self._world.notify()
        self._world.prepared.discard(container.id)
        await self._step()
        if container.task.argv == ("fail", "cleanup"):
            raise ExceptionGroup("clean up", [IsolatorError("busy")])
        self._clear(container.id)
        await self._step()

    async def _step(self) -> None:
        self._life.step()
        await asyncio.sleep(0)
        self._life.step()

    def _clear(self, task_id: str) -> None:
        self._world.prepared.discard(task_id)
        self._world.alive.pop(task_id, None)
        self._world.keepers.pop(task_id, None)
        self._world.exits.pop(task_id, None)


class _Launch:
    def __init__(self, life: Life, container: Container) -> None:
        self.pid = 4711
        self._life = life
        self._container = container

    async def start(self) -> None:
        world, task = self._life.world, self._container.task
        self._life.step()
        if task.argv == ("fail", "start"):
            world.exit(task.id, Exit(error="exec: No such file"))
            raise LaunchError("exec", "/nowhere", 2)
        world.launched[task.id] += 1
        assert world.launched[task.id] == 1, "it runs twice"
        world.keepers[task.id] = STARTING
        await asyncio.sleep(0)
        if task.argv[0] == "exit":
            world.exit(task.id, Exit(code=int(task.argv[1])))
        self._life.step()

    async def abort(self) -> None:
        if not self._life.dead and self._life.world.keepers.get(self._container.id) != STARTING:
            self._life.world.exit(self._container.id, Exit(error="aborted"))


def _fail(container: Container, place: str, error: Exception) -> None:
    if container.task.argv == ("fail", place):
        raise error


class Driver:
    """`netns.driver.Driver`. Operations in `failing` fail; `gate` holds up all, or only the one that is `held`."""

    def __init__(self) -> None:
        self.configured: dict[str, NetworkSpec] = {}
        self.log: list[str] = []
        self.failing: set[str] = set()
        self.held = ""
        self.gate = asyncio.Event()
        self.gate.set()

    def validate(self, spec: NetworkSpec) -> None:
        if f"validate {spec.network.name}" in self.failing:
            raise NetworkError(f"network {spec.network.name}: bad")

    async def configure(self, spec: NetworkSpec) -> None:
        await self.work(f"configure {spec.network.name}")
        self.configured[spec.network.name] = spec

    async def remove(self, network: str) -> None:
        await self.work(f"remove {network}")
        self.configured.pop(network, None)

    async def attach(self, attachment: Attachment) -> tuple[Address, ...]:
        return ()

    async def detach(self, container: str) -> None: ...

    async def gc(self, valid: frozenset[str]) -> None: ...

    async def work(self, name: str) -> None:
        self.log.append(name)
        if self.held in ("", name):
            await self.gate.wait()
        if name in self.failing:
            raise NetworkError(f"{name}: not possible")


class Vips:
    """`netns.vip.backend.Backend`, on the same terms as `driver`."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.table: Table | None = None

    async def apply(self, table: Table) -> None:
        await self.driver.work("vips")
        self.table = table

    async def installed(self) -> str | None:
        return repr(self.table)

    async def remove(self) -> None:
        self.table = None

    def backends(self) -> list[str]:
        vips = self.table.vips.values() if self.table else ()
        return sorted(backend.task_id for vip in vips for backend in vip.backends)


async def settled(world: World) -> None:
    """Nothing of the world has changed for many turns of the event loop: all that can happen now has happened."""
    before, quiet = "", 0
    async with asyncio.timeout(DEADLINE_S):
        while quiet < 30:
            await asyncio.sleep(0)
            now = json.dumps([sorted(world.alive), sorted(world.keepers.items()), len(world.master_log)])
            quiet = quiet + 1 if now == before else 0
            before = now
