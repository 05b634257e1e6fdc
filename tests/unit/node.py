"""A node without a kernel: containers, keepers and networks in memory, which keep the promises that the real ones keep.

`World` is what outlives an agent: sandboxes, programs that run in them, what keepers noted. A `Life` is one agent's
life in it, and can be ended at any operation, as by SIGKILL: from then on nothing that this agent does has an effect.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from agent.checkpoint import CODEC, Checkpoint, TaskRecord
from agent.containers import Containers, Directories, Made
from agent.launcher import record
from agent.launcher.client import LaunchError
from agent.launcher.record import CREATED, CREATING, STARTING, Exit, Identity, Keeper
from agent.reconciler import Reconciler
from agent.sandboxes import Sandboxes
from isolators.base import Container, IsolatorError, Sandbox, Unsupported
from model.network import Address, Block
from model.policy import Policy
from model.resources import Resources
from model.task import Bandwidth, TaskSpec, TaskStatus, Usage, newer
from netns.dns.table import NameTable
from netns.driver import Attachment, NetworkError, NetworkSpec
from netns.firewall.table import Entrance, Guest, Zone
from netns.vip.backend import Table

CAPACITY = Resources(4000, 4096, 10_000)
DEADLINE_S = 10.0
PID = 4711
ADDRESS = "100.64.0.2"
NETWORK = "overlay"


@dataclass(slots=True)
class World:
    """A task does as its argv says: `fail PLACE` fails there, `stubborn` ignores SIGTERM, `exit N` ends by itself. A
    sandbox does as its network's name says: `fail PLACE`. All but what is told to the master, `launched` and `programs`
    is by the container's id."""

    directory: Path
    boot_id: str = "boot-1"
    prepared: set[str] = field(default_factory=set)
    alive: dict[str, int] = field(default_factory=dict)  # to the base of its ids
    keepers: dict[str, str] = field(default_factory=dict)  # to the phase
    exits: dict[str, Exit] = field(default_factory=dict)
    programs: dict[str, str] = field(default_factory=dict)  # of tasks, to the container they were started in
    launched: Counter[str] = field(default_factory=Counter)
    limits: dict[str, int] = field(default_factory=dict)  # of processes
    frozen: set[str] = field(default_factory=set)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    master: dict[str, TaskStatus] = field(default_factory=dict)  # what it has been told
    master_log: list[TaskStatus] = field(default_factory=list)

    def exit(self, task_id: str, end: Exit) -> None:
        """Of the task's program, if it runs."""
        self.end(self.programs.get(task_id, ""), end)

    def end(self, container: str, end: Exit) -> None:
        if self.alive.pop(container, None) is not None:
            self.exits[container] = end
            self.notify()

    def running(self) -> dict[str, int]:
        """Tasks whose programs run, to the base of their ids."""
        return {task: self.alive[container] for task, container in self.programs.items() if container in self.alive}

    def waiting(self) -> set[str]:
        """Sandboxes without a program."""
        return {container for container in self.alive if self.keepers[container] == CREATED}

    def notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def reboot(self) -> None:
        self.boot_id = f"{self.boot_id}+"
        self.alive.clear()
        self.prepared.clear()
        self.keepers.clear()
        self.exits.clear()

    def tell(self, status: TaskStatus) -> None:
        known = self.master.get(status.task_id)
        if newer(known, status):
            self.master[status.task_id] = status
            self.master_log.append(status)


