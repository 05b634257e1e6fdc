"""The offer contract: the only door through which a framework, ours or foreign, sees the cluster.

A framework subscribes, gets offers (what one node has free), answers each with tasks or with a reason why not, and
hears about its tasks. Updates come at least once and are repeated until acknowledged; a framework that subscribes
again gets the latest update of every task it has not acknowledged the end of.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from model.node import Node
from model.resources import Resources
from model.task import TaskSpec, TaskStatus
from model.vip import VipLabel
from model.volume import PersistentVolume


class OfferGone(Exception):
    """The offer was rescinded, used or declined before: wait for the next one."""


class UnknownTask(Exception):
    """No such task, or another framework's."""


class UnknownVolume(Exception):
    """No such volume, or another framework's."""


@dataclass(frozen=True, slots=True)
class Offer:
    """`resources` is what `node` has free now, all of it held for this framework until it answers or the offer is
    rescinded. `networks` are the container networks that exist there. `published` are protocols and ports of the node
    with the tasks that have them. `addresses` says of a network how many more tasks can be on it there; absent: any
    number."""

    id: str
    node: Node
    resources: Resources
    networks: frozenset[str]
    published: Mapping[tuple[str, int], str] = field(default_factory=dict)
    addresses: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Offers:
    offers: tuple[Offer, ...]


@dataclass(frozen=True, slots=True)
class Rescinded:
    offer_id: str


@dataclass(frozen=True, slots=True)
class TaskView:
    """One of the framework's tasks, as the master knows it. `killing`: somebody asked for its end. `leaving`: its node
    is to have no tasks: another one shall run elsewhere, if it can, and this one shall end. `unreachable`: since when
    its node is, on the monotonic clock; None: it is not."""

    spec: TaskSpec
    node: str
    status: TaskStatus
    killing: bool = False
    leaving: bool = False
    unreachable: float | None = None


@dataclass(frozen=True, slots=True)
class VolumeView:
    """One of the framework's persistent volumes. It holds its size of the node's disk, which is in no offer. `task` is
    the one that uses it; empty: none does. `destroying`: nothing can use it any more."""

    volume: PersistentVolume
    node: str
    task: str = ""
    destroying: bool = False


@dataclass(frozen=True, slots=True)
class Update:
    task: TaskView


@dataclass(frozen=True, slots=True)
class NodesChanged:
    """What `nodes` returns is not what it was."""


Event = Offers | Rescinded | Update | NodesChanged


class Subscription(Protocol):
    """A framework's end of the contract."""

    def events(self) -> AsyncIterator[Event]:
        """Never ends. First one Update for each task that is not over and acknowledged, then what happens."""

    async def accept(self, offer_id: str, tasks: Sequence[TaskSpec], volumes: Sequence[PersistentVolume] = ()) -> None:
        """Make `volumes` and run `tasks` on the offer's node; on the store's disk when it returns. What they leave of
        the offer is free again. The tasks of a pod come together. Persistent volumes of the tasks are among these or
        were made there before, and nobody else uses them. Raises OfferGone, or ValueError when they need more than was
        offered, an id was used before, a volume or an address can't be had, or another task has a port of the node."""

    def decline(self, offer_id: str, reason: str, filter_s: float = 5.0) -> None:
        """`reason` is for people. The same node is not offered again for `filter_s`, unless revived."""

    def revive(self) -> None:
        """Forget filters; offers flow."""

    def suppress(self) -> None:
        """No offers until revived."""

    async def kill(self, task_id: str) -> None:
        """End the task, and its whole pod: their backends leave the VIPs, then they are stopped. At once for a task
        that is over. Raises UnknownTask."""

    def nodes(self) -> tuple[Node, ...]:
        """Those that take tasks now, as anybody can see in the cluster's API. What is free there, only offers say."""

    def volumes(self) -> tuple[VolumeView, ...]:
        """The framework's, on all nodes, as known now."""

    async def destroy(self, volume_id: str) -> None:
        """The volume and what is on it, as soon as no task uses it and its node is there. Raises UnknownVolume."""

    def vip_problem(self, label: VipLabel) -> str:
        """Why no task can have this VIP; empty when it can."""

    def owners(self) -> set[str]:
        """Of the framework's, those for which addresses or names of VIPs are kept."""

    async def forget(self, owner: str) -> None:
        """What was kept for the owner is free again."""

    async def reconcile(self) -> tuple[TaskView, ...]:
        """Every task of the framework that is not over and acknowledged, as known now."""

    async def acknowledge(self, task_id: str, sequence: int) -> None:
        """The update was dealt with. A task that is over is forgotten with this."""
