"""Who may connect to whom: the policies, in memory and in the store (`policies/<name>`), the store first.

Every node gets all of them (`policy/NAME`), and with `members/APP` the addresses of each app that one of them names as
a source. These follow the tasks: a task is a member from the moment its node says which addresses it has until it is
over, whether it is well, paused or about to end. A change of a task changes the item at once, and costs a look at its
own app only; of apps that no policy names nothing is sent.

A task in the nodes' network has no address of its own. Its connections to containers of an overlay come from one of
the addresses that its node has in that overlay (its blocks' `gateway` and `vtep_address`), so those are its, and
whatever else runs in that node's own network is let in with it. The node's address among nodes is not: behind it are
all of the node's containers when they leave the cluster, also for a published port. Who means it says `subnet`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

import structlog

from master.blocks import Blocks
from master.desired import Desired
from master.discovery import on_host
from master.networks import Networks
from master.store.base import Delete, Put, Store
from master.store.damaged import readable
from master.tasks import TaskRecord, Tasks
from model.codec import Codec
from model.network import Network
from model.policy import MOST_PAIRS, Members, Policy, app_of
from model.task import TaskState
from wire import control_pb2 as pb
from wire.networks import members_to_wire, policy_to_wire

log = structlog.get_logger()

PREFIX = "policies/"
CODEC = Codec(Policy)
Addresses = tuple[str, ...]
# Of a policy as it is now; None: it is gone.
Listener = Callable[[str, Policy | None], None]


class Unnameable(Exception):
    """A policy names networks that it can't: `problems` says what is wrong, by network."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        super().__init__("; ".join(f'network "{name}": {problem}' for name, problem in problems.items()))
        self.problems = problems


class TooMany(Exception):
    """All policies together would be more than nodes should have to compile."""


class Policies:
    def __init__(self, store: Store, tasks: Tasks, networks: Networks, blocks: Blocks, desired: Desired) -> None:
        self._store = store
        self._tasks = tasks
        self._networks = networks
        self._blocks = blocks
        self._desired = desired
        self._policies: dict[str, Policy] = {}
        self._coming: Policy | None = None  # on its way to the store
        self._lock = asyncio.Lock()  # of whoever changes policies
        self._addresses: dict[str, dict[str, Addresses]] = {}  # app -> task id -> of every task that has some
        self._members: dict[str, Members] = {}  # as they were shared, of apps that policies name
        self._listeners: list[Listener] = []
        tasks.listen(self._task_changed)
        blocks.listen(self._blocks_changed)
        networks.listen(self._network_changed)

    async def load(self) -> None:
        """After tasks, networks and blocks."""
        found = await readable(self._store, PREFIX, CODEC.decode)
        for record in self._tasks.all():
            self._task_changed(None, record)
        for _, policy in found:
            self._keep(policy)
        self._follow_sources()

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def all(self) -> list[Policy]:
        return sorted(self._policies.values(), key=lambda policy: policy.name)

    def get(self, name: str) -> Policy | None:
        return self._policies.get(name)

    def uses(self, network: str) -> list[str]:
        """The names of the policies that name `network`, also of one that is being written down: it must stay."""
        policies = [*self._policies.values(), *((self._coming,) if self._coming else ())]
        return sorted({policy.name for policy in policies if network in policy.networks})

    async def put(self, policy: Policy) -> bool:
        """In place of the one of this name; whether there was none. Raises Unnameable or TooMany."""
        async with self._lock:
            before = self._policies.get(policy.name)
            if policy == before:
                return False
            self._refuse(policy)
            self._coming = policy
            try:
                await self._store.transaction(Put(PREFIX + policy.name, CODEC.encode(policy)))
            finally:
                self._coming = None
            log.info("policy set", policy=policy.name, new=before is None)
            self._keep(policy)
            self._changed(policy.name, policy)
            return before is None

    async def remove(self, name: str) -> Policy | None:
        """None: there is none of this name."""
        async with self._lock:
            if (policy := self._policies.get(name)) is None:
                return None
            await self._store.transaction(Delete(PREFIX + name))
            log.info("policy removed", policy=name)
            del self._policies[name]
            self._desired.unshare(f"policy/{name}")
            self._changed(name, None)
            return policy

    def _refuse(self, policy: Policy) -> None:
        problems = {}
        for name in sorted(policy.networks):
            if (network := self._networks.get(name)) is None:
                problems[name] = "does not exist"
            elif not network.subnets:
                problems[name] = "has no addresses of its own that a policy could be for"
        if problems:
            raise Unnameable(problems)
        others = sum(each.pairs for each in self._policies.values() if each.name != policy.name)
        if others + policy.pairs > MOST_PAIRS:
            raise TooMany(
                f"{policy.pairs} pairs of a source and a port, beside {others} of the other policies,"
                f" are more than {MOST_PAIRS}"
            )

    def _keep(self, policy: Policy) -> None:
        self._policies[policy.name] = policy
        self._desired.share(pb.Item(key=f"policy/{policy.name}", policy=policy_to_wire(policy)))

    def _changed(self, name: str, policy: Policy | None) -> None:
        self._follow_sources()
        for listener in self._listeners:
            listener(name, policy)

    def _follow_sources(self) -> None:
        """Policies have changed, and so perhaps which apps they name."""
        named = {source.app for policy in self._policies.values() for source in policy.sources if source.app}
        for app in self._members.keys() - named:
            del self._members[app]
            self._desired.unshare(f"members/{app}")
        for app in named - self._members.keys():
            self._publish(app)

    def _task_changed(self, before: TaskRecord | None, after: TaskRecord | None) -> None:
        record = after or before
        assert record is not None
        app, task = app_of(record.spec.framework, record.spec.owner), record.spec.id
        had = self._addresses.get(app, {}).get(task, ())
        has = self._addresses_of(after) if after is not None else ()
        if has == had:
            return
        self._addresses.setdefault(app, {})[task] = has
        if not has:
            del self._addresses[app][task]
        if not self._addresses[app]:
            del self._addresses[app]
        if app in self._members:
            self._publish(app)

    def _blocks_changed(self, network: str, node: str) -> None:
        self._renumber(self._tasks.on(node))

    def _network_changed(self, name: str, network: Network | None) -> None:
        if network is None:  # nodes have no blocks of a new one yet
            self._renumber(self._tasks.all())

    def _renumber(self, records: Iterable[TaskRecord]) -> None:
        for record in records:
            if on_host(record):
                self._task_changed(record, record)

    def _publish(self, app: str) -> None:
        found = {address for has in self._addresses.get(app, {}).values() for address in has}
        members = Members(app, tuple(sorted(found)))
        if members != self._members.get(app):
            self._members[app] = members
            self._desired.share(pb.Item(key=f"members/{app}", members=members_to_wire(members)))

    def _addresses_of(self, record: TaskRecord) -> Addresses:
        if record.over:
            return ()
        if on_host(record):
            return self._ends_of(record.node) if record.status.state >= TaskState.STARTING else ()
        return record.status.addresses

    def _ends_of(self, node: str) -> Addresses:
        """By which the node itself is in overlays."""
        overlays = [network.name for network in self._networks.all() if network.vni is not None]
        blocks = [block for network in overlays for block in self._blocks.of(network, node)]
        return tuple(str(address) for block in blocks for address in (block.gateway, block.vtep_address))
