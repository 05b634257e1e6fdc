"""Which addresses the names of VIPs have: given once, kept for as long as their owner is there, and free afterwards.

A name gets one address from the pools for each version of IP that they have. It is on disk (`vips/<framework>/<name>`)
before anybody is told. Addresses are used again as late as possible: somebody may still know them by their last name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address

import structlog

from master.store.base import Delete, Put, Store, StoreError
from master.store.damaged import readable
from model.codec import Codec
from model.network import Address, Subnet

log = structlog.get_logger()

PREFIX = "vips/"
STORE_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Named:
    """`owner` is that of its framework's tasks which were first to ask for the name."""

    owner: str
    addresses: tuple[str, ...]


CODEC = Codec(Named)


class VipNames:
    """Names are `<framework>/<name>`."""

    def __init__(self, store: Store, pools: Iterable[Subnet]) -> None:
        self._store = store
        self._pools = tuple(pools)
        self._named: dict[str, Named] = {}
        self._addresses: dict[str, tuple[Address, ...]] = {}
        self._taken: set[Address] = set()
        self._last: dict[Subnet, int] = {}  # the offset that was given last
        self._naming: dict[str, asyncio.Task[None]] = {}  # on their way to the store

    @property
    def pools(self) -> tuple[Subnet, ...]:
        return self._pools

    async def load(self) -> None:
        for key, named in await readable(self._store, PREFIX, CODEC.decode):
            self._know(key.removeprefix(PREFIX), named)
        for pool in self._pools:
            offsets = (int(each) - int(pool.network_address) for each in self._taken if each in pool)
            self._last[pool] = max(offsets, default=0)

    def get(self, name: str) -> tuple[Address, ...]:
        """Empty until it has some."""
        return self._addresses.get(name, ())

    def holder(self, address: Address) -> str:
        """The name that has it; empty when none does."""
        return next((name for name, addresses in self._addresses.items() if address in addresses), "")

    def complete(self, name: str) -> bool:
        """Whether it has one of each version that there is."""
        return {pool.version for pool in self._pools} <= {address.version for address in self.get(name)}

    def give(self, name: str, owner: str, avoid: Mapping[Address, int], then: Callable[[], None]) -> None:
        """Those that it lacks; `then` is called when they are on disk. `avoid` are addresses that nobody may have."""
        if name in self._naming:
            return
        versions = {pool.version for pool in self._pools} - {address.version for address in self.get(name)}
        given = [address for version in sorted(versions) if (address := self._free(version, avoid)) is not None]
        if not given:
            log.error("no VIP address left", pools=[str(pool) for pool in self._pools], name=name)
            return
        self._taken.update(given)
        named = Named(owner, tuple(str(address) for address in (*self.get(name), *given)))
        self._naming[name] = asyncio.create_task(self._write(name, named, then))

    def owners(self, framework: str) -> set[str]:
        """That have names."""
        return {named.owner for name, named in self._named.items() if name.startswith(f"{framework}/")}

    async def forget(self, framework: str, owner: str, others: Callable[[str], str]) -> list[str]:
        """What the owner has is free again, or that of who else asks for it, as `others` says (empty: nobody). Returns
        the names that nobody has any more. Raises StoreError."""
        theirs = [
            name
            for name, named in self._named.items()
            if named.owner == owner and name.startswith(f"{framework}/") and name not in self._naming
        ]
        heirs = {name: Named(heir, self._named[name].addresses) for name in theirs if (heir := others(name))}
        free = [name for name in theirs if name not in heirs]
        if theirs:
            await self._store.transaction(
                *(Delete(PREFIX + name) for name in free),
                *(Put(PREFIX + name, CODEC.encode(named)) for name, named in heirs.items()),
            )
        self._named |= heirs
        for name in free:
            self._taken.difference_update(self._addresses.pop(name))
            del self._named[name]
            log.info("VIP name is free", name=name, owner=owner)
        return free

    def _know(self, name: str, named: Named) -> None:
        self._named[name] = named
        self._addresses[name] = tuple(map(ip_address, named.addresses))
        self._taken.update(self._addresses[name])

    def _free(self, version: int, avoid: Mapping[Address, int]) -> Address | None:
        """The next one after that which was given last. Not the first of a pool, nor the last: they may be special."""
        for pool in self._pools:
            usable = pool.num_addresses - 2
            if pool.version != version or usable < 1:
                continue
            for step in range(usable):
                offset = (self._last.get(pool, 0) + step) % usable + 1
                address = pool[offset]
                if address not in self._taken and address not in avoid:
                    self._last[pool] = offset
                    return address
        return None

    async def _write(self, name: str, named: Named, then: Callable[[], None]) -> None:
        while True:
            try:
                await self._store.transaction(Put(PREFIX + name, CODEC.encode(named)))
                break
            except StoreError as error:
                log.error("VIP name not stored, trying again", name=name, error=str(error))
                await asyncio.sleep(STORE_RETRY_S)
        del self._naming[name]
        self._know(name, named)
        then()
