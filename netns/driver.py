"""The network driver contract: what a kind of network (bridge, overlay, ...) does for one container or for the node.

`configure` is told everything the node should know about networks and makes the kernel so; the other verbs are about
one container. All are idempotent: read what is, compute the difference, apply it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from model.network import Address, Block, Network, Vtep
from model.task import Bandwidth


class NetworkError(Exception):
    """An operation on the network failed: `attach web.3 to overlay "prod": create veth tv3f2a: File exists`."""


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """A network as one node sees it: its own blocks and, for an overlay, the other nodes' ends. Nothing is leased any
    more of those blocks that are `retiring`, which are among `blocks`. `singles` are addresses outside of any block
    that containers here have: they are leased only to who asks for one."""

    network: Network
    blocks: tuple[Block, ...]
    peers: tuple[Vtep, ...] = ()
    retiring: tuple[Block, ...] = ()
    singles: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True)
class Attachment:
    """One container on one network. `netns_pid` is a process in the container's network namespace; with `netns_path`
    it is the namespace that is found there (`netns/namespace.py`), which goes on without the container. By `eth0` it
    reaches everything, by any other interface (up to `eth7`) its own network only. `address` is the one it is to have;
    None: any."""

    container: str
    network: str
    netns_pid: int
    interface: str = "eth0"
    address: Address | None = None
    netns_path: str = ""


class Driver(Protocol):
    @property
    def underlay(self) -> Address:
        """This node's address among nodes."""

    def validate(self, spec: NetworkSpec) -> None:
        """Raises NetworkError that names the field. Called for every network before anything is changed."""

    async def configure(self, spec: NetworkSpec) -> None:
        """Make links, addresses, routes and neighbours of this network what `spec` says."""

    async def mend(self, network: str) -> list[str]:
        """Compare what the kernel has of this network with what `configure` and `attach` made, and put it right.
        Returns what was done, in words: nothing, when nobody had changed anything."""

    async def remove(self, network: str) -> None:
        """Remove what `configure` made. Accepts a network that was never there."""

    def known(self) -> frozenset[str]:
        """Networks of which there may be something in the kernel: configured, also by an earlier agent, and not removed
        since."""

    async def attach(self, attachment: Attachment) -> tuple[Address, ...]:
        """Connect the container and return its addresses; the lease is on disk before the kernel knows it."""

    def addresses(self, container: str) -> tuple[Address, ...]:
        """What `attach` gave the container on all its networks, also after a restart; empty when it is not attached."""

    def gateways(self, container: str) -> tuple[Address, ...]:
        """By which it reaches everything: the node's addresses on its first network. Empty when they are not ours."""

    async def detach(self, container: str) -> None:
        """Undo every `attach` of it, in part or whole. Accepts a container that was never attached. When it returns,
        nothing gets to the container or away from it, and somebody else may have its addresses; its links follow,
        which takes the kernel a while. Out of a namespace that was named by a path they are gone by then."""

    async def limit(self, container: str, bandwidth: Bandwidth | None) -> None:
        """Limit what goes to and from the container by all its links together; None: no longer. Connections go on, and
        `detach` undoes it. Raises NetworkError for one that is not attached."""

    async def gc(self, valid: frozenset[str]) -> None:
        """Release what belongs to containers that are not in `valid`."""

    def released(self) -> tuple[Block, ...]:
        """Retiring blocks of which nothing is leased any more."""