class Life:
    """`die_at`: the number of the operation that this agent does not live to see. `spares`: it makes sandboxes ahead,
    from its first moment."""

    def __init__(self, world: World, die_at: int | None = None, *, spares: bool = False) -> None:
        self.world = world
        self.die_at = die_at
        self.spares = spares
        self.operations = 0
        self.dead = False
        self.ready = asyncio.Event()
        self.ready.set()
        self.checkpoint = _Checkpoint(world.directory / "tasks", self)
        self.containers = _Containers(self)
        self.sandboxes = Sandboxes(self.containers, self.ready)
        self.reconciler = Reconciler(
            self.containers, self.sandboxes, self.checkpoint, world.boot_id, CAPACITY, self._report, self.ready
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
        for status in self.reconciler.books.statuses():
            self._on_disk_if_over(status)
            self.world.tell(status)
            self.reconciler.books.acknowledged(status.task_id, status.sequence)
        if self.spares:
            self.sandboxes.take(NETWORK)
            self.sandboxes.begin()
        return True

    async def end(self) -> None:
        """As by SIGKILL; or, for one that died already, the clearing away of its remains in this process."""
        self.dead = True
        await self.reconciler.close()
        with suppress(asyncio.CancelledError):
            await self.sandboxes.close()
        for container, phase in list(self.world.keepers.items()):
            if phase in (CREATING, CREATED):  # its keeper sees the end of the agent's socket
                self.world.end(container, Exit(error="aborted before the start"))

    def _report(self, status: TaskStatus) -> None:
        """As the session does it: what the master has not acknowledged is sent, and acknowledged."""
        if self.dead:
            return
        self._on_disk_if_over(status)
        if (news := self.reconciler.books.unacknowledged(status.task_id)) is not None:
            self.world.tell(news)
            self.reconciler.books.acknowledged(news.task_id, news.sequence)

    def _on_disk_if_over(self, status: TaskStatus) -> None:
        if status.state.terminal:
            path = self.world.directory / "tasks" / f"{status.task_id}.json"
            saved = CODEC.decode(path.read_bytes())
            assert saved.status == status, "reported before it was on disk"
            assert saved.container not in self.world.prepared, "reported before it was cleared away"


class _Checkpoint(Checkpoint):
    def __init__(self, directory: Path, life: Life) -> None:
        super().__init__(directory)
        self._life = life

    def save(self, record: TaskRecord) -> None:
        self._life.step()
        super().save(record)
        self._life.step()

    def begin(self, record: TaskRecord) -> Callable[[], None]:
        self._life.step()
        sync = super().begin(record)

        def steps() -> None:
            try:
                self._life.step()
            finally:
                sync()  # it closes a file
            self._life.step()

        self._life.step()
        return steps

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
        for container in (world.prepared | world.keepers.keys() | world.alive.keys()) - ids:
            self._life.step()
            self._clear(container)

    async def make(self, sandbox: Sandbox) -> Made:
        world = self._world
        await self._step()
        assert sandbox.id not in world.prepared, "prepared twice without a cleanup"
        world.prepared.add(sandbox.id)
        await self._step()
        _fail(sandbox, "open", IsolatorError("no cgroup"))
        world.keepers[sandbox.id] = CREATING
        await self._step()
        _fail(sandbox, "create", LaunchError("clone", "sandbox", 11))
        assert sandbox.number not in world.alive.values(), "two containers with the same user ids"
        if sandbox.holder is not None and sandbox.holder.id not in world.alive:
            raise LaunchError("join namespaces", sandbox.holder.id, 3)
        world.alive[sandbox.id] = sandbox.number
        world.keepers[sandbox.id] = CREATED
        await self._step()
        launch: Any = _Launch(self._life, sandbox)
        return Made(sandbox, {}, launch, (ip_address(ADDRESS),))

    async def hold(self, made: Made, container: Container) -> None:
        await self._step()
        if container.id not in self._world.alive:
            raise LaunchError("hold", container.id, 104)
        self._world.keepers[container.id] = STARTING
        await self._step()

    async def gone(self, sandbox: Sandbox) -> None:
        while sandbox.id in self._world.alive:
            await self._world.changed.wait()

    async def start(
        self, made: Made, task: TaskSpec, noted: Callable[[], Awaitable[None]], layers: tuple[Path, ...] = ()
    ) -> int:
        container = Container(task, made.sandbox)
        try:
            await self._step()
            _fail(container, "prepare", IsolatorError("no root file system"))
            _fail(container, "refuse", Unsupported("no such root file system"))
            await self._step()
            await noted()
            self._noted(container)
            _fail(container, "start", LaunchError("exec", "/nowhere", 2))
            await self._execute(container)
            return made.launch.pid
        except BaseException:
            await made.launch.abort()
            raise

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
            self._world.end(container.id, Exit(signal=number))
        return True

    def kill(self, container: Container) -> None:
        self._life.step()
        self._world.end(container.id, Exit(signal=signal.SIGKILL))

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

    async def cleanup(self, sandbox: Sandbox) -> None:
        await self._step()
        self._world.alive.pop(sandbox.id, None)
        self._world.notify()
        self._world.prepared.discard(sandbox.id)
        await self._step()
        if sandbox.network == "fail cleanup":
            raise ExceptionGroup("clean up", [IsolatorError("busy")])
        self._clear(sandbox.id)
        await self._step()

    def let_logs_age(self, task_id: str) -> None:
        self._life.step()

    def _noted(self, container: Container) -> None:
        path = self._world.directory / "tasks" / f"{container.task.id}.json"
        assert CODEC.decode(path.read_bytes()).container == container.id, "to be executed before it was on disk"

    async def _execute(self, container: Container) -> None:
        world, task = self._world, container.task
        if container.id not in world.alive:
            raise LaunchError("start", container.id, 104)
        world.launched[task.id] += 1
        assert world.launched[task.id] == 1, "it runs twice"
        world.programs[task.id] = container.id
        world.keepers[container.id] = STARTING
        await asyncio.sleep(0)
        if task.argv[0] == "exit":
            world.exit(task.id, Exit(code=int(task.argv[1])))
        self._life.step()

    async def _step(self) -> None:
        self._life.step()
        await asyncio.sleep(0)
        self._life.step()

    def _clear(self, container: str) -> None:
        self._world.prepared.discard(container)
        self._world.alive.pop(container, None)
        self._world.keepers.pop(container, None)
        self._world.exits.pop(container, None)


class _Launch:
    def __init__(self, life: Life, sandbox: Sandbox) -> None:
        self.pid = PID
        self._life = life
        self._sandbox = sandbox

    @property
    def waits(self) -> bool:
        return self._sandbox.id in self._life.world.alive

    async def abort(self) -> None:
        if not self._life.dead and self._life.world.keepers.get(self._sandbox.id) != STARTING:
            self._life.world.end(self._sandbox.id, Exit(error="aborted"))


def _fail(failing: Container | Sandbox, place: str, error: Exception) -> None:
    told = failing.task.argv if isinstance(failing, Container) else tuple(failing.network.split())
    if told == ("fail", place):
        raise error


class Driver:
    """`netns.driver.Driver`. Operations in `failing` fail; `gate` holds up all, or only the one that is `held`."""

    def __init__(self) -> None:
        self.configured: dict[str, NetworkSpec] = {}
        self.earlier: frozenset[str] = frozenset()  # networks of an agent before this one
        self.in_use: set[Block] = set()  # although they retire
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

    async def mend(self, network: str) -> list[str]:
        return []

    async def remove(self, network: str) -> None:
        await self.work(f"remove {network}")
        self.configured.pop(network, None)
        self.earlier -= {network}

    def known(self) -> frozenset[str]:
        return self.earlier | self.configured.keys()

    async def attach(self, attachment: Attachment) -> tuple[Address, ...]:
        return ()

    def addresses(self, container: str) -> tuple[Address, ...]:
        return ()

    underlay = ip_address("192.0.2.1")

    def gateways(self, container: str) -> tuple[Address, ...]:
        return ()

    async def detach(self, container: str) -> None: ...

    async def limit(self, container: str, bandwidth: Bandwidth | None) -> None: ...

    async def gc(self, valid: frozenset[str]) -> None: ...

    def released(self) -> tuple[Block, ...]:
        retiring = (block for spec in self.configured.values() for block in spec.retiring)
        return tuple(block for block in retiring if block not in self.in_use)

    async def work(self, name: str) -> None:
        self.log.append(name)
        if self.held in ("", name):
            await self.gate.wait()
        if name in self.failing:
            raise NetworkError(f"{name}: not possible")


class Firewall:
    """`netns.firewall.table.Firewall`, in the order of the driver's operations."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.zones: tuple[Zone, ...] = ()
        self.policies: tuple[Policy, ...] = ()
        self.members: Mapping[str, frozenset[Address]] = {}
        self.peers: frozenset[Address] = frozenset()
        self.guests: dict[str, Guest] = {}
        self.entrances: frozenset[Entrance] | None = None

    async def configure(
        self,
        zones: tuple[Zone, ...],
        policies: tuple[Policy, ...],
        members: Mapping[str, frozenset[Address]],
        peers: frozenset[Address],
        entrances: frozenset[Entrance] | None = None,
    ) -> None:
        self.entrances = entrances
        await self.driver.work("configure firewall")
        self.zones, self.policies, self.members, self.peers = zones, policies, members, peers

    async def admit(self, guest: Guest) -> None:
        self.guests[guest.container] = guest

    async def dismiss(self, container: str) -> None:
        self.guests.pop(container, None)

    async def recover(self, guests: tuple[Guest, ...]) -> None:
        self.guests = {guest.container: guest for guest in guests}

    async def mend(self) -> list[str]:
        return []

    async def remove(self) -> None: ...


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

    async def mend(self) -> list[str]:
        return []

    async def remove(self) -> None:
        self.table = None

    def backends(self) -> list[str]:
        vips = self.table.vips.values() if self.table else ()
        return sorted(backend.task_id for vip in vips for backend in vip.backends)


class Names:
    """`netns.dns.table.Names`, on the same terms as `driver`."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.table: NameTable | None = None

    async def apply(self, table: NameTable) -> None:
        await self.driver.work("names")
        self.table = table


async def settled(world: World) -> None:
    """Nothing of the world has changed for many turns of the event loop: all that can happen now has happened."""
    before, quiet = "", 0
    async with asyncio.timeout(DEADLINE_S):
        while quiet < 30:
            await asyncio.sleep(0)
            now = json.dumps([sorted(world.alive), sorted(world.keepers.items()), len(world.master_log)])
            quiet = quiet + 1 if now == before else 0
            before = now
