"""Container networks: which there are (`networks/<name>` in the store), made and removed while the cluster runs.

A new cluster has some by default. They can be removed too, and stay so: that each of them was made once is remembered
(`defaults/networks/<name>`). Which addresses of a network a node has is kept elsewhere (`master/blocks.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from ipaddress import ip_network

import structlog

from master.network_rules import Refused, refuse_bad, refuse_conflicts
from master.store.base import Conflict, Delete, Put, Store
from master.store.damaged import readable
from model.codec import Codec
from model.network import Network, NetworkKind, Subnet
from model.node import Node

log = structlog.get_logger()

NETWORKS = "networks/"
MADE = "defaults/networks/"
NETWORK_CODEC = Codec(Network)

DEFAULTS = (
    Network(
        "overlay",
        NetworkKind.OVERLAY,
        (ip_network("100.64.0.0/11"), ip_network("fd01:b::/64")),
        vni=1024,
        static=(ip_network("100.95.0.0/16"),),
    ),
    Network(
        "bridge",
        NetworkKind.BRIDGE,
        (ip_network("100.96.0.0/12"), ip_network("fd01:a::/64")),
        static=(ip_network("100.111.0.0/16"),),
    ),
    Network("host", NetworkKind.HOST),
    Network("none", NetworkKind.NONE),
)

# Of a network that is there now, or, None, is there no more.
Listener = Callable[[str, Network | None], None]


class Networks:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._networks: dict[str, Network] = {}
        self._listeners: list[Listener] = []
        self._changing = asyncio.Lock()

    async def load(self) -> None:
        """Reads what is there, and makes the default networks that never were."""
        for network in DEFAULTS:
            await self._make_default(network)
        for _, network in await readable(self._store, NETWORKS, NETWORK_CODEC.decode):
            self._networks[network.name] = network

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def all(self) -> list[Network]:
        return list(self._networks.values())

    def get(self, name: str) -> Network | None:
        return self._networks.get(name)

    async def create(self, network: Network, nodes: Sequence[Node], pools: Sequence[Subnet]) -> None:
        """Raises Refused: it can not be, or not together with other networks, with `nodes`, or with the `pools` of
        virtual addresses."""
        refuse_bad(network)
        async with self._changing:
            refuse_conflicts(network, self.all(), nodes, pools)
            try:
                await self._store.transaction(Put(NETWORKS + network.name, NETWORK_CODEC.encode(network), expected=0))
            except Conflict as conflict:
                raise Refused("name", f'there is a network "{network.name}" already') from conflict
            log.info("network created", network=network.name, kind=network.kind.value)
            self._networks[network.name] = network
        for listener in self._listeners:
            listener(network.name, network)

    async def remove(self, name: str) -> None:
        """It is known, and nothing uses it."""
        async with self._changing:
            await self._store.transaction(Delete(NETWORKS + name))
            log.info("network removed", network=name)
            self._networks.pop(name, None)
        for listener in self._listeners:
            listener(name, None)

    async def _make_default(self, network: Network) -> None:
        made = Put(MADE + network.name, b"", expected=0)
        try:
            await self._store.transaction(made, Put(NETWORKS + network.name, NETWORK_CODEC.encode(network), expected=0))
        except Conflict as conflict:
            if conflict.key != made.key:  # somebody else's, of this name
                await self._store.transaction(made)
