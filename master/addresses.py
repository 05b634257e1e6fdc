"""Addresses that tasks ask for: one by name, or to keep the one they had (`addresses/<network>/<address>` in the
store).

Both are of a network's static part, which no node has a block of, so they can be anywhere. A kept one belongs to an
owner: its next task gets it that begins when the last one is over, the same instance first. It stays the owner's until
the framework says that it is forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address

import structlog

from master.networks import Networks
from master.store.base import Delete, Put, Store
from master.store.damaged import readable
from master.tasks import TaskRecord, Tasks
from model.codec import Codec
from model.network import Address, Network, Subnet
from model.task import KEEP, Interface, TaskSpec
from model.volume import persistent

log = structlog.get_logger()

PREFIX = "addresses/"

Place = tuple[str, Address]  # network and address


@dataclass(frozen=True, slots=True)
class Kept:
    """`instance` is named by a persistent volume; empty when the owner's tasks have none."""

    network: str
    address: Address
    framework: str
    owner: str
    instance: str = ""

    @property
    def place(self) -> Place:
        return self.network, self.address


CODEC = Codec(Kept)


class Addresses:
    def __init__(self, store: Store, networks: Networks, tasks: Tasks) -> None:
        self._store = store
        self._networks = networks
        self._kept: dict[Place, Kept] = {}
        self._users: dict[Place, str] = {}  # ids of tasks, of those on their way to the store too
        tasks.listen(self._task_changed)
        self._tasks = tasks

    async def load(self) -> None:
        for _, kept in await readable(self._store, PREFIX, CODEC.decode):
            self._kept[kept.place] = kept
        for record in self._tasks.all():
            self._task_changed(None, record)

    def kept(self, network: str) -> list[Kept]:
        return sorted((kept for kept in self._kept.values() if kept.network == network), key=lambda each: each.address)

    def users(self, network: str) -> dict[Address, str]:
        """Addresses that tasks asked for, with the tasks."""
        return {address: task for (name, address), task in sorted(self._users.items()) if name == network}

    def owners(self, framework: str) -> set[str]:
        return {kept.owner for kept in self._kept.values() if kept.framework == framework}

    @contextmanager
    def claimed(self, tasks: Sequence[TaskSpec]) -> Iterator[tuple[tuple[TaskSpec, ...], list[Put]]]:
        """Holds what `tasks` ask for while they are written down: the tasks with addresses in place of words, and what
        is to be written with them. Raises ValueError when one can't be had."""
        held: dict[Place, str] = {}
        made: list[Kept] = []
        try:
            yield tuple(self._resolved(task, held, made) for task in tasks), [_put(kept) for kept in made]
            self._kept |= {kept.place: kept for kept in made}
        finally:
            for place, task_id in held.items():
                record = self._tasks.get(task_id)
                if record is None or place not in _places(record.spec):
                    self._users.pop(place, None)

    async def forget(self, framework: str, owner: str) -> None:
        """What the owner keeps is free again, when no task has it any more."""
        theirs = [kept for kept in self._kept.values() if (kept.framework, kept.owner) == (framework, owner)]
        if theirs:
            await self._store.transaction(*(Delete(_key(kept.place)) for kept in theirs))
        for kept in theirs:
            self._kept.pop(kept.place, None)
            log.info("address is free", network=kept.network, address=str(kept.address), owner=owner)

    async def forget_network(self, name: str) -> None:
        theirs = [kept for kept in self._kept.values() if kept.network == name]
        if theirs:
            await self._store.transaction(*(Delete(_key(kept.place)) for kept in theirs))
        for kept in theirs:
            self._kept.pop(kept.place, None)

    def _resolved(self, task: TaskSpec, held: dict[Place, str], made: list[Kept]) -> TaskSpec:
        address = self._address(task, Interface(task.network, task.address), held, made)
        interfaces = tuple(replace(each, address=self._address(task, each, held, made)) for each in task.interfaces)
        if (address, interfaces) == (task.address, task.interfaces):
            return task
        return replace(task, address=address, interfaces=interfaces)

    def _address(self, task: TaskSpec, asked: Interface, held: dict[Place, str], made: list[Kept]) -> str:
        if not asked.address:
            return ""
        network = self._networks.get(asked.network)
        if network is None:
            raise ValueError(f"task {task.id}: network {asked.network!r} does not exist")
        if not network.static:
            raise ValueError(f"task {task.id}: network {network.name!r} has no static addresses")
        if asked.address == KEEP:
            address = self._keep(task, network, made)
        else:
            address = self._asked(task, network, asked.address)
        self._users[network.name, address] = held[network.name, address] = task.id
        return str(address)

    def _asked(self, task: TaskSpec, network: Network, text: str) -> Address:
        try:
            address = ip_address(text)
        except ValueError:
            raise ValueError(f"task {task.id}: {text!r} is no address") from None
        if not any(_usable(address, part) for part in network.static):
            parts = ", ".join(map(str, network.static))
            raise ValueError(f"task {task.id}: {address} is not among the static addresses of {network.name}: {parts}")
        place = network.name, address
        if (user := self._users.get(place)) is not None:
            raise ValueError(f"task {task.id}: address {address} of network {network.name} is taken by task {user}")
        kept = self._kept.get(place)
        if kept is not None and (kept.framework, kept.owner) != (task.framework, task.owner):
            raise ValueError(f"task {task.id}: address {address} of network {network.name} is kept for {kept.owner}")
        return address

    def _keep(self, task: TaskSpec, network: Network, made: list[Kept]) -> Address:
        instance = min(persistent(task.volumes), default="")
        theirs = [
            kept
            for kept in self.kept(network.name)
            if (kept.framework, kept.owner, kept.instance) == (task.framework, task.owner, instance)
            and kept.place not in self._users
        ]
        if theirs:
            return theirs[0].address
        for part in network.static:
            for address in part:
                place = network.name, address
                if place not in self._users and place not in self._kept and _usable(address, part):
                    made.append(Kept(network.name, address, task.framework, task.owner, instance))
                    return address
        raise ValueError(f"task {task.id}: all static addresses of network {network.name} are taken")

    def _task_changed(self, before: TaskRecord | None, after: TaskRecord | None) -> None:
        record = after or before
        assert record is not None
        for place in _places(record.spec):
            if after is not None and not after.over:
                self._users[place] = record.spec.id
            elif self._users.get(place) == record.spec.id:
                del self._users[place]


def _places(spec: TaskSpec) -> list[Place]:
    return [(each.network, ip_address(each.address)) for each in spec.attachments if each.address]


def _usable(address: Address, part: Subnet) -> bool:
    """The last address of an IPv4 subnet may be that of a broadcast."""
    return address in part and (address.version == 6 or address != part.broadcast_address)


def _put(kept: Kept) -> Put:
    return Put(_key(kept.place), CODEC.encode(kept))


def _key(place: Place) -> str:
    return f"{PREFIX}{place[0]}/{place[1]}"
